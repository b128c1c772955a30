// WHAT      Says whether a while node of a graph goes on: what a round of one costs is a ceiling, too. No engine launches it.
// MATH      counter -= 1; the condition is whether anything is left
// SHAPES    counter  u32 [1]  inout
// LAUNCH    one block of one warp
// TWINS     src/kernels/ceilings.rs, tests/kernels/ceilings.rs
//
// A file of its own, and the last by name: images are loaded in that order until one has the kernel that is looked for, and
// whether a driver loads one that calls set_condition is the driver's business. No other kernel shall depend on it.
#include "prims.cuh"

extern "C" __global__ void __launch_bounds__(32) while_count_down(uint32_t* counter, uint64_t condition) {
  if (threadIdx.x != 0) return;
  const uint32_t left = *counter - 1;
  *counter = left;
  set_condition(condition, left != 0);
}
EXPORT_KERNEL(while_count_down)
