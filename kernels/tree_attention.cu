// WHAT      Attention of packed tree rows over a paged K/V cache: the prefix is visible to every row of its
//           sequence, the rows behind it by ancestor words, and of these, if there is a window, the last
//           `window` in logical order. Serves prefill, plain decoding, verification and the drafter.
// MATH      out[t,h] = sum_i p_i v_i / sum_i p_i,  p_i = exp(sm_scale * q[t,h].k_i), i over the keys t sees
// SHAPES    see TreeAttentionParams (tree_attention.cuh); all in, except out (out), workspace (scratch)
// LAUNCH    grid (row tile, unit of keys, sequence * kv head), block 128. CTAs without work exit. In clusters
//           (1, units, 1), of which those behind the last unit have no work, nothing is left to combine.
//           mma narrow: 16 packed rows (node, q head of the kv group) a CTA; mma wide: 64; f32: 4.
//           Dynamic shared memory: the K/V ring of the mma kernels and, wide, the span's acc.
//           combine: grid (row of the sequence, q head, sequence), block head_dim.
// REQUIRES  page_size a multiple of 16; tensors 16-byte aligned; K/V finite in every row that some row sees and,
//           with a window, in all of the prefix tile where the first window begins; at most 256 rows a sequence,
//           each with its own bit set. K/V behind the highest set bit is never read.
// ORDER     The bits of a row depend on its query and its keys in logical order, on nothing else: not on the
//           slots of its ancestors, the rows beside it, or how keys are divided into prefix and tree. Key i
//           means the key at logical position i. Keys are cut at absolute positions and merged left to right
//           on every level:
//             tile (64 keys; f32 kernel 32) -> split (256): online softmax, P*V in steps of 16 keys (f32: 1)
//             split -> span (2048) -> row: Fold (softmax_state.cuh)
//           A CTA handles a unit: one split, one span, or all keys, as the launch finds best. Units that are
//           not all keys leave partial states, which are merged in the same order by the combining kernel or, where
//           all units of a row are a thread block cluster, by their CTAs, in shared memory; a row of one unit
//           is finished by its CTA. Masked keys weigh exactly 0 and add exact zeros wherever they
//           are not skipped: in front of a row's window as behind its last key, whole tiles, splits and units
//           that it does not see leave its state as it is, and are skipped where no row of a CTA sees them.
//           Of tensor cores it is assumed that an output element depends only on its row of A, its column of B
//           along k and its element of C, and that products with zero add nothing.
// NUMERICS  f32 scores and sums; base-2 exponentials; weights rounded to T before P*V and summed as rounded.
// WINDOWS   On tensor cores a window has entry points of its own (tree_attention_windowed.cu): as a branch it cost
//           models without one up to 40 registers and spilled. The f32 and the combining kernels branch on
//           p.window, all threads alike: they have registers to spare.
// FAMILIES  On Hopper tree_attention_wgmma.cu can take the place of the mma kernels, for all widths of a process: one
//           family's bits are not promised to be the other's.
// TWINS     src/kernels/tree_attention.rs, src/reference/tree_attention.rs, tests/kernels/tree_attention.rs,
//           kernels/host/native/tree_attention.cpp
// SOURCE    FlashAttention-2 and Flash-Decoding (online softmax, key splits); the path-wise tail is ours
#include "tree_attention_mma.cuh"

// ---- f32: a warp per packed row, a lane per key, then a lane per output column ----

// Four of its CTAs on an SM leave 128 registers; unasked, ptxas aims at 64 on sm_100a, and spills.
constexpr int kF32Warps = 4, kF32CtasPerSm = 4;
constexpr int kF32TileKeys = 32;

template <int kHeadDim>
struct F32State {
  float acc[kHeadDim / 32], sum, max;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < kHeadDim / 32; ++n) acc[n] = 0.0f;
    sum = 0.0f;
    max = kNoScore;
  }

  __device__ __forceinline__ void fold(F32State& newer) {
    const Fold fold(max, newer.max);
#pragma unroll
    for (int n = 0; n < kHeadDim / 32; ++n) acc[n] = fold(acc[n], newer.acc[n]);
    sum = fold(sum, newer.sum);
    max = fold.max;
    newer.clear();
  }
};

template <int kHeadDim>
__device__ __forceinline__ void tree_attention_f32(const TreeAttentionParams& p) {
  take_turn();
  constexpr int kColumns = kHeadDim / 32;  // of a lane
  SHARED(float[kF32Warps][kHeadDim], queries);
  SHARED(float[kF32Warps][kF32TileKeys], all_weights);
  SHARED(int[kF32Warps][kF32TileKeys], all_positions);
  SHARED(int64_t[kF32Warps][kF32TileKeys], all_cache_rows);
  const int lane_idx = threadIdx.x % 32, warp_idx = threadIdx.x / 32;
  float* query = queries[warp_idx];
  float* weights = all_weights[warp_idx];
  int* positions = all_positions[warp_idx];  // KV position of the tile's keys
  int64_t* cache_rows = all_cache_rows[warp_idx];

  const Sequence seq(p, blockIdx.z / p.num_kv_heads);
  const int kv_head_idx = blockIdx.z % p.num_kv_heads;
  const int group = p.num_q_heads / p.num_kv_heads;
  const int packed = blockIdx.x * kF32Warps + warp_idx;
  if (packed >= seq.num_rows * group) return;
  const int row = seq.first_row + packed / group;
  const int q_head_idx = kv_head_idx * group + packed % group;

  TreeMask mask;
  seq.load_ancestors(mask, packed / group);
  const LaneBits path = spread(mask);
  const int kv_len = seq.prefix_len + count_bits(mask);
  const int window_begin = seq.window_begin(kv_len);
  const int unit_keys = p.splits_per_unit * kSplitKeys;
  const int unit_begin = blockIdx.y * unit_keys;
  const int key_begin = max(unit_begin, window_begin / kF32TileKeys * kF32TileKeys);
  const int key_end = min(unit_begin + unit_keys, kv_len);
  if (key_end <= key_begin) return;

  const float* k_cache = static_cast<const float*>(p.k_cache);
  const float* v_cache = static_cast<const float*>(p.v_cache);
  const int64_t out_offset = (static_cast<int64_t>(row) * p.num_q_heads + q_head_idx) * kHeadDim;
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    query[n * 32 + lane_idx] = static_cast<const float*>(p.q)[out_offset + n * 32 + lane_idx];
  }

  F32State<kHeadDim> split, span, whole;
  split.clear();
  span.clear();
  whole.clear();
  for (int first_key = key_begin; first_key < key_end; first_key += kF32TileKeys) {
    // where the tile's keys are
    const int num_keys = min(key_end - first_key, kF32TileKeys);
    const int first_seen = max(window_begin - first_key, 0);
    __syncwarp();
    if (first_key + lane_idx < seq.prefix_len) positions[lane_idx] = first_key + lane_idx;
    if (first_key + kF32TileKeys > seq.prefix_len) {
      for_each_member(path, [&](int bit, int rank) {
        const int i = seq.prefix_len + rank - first_key;
        if (i >= 0 && i < kF32TileKeys) positions[i] = seq.prefix_len + bit;
      });
    }
    __syncwarp();

    // a score per lane
    const bool is_seen = lane_idx >= first_seen && lane_idx < num_keys;
    float score = kNoScore;
    if (is_seen) {
      const int64_t cache_row = seq.cache_row(kv_head_idx, positions[lane_idx]);
      cache_rows[lane_idx] = cache_row;
      const float4* key = reinterpret_cast<const float4*>(k_cache + cache_row * kHeadDim);
      float dot = 0.0f;
#pragma unroll 8
      for (int i = 0; i < kHeadDim / 4; ++i) {
        const float4 k = key[i];
        const float4 q = reinterpret_cast<const float4*>(query)[i];
        dot = fmaf(q.x, k.x, dot);
        dot = fmaf(q.y, k.y, dot);
        dot = fmaf(q.z, k.z, dot);
        dot = fmaf(q.w, k.w, dot);
      }
      score = dot;
    }
    float tile_max = score;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      tile_max = fmaxf(tile_max, __shfl_xor_sync(kWholeWarp, tile_max, distance));
    }
    const float new_max = fmaxf(split.max, tile_max * p.scale_log2);
    const float base = softmax_base(new_max);
    const float rescale = exp2_approx(split.max - base);
    const float weight = is_seen ? exp2_approx(fmaf(score, p.scale_log2, -base)) : 0.0f;
    split.max = new_max;
    weights[lane_idx] = weight;
    float tile_sum = weight;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      tile_sum += __shfl_xor_sync(kWholeWarp, tile_sum, distance);
    }
    split.sum = fmaf(split.sum, rescale, tile_sum);
    __syncwarp();

    // P*V, keys in order
#pragma unroll
    for (int n = 0; n < kColumns; ++n) split.acc[n] *= rescale;
    for (int i = first_seen; i < num_keys; ++i) {
      const float* value = v_cache + cache_rows[i] * kHeadDim + lane_idx;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) split.acc[n] = fmaf(weights[i], value[n * 32], split.acc[n]);
    }

    const int tile_end = first_key + kF32TileKeys;
    if (tile_end % kSplitKeys == 0) span.fold(split);
    if (tile_end % kSpanKeys == 0) whole.fold(span);
  }
  span.fold(split);
  whole.fold(span);

  if (kv_len <= unit_keys) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      static_cast<float*>(p.out)[out_offset + n * 32 + lane_idx] = softmax_output(whole.acc[n], whole.sum);
    }
    return;
  }
  float* state = p.workspace + partial_offset(p, kHeadDim, blockIdx.y, row, q_head_idx);
#pragma unroll
  for (int n = 0; n < kColumns; ++n) state[n * 32 + lane_idx] = whole.acc[n];
  if (lane_idx == 0) *reinterpret_cast<float2*>(state + kHeadDim) = make_float2(whole.max, whole.sum);
}

// ---- combine: the states of a row's units, in order; a thread per output column ----

template <typename T, int kHeadDim>
__device__ __forceinline__ void tree_attention_combine(const TreeAttentionParams& p) {
  take_turn();
  const Sequence seq(p, blockIdx.z);
  const int node = blockIdx.x, q_head_idx = blockIdx.y, column = threadIdx.x;
  if (node >= seq.num_rows) return;
  const int unit_keys = p.splits_per_unit * kSplitKeys;
  const int kv_len = seq.kv_len(node);
  const int num_units = (kv_len + unit_keys - 1) / unit_keys;
  if (num_units <= 1) return;  // finished by its CTA

  UnitFold<1> whole;
  for (int unit = seq.window_begin(kv_len) / unit_keys; unit < num_units; ++unit) {
    const float* state = p.workspace + partial_offset(p, kHeadDim, unit, seq.first_row + node, q_head_idx);
    whole.add({state[column]}, state[kHeadDim], state[kHeadDim + 1]);
    if ((unit + 1) * unit_keys % kSpanKeys == 0 || unit + 1 == num_units) whole.end_span();
  }
  const int64_t row = seq.first_row + node;
  T* out = static_cast<T*>(p.out) + (row * p.num_q_heads + q_head_idx) * kHeadDim;
  out[column] = from_float<T>(softmax_output(whole.acc[0], whole.sum));
}

// ---- entry points ----

#define TREE_ATTENTION_F32(D)                                                   \
  extern "C" __global__ void __launch_bounds__(kF32Warps * 32, kF32CtasPerSm)   \
      tree_attention_f32_hd##D(const __grid_constant__ TreeAttentionParams p) { \
    tree_attention_f32<D>(p);                                                   \
  }                                                                             \
  EXPORT_KERNEL(tree_attention_f32_hd##D)

#define TREE_ATTENTION_COMBINE(dtype, T, D)                                                   \
  extern "C" __global__ void __launch_bounds__(D)                                             \
      tree_attention_combine_##dtype##_hd##D(const __grid_constant__ TreeAttentionParams p) { \
    tree_attention_combine<T, D>(p);                                                          \
  }                                                                                           \
  EXPORT_KERNEL(tree_attention_combine_##dtype##_hd##D)

#define TREE_ATTENTION(D)                                    \
  TREE_ATTENTION_MMA(bf16_hd##D##_narrow, bf16, D, 4, false) \
  TREE_ATTENTION_MMA(bf16_hd##D##_wide, bf16, D, 1, false)   \
  TREE_ATTENTION_MMA(f16_hd##D##_narrow, f16, D, 4, false)   \
  TREE_ATTENTION_MMA(f16_hd##D##_wide, f16, D, 1, false)     \
  TREE_ATTENTION_F32(D)                                      \
  TREE_ATTENTION_COMBINE(bf16, bf16, D)                      \
  TREE_ATTENTION_COMBINE(f16, f16, D)                        \
  TREE_ATTENTION_COMBINE(f32, float, D)

TREE_ATTENTION(32)
TREE_ATTENTION(64)
TREE_ATTENTION(96)
TREE_ATTENTION(128)
