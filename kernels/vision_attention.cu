// WHAT      Bidirectional attention of a vision tower: every row of a segment sees every row of its segment. A segment is
//           a picture, a tile of one, or a window of a tile.
// MATH      out[t,h] = sum_i p_i v_i / sum_i p_i,  p_i = exp(sm_scale * q[t,h].k_i), i over the rows of t's segment
// SHAPES    qkv       T   [rows, 3 * num_heads * head_dim]  in   heads of q, of k, of v
//           seq_start i32 [segments + 1]                    in   first row of each segment, and the end
//           out       T   [rows, num_heads * head_dim]      out
// LAUNCH    grid (row tile of the longest segment, head, segment), block 128; CTAs without rows exit.
//           Tensor cores: 64 rows a CTA, 16 a warp; dynamic shared memory for two tiles of 64 keys and values.
//           f32: 4 rows a CTA, a warp each.
// REQUIRES  head_dim a multiple of 8, at most that of the entry point (its columns behind head_dim count as zeros);
//           tensors 16-byte aligned
// NUMERICS  f32 scores and sums; base-2 exponentials; weights rounded to T before P*V and summed as rounded
// TWINS     src/kernels/vision_attention.rs, src/reference/vision_attention.rs, tests/kernels/vision_attention.rs,
//           kernels/host/native/vision_attention.cpp
// SOURCE    FlashAttention-2 (online softmax over key tiles)
//
// Keys and values lie beside each other in qkv, row by row: nothing is paged and nothing masked but the end of the segment,
// which is why this is not tree_attention. The contexts are short (577 rows a picture in LLaVA, some thousand in Qwen2-VL)
// and rows are many, so the key axis is not split.
#include "prims.cuh"
#include "softmax_state.cuh"

constexpr int kVisionThreads = 128;
constexpr int kTileKeys = 64;  // keys per softmax step
constexpr int kVisionStages = 2;

// What all CTAs know of the tensors, and this one of its segment.
template <typename T>
struct VisionSegment {
  const T* qkv;  // at this head's q of the segment's first row
  T* out;        // at this head of the segment's first row
  int len, num_heads, head_dim;
  int64_t row_stride;  // of qkv

  __device__ __forceinline__ VisionSegment(const T* all_qkv, const int* seq_start, T* all_out, int heads,
                                           int dim)
      : num_heads(heads), head_dim(dim), row_stride(3 * static_cast<int64_t>(heads) * dim) {
    const int64_t first_row = seq_start[blockIdx.z];
    len = static_cast<int>(seq_start[blockIdx.z + 1] - first_row);
    qkv = all_qkv + first_row * row_stride + blockIdx.y * dim;
    out = all_out + (first_row * heads + blockIdx.y) * dim;
  }
  // Row `row` of q (0), k (1) or v (2).
  __device__ __forceinline__ const T* row_of(int which, int row) const {
    return qkv + row * row_stride + which * num_heads * head_dim;
  }
  __device__ __forceinline__ T* out_row(int row) const {
    return out + static_cast<int64_t>(row) * num_heads * head_dim;
  }
};

// ---- tensor cores ----

template <typename T, int kHeadDim>
__device__ __forceinline__ void vision_attention_mma(const T* all_qkv, const int* seq_start, T* all_out,
                                                     int num_heads, int head_dim, float scale_log2) {
  static_assert(kHeadDim % 16 == 0 && kHeadDim <= 128, "whole k16 steps");
  // Eight consecutive ring rows start in eight different groups of four banks: ldmatrix meets no conflict.
  constexpr int kRowElements = kHeadDim + 8;
  constexpr int kPieces = kHeadDim / 8;  // of 16 bytes a row
  constexpr int kTileElements = kTileKeys * kRowElements;
  constexpr uint32_t kOnes = std::is_same<T, bf16>::value ? 0x3f803f80u : 0x3c003c00u;
  DYN_SMEM(T, ring);  // [kVisionStages][keys, values][kTileKeys][kRowElements]

  const VisionSegment<T> seg(all_qkv, seq_start, all_out, num_heads, head_dim);
  const int first_row = blockIdx.x * 64;
  if (first_row >= seg.len) return;
  const int lane_idx = threadIdx.x % 32, warp_idx = threadIdx.x / 32;
  const int group = lane_idx / 4, pair = lane_idx % 4 * 2;
  const int num_tiles = (seg.len + kTileKeys - 1) / kTileKeys;

  // Rows behind the segment and columns behind the head become zeros.
  auto load_tile = [&](int tile, int stage) {
    T* const keys = ring + 2 * stage * kTileElements;
    for (int i = threadIdx.x; i < 2 * kTileKeys * kPieces; i += kVisionThreads) {
      const int which = i / (kTileKeys * kPieces);
      const int row = i / kPieces % kTileKeys, piece = i % kPieces;
      const int key = tile * kTileKeys + row;
      const bool valid = key < seg.len && piece * 8 < head_dim;
      const T* const source = seg.row_of(1 + which, valid ? key : 0) + (valid ? piece * 8 : 0);
      cp_async16(keys + which * kTileElements + row * kRowElements + piece * 8, source, valid);
    }
  };

  uint32_t query[kHeadDim / 16][4];
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + warp_idx * 16 + group + i % 2 * 8;
      const int column = k * 16 + i / 2 * 8 + pair;
      const bool exists = row < seg.len && column < head_dim;
      query[k][i] = exists ? load_pair(seg.row_of(0, row) + column) : 0;
    }
  }
  float acc[kHeadDim / 8][4], sum[4], row_max[2] = {kNoScore, kNoScore};
#pragma unroll
  for (int n = 0; n < kHeadDim / 8; ++n) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
  sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;  // P times a matrix of ones

  load_tile(0, 0);
  cp_async_commit();
  for (int tile = 0; tile < num_tiles; ++tile) {
    if (tile + 1 < num_tiles) load_tile(tile + 1, (tile + 1) % kVisionStages);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const T* const keys = ring + 2 * (tile % kVisionStages) * kTileElements;
    const T* const values = keys + kTileElements;
    const int num_keys = min(seg.len - tile * kTileKeys, kTileKeys);

    // scores of 8 keys in each score[n]
    float score[8][4], tile_max[2] = {kNoScore, kNoScore};
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      float (&even)[4] = score[2 * b];
      float (&odd)[4] = score[2 * b + 1];
#pragma unroll
      for (int j = 0; j < 4; ++j) even[j] = odd[j] = 0.0f;
      const T* const key_row =
          keys + (b * 16 + lane_idx % 8 + lane_idx / 16 * 8) * kRowElements + lane_idx / 8 % 2 * 8;
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; ++k) {
        uint32_t fragment[4];
        ldmatrix_x4(fragment, key_row + k * 16);
        mma<T>(even, query[k], {fragment[0], fragment[1]});
        mma<T>(odd, query[k], {fragment[2], fragment[3]});
      }
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (n * 8 + pair + j % 2 < num_keys) tile_max[j / 2] = fmaxf(tile_max[j / 2], score[n][j]);
      }
    }
    float base[2], rescale[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      tile_max[r] = fmaxf(tile_max[r], __shfl_xor_sync(kWholeWarp, tile_max[r], 1));
      tile_max[r] = fmaxf(tile_max[r], __shfl_xor_sync(kWholeWarp, tile_max[r], 2));
      const float new_max = fmaxf(row_max[r], tile_max[r] * scale_log2);
      base[r] = softmax_base(new_max);
      rescale[r] = exp2_approx(row_max[r] - base[r]);
      row_max[r] = new_max;
    }

    // weights, rounded to T, as A fragments of four k16 steps
    uint32_t weights[4][4];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      float weight[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        weight[j] =
            n * 8 + pair + j % 2 < num_keys ? exp2_approx(fmaf(score[n][j], scale_log2, -base[j / 2])) : 0.0f;
      }
      weights[n / 2][n % 2 * 2] = pack<T>(weight[0], weight[1]);
      weights[n / 2][n % 2 * 2 + 1] = pack<T>(weight[2], weight[3]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] *= rescale[j / 2];
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) acc[n][j] *= rescale[j / 2];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      mma<T>(sum, weights[2 * half], {kOnes, kOnes});
      mma<T>(sum, weights[2 * half + 1], {kOnes, kOnes});
      const T* const value_row = values + (half * 32 + lane_idx) * kRowElements;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        uint32_t fragment[4];
        ldmatrix_x4_trans(fragment, value_row + n * 8);
        mma<T>(acc[n], weights[2 * half], {fragment[0], fragment[1]});
        mma<T>(acc[n], weights[2 * half + 1], {fragment[2], fragment[3]});
      }
    }
    __syncthreads();  // the tile's place is free
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + warp_idx * 16 + group + r * 8;
    if (row >= seg.len) continue;
    T* const out = seg.out_row(row);
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      if (n * 8 >= head_dim) break;
      store_pair(out + n * 8 + pair, pack<T>(softmax_output(acc[n][2 * r], sum[2 * r]),
                                             softmax_output(acc[n][2 * r + 1], sum[2 * r])));
    }
  }
}

// ---- f32: a warp per row, a lane per key, then a lane per output column ----

constexpr int kF32Rows = 4, kF32MaxHeadDim = 128;

__device__ __forceinline__ void vision_attention_f32_rows(const float* all_qkv, const int* seq_start,
                                                          float* all_out, int num_heads, int head_dim,
                                                          float scale_log2) {
  SHARED(float[kF32Rows][kF32MaxHeadDim], queries);
  const VisionSegment<float> seg(all_qkv, seq_start, all_out, num_heads, head_dim);
  const int lane_idx = threadIdx.x % 32, warp_idx = threadIdx.x / 32;
  const int row = blockIdx.x * kF32Rows + warp_idx;
  if (row >= seg.len) return;
  float* const query = queries[warp_idx];
  for (int i = lane_idx; i < head_dim; i += 32) query[i] = seg.row_of(0, row)[i];
  __syncwarp();

  float acc[kF32MaxHeadDim / 32] = {}, sum = 0.0f, row_max = kNoScore;
  for (int first_key = 0; first_key < seg.len; first_key += 32) {
    const int num_keys = min(seg.len - first_key, 32);
    float score = kNoScore;
    if (lane_idx < num_keys) {
      const float4* const key = reinterpret_cast<const float4*>(seg.row_of(1, first_key + lane_idx));
      score = 0.0f;
      for (int i = 0; i < head_dim / 4; ++i) {
        const float4 k = key[i], q = reinterpret_cast<const float4*>(query)[i];
        score = fmaf(q.x, k.x, score);
        score = fmaf(q.y, k.y, score);
        score = fmaf(q.z, k.z, score);
        score = fmaf(q.w, k.w, score);
      }
    }
    float tile_max = score;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      tile_max = fmaxf(tile_max, __shfl_xor_sync(kWholeWarp, tile_max, distance));
    }
    const float new_max = fmaxf(row_max, tile_max * scale_log2);
    const float base = softmax_base(new_max);
    const float rescale = exp2_approx(row_max - base);
    const float weight = lane_idx < num_keys ? exp2_approx(fmaf(score, scale_log2, -base)) : 0.0f;
    row_max = new_max;
    float tile_sum = weight;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      tile_sum += __shfl_xor_sync(kWholeWarp, tile_sum, distance);
    }
    sum = fmaf(sum, rescale, tile_sum);
#pragma unroll
    for (int n = 0; n < kF32MaxHeadDim / 32; ++n) acc[n] *= rescale;
    for (int i = 0; i < num_keys; ++i) {
      const float key_weight = __shfl_sync(kWholeWarp, weight, i);
      const float* const value = seg.row_of(2, first_key + i);
#pragma unroll
      for (int n = 0; n < kF32MaxHeadDim / 32; ++n) {
        const int column = n * 32 + lane_idx;
        if (column < head_dim) acc[n] = fmaf(key_weight, value[column], acc[n]);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kF32MaxHeadDim / 32; ++n) {
    const int column = n * 32 + lane_idx;
    if (column < head_dim) seg.out_row(row)[column] = softmax_output(acc[n], sum);
  }
}

// ---- entry points ----

#define VISION_ATTENTION(dtype, T, D)                                                                        \
  extern "C" __global__ void __launch_bounds__(kVisionThreads, 2)                                            \
      vision_attention_##dtype##_hd##D(const T* __restrict__ qkv, const int* __restrict__ seq_start,         \
                                       T* __restrict__ out, int num_heads, int head_dim, float scale_log2) { \
    vision_attention_mma<T, D>(qkv, seq_start, out, num_heads, head_dim, scale_log2);                        \
  }                                                                                                          \
  EXPORT_KERNEL(vision_attention_##dtype##_hd##D)

// 80: Qwen2-VL, and SigLIP's 72 with a piece of zeros; 64: CLIP
VISION_ATTENTION(bf16, bf16, 32)
VISION_ATTENTION(bf16, bf16, 64)
VISION_ATTENTION(bf16, bf16, 80)
VISION_ATTENTION(bf16, bf16, 128)
VISION_ATTENTION(f16, f16, 32)
VISION_ATTENTION(f16, f16, 64)
VISION_ATTENTION(f16, f16, 80)
VISION_ATTENTION(f16, f16, 128)

extern "C" __global__ void __launch_bounds__(kVisionThreads)
    vision_attention_f32(const float* __restrict__ qkv, const int* __restrict__ seq_start,
                         float* __restrict__ out, int num_heads, int head_dim, float scale_log2) {
  vision_attention_f32_rows(qkv, seq_start, out, num_heads, head_dim, scale_log2);
}
EXPORT_KERNEL(vision_attention_f32)
