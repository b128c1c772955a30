// What a warp keeps of its 16 rows while tree attention runs on tensor cores, and what happens between the two
// products of a tile of 64 keys: maximum, weights, rescaling, and the folding of finished splits. Both
// families of instructions hold scores and sums in the same registers: lane l has, of rows g = l/4 and g + 8,
// columns 8j + t, 8j + t + 1 with t = 2*(l%4), for every j (the fragment c of mma). Knows no product, sequence,
// page or tree.
#pragma once
#include "tree_attention.cuh"

constexpr int kTileKeys = 64;  // keys per softmax step: four k16 steps of P*V

// Which keys of a tile a row sees: all 64; the first ones; or, under a window, some from the middle.
enum class Visible { kAll, kFirst, kWindow };

// What two rows of a lane see of a tile: keys before end[r], of these the last `window` with kWindow; and of what the
// rows of the row tile see together the first (for kWindow) and the end. With kAll nothing of this is looked at.
struct SeenKeys {
  int end[2];
  int first, last;

  // Whether row r sees key `key` of the tile.
  template <Visible kVisible>
  __device__ __forceinline__ bool sees(int r, int key, int window) const {
    if (kVisible == Visible::kAll) return true;
    if (kVisible == Visible::kFirst) return key < end[r];
    return static_cast<unsigned>(end[r] - 1 - key) < static_cast<unsigned>(window);
  }
  // Whether any row sees one of the 16 keys from `first_key` on. A block that none does adds zeros.
  template <Visible kVisible>
  __device__ __forceinline__ bool any_sees(int first_key) const {
    return kVisible == Visible::kAll ||
           (first_key < last && (kVisible == Visible::kFirst || first_key + 16 > first));
  }
};

// kParts warps share the 16 rows, each with its own part of the columns. The span's acc is in registers or in
// shared memory, which `span` then is: [kOutBlocks * 2][kThreads].
template <typename T, int kHeadDim, int kParts, bool kSpanInShared, int kThreads>
struct SoftmaxRows {
  static constexpr int kQueryFragments = kHeadDim / 16;
  static constexpr int kOutBlocks =
      kHeadDim / 8 / kParts;  // 8-wide blocks of the head dimension it accumulates
  static constexpr uint32_t kOnes =
      sizeof(T) == 2 && std::is_same<T, bf16>::value ? 0x3f803f80u : 0x3c003c00u;
  static_assert(kHeadDim % 32 == 0 && kHeadDim <= 128, "head_dim 32, 64, 96 or 128");

  const TreeAttentionParams& p;
  const int lane_idx, part;  // which of kParts this warp is
  bool has_rows = false;     // whether any of the 16 rows exists
  // Softmax states of this lane's two rows: the current split, and the splits before it in the span.
  float split_acc[kOutBlocks][4], split_sum[4], split_max[2];  // the sum is P times a matrix of ones
  float2 span_registers[kSpanInShared ? 1 : kOutBlocks][2];
  float2* const span_shared;
  float span_sum[2], span_max[2];

  __device__ __forceinline__ SoftmaxRows(const TreeAttentionParams& params, void* span)
      : p(params),
        lane_idx(threadIdx.x % 32),
        part(kParts == 1 ? 0 : threadIdx.x / 32),
        span_shared(static_cast<float2*>(span)) {
    clear_split();
    clear_span();
  }

  // ---- between the products ----

  template <Visible kVisible>
  __device__ __forceinline__ bool sees(const SeenKeys& seen, int r, int key) const {
    return seen.template sees<kVisible>(r, key, p.window);
  }

  // Raises `tile_max` to the visible scores of a block of 16 keys, `even` of the first eight, `odd` of the others.
  template <Visible kVisible>
  __device__ __forceinline__ void raise(float (&tile_max)[2], const SeenKeys& seen, int first_key,
                                        const float* even, const float* odd) const {
    const int pair = lane_idx % 4 * 2;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = first_key + pair + j % 2;
      if (sees<kVisible>(seen, j / 2, key)) tile_max[j / 2] = fmaxf(tile_max[j / 2], even[j]);
      if (sees<kVisible>(seen, j / 2, key + 8)) tile_max[j / 2] = fmaxf(tile_max[j / 2], odd[j]);
    }
  }

  // The maximum over the four lanes of a row.
  static __device__ __forceinline__ void share_max(float (&tile_max)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      tile_max[r] = fmaxf(tile_max[r], __shfl_xor_sync(kWholeWarp, tile_max[r], 1));
      tile_max[r] = fmaxf(tile_max[r], __shfl_xor_sync(kWholeWarp, tile_max[r], 2));
    }
  }

  // The running maximum of the split; what scores are now relative to, and what that makes of the sums so far.
  __device__ __forceinline__ void raise_split(const float (&tile_max)[2], float (&base)[2],
                                              float (&rescale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float new_max = fmaxf(split_max[r], tile_max[r] * p.scale_log2);
      base[r] = softmax_base(new_max);
      rescale[r] = exp2_approx(split_max[r] - base[r]);
      split_max[r] = new_max;
    }
  }

  // Weights of a block of 16 keys, rounded to T, as an A fragment.
  template <Visible kVisible>
  __device__ __forceinline__ void weigh(uint32_t (&fragment)[4], const SeenKeys& seen, int first_key,
                                        const float (&base)[2], const float* even, const float* odd) const {
    const int pair = lane_idx % 4 * 2;
    float weight[2][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float score = h == 0 ? even[j] : odd[j];
        weight[h][j] = sees<kVisible>(seen, j / 2, first_key + 8 * h + pair + j % 2)
                           ? exp2_approx(fmaf(score, p.scale_log2, -base[j / 2]))
                           : 0.0f;
      }
    }
    fragment[0] = pack<T>(weight[0][0], weight[0][1]);
    fragment[1] = pack<T>(weight[0][2], weight[0][3]);
    fragment[2] = pack<T>(weight[1][0], weight[1][1]);
    fragment[3] = pack<T>(weight[1][2], weight[1][3]);
  }

  __device__ __forceinline__ void rescale_split(const float (&rescale)[2]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) split_sum[j] *= rescale[j / 2];
#pragma unroll
    for (int n = 0; n < kOutBlocks; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) split_acc[n][j] *= rescale[j / 2];
    }
  }

  // ---- states ----

  __device__ __forceinline__ int out_column(int n) const {
    return (part * kOutBlocks + n) * 8 + lane_idx % 4 * 2;
  }

  __device__ __forceinline__ float2 span_acc(int n, int r) const {
    if constexpr (kSpanInShared)
      return span_shared[(2 * n + r) * kThreads + threadIdx.x];
    else
      return span_registers[n][r];
  }
  __device__ __forceinline__ void set_span_acc(int n, int r, float2 acc) {
    if constexpr (kSpanInShared)
      span_shared[(2 * n + r) * kThreads + threadIdx.x] = acc;
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
