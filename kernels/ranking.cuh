// WHAT      Searches of a block or warp over candidates ranked by rank_of(): the best, the best k; and totals.
//
// MATH      Every combination is a maximum or an integer sum: no result depends on block size or order.
//
// REQUIRES  every thread of the block (or warp) calls; block size a multiple of 32, at most 1024
#pragma once

#include "portable_math.cuh"

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;

__device__ __forceinline__ int lane_index() {
  return threadIdx.x % kWarp;
}
__device__ __forceinline__ int warp_index() {
  return threadIdx.x / kWarp;
}
__device__ __forceinline__ int num_warps() {
  return blockDim.x / kWarp;
}

struct Maximum {
  __device__ static u64 combine(u64 a, u64 b) { return a > b ? a : b; }
};
struct Sum {
  __device__ static u64 combine(u64 a, u64 b) { return a + b; }
};

// Four consecutive logits of a row; places beyond its end read as impossible.
struct Quad {
  float logit[4];
};

// REQUIRES  `row` starts on 16 bytes if row_len % 4 == 0, as every row of a packed array then does.
__device__ __forceinline__ Quad load_quad(const float* __restrict__ row, int quad, int row_len) {
  const int first = 4 * quad;
  if (row_len % 4 == 0) {
    const float4 four = reinterpret_cast<const float4*>(row)[quad];
    return {{four.x, four.y, four.z, four.w}};
  }
  Quad result;
  for (int i = 0; i < 4; ++i) result.logit[i] = first + i < row_len ? row[first + i] : -INFINITY;
  return result;
}

// A row's quads from `first` up to `end`: all of them, or those of a slice.
struct QuadRange {
  int first, end;
};
__device__ __forceinline__ QuadRange all_quads(int row_len) {
  return {0, (row_len + 3) / 4};
}
__device__ __forceinline__ QuadRange quads_of_slice(int slice, int row_len) {
  constexpr int kSliceQuads = kSliceLen / 4;
  const int end = all_quads(row_len).end, next = (slice + 1) * kSliceQuads;
  return {slice * kSliceQuads, next < end ? next : end};
}

// Quads that a thread loads before it looks at the first: all that it waits for is memory.
constexpr int kInFlight = 4;

struct EveryQuad {
  __device__ bool operator()(int) const { return true; }
};

// use(quad, stride, quads) for batches of the quads of a range, which the threads of a block share: this thread has
// quads `quad`, `quad + stride` and so on. The lanes of a warp stay together, as warp operations want it: beyond the
// end of the range, and of quads that are not wanted, all four logits are impossible.
template <typename Use, typename Wants = EveryQuad>
__device__ __forceinline__ void for_each_batch(const float* __restrict__ row, int row_len, QuadRange range,
                                               Use&& use, Wants&& wants = {}) {
  const int stride = blockDim.x;
  for (int first = range.first + warp_index() * kWarp; first < range.end; first += kInFlight * stride) {
    Quad quads[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int quad = first + i * stride + lane_index();
      quads[i] = quad < range.end && wants(quad) ? load_quad(row, quad, row_len)
                                                 : Quad{{-INFINITY, -INFINITY, -INFINITY, -INFINITY}};
    }
    use(first + lane_index(), stride, quads);
  }
}

// use(quad, logits) for one quad after the other.
template <typename Use, typename Wants = EveryQuad>
__device__ __forceinline__ void for_each_quad(const float* __restrict__ row, int row_len, QuadRange range,
                                              Use&& use, Wants&& wants = {}) {
  auto one_by_one = [&](int quad, int stride, const Quad(&quads)[kInFlight]) {
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      // Whole warps leave.
      if (quad - lane_index() + i * stride < range.end) use(quad + i * stride, quads[i]);
    }
  };
  for_each_batch(row, row_len, range, one_by_one, wants);
}

// The first lane with which the total of `above` and the lanes up to it reaches `wanted`; the last if none does.
// `above` becomes what there is before that lane. One warp.
__device__ __forceinline__ int reaching_lane(u64 own, u64 wanted, u64& above) {
  u64 through = own;  // total of the lanes up to this one
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const u64 left = __shfl_up_sync(kWholeWarp, through, distance);
    if (lane_index() >= distance) through += left;
  }
  const unsigned reached = __ballot_sync(kWholeWarp, above + through >= wanted);
  const int lane = reached ? __ffs(static_cast<int>(reached)) - 1 : kWarp - 1;
  above = __shfl_sync(kWholeWarp, above + through - own, lane);
  return lane;
}

// Combines a number of every thread; all threads get the result. `scratch` may be reused after the next
// barrier.
template <typename Operation>
__device__ __forceinline__ u64 block_combine(u64 value, u64 (&scratch)[kMaxWarps]) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value = Operation::combine(value, __shfl_xor_sync(kWholeWarp, value, distance));
  __syncthreads();  // the scratch of an earlier call has been read
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  value = scratch[0];
  for (int warp = 1; warp < num_warps(); ++warp) value = Operation::combine(value, scratch[warp]);
  return value;
}

// The best k <= 32 candidates that a warp has seen, best first: lane i holds the i-th. Empty places hold 0.
struct WarpTop {
  u64 held = 0;
  u64 worst = 0;  // of the k held: the rank to beat, the same in all lanes
  bool is_empty = true;

  // Offers some candidates a lane (0: none), all different. One vote, where none is good enough.
  template <int kCount>
  __device__ __forceinline__ void offer(u64 (&candidates)[kCount], int k) {
    u64 own = greatest(candidates);
    if (is_empty) {
      // The best of every lane, sorted, leave few candidates to be let in one by one.
      is_empty = false;
      held = sorted_descending(own);
      worst = __shfl_sync(kWholeWarp, held, k - 1);
      if (own >= worst) own = without(candidates, own);
    }
    unsigned better = __ballot_sync(kWholeWarp, own > worst);
    while (better != 0) {
      const int giver = __ffs(static_cast<int>(better)) - 1;
      const u64 best = __shfl_sync(kWholeWarp, own, giver);
      const int place = __popc(__ballot_sync(kWholeWarp, held > best));
      const u64 left = __shfl_up_sync(kWholeWarp, held, 1);
      if (lane_index() == place) held = best;
      if (lane_index() > place) held = left;
      worst = __shfl_sync(kWholeWarp, held, k - 1);
      if (lane_index() == giver) own = without(candidates, best);
      better = __ballot_sync(kWholeWarp, own > worst);
    }
  }

  template <int kCount>
  __device__ __forceinline__ static u64 greatest(const u64 (&candidates)[kCount]) {
    u64 best = candidates[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) best = Maximum::combine(best, candidates[i]);
    return best;
  }

  // The greatest that is left without one of them.
  template <int kCount>
  __device__ __forceinline__ static u64 without(u64 (&candidates)[kCount], u64 one) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (candidates[i] == one) candidates[i] = 0;
    }
    return greatest(candidates);
  }

  // The numbers of all lanes, the greatest in lane 0: a bitonic sort.
  __device__ __forceinline__ static u64 sorted_descending(u64 value) {
#pragma unroll
    for (int run = 2; run <= kWarp; run *= 2) {
#pragma unroll
      for (int distance = run / 2; distance > 0; distance /= 2) {
        const u64 other = __shfl_xor_sync(kWholeWarp, value, distance);
        // Runs descend and ascend in turns; the last one descends.
        const bool descends = (lane_index() & run) == 0, is_first = (lane_index() & distance) == 0;
        value = (value > other) == (descends == is_first) ? value : other;
      }
    }
    return value;
  }
};
