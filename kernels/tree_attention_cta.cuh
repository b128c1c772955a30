// A CTA of tree attention on tensor cores (bf16, f16), whatever instructions multiply: rows of the CTA, copies of
// keys and values, units of keys, the tail of tree rows, states and results. MATH, ORDER and the contract are in
// tree_attention.cu. What multiplies a tile is `Tile`: SoftmaxTile (softmax_tile.cuh) or WarpgroupTile
// (softmax_tile_wgmma.cuh).
//
// A CTA is row tiles of 16 packed rows (node, q head of the kv group), one (sequence, kv head) and one unit of
// keys. Keys arrive through a ring of kStages tiles in shared memory (cp.async). Tiles that end inside the prefix
// are the same for all rows. Behind them lies the tail: the rest of the prefix and the tree. Its rows are
// staged once, as the union of what the rows of this CTA see, in the same ring, and then taken path by path:
// for one leaf, every row on the leaf's path sees the same keys at the same logical positions, so one step
// serves them all, each with its own limit; rows of other paths are masked out and pass through unchanged. A
// causal chunk is one path. kPathTiles row tiles take their paths together.
//
// kWindowed: rows see the last p.window of their keys only. A tile then is masked at its front, too, where some row's
// window begins in it or behind it; what lies before every window of the CTA is not loaded.
#pragma once
#include "softmax_rows.cuh"

template <typename Tile, bool kWindowed>
struct TreeAttentionCta : Tile {
  using T = typename Tile::T;
  using Tile::kHeadDim, Tile::kOutBlocks, Tile::kQueryFragments, Tile::kRingRows, Tile::kRowTiles, Tile::kStages;
  using Tile::has_rows, Tile::lane_idx, Tile::p, Tile::part, Tile::row_tile, Tile::span_max,
      Tile::span_sum;
  using Tile::out_column, Tile::set_span_acc, Tile::span_acc;
  static constexpr int kChunks = kHeadDim / 8;  // 16-byte pieces of a K or V row
  static constexpr bool kTogether = Tile::kPathTiles > 1;  // whether all warps take every step
  static constexpr int kNodeWords = (Tile::kPathTiles * 16 + 31) / 32;  // of sets of nodes that take paths together
  static_assert(Tile::kPathTiles == 1 || Tile::kPathTiles == kRowTiles, "a warp, or the CTA");

  // Part of the tail: key tiles [tile_begin, tile_end) for CTA nodes [node_begin, node_end), and the ring
  // rows that hold what these nodes see there: first the prefix, then the tree rows of `members` in ascending
  // order. In shared memory: it is needed rarely, and registers are scarce.
  struct Batch {
    int tile_begin, tile_end, node_begin, node_end;
    int ring_begin, num_prefix_rows, num_rows;
    uint8_t staged_bits[kRingRows];  // tree rows in order: which bit
    TreeMask members;
  };

  const Sequence seq;
  const int kv_head_idx, group;
  const int warp_idx;
  Batch& batch;
  uint8_t* const path_rows;  // [kTileKeys] of this warp: ring row of each key of the current tile and path
  int first_packed, num_packed;  // packed rows of the CTA
  int first_node, num_nodes;     // rows of the sequence that these belong to
  // Fold of the spans before the current one; its acc is in the workspace, and where all warps take every step,
  // and registers are scarcer, so are these.
  float whole_sum[2], whole_max[2];
  bool has_whole = false;

  __device__ __forceinline__ TreeAttentionCta(const TreeAttentionParams& params, T* ring, Batch& tail,
                                              uint8_t* path, typename Tile::Exchange& exchange)
      : Tile(params, ring, exchange),
        seq(params, blockIdx.z / params.num_kv_heads),
        kv_head_idx(blockIdx.z % params.num_kv_heads),
        group(params.num_q_heads / params.num_kv_heads),
        warp_idx(threadIdx.x / 32),
        batch(tail),
        path_rows(path) {}

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
        const int64_t source =
            exists ? seq.cache_row(kv_head_idx, kv_pos_of(row)) * kHeadDim + chunk * 8 : 0;
        const int target = Tile::ring_offset(ring_row + row, chunk);
        cp_async16(Tile::k_ring + target, k_cache + source, exists);
        cp_async16(Tile::v_ring + target, v_cache + source, exists);
      }
    }
  }

  __device__ __forceinline__ void load_prefix_tile(int tile, int stage) const {
    load_rows(stage * kTileKeys, kTileKeys, [&](int row) { return tile * kTileKeys + row; });
  }

  // Rows [64 * chunk, ...) of the batch; the ring wraps.
  __device__ __forceinline__ void load_batch_rows(int chunk) const {
    const int begin = chunk * kTileKeys;
    if (begin >= batch.num_rows) return;
    const int ring_row = (batch.ring_begin + begin) % kRingRows;
    load_rows(ring_row, batch.num_rows - begin, [&](int row) {
      const int idx = begin + row - batch.num_prefix_rows;
      return idx < 0 ? seq.prefix_len + idx : seq.prefix_len + batch.staged_bits[idx];
    });
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
          memcpy(out + out_column(n), &bits, 4);
        }
      } else if (kv_len > unit_idx * unit_keys) {
        store_acc(unit_idx, r, row, q_head_idx);
        store_weight(unit_idx, r, row, q_head_idx);
      }
    });
  }

  // ---- the tail ----

  // Plans the next part of the tail, from (tile, node) on: all that is left if the ring can hold it, else one
  // tile, else one tile of fewer nodes. A single path needs at most the 64 rows of a tile.
  __device__ __forceinline__ void plan_batch(int tile, int tile_end, int node, int ring_begin) const {
    if (warp_idx == 0) {
      const int num_prefix_rows = max(seq.prefix_len - tile * kTileKeys, 0);
      int node_end = num_nodes, num_rows;
      if (node != 0) tile_end = tile + 1;
      TreeMask members;
      for (;;) {
        collect_members(members, node, node_end, tile * kTileKeys - seq.prefix_len,
                        tile_end * kTileKeys - seq.prefix_len);
        num_rows = num_prefix_rows + count_bits(members);
        if (num_rows <= Tile::kBatchRows) break;
        if (tile_end > tile + 1)
          tile_end = tile + 1;
        else
          node_end = node + (node_end - node + 1) / 2;
      }
      for_each_member(spread(members),
                      [&](int bit, int rank) { batch.staged_bits[rank] = static_cast<uint8_t>(bit); });
      if (lane_idx == 0) {
        batch.tile_begin = tile;
        batch.tile_end = tile_end;
        batch.node_begin = node;
        batch.node_end = node_end;
        batch.ring_begin = ring_begin;
        batch.num_prefix_rows = num_prefix_rows;
        batch.num_rows = num_rows;
#pragma unroll
        for (int w = 0; w < kMaskWords; ++w) batch.members[w] = members[w];
      }
    }
    __syncthreads();
  }

  // What CTA nodes [node, node_end) see of the ranks [first_rank, end_rank), in every lane.
  __device__ __forceinline__ void collect_members(TreeMask& members, int node, int node_end, int first_rank,
                                                  int end_rank) const {
#pragma unroll
    for (int w = 0; w < kMaskWords; ++w) members[w] = 0;
    for (int i = node + lane_idx; i < node_end; i += 32) {
      TreeMask mask;
      seq.load_ancestors(mask, first_node + i);
      keep_ranks(mask, first_rank, end_rank);
#pragma unroll
      for (int w = 0; w < kMaskWords; ++w) members[w] |= mask[w];
    }
#pragma unroll
    for (int w = 0; w < kMaskWords; ++w) members[w] = __reduce_or_sync(kAllLanes, members[w]);
  }

  // Ring rows of the 64 keys of `tile` as the path `leaf` sees them. Positions behind its end get a row that
  // holds numbers: their weight is zero.
  __device__ __forceinline__ void find_path_rows(int tile, const TreeMask& leaf, int leaf_len) const {
    const int first_key = tile * kTileKeys;
    auto ring_row = [&](int idx) {
      const int row = batch.ring_begin + idx;
      return static_cast<uint8_t>(row < kRingRows ? row : row - kRingRows);
    };
    __syncwarp();  // the lanes have read the rows of the path before
#pragma unroll
    for (int i = lane_idx; i < kTileKeys; i += 32) {
      const int key = first_key + i;
      if (key < seq.prefix_len) path_rows[i] = ring_row(key - batch.tile_begin * kTileKeys);
      if (key >= leaf_len) path_rows[i] = ring_row(0);
    }
    const LaneBits path = spread(leaf), members = spread(batch.members);
    int rank = path.below;
    for (uint32_t left = path.bits; left != 0; left &= left - 1, ++rank) {
      const int i = seq.prefix_len + rank - first_key;
      if (i >= 0 && i < kTileKeys) {
        const uint32_t lower_bits = (left & -left) - 1;
        path_rows[i] = ring_row(batch.num_prefix_rows + members.below + __popc(members.bits & lower_bits));
      }
    }
    __syncwarp();
  }

  static __device__ __forceinline__ bool has_node(const uint32_t (&nodes)[kNodeWords], int node) {
    uint32_t word = nodes[0];
#pragma unroll
    for (int w = 1; w < kNodeWords; ++w) word = node / 32 == w ? nodes[w] : word;
    return (word >> node % 32 & 1) != 0;
  }
  // The greatest node of a set, -1 of an empty one.
  static __device__ __forceinline__ int last_of(const uint32_t (&nodes)[kNodeWords]) {
    int node = -1;
#pragma unroll
    for (int w = 0; w < kNodeWords; ++w) {
      if (nodes[w] != 0) node = w * 32 + 31 - __clz(static_cast<int>(nodes[w]));
    }
    return node;
  }

  // One tile of the tail for the rows of this warp, or of all, that belong to the batch: a step per path.
  __device__ __forceinline__ void walk_paths(int tile) {
    // lane i stands for nodes i, i + 32 ... of the row tiles that take paths together
    const int first_key = tile * kTileKeys;
    const int tile_packed = first_packed + (kTogether ? 0 : row_tile * 16);
    const int tile_node = tile_packed / group;
    const int last_node =
        (min(tile_packed + Tile::kPathTiles * 16, first_packed + num_packed) - 1) / group;
    int len = 0;  // of a warp's nodes; those of a CTA are counted anew, as registers are scarce
    uint32_t pending[kNodeWords];
#pragma unroll
    for (int w = 0; w < kNodeWords; ++w) {
      const int node = tile_node + w * 32 + lane_idx - first_node;
      const bool exists = tile_node + w * 32 + lane_idx <= last_node;
      len = exists ? seq.kv_len(first_node + node) : 0;
      pending[w] = __ballot_sync(kAllLanes, exists && node >= batch.node_begin && node < batch.node_end &&
                                                len > first_key &&
                                                window_begin(len) < first_key + kTileKeys);
    }
    Tile::forget_path();
    for (int leaf_node = last_of(pending); leaf_node >= 0; leaf_node = last_of(pending)) {
      TreeMask leaf;
      seq.load_ancestors(leaf, tile_node + leaf_node);
      const int leaf_len =
          kTogether ? seq.prefix_len + count_bits(leaf) : __shfl_sync(kAllLanes, len, leaf_node);
      uint32_t on_path[kNodeWords];
#pragma unroll
      for (int w = 0; w < kNodeWords; ++w) {
        const bool is_pending = (pending[w] >> lane_idx & 1) != 0;
        TreeMask own = {};
        if (is_pending) seq.load_ancestors(own, tile_node + w * 32 + lane_idx);
        on_path[w] = __ballot_sync(kAllLanes, is_pending && is_upper_part(own, leaf));
        pending[w] &= ~on_path[w];
      }

      SeenKeys seen;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int idx = row_tile * 16 + lane_idx / 4 + 8 * r;
        // The last lane's node does not exist if any row does not.
        const int row_node =
            idx < num_packed ? (first_packed + idx) / group - tile_node : kNodeWords * 32 - 1;
        int row_len;
        if constexpr (kTogether)
          row_len = idx < num_packed ? seq.kv_len(tile_node + row_node) : 0;
        else
          row_len = __shfl_sync(kAllLanes, len, row_node);
        seen.end[r] = has_node(on_path, row_node) ? row_len - first_key : 0;
      }
      seen.last = leaf_len - first_key;
      find_path_rows(tile, leaf, leaf_len);
      // The window of the path's first node begins first.
      if constexpr (kWindowed && !kTogether) {
        const int first_lane = __ffs(static_cast<int>(on_path[0])) - 1;
        seen.first = window_begin(__shfl_sync(kAllLanes, len, first_lane)) - first_key;
      }
      Tile::template step_path<kWindowed ? Visible::kWindow : Visible::kFirst>(seen, path_rows,
                                                                             batch.ring_begin);
    }
  }

  // ---- the whole unit ----

  // A tile of the prefix that some rows of the CTA see only in part or not at all: their windows begin in it or behind it.
  __device__ __forceinline__ void step_at_window(int tile, int stage) {
    const int first_key = tile * kTileKeys;
    SeenKeys seen{{0, 0}, 0, kTileKeys};
    int first = kTileKeys;
    for_each_row([&](int r, int row, int) {
      const int len = seq.kv_len(row - seq.first_row);
      seen.end[r] = len - first_key;
      first = min(first, max(window_begin(len) - first_key, 0));
    });
    if constexpr (!kTogether) seen.first = smallest(first);
    if (seen.first < kTileKeys) Tile::template step_stage<Visible::kWindow>(seen, stage);
  }

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
          memcpy(&query[k][r], q + k * 16 + lane_idx % 4 * 2, 4);
          memcpy(&query[k][r + 2], q + k * 16 + 8 + lane_idx % 4 * 2, 4);
        }
      });
    }
  }

  // Least and greatest `value` of the warp; values are not negative.
  static __device__ __forceinline__ int smallest(int value) {
    return static_cast<int>(__reduce_min_sync(kAllLanes, static_cast<unsigned>(value)));
  }
  static __device__ __forceinline__ int greatest(int value) {
    return static_cast<int>(__reduce_max_sync(kAllLanes, static_cast<unsigned>(value)));
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

  __device__ __forceinline__ void run() {
    first_packed = static_cast<int>(blockIdx.x) * kRowTiles * 16;
    num_packed = min(kRowTiles * 16, seq.num_rows * group - first_packed);
    if (num_packed <= 0) return;
    first_node = first_packed / group;
    num_nodes = (first_packed + num_packed - 1) / group - first_node + 1;
    has_rows = row_tile * 16 < num_packed;
    const bool takes_steps = kTogether || has_rows;

    const int unit_idx = blockIdx.y;
    const int unit_keys = p.splits_per_unit * kSplitKeys;
    const int unit_end = (unit_idx + 1) * unit_keys;
    int key_begin = unit_idx * unit_keys;
    int all_seen_from = 0;  // every row of the CTA sees the prefix from here on
    if constexpr (kWindowed) {
      key_begin = max(key_begin, window_begin(shortest_row()) / kTileKeys * kTileKeys);
      all_seen_from = window_begin(longest_row());
    }
    const int first_tile = key_begin / kTileKeys;
    const int num_prefix_tiles = max(min(unit_end, seq.prefix_len) / kTileKeys - first_tile, 0);
    int issued = 0;  // loads: prefix tiles, then 64-row pieces of the tail's first batch
    for (; issued < min(num_prefix_tiles, kStages - 1); ++issued) {
      load_prefix_tile(first_tile + issued, issued);
      cp_async_commit();
    }

    const int key_end = seq.prefix_len >= unit_end ? unit_end : min(unit_end, longest_row());
    if (key_end <= key_begin) return;
    const int tile_end = (key_end + kTileKeys - 1) / kTileKeys;
    const int tail_tile = first_tile + num_prefix_tiles;
    const bool has_tail = tail_tile < tile_end;
    if (has_tail) plan_batch(tail_tile, tile_end, 0, num_prefix_tiles % kStages * kTileKeys);
    for (; issued < kStages - 1; ++issued) {
      if (has_tail) load_batch_rows(issued - num_prefix_tiles);
      cp_async_commit();
    }
    load_query();

    for (int i = 0, stage = 0; i < num_prefix_tiles;
         ++i, ++issued, stage = stage + 1 == kStages ? 0 : stage + 1) {
      cp_async_wait<kStages - 2>();
      Tile::show_copies();
      __syncthreads();  // tile i has come for all threads, and tile i - 1 is done with: its place is free
      if (issued < num_prefix_tiles) {
        load_prefix_tile(first_tile + issued, stage == 0 ? kStages - 1 : stage - 1);
      } else if (has_tail) {
        load_batch_rows(issued - num_prefix_tiles);
      }
      cp_async_commit();
      if (takes_steps) {
        if (!kWindowed || (first_tile + i) * kTileKeys >= all_seen_from)
          Tile::template step_stage<Visible::kAll>({}, stage);
        else
          step_at_window(first_tile + i, stage);
      }
      end_tile(first_tile + i, tile_end - 1);
    }

    if (has_tail) {
      __syncthreads();  // the last prefix tile is done with
      load_batch_rows(kStages - 1);
      for (;;) {
        cp_async_commit();
        cp_async_wait<0>();
        Tile::show_copies();
        __syncthreads();
        const bool all_nodes = batch.node_end == num_nodes;
        for (int tile = batch.tile_begin; tile < batch.tile_end; ++tile) {
          if (takes_steps) walk_paths(tile);
          if (all_nodes) end_tile(tile, tile_end - 1);
        }
        const int next_tile = all_nodes ? batch.tile_end : batch.tile_begin;
        const int next_node = all_nodes ? 0 : batch.node_end;
        if (next_tile == tile_end) break;
        __syncthreads();  // the batch and the ring are free
        plan_batch(next_tile, tile_end, next_node, 0);
        for (int chunk = 0; chunk < kStages; ++chunk) load_batch_rows(chunk);
      }
    }
    if (has_rows) emit(unit_idx, unit_keys);
  }
};

// The body of an entry point, from the launch's turn on. `ring` is its dynamic shared memory.
template <typename Tile, bool kWindowed>
__device__ __forceinline__ void tree_attention_cta(const TreeAttentionParams& p, typename Tile::T* ring) {
  using Cta = TreeAttentionCta<Tile, kWindowed>;
  SHARED(typename Cta::Batch, batch);
  SHARED(uint8_t[Tile::kThreads / 32][kTileKeys], path_rows);
  SHARED(typename Tile::Exchange, exchange);
  Cta cta(p, ring, batch, path_rows[threadIdx.x / 32], exchange);
  cta.run();
}
