// Time as events see it: the machine's, or modelled time from a cost table (SIMT_CLOCK).
#pragma once
#include <stdint.h>

#include "kernel_registry.hpp"

namespace simt {

// Nanoseconds. On the virtual clock every stream and the host have their own time; launches and copies advance it.
uint64_t wall_ns();
bool clock_is_virtual();
uint64_t modelled_kernel_ns(const Kernel& kernel, void** parameters);
uint64_t modelled_copy_ns();

}  // namespace simt
