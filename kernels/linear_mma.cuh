// Products of a tile of weights and a tile of tokens by mma.m16n8k16, and where a thread's sums belong. Weights are the
// 16-side and tokens the 8-side, so the work grows in steps of 8 tokens.
#pragma once
#include "linear_tile.cuh"

constexpr int kChunk = 8;  // elements of a 16-byte copy
constexpr int kRowChunks = kTileK / kChunk;

// The tile of a CTA, and the warps that multiply it: a grid, kWarpsAlongTokens of them on the side of the tokens. There
// may be more threads that do other things.
template <int kTokens_, int kWeights_, int kWarps_, int kWarpsAlongTokens_, int kStages_,
          int kThreads_ = kWarps_ * 32>
struct MmaTile {
  static constexpr int kTokens = kTokens_;
  static constexpr int kWeights = kWeights_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kThreads = kThreads_;
  static constexpr int kWarpsAlongTokens = kWarpsAlongTokens_;
  static constexpr int kWarpsAlongWeights = kWarps / kWarpsAlongTokens;
  static constexpr int kStages = kStages_;
  static constexpr int kStageElements = (kTokens + kWeights) * kTileK;
  static constexpr int kMmaRows = kWeights / kWarpsAlongWeights / 16;  // m16 tiles a warp
  static constexpr int kGroups = kTokens / kWarpsAlongTokens / 8;      // n8 groups a warp
  static_assert(kMmaRows > 0 && kGroups > 0, "every warp needs at least one mma tile");
};

// Address of a 16-byte chunk in a tile of kTileK-element rows, as the copy engine swizzles them, too.
template <typename T>
__device__ __forceinline__ T* swizzled(T* tile, int row, int chunk) {
  return tile + row * kTileK + (chunk ^ (row % kRowChunks)) * kChunk;
}

// A warp's part of the outputs of a tile.
template <typename T, typename Shape>
struct MmaSums {
  float sums[Shape::kMmaRows][Shape::kGroups][4];
  int live_groups;  // of 8 tokens with a row in them

  __device__ __forceinline__ MmaSums(const LinearPlace& place, int num_rows) {
    // From one lane: the compiler has to see that whole warps go the same way, or it makes them meet before every mma.
    live_groups = __shfl_sync(kWholeWarp, (num_rows - place.token0 - warp_token() + 7) / 8, 0);
#pragma unroll
    for (int m = 0; m < Shape::kMmaRows; ++m) {
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][group][i] = 0.0f;
      }
    }
  }

  // Where this warp's mma tiles start inside of the CTA's.
  __device__ __forceinline__ static int warp_weight() {
    return threadIdx.x / 32 % Shape::kWarpsAlongWeights * (Shape::kMmaRows * 16);
  }
  __device__ __forceinline__ static int warp_token() {
    if (Shape::kWarpsAlongTokens == 1) return 0;
    return threadIdx.x / 32 / Shape::kWarpsAlongWeights * (Shape::kGroups * 8);
  }

  // The others are not multiplied, so cost rises in steps of 8. The first of a tile always is. The widest tiles, which
  // have no register to spare for the count, always multiply all.
  __device__ __forceinline__ bool is_live(int group) const {
    if (Shape::kTokens > 64 || (Shape::kWarpsAlongTokens == 1 && group == 0)) return true;
    return group < live_groups;
  }

  // Adds the products of two tiles, 64 elements of K; all threads of the warp.
  __device__ __forceinline__ void multiply(T* weight_tile, T* token_tile) {
    const int lane_idx = threadIdx.x % 32;
    T* const weights = weight_tile + warp_weight() * kTileK;
    T* const tokens = token_tile + warp_token() * kTileK;
#pragma unroll
    for (int k32 = 0; k32 < kTileK / 32; ++k32) {
      // One ldmatrix gives a group of 8 tokens for two k steps: registers 0,1 and 2,3.
      uint32_t token_regs[Shape::kGroups][4];
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) {
        if (!is_live(group)) continue;
        ldmatrix_x4(token_regs[group], swizzled(tokens, group * 8 + lane_idx % 8, k32 * 4 + lane_idx / 8));
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int m = 0; m < Shape::kMmaRows; ++m) {
          uint32_t weight_regs[4];
          ldmatrix_x4(weight_regs,
                      swizzled(weights, m * 16 + lane_idx % 16, k32 * 4 + step * 2 + lane_idx / 16));
#pragma unroll
          for (int group = 0; group < Shape::kGroups; ++group) {
            if (!is_live(group)) continue;
            const uint32_t pair[2] = {token_regs[group][step * 2], token_regs[group][step * 2 + 1]};
            mma<T>(sums[m][group], weight_regs, pair);
          }
        }
      }
    }
  }

  // use(i, n, token, sum, other) for every output of this thread that exists; see finish_tile.
  template <typename Use>
  __device__ __forceinline__ void for_each(const LinearOutputs<T>& layer, const LinearPlace& place,
                                           Use&& use) const {
    // sums[m][group][i]: weight row lane / 4 (+ 8 for i >= 2), token 2 * (lane % 4) + i % 2.
    const int lane_idx = threadIdx.x % 32;
    const int first_n = place.weight0 + warp_weight() + lane_idx / 4;
    const int first_token = place.token0 + warp_token() + lane_idx % 4 * 2;
#pragma unroll
    for (int m = 0; m < Shape::kMmaRows; ++m) {
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int n = first_n + m * 16 + i / 2 * 8;
          const int token = first_token + group * 8 + i % 2;
          if (n < layer.N && token < layer.num_rows)
            use(i, n, token, sums[m][group][i], sums[m][group][(i + 2) % 4]);
        }
      }
    }
  }
};
