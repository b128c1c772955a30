// The rows of a CTA of tree attention on tensor cores, whatever instructions multiply: which they are, their queries,
// keys and values on their way into the ring, states and results.
//
// A CTA is row tiles of 16 packed rows (node, q head of the kv group), one (sequence, kv head) and one unit of
// keys. What multiplies a tile of keys is `Tile`: SoftmaxTile (softmax_tile.cuh) or WarpgroupTile
// (softmax_tile_wgmma.cuh). MATH, ORDER and the contract are in tree_attention.cu.
#pragma once
#include "softmax_rows.cuh"

template <typename Tile, bool kWindowed>
struct TreeAttentionRows : Tile {
  using T = typename Tile::T;
  using Tile::has_rows, Tile::lane_idx, Tile::p, Tile::part, Tile::row_tile, Tile::span_max, Tile::span_sum;
  using Tile::kHeadDim, Tile::kOutBlocks, Tile::kQueryFragments, Tile::kRowTiles;
  using Tile::out_column, Tile::set_span_acc, Tile::span_acc;
  static constexpr int kChunks = kHeadDim / 8;             // 16-byte pieces of a K or V row
  static constexpr bool kTogether = Tile::kPathTiles > 1;  // whether all warps take every step

  const Sequence seq;
  const int kv_head_idx, group;
  const int warp_idx;
  int first_packed, num_packed;  // packed rows of the CTA
  int first_node, num_nodes;     // rows of the sequence that these belong to
  // Fold of the spans before the current one; its acc is in the workspace, and where all warps take every step,
  // and registers are scarcer, so are these.
  float whole_sum[2], whole_max[2];
  bool has_whole = false;

  __device__ __forceinline__ TreeAttentionRows(const TreeAttentionParams& params, T* ring,
                                               typename Tile::Exchange& exchange)
      : Tile(params, ring, exchange),
        seq(params, blockIdx.z / params.num_kv_heads),
        kv_head_idx(blockIdx.z % params.num_kv_heads),
        group(params.num_q_heads / params.num_kv_heads),
        warp_idx(threadIdx.x / 32) {}

  // ---- loads and rows ----

  // Starts the copy of up to 64 K and V rows; row i holds KV position kv_pos_of(i). Where tiles are filled the
  // rows behind become zeros.
  template <typename KvPosOf>
  __device__ __forceinline__ void load_rows(int ring_row, int count, KvPosOf kv_pos_of) const {
    const T* k_cache = static_cast<const T*>(p.k_cache);
    const T* v_cache = static_cast<const T*>(p.v_cache);
#pragma unroll 4
    for (int i = threadIdx.x; i < kTileKeys * kChunks; i += Tile::kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool exists = row < count;
      if (exists || Tile::kFillsTiles) {
        const int64_t source = exists ? seq.cache_row(kv_head_idx, kv_pos_of(row)) * kHeadDim + chunk * 8 : 0;
        const int target = Tile::ring_offset(ring_row + row, chunk);
        cp_async16(Tile::k_ring + target, k_cache + source, exists);
        cp_async16(Tile::v_ring + target, v_cache + source, exists);
      }
    }
  }

  __device__ __forceinline__ void load_prefix_tile(int tile, int stage) const {
    load_rows(stage * kTileKeys, kTileKeys, [&](int row) { return tile * kTileKeys + row; });
  }

  // Calls visit(r, packed row, row of the pass, q head) for this lane's two rows, as far as they exist.
  template <typename Visit>
  __device__ __forceinline__ void for_each_row(Visit visit) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int idx = row_tile * 16 + lane_idx / 4 + 8 * r;
      if (idx < num_packed) {
        const int packed = first_packed + idx;
        visit(r, seq.first_row + packed / group, kv_head_idx * group + packed % group);
      }
    }
  }

  // Folds the whole so far with the span; the result takes the span's place. The acc of the whole lies in the
  // workspace, where only this thread touches it.
  __device__ __forceinline__ void fold_span() {
    if (!has_whole) return;
    for_each_row([&](int r, int row, int q_head_idx) {
      const float* acc = p.workspace + partial_offset(p, kHeadDim, 0, row, q_head_idx);
      float2 whole = make_float2(whole_max[r], whole_sum[r]);
      if constexpr (kTogether) whole = *reinterpret_cast<const float2*>(acc + kHeadDim);
      const Fold fold(whole.x, span_max[r]);
      span_max[r] = fold.max;
      span_sum[r] = fold(whole.y, span_sum[r]);
#pragma unroll
      for (int n = 0; n < kOutBlocks; ++n) {
        const float2 older = *reinterpret_cast<const float2*>(acc + out_column(n)), newer = span_acc(n, r);
        set_span_acc(n, r, make_float2(fold(older.x, newer.x), fold(older.y, newer.y)));
      }
    });
  }

  __device__ __forceinline__ void store_acc(int unit_idx, int r, int row, int q_head_idx) const {
    float* acc = p.workspace + partial_offset(p, kHeadDim, unit_idx, row, q_head_idx);
#pragma unroll
    for (int n = 0; n < kOutBlocks; ++n) *reinterpret_cast<float2*>(acc + out_column(n)) = span_acc(n, r);
  }

  // Maximum and sum, behind the acc.
  __device__ __forceinline__ void store_weight(int unit_idx, int r, int row, int q_head_idx) const {
    if (part != 0 || lane_idx % 4 != 0) return;
    float* state = p.workspace + partial_offset(p, kHeadDim, unit_idx, row, q_head_idx) + kHeadDim;
    *reinterpret_cast<float2*>(state) = make_float2(span_max[r], span_sum[r]);
  }

  // After tile `tile` of every row.
  __device__ __forceinline__ void end_tile(int tile, int last_tile) {
    const int key_end = (tile + 1) * kTileKeys;
    if (key_end % kSplitKeys != 0 && tile != last_tile) return;
    Tile::fold_split();
    if (key_end % kSpanKeys != 0 && tile != last_tile) return;
    fold_span();
    if (tile == last_tile) return;
    has_whole = true;
    if (kTogether) __syncwarp();  // all lanes of a row have read what its first is about to store
    for_each_row([&](int r, int row, int q_head_idx) {
      if constexpr (kTogether) {
        store_weight(0, r, row, q_head_idx);
      } else {
        whole_max[r] = span_max[r];
        whole_sum[r] = span_sum[r];
      }
      store_acc(0, r, row, q_head_idx);
    });
    if (kTogether) __syncwarp();  // and will read what it has stored
    Tile::clear_span();
  }

  // The result of a row if this unit holds all its keys, else the unit's state for the combining kernel.
  __device__ __forceinline__ void emit(int unit_idx, int unit_keys) const {
    for_each_row([&](int r, int row, int q_head_idx) {
      const int kv_len = seq.kv_len(row - seq.first_row);
      if (unit_idx == 0 && kv_len <= unit_keys) {
        T* out = static_cast<T*>(p.out) + (static_cast<int64_t>(row) * p.num_q_heads + q_head_idx) * kHeadDim;
#pragma unroll
        for (int n = 0; n < kOutBlocks; ++n) {
          const float2 acc = span_acc(n, r);
          const uint32_t bits =
              pack<T>(softmax_output(acc.x, span_sum[r]), softmax_output(acc.y, span_sum[r]));
          store_pair(out + out_column(n), bits);
        }
      } else if (kv_len > unit_idx * unit_keys) {
        store_acc(unit_idx, r, row, q_head_idx);
        store_weight(unit_idx, r, row, q_head_idx);
      }
    });
  }

  // ---- units of a cluster ----

  // The CTAs of a cluster have all units of their rows between them, the one of rank i unit i.
  static __device__ __forceinline__ bool meets_units() {
#if HAS_CLUSTERS
    return cluster_size() > 1;
#else
    return false;
#endif
  }

  // Where the CTA leaves the state of its packed row `idx`, in place of the ring: acc, then maximum and sum. With a quad more four rows
  // next to each other are in different banks, as eight lanes of a store want them.
  static constexpr int kAccQuads = kHeadDim / 4, kStateQuads = kAccQuads + 2;
  static_assert(kRowTiles * 16 * kStateQuads * 16 <= 2 * Tile::kRingRows * kHeadDim * 2,
                "states fit into the ring");
  __device__ __forceinline__ float4* shared_state(int idx) const {
    return reinterpret_cast<float4*>(Tile::k_ring) + idx * kStateQuads;
  }

  // The states of this lane's rows, as far as this unit has keys of theirs.
  __device__ __forceinline__ void leave_states(int unit_idx, int unit_keys) const {
    for_each_row([&](int r, int row, int) {
      if (seq.kv_len(row - seq.first_row) <= unit_idx * unit_keys) return;
      float* state = reinterpret_cast<float*>(shared_state(row_tile * 16 + lane_idx / 4 + 8 * r));
#pragma unroll
      for (int n = 0; n < kOutBlocks; ++n) *reinterpret_cast<float2*>(state + out_column(n)) = span_acc(n, r);
      if (part != 0 || lane_idx % 4 != 0) return;
      *reinterpret_cast<float2*>(state + kHeadDim) = make_float2(span_max[r], span_sum[r]);
    });
  }

  // Merges what all CTAs of the cluster leave, in the order of the combining kernel; each takes some of the outputs.
  template <typename Leave>
  __device__ __forceinline__ void merge_units(int unit_keys, Leave leave) const {
#if HAS_CLUSTERS
    __syncthreads();  // all warps are done with the ring
    leave();
    cluster_sync();
    T* const out = static_cast<T*>(p.out);
    const int stride = cluster_size() * Tile::kThreads;
    for (int i = cluster_rank() * Tile::kThreads + threadIdx.x; i < num_packed * kAccQuads; i += stride) {
      const int idx = i / kAccQuads, quad = i % kAccQuads, packed = first_packed + idx;
      const float4* state = shared_state(idx);
      const int kv_len = seq.kv_len(packed / group);
      const int num_units = (kv_len + unit_keys - 1) / unit_keys;
      UnitFold<4> whole;
      constexpr int kInFlight = 4;
      for (int first = window_begin(kv_len) / unit_keys; first < num_units; first += kInFlight) {
        float4 accs[kInFlight], weights[kInFlight];
#pragma unroll
        for (int u = 0; u < kInFlight; ++u) {
          const int unit = min(first + u, num_units - 1);
          accs[u] = load_peer(state + quad, unit);
          weights[u] = load_peer(state + kAccQuads, unit);
        }
#pragma unroll
        for (int u = 0; u < kInFlight; ++u) {
          const int unit = first + u;
          if (unit >= num_units) break;
          whole.add({accs[u].x, accs[u].y, accs[u].z, accs[u].w}, weights[u].x, weights[u].y);
          if ((unit + 1) * unit_keys % kSpanKeys == 0 || unit + 1 == num_units) whole.end_span();
        }
      }
      const uint32_t low =
          pack<T>(softmax_output(whole.acc[0], whole.sum), softmax_output(whole.acc[1], whole.sum));
      const uint32_t high =
          pack<T>(softmax_output(whole.acc[2], whole.sum), softmax_output(whole.acc[3], whole.sum));
      const int64_t row = seq.first_row + packed / group, q_head_idx = kv_head_idx * group + packed % group;
      *reinterpret_cast<uint2*>(out + (row * p.num_q_heads + q_head_idx) * kHeadDim + quad * 4) =
          make_uint2(low, high);
    }
    cluster_meet();  // until then others may read the states
#endif
  }

  // ---- the CTA ----

  // The queries of the CTA into their tile, or those of the warp into registers; where no row is, zeros.
  __device__ __forceinline__ void load_query() {
    const T* const queries = static_cast<const T*>(p.q);
    auto query_of = [&](int row, int q_head_idx) {
      return queries + (static_cast<int64_t>(row) * p.num_q_heads + q_head_idx) * kHeadDim;
    };
    if constexpr (Tile::kQueriesInTile) {
#pragma unroll 4
      for (int i = threadIdx.x; i < kRowTiles * 16 * kChunks; i += Tile::kThreads) {
        const int idx = i / kChunks, chunk = i % kChunks, packed = first_packed + idx;
        uint4 piece = make_uint4(0, 0, 0, 0);
        if (idx < num_packed) {
          const T* q = query_of(seq.first_row + packed / group, kv_head_idx * group + packed % group);
          piece = *reinterpret_cast<const uint4*>(q + chunk * 8);
        }
        Tile::set_query(idx, chunk, piece);
      }
    } else {
      uint32_t (&query)[kQueryFragments][4] = Tile::query;
#pragma unroll
      for (int k = 0; k < kQueryFragments; ++k) query[k][0] = query[k][1] = query[k][2] = query[k][3] = 0;
      for_each_row([&](int r, int row, int q_head_idx) {
        const T* q = query_of(row, q_head_idx);
#pragma unroll
        for (int k = 0; k < kQueryFragments; ++k) {
          query[k][r] = load_pair(q + k * 16 + lane_idx % 4 * 2);
          query[k][r + 2] = load_pair(q + k * 16 + 8 + lane_idx % 4 * 2);
        }
      });
    }
  }

  // Least and greatest `value` of the warp; values are not negative.
  static __device__ __forceinline__ int smallest(int value) {
    return static_cast<int>(__reduce_min_sync(kWholeWarp, static_cast<unsigned>(value)));
  }
  static __device__ __forceinline__ int greatest(int value) {
    return static_cast<int>(__reduce_max_sync(kWholeWarp, static_cast<unsigned>(value)));
  }

  // First logical position that a row of `kv_len` keys sees.
  __device__ __forceinline__ int window_begin(int kv_len) const {
    return kWindowed ? seq.window_begin(kv_len) : 0;
  }

  // Least and greatest number of keys up to a row of the CTA.
  __device__ __forceinline__ int shortest_row() const {
    int shortest = seq.kv_len(first_node);
    for (int i = lane_idx; i < num_nodes; i += 32) shortest = min(shortest, seq.kv_len(first_node + i));
    return smallest(shortest);
  }
  __device__ __forceinline__ int longest_row() const {
    int longest = 0;
    for (int i = lane_idx; i < num_nodes; i += 32) longest = max(longest, seq.kv_len(first_node + i));
    return greatest(longest);
  }
};
