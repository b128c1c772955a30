// One softmax step of tree attention on tensor cores: a row tile of 16 rows against 64 keys that lie in
// shared memory, wherever each of them lies there, and the states that such steps build up. Knows no
// sequence, page or tree.
//
// Every row tile holds its keys in order 0..63 along k of the second product, so a row's bits depend on its
// own query, its keys and its limit alone: see ORDER in tree_attention.cu.
#pragma once
#include "tree_attention.cuh"

constexpr int kTileKeys = 64;     // keys per softmax step: four k16 steps of P*V
constexpr int kMmaThreads = 128;  // four warps

// Which keys of a tile a row sees: all 64; the first ones; or, under a window, some from the middle.
enum class Visible { kAll, kFirst, kWindow };

// What two rows of a lane see of a tile: keys [begin, end) of row r, and what the rows of the row tile see together.
// Only kWindow looks at the begins.
struct SeenKeys {
  int begin[2], end[2];
  int first, last;
};

// kParts warps share the row tile: 1 (wide: each warp has its own) or 4 (narrow).
template <typename T, int kHeadDim, int kParts>
struct SoftmaxTile {
  // Ring and (wide) span acc take at most 96 KB of dynamic shared memory: every sm_80+ GPU can hold them.
  static constexpr int kLargestWideRing = kHeadDim == 128 ? 2 : kHeadDim == 96 ? 3 : 4;
  static constexpr int kLargestNarrowRing = kHeadDim == 128 ? 3 : 4;
  static constexpr int kStages = kParts == 1 ? kLargestWideRing : kLargestNarrowRing;
  static constexpr int kRingRows = kStages * kTileKeys;
  static constexpr int kQueryFragments = kHeadDim / 16;
  static constexpr int kScoreBlocks = 4 / kParts;  // 16-key blocks of a tile that a warp scores
  static constexpr int kOutBlocks =
      kHeadDim / 8 / kParts;  // 8-wide blocks of the head dimension it accumulates
  static constexpr uint32_t kOnes =
      sizeof(T) == 2 && std::is_same<T, bf16>::value ? 0x3f803f80u : 0x3c003c00u;
  static_assert(kHeadDim % 32 == 0 && kHeadDim <= 128, "head_dim 32, 64, 96 or 128");
  static_assert(kRingRows <= 256, "ring rows are kept in bytes");

  const TreeAttentionParams& p;
  const int lane_idx, part;  // which of kParts this warp is
  T* const k_ring;           // [kRingRows] rows of keys and, behind them, of values
  T* const v_ring;
  float* const part_max;  // [4][16] narrow: row maxima of the warps' score blocks
  T* const weights;       // [16][kTileKeys] narrow: P, for all warps
  uint32_t query[kQueryFragments][4];
  // Softmax states of this lane's two rows: the current split, and the splits before it in the span.
  float split_acc[kOutBlocks][4], split_sum[4], split_max[2];  // the sum is P times a matrix of ones
  float2 span_registers[kParts == 1 ? 1 : kOutBlocks][2];      // narrow: span acc; wide: in span_shared
  float2* const span_shared;                                   // [kOutBlocks * 2][kMmaThreads]
  float span_sum[2], span_max[2];

  // `ring` is the dynamic shared memory: K, V and (wide) the span's acc.
  __device__ __forceinline__ SoftmaxTile(const TreeAttentionParams& params, T* ring, float* maxima,
                                         T* exchange)
      : p(params),
        lane_idx(threadIdx.x % 32),
        part(kParts == 1 ? 0 : threadIdx.x / 32),
        k_ring(ring),
        v_ring(ring + kRingRows * kHeadDim),
        part_max(maxima),
        weights(exchange),
        span_shared(reinterpret_cast<float2*>(ring + 2 * kRingRows * kHeadDim)) {
    clear_split();
    clear_span();
  }

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

  // Adds the keys of a tile to the split state. ring_row_of(i) is the ring row of the key at position i of
  // the tile. With Visible::kAll `seen` is not looked at.
  template <Visible kVisible, typename RingRowOf>
  __device__ __forceinline__ void step(const SeenKeys& seen, RingRowOf ring_row_of) {
    auto sees = [&](int r, int key) {
      return kVisible == Visible::kAll ||
             (key < seen.end[r] && (kVisible == Visible::kFirst || key >= seen.begin[r]));
    };
    // Whether any row sees one of the 16 keys from `first_key` on. A block that none does adds zeros: it is skipped.
    auto any_sees = [&](int first_key) {
      return kVisible == Visible::kAll ||
             (first_key < seen.last && (kVisible == Visible::kFirst || first_key + 16 > seen.first));
    };
    const int pair = lane_idx % 4 * 2;
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
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = first_key + pair + j % 2;
        if (sees(j / 2, key)) tile_max[j / 2] = fmaxf(tile_max[j / 2], even[j]);
        if (sees(j / 2, key + 8)) tile_max[j / 2] = fmaxf(tile_max[j / 2], odd[j]);
      }
    }

    // running maximum, over the visible keys only
    float base[2], rescale[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      tile_max[r] = fmaxf(tile_max[r], __shfl_xor_sync(kAllLanes, tile_max[r], 1));
      tile_max[r] = fmaxf(tile_max[r], __shfl_xor_sync(kAllLanes, tile_max[r], 2));
    }
    if (kParts > 1) {
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
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float new_max = fmaxf(split_max[r], tile_max[r] * p.scale_log2);
      base[r] = softmax_base(new_max);
      rescale[r] = exp2_approx(split_max[r] - base[r]);
      split_max[r] = new_max;
    }

    // weights P, rounded to T, as A fragments
    uint32_t fragment[4][4];
#pragma unroll
    for (int b = 0; b < kScoreBlocks; ++b) {
      const int first_key = (part * kScoreBlocks + b) * 16;
      float weight[2][4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          weight[h][j] = sees(j / 2, first_key + 8 * h + pair + j % 2)
                             ? exp2_approx(fmaf(score[2 * b + h][j], p.scale_log2, -base[j / 2]))
                             : 0.0f;
        }
      }
      fragment[b][0] = pack<T>(weight[0][0], weight[0][1]);
      fragment[b][1] = pack<T>(weight[0][2], weight[0][3]);
      fragment[b][2] = pack<T>(weight[1][0], weight[1][1]);
      fragment[b][3] = pack<T>(weight[1][2], weight[1][3]);
    }
    if (kParts > 1) exchange_weights(fragment);

    // acc and sum, 16 keys at a time in logical order
#pragma unroll
    for (int j = 0; j < 4; ++j) split_sum[j] *= rescale[j / 2];
#pragma unroll
    for (int n = 0; n < kOutBlocks; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) split_acc[n][j] *= rescale[j / 2];
    }
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
    auto piece = [&](int r, int chunk) { return weights + r * kTileKeys + (chunk ^ (r & 7)) * 8; };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      memcpy(piece(row + i % 2 * 8, part * 2 + i / 2) + pair, &fragment[0][i], 4);
    }
    __syncthreads();
#pragma unroll
    for (int b = 0; b < 4; ++b) ldmatrix_x4(fragment[b], piece(lane_idx % 16, 2 * b + lane_idx / 16));
  }

  // ---- states ----

  __device__ __forceinline__ int out_column(int n) const {
    return (part * kOutBlocks + n) * 8 + lane_idx % 4 * 2;
  }

  __device__ __forceinline__ float2 span_acc(int n, int r) const {
    if constexpr (kParts == 1)
      return span_shared[(2 * n + r) * kMmaThreads + threadIdx.x];
    else
      return span_registers[n][r];
  }
  __device__ __forceinline__ void set_span_acc(int n, int r, float2 acc) {
    if constexpr (kParts == 1)
      span_shared[(2 * n + r) * kMmaThreads + threadIdx.x] = acc;
    else
      span_registers[n][r] = acc;
  }

  __device__ __forceinline__ void clear_split() {
#pragma unroll
    for (int n = 0; n < kOutBlocks; ++n)
      split_acc[n][0] = split_acc[n][1] = split_acc[n][2] = split_acc[n][3] = 0.0f;
    split_sum[0] = split_sum[1] = split_sum[2] = split_sum[3] = 0.0f;
    split_max[0] = split_max[1] = kNoScore;
  }

  __device__ __forceinline__ void clear_span() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int n = 0; n < kOutBlocks; ++n) set_span_acc(n, r, make_float2(0.0f, 0.0f));
      span_sum[r] = 0.0f;
      span_max[r] = kNoScore;
    }
  }

  __device__ __forceinline__ void fold_split() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Fold fold(span_max[r], split_max[r]);
      span_max[r] = fold.max;
      span_sum[r] = fold(span_sum[r], split_sum[2 * r]);
#pragma unroll
      for (int n = 0; n < kOutBlocks; ++n) {
        const float2 older = span_acc(n, r);
        set_span_acc(n, r,
                     make_float2(fold(older.x, split_acc[n][2 * r]), fold(older.y, split_acc[n][2 * r + 1])));
      }
    }
    clear_split();
  }
};
