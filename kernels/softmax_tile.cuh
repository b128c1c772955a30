// One softmax step of tree attention by mma: a row tile of 16 rows against 64 keys that lie in shared memory,
// wherever each of them lies there.
//
// Every row tile holds its keys in order 0..63 along k of the second product, so a row's bits depend on its
// own query, its keys and its limit alone: see ORDER in tree_attention.cu.
#pragma once
#include "softmax_rows.cuh"

constexpr int kMmaThreads = 128;  // four warps

// kParts warps share the row tile: 1 (wide: each warp has its own) or 4 (narrow).
template <typename T_, int kHeadDim_, int kParts>
struct SoftmaxTile : SoftmaxRows<T_, kHeadDim_, kParts, kParts == 1, kMmaThreads> {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  using Rows = SoftmaxRows<T, kHeadDim, kParts, kParts == 1, kMmaThreads>;
  using Rows::kOutBlocks, Rows::kQueryFragments, Rows::kOnes;
  using Rows::lane_idx, Rows::p, Rows::part, Rows::split_acc, Rows::split_sum;
  static constexpr int kThreads = kMmaThreads;
  static constexpr int kRowTiles = 4 / kParts;  // of the CTA
  static constexpr int kPathTiles = 1;          // that take paths together
  // Ring and (wide) span acc take at most 96 KB of dynamic shared memory: every sm_80+ GPU can hold them.
  static constexpr int kLargestWideRing = kHeadDim == 128 ? 2 : kHeadDim == 96 ? 3 : 4;
  static constexpr int kLargestNarrowRing = kHeadDim == 128 ? 3 : 4;
  static constexpr int kStages = kParts == 1 ? kLargestWideRing : kLargestNarrowRing;
  static constexpr int kRingRows = kStages * kTileKeys;
  static constexpr int kBatchRows = kRingRows;     // of it, that a batch of the tail may take
  static constexpr bool kFillsTiles = false;       // rows that are not needed are not written
  static constexpr int kScoreBlocks = 4 / kParts;  // 16-key blocks of a tile that a warp scores
  static_assert(kRingRows <= 256, "ring rows are kept in bytes");

  // What it needs beside the ring.
  struct Exchange {
    float part_max[kParts > 1 ? 64 : 4];         // [4][16] narrow: row maxima of the warps' score blocks
    T weights[kParts > 1 ? 16 * kTileKeys : 8];  // [16][kTileKeys] narrow: P, for all warps
  };

  static constexpr bool kQueriesInTile = false;
  uint32_t query[kQueryFragments][4];
  T* const k_ring;  // [kRingRows] rows of keys and, behind them, of values
  T* const v_ring;
  Exchange& exchange;
  const int row_tile;

  // `ring` is the dynamic shared memory: K, V and (wide) the span's acc.
  __device__ __forceinline__ SoftmaxTile(const TreeAttentionParams& params, T* ring, Exchange& between_warps)
      : Rows(params, ring + 2 * kRingRows * kHeadDim),
        k_ring(ring),
        v_ring(ring + kRingRows * kHeadDim),
        exchange(between_warps),
        row_tile(kParts == 1 ? threadIdx.x / 32 : 0) {}

  // A ring row is cut into 16-byte pieces, permuted within groups so that ldmatrix meets no bank conflict.
  // Piece 0 of a row lies at row_offset (in elements), piece `chunk` at piece_offset: one xor and one
  // addition of constants.
  static constexpr int kPermuted = kHeadDim % 64 == 0 ? 7 : 3;
  static __device__ __forceinline__ int row_offset(int row) {
    return row * kHeadDim + (kHeadDim % 64 == 0 ? row & 7 : row >> 1 & 3) * 8;
  }
  static __device__ __forceinline__ int piece_offset(int row_offset, int chunk) {
    return (row_offset ^ (chunk & kPermuted) * 8) + (chunk & ~kPermuted) * 8;
  }
  static __device__ __forceinline__ int ring_offset(int row, int chunk) {
    return piece_offset(row_offset(row), chunk);
  }

  // Copies that have arrived are there for all; no path is kept.
  static __device__ __forceinline__ void show_copies() {}
  static __device__ __forceinline__ void forget_path() {}

  // Adds the keys of a tile that fills stage `stage` to the split state.
  template <Visible kVisible>
  __device__ __forceinline__ void step_stage(const SeenKeys& seen, int stage) {
    step<kVisible>(seen, [&](int key) { return stage * kTileKeys + key; });
  }

  // The same of a tile whose keys are the ring rows path_rows[0..63].
  template <Visible kVisible>
  __device__ __forceinline__ void step_path(const SeenKeys& seen, const uint8_t* path_rows, int) {
    step<kVisible>(seen, [&](int i) { return static_cast<int>(path_rows[i]); });
  }

  // The same, ring_row_of(i) being the ring row of the key at position i of the tile.
  template <Visible kVisible, typename RingRowOf>
  __device__ __forceinline__ void step(const SeenKeys& seen, RingRowOf ring_row_of) {
    auto any_sees = [&](int first_key) { return seen.template any_sees<kVisible>(first_key); };
    float score[2 * kScoreBlocks][4];
    float tile_max[2] = {kNoScore, kNoScore};

    // scores, 16 keys at a time
#pragma unroll
    for (int b = 0; b < kScoreBlocks; ++b) {
      const int first_key = (part * kScoreBlocks + b) * 16;
      float (&even)[4] = score[2 * b];
      float (&odd)[4] = score[2 * b + 1];
#pragma unroll
      for (int j = 0; j < 4; ++j) even[j] = odd[j] = 0.0f;
      if (!any_sees(first_key)) continue;
      const int key_row =
          row_offset(ring_row_of(first_key + lane_idx % 8 + lane_idx / 16 * 8)) ^ lane_idx / 8 % 2 * 8;
#pragma unroll
      for (int k = 0; k < kQueryFragments; ++k) {
        uint32_t keys[4];
        ldmatrix_x4(keys, k_ring + piece_offset(key_row, 2 * k));
        mma<T>(even, query[k], {keys[0], keys[1]});
        mma<T>(odd, query[k], {keys[2], keys[3]});
      }
      Rows::template raise<kVisible>(tile_max, seen, first_key, even, odd);
    }

    // running maximum, over the visible keys only
    Rows::share_max(tile_max);
    if (kParts > 1) {
      float* const part_max = exchange.part_max;
      if (lane_idx % 4 == 0) {
        part_max[part * 16 + lane_idx / 4] = tile_max[0];
        part_max[part * 16 + lane_idx / 4 + 8] = tile_max[1];
      }
      __syncthreads();
#pragma unroll
      for (int other = 0; other < kParts; ++other) {
        tile_max[0] = fmaxf(tile_max[0], part_max[other * 16 + lane_idx / 4]);
        tile_max[1] = fmaxf(tile_max[1], part_max[other * 16 + lane_idx / 4 + 8]);
      }
    }
    float base[2], rescale[2];
    Rows::raise_split(tile_max, base, rescale);

    uint32_t fragment[4][4];
#pragma unroll
    for (int b = 0; b < kScoreBlocks; ++b) {
      const int first_key = (part * kScoreBlocks + b) * 16;
      Rows::template weigh<kVisible>(fragment[b], seen, first_key, base, score[2 * b], score[2 * b + 1]);
    }
    if (kParts > 1) exchange_weights(fragment);

    // acc and sum, 16 keys at a time in logical order
    Rows::rescale_split(rescale);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool odd = any_sees(half * 32 + 16);
      const bool even = kVisible != Visible::kWindow || any_sees(half * 32);
      if (kVisible == Visible::kWindow ? even || odd : any_sees(half * 32)) {
        const int value_row = row_offset(ring_row_of(half * 32 + lane_idx));
        if (even) mma<T>(split_sum, fragment[2 * half], {kOnes, kOnes});
        if (odd) mma<T>(split_sum, fragment[2 * half + 1], {kOnes, kOnes});
#pragma unroll
        for (int n = 0; n < kOutBlocks; ++n) {
          uint32_t values[4];
          ldmatrix_x4_trans(values, v_ring + piece_offset(value_row, part * kOutBlocks + n));
          if (even) mma<T>(split_acc[n], fragment[2 * half], {values[0], values[1]});
          if (odd) mma<T>(split_acc[n], fragment[2 * half + 1], {values[2], values[3]});
        }
      }
    }
  }

  // Narrow: each warp has P for its 16 keys; all need it for all 64.
  __device__ __forceinline__ void exchange_weights(uint32_t (&fragment)[4][4]) const {
    const int row = lane_idx / 4, pair = lane_idx % 4 * 2;
    auto piece = [&](int r, int chunk) { return exchange.weights + r * kTileKeys + (chunk ^ (r & 7)) * 8; };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      store_pair(piece(row + i % 2 * 8, part * 2 + i / 2) + pair, fragment[0][i]);
    }
    __syncthreads();
#pragma unroll
    for (int b = 0; b < 4; ++b) ldmatrix_x4(fragment[b], piece(lane_idx % 16, 2 * b + lane_idx / 16));
  }
};
