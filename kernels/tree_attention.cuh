// What the tensor-core, the f32 and the combining kernel of tree_attention.cu share: parameters, the logical
// cuts of the key axis, addressing of paged K/V, and the layout of partial results.
#pragma once
#include "prims.cuh"
#include "softmax_state.cuh"
#include "tree_mask.cuh"

struct TreeAttentionParams {
  const void* q;                        // T [num_rows, num_q_heads, head_dim]
  const void* k_cache;                  // T [num_pages, num_kv_heads, page_size, head_dim]
  const void* v_cache;                  // as k_cache
  const int* page_table;                // [num_sequences, max_pages]
  const int* seq_start;                 // [num_sequences + 1]
  const int* prefix_len;                // [num_sequences]
  const unsigned long long* ancestors;  // [num_rows, 4]
  void* out;                            // T [num_rows, num_q_heads, head_dim]
  float* workspace;                     // partial results, see partial_offset
  float scale_log2;                     // softmax scale times log2(e), > 0
  int num_rows;
  int num_q_heads;
  int num_kv_heads;
  int page_size;  // multiple of 16
  int max_pages;
  int splits_per_unit;  // 1, kSplitsPerSpan, or enough for every key
  int num_units;        // units that cover the longest row
  int window;           // keys that a row sees at most, its own and those before it; 0: all
};
POINTER_FIELDS(TreeAttentionParams, &TreeAttentionParams::q, &TreeAttentionParams::k_cache,
               &TreeAttentionParams::v_cache, &TreeAttentionParams::page_table,
               &TreeAttentionParams::seq_start, &TreeAttentionParams::prefix_len,
               &TreeAttentionParams::ancestors, &TreeAttentionParams::out, &TreeAttentionParams::workspace)

// Cuts of the key axis, at logical positions that are multiples of these. They decide bits: see ORDER.
constexpr int kSplitKeys = 256;  // 128 KB of K/V at head_dim 128: enough CTAs at 2k keys, few partials at 16k
constexpr int kSplitsPerSpan =
    8;  // long contexts with many rows write one partial per span, an eighth of the traffic
constexpr int kSpanKeys = kSplitKeys * kSplitsPerSpan;

// One sequence of the pass, as a kernel sees it. Addresses are computed anew: registers are scarce.
struct Sequence {
  const TreeAttentionParams& p;
  int idx, first_row, num_rows, prefix_len;

  __device__ __forceinline__ Sequence(const TreeAttentionParams& params, int sequence_idx)
      : p(params),
        idx(sequence_idx),
        first_row(p.seq_start[idx]),
        num_rows(p.seq_start[idx + 1] - first_row),
        prefix_len(p.prefix_len[idx]) {}

  // What row `row` of the sequence sees behind the prefix.
  __device__ __forceinline__ void load_ancestors(TreeMask& mask, int row) const {
    load_mask(mask, p.ancestors + static_cast<int64_t>(first_row + row) * 4);
  }

  // First logical position that a row of `kv_len` keys sees.
  __device__ __forceinline__ int window_begin(int kv_len) const {
    return p.window > 0 ? max(kv_len - p.window, 0) : 0;
  }

  // Keys up to its own; they have logical positions 0..kv_len-1. Without a window it sees all of them.
  __device__ __forceinline__ int kv_len(int row) const {
    TreeMask mask;
    load_ancestors(mask, row);
    return prefix_len + count_bits(mask);
  }

  // Row of the cache, counted in rows of head_dim elements, that holds KV position `kv_pos`.
  __device__ __forceinline__ int64_t cache_row(int kv_head_idx, int kv_pos) const {
    const int page_idx = p.page_size == 16 ? kv_pos >> 4 : kv_pos / p.page_size;
    const int page = p.page_table[static_cast<int64_t>(idx) * p.max_pages + page_idx];
    const int64_t page_head = static_cast<int64_t>(page) * p.num_kv_heads + kv_head_idx;
    return page_head * p.page_size + (kv_pos - page_idx * p.page_size);
  }
};

// Where unit `unit_idx` of (row, q head) leaves its state in the workspace: acc[head_dim], max, sum.
__device__ __forceinline__ int64_t partial_offset(const TreeAttentionParams& p, int head_dim, int unit_idx,
                                                  int row, int q_head_idx) {
  return ((static_cast<int64_t>(unit_idx) * p.num_rows + row) * p.num_q_heads + q_head_idx) * (head_dim + 2);
}
