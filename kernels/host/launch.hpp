// Running a launch to its end: as the kernel's native twin, or block by block on fibers.
#pragma once
#include "cluster.hpp"
#include "error.hpp"

namespace simt {

// What a GPU refuses at cuLaunchKernel: sizes and limits.
Result check_geometry(const Kernel& kernel, const Geometry& geometry);

Result execute(const Kernel& kernel, const Geometry& geometry, void** parameters);

constexpr uint32_t portable_cluster = 8;  // blocks that every GPU with clusters runs together
constexpr uint32_t max_cluster = 16;      // blocks that a GPU may run together, for kernels that allow it
constexpr uint32_t max_shared_per_block = 99 << 10;  // the least of the supported GPUs (sm_89, sm_120)
constexpr uint32_t max_shared_on_hopper = 227 << 10;

inline uint32_t most_shared(const Kernel& kernel) {
  return kernel.is_for_hopper ? max_shared_on_hopper : max_shared_per_block;
}

}  // namespace simt
