// WHAT      Blocks that share a row of logits: those of a thread block cluster, a part of the row each, which meet in
//           shared memory. A block that has a row to itself is the only part, on GPUs without clusters always.
//
// MATH      Every combination is a maximum or an integer sum: no result depends on how many parts a row has.
//
// REQUIRES  every thread of every part calls; block sizes a multiple of 32, at most 1024
#pragma once

#include "ranking.cuh"

constexpr int kMaxParts = 8;  // blocks of a cluster that every GPU with clusters can run together

struct RowParts {
  int own = 0, count = 1;

  // The parts that the blocks of a cluster are.
  __device__ __forceinline__ static RowParts of_cluster() {
#if HAS_CLUSTERS
    return {cluster_rank(), cluster_size()};
#else
    return {};
#endif
  }

  // Quads of the row that this part has; none where the others have them all.
  __device__ __forceinline__ QuadRange quads(int row_len) const {
    const int end = all_quads(row_len).end, share = (end + count - 1) / count;
    return {min(own * share, end), min((own + 1) * share, end)};
  }

  // All threads of all parts meet, and see what the others have written.
  __device__ __forceinline__ void meet() const {
#if HAS_CLUSTERS
    if (count > 1) return cluster_sync();
#endif
    __syncthreads();
  }

  // The last thing a part does: until then others may read its shared memory.
  __device__ __forceinline__ void leave() const {
#if HAS_CLUSTERS
    if (count > 1) cluster_meet();
#endif
  }

  // The sum of what all parts have at this place of their shared memory. They have met since it was written.
  __device__ __forceinline__ u64 total(const u64* place) const {
    u64 sum = *place;
#if HAS_CLUSTERS
    if (count > 1) {
      u64 each[kMaxParts];  // all on their way before the first is looked at
#pragma unroll
      for (int part = 0; part < kMaxParts; ++part)
        each[part] = part < count && part != own ? load_peer(place, part) : 0;
#pragma unroll
      for (int part = 0; part < kMaxParts; ++part) sum += each[part];
    }
#endif
    return sum;
  }

  // Combines a number of every thread of all parts; all threads get the result. `slot` is shared memory, another one for
  // every call: a part may still read it when the next is made. `scratch` is that of block_combine.
  template <typename Operation>
  __device__ __forceinline__ u64 combine(u64 value, u64& slot, u64 (&scratch)[kMaxWarps]) const {
    value = block_combine<Operation>(value, scratch);
#if HAS_CLUSTERS
    if (count > 1) {
      if (threadIdx.x == 0) slot = value;
      cluster_sync();
      // 0 changes no maximum and no sum.
      value = lane_index() < count ? load_peer(&slot, lane_index()) : 0;
      for (int distance = kMaxParts / 2; distance > 0; distance /= 2)
        value = Operation::combine(value, __shfl_xor_sync(kWholeWarp, value, distance));
      value = __shfl_sync(kWholeWarp, value, 0);
    }
#endif
    return value;
  }
};
