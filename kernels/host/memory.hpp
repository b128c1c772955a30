// Device memory: host allocations between red zones, poisoned at birth, known by address for the checks.
#pragma once
#include <stdint.h>

#include <string>

#include "error.hpp"
#include "kernel_registry.hpp"

namespace simt {

using DevicePointer = uint64_t;

// `what` names the call in error texts.
Result allocate_device(DevicePointer* pointer, size_t bytes);
Result free_device(DevicePointer pointer, const char* call);
Result allocate_host(void** pointer, size_t bytes);  // pinned
Result free_host(void* pointer);
bool is_pinned(const void* pointer);

struct AllocationRange {
  DevicePointer begin = 0;
  uint64_t bytes = 0;
};
bool find_allocation(DevicePointer pointer, AllocationRange* range);
bool find_memory(DevicePointer pointer, AllocationRange* range);  // the same, or pinned host memory

// [pointer, pointer+bytes) lies inside one live allocation; else an error that says what is wrong with it.
Result check_range(DevicePointer pointer, uint64_t bytes, const char* call);

// Every non-null pointer argument, also inside parameter structs, points into a live allocation. The
// allocations are remembered as touched by `kernel`.
Result check_arguments(const Kernel& kernel, void** parameters);

// Red zones of the allocations touched since the last check.
Result check_red_zones();

struct MemoryUse {
  uint64_t used, total;
};
MemoryUse memory_use();

}  // namespace simt
