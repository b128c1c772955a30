// WHAT      Brings bytes into the second-level cache that a later launch reads, while memory has nothing else to
//           do: weights of the pass that the host is about to ask for.
// MATH      none: nothing is written
// SHAPES    bytes    u8 [32 sectors]  in
// LAUNCH    grid any, block any
// REQUIRES  sectors >= 0
// NUMERICS  none
// TWINS     src/kernels/prefetch.rs, tests/kernels/prefetch.rs; there is no oracle, as there is nothing to see
//
// A prefetch is asked for and not waited for, so the launch ends long before the bytes are there. One a sector of 32
// bytes: how much of a line of 128 the instruction brings is not said. 25 MB are 25600 of them for a warp, some 200
// for each multiprocessor of an H200, a microsecond or two.
#include "prims.cuh"

constexpr int kSectorBytes = 32;

extern "C" __global__ void __launch_bounds__(256) prefetch(const unsigned char* bytes, int sectors) {
  // Behind all that runs, which needs the cache itself.
  take_turn();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < sectors; i += stride)
    prefetch_sector(bytes + i * kSectorBytes);
}
EXPORT_KERNEL(prefetch)
