// A CTA of tree attention on tensor cores (bf16, f16): its unit of keys, tile by tile. MATH, ORDER and the contract are
// in tree_attention.cu, its rows in tree_attention_rows.cuh.
//
// Keys arrive through a ring of kStages tiles in shared memory (cp.async). Tiles that end inside the prefix
// are the same for all rows. Behind them lies the tail: the rest of the prefix and the tree. Its rows are
// staged once, as the union of what the rows of this CTA see, in the same ring, and then taken path by path:
// for one leaf, every row on the leaf's path sees the same keys at the same logical positions, so one step
// serves them all, each with its own limit; rows of other paths are masked out and pass through unchanged. A
// causal chunk is one path. kPathTiles row tiles take their paths together: a warp's own, or all of the CTA.
//
// kWindowed: rows see the last p.window of their keys only. A tile then is masked at its front, too, where some row's
// window begins in it or behind it; what lies before every window of the CTA is not loaded.
#pragma once
#include "tree_attention_rows.cuh"

template <typename Tile, bool kWindowed>
struct TreeAttentionCta : TreeAttentionRows<Tile, kWindowed> {
  using CtaRows = TreeAttentionRows<Tile, kWindowed>;
  using CtaRows::emit, CtaRows::end_tile, CtaRows::for_each_row, CtaRows::load_prefix_tile,
      CtaRows::load_query, CtaRows::load_rows, CtaRows::longest_row, CtaRows::shortest_row, CtaRows::smallest,
      CtaRows::window_begin;
  using CtaRows::first_node, CtaRows::first_packed, CtaRows::group, CtaRows::has_rows, CtaRows::lane_idx,
      CtaRows::num_nodes, CtaRows::num_packed, CtaRows::p, CtaRows::row_tile, CtaRows::seq, CtaRows::warp_idx;
  using CtaRows::kRingRows, CtaRows::kRowTiles, CtaRows::kStages, CtaRows::kTogether;
  using typename CtaRows::T;
  static constexpr int kNodeWords =
      (Tile::kPathTiles * 16 + 31) / 32;  // of the nodes that take paths together
  static_assert(Tile::kPathTiles == 1 || Tile::kPathTiles == kRowTiles, "a warp, or the CTA");

  // Part of the tail: key tiles [tile_begin, tile_end) for CTA nodes [node_begin, node_end), and the ring
  // rows that hold what these nodes see there: first the prefix, then the tree rows of `members` in ascending
  // order. In shared memory: it is needed rarely, and registers are scarce.
  struct Batch {
    int tile_begin, tile_end, node_begin, node_end;
    int ring_begin, num_prefix_rows, num_rows;
    uint8_t staged_bits[Tile::kBatchRows];  // tree rows in order: which bit
    TreeMask members;
  };

  Batch& batch;
  uint8_t* const path_rows;  // [kTileKeys] of this warp: ring row of each key of the current tile and path

  __device__ __forceinline__ TreeAttentionCta(const TreeAttentionParams& params, T* ring, Batch& tail,
                                              uint8_t* path, typename Tile::Exchange& exchange)
      : CtaRows(params, ring, exchange), batch(tail), path_rows(path) {}

  // ---- the tail ----

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
    for (int w = 0; w < kMaskWords; ++w) members[w] = __reduce_or_sync(kWholeWarp, members[w]);
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
    uint32_t word = 0;
#pragma unroll
    for (int w = 0; w < kNodeWords; ++w) word |= nodes[w] & (node / 32 == w ? ~0u : 0u);  // as in spread()
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
    const int last_node = (min(tile_packed + Tile::kPathTiles * 16, first_packed + num_packed) - 1) / group;
    int len = 0;  // of a warp's nodes; those of a CTA are counted anew, as registers are scarce
    uint32_t pending[kNodeWords];
#pragma unroll
    for (int w = 0; w < kNodeWords; ++w) {
      const int node = tile_node + w * 32 + lane_idx - first_node;
      const bool exists = tile_node + w * 32 + lane_idx <= last_node;
      len = exists ? seq.kv_len(first_node + node) : 0;
      pending[w] =
          __ballot_sync(kWholeWarp, exists && node >= batch.node_begin && node < batch.node_end &&
                                        len > first_key && window_begin(len) < first_key + kTileKeys);
    }
    Tile::forget_path();
    for (int leaf_node = last_of(pending); leaf_node >= 0; leaf_node = last_of(pending)) {
      TreeMask leaf;
      seq.load_ancestors(leaf, tile_node + leaf_node);
      const int leaf_len =
          kTogether ? seq.prefix_len + count_bits(leaf) : __shfl_sync(kWholeWarp, len, leaf_node);
      uint32_t on_path[kNodeWords];
#pragma unroll
      for (int w = 0; w < kNodeWords; ++w) {
        const bool is_pending = (pending[w] >> lane_idx & 1) != 0;
        TreeMask own = {};
        if (is_pending) seq.load_ancestors(own, tile_node + w * 32 + lane_idx);
        on_path[w] = __ballot_sync(kWholeWarp, is_pending && is_upper_part(own, leaf));
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
          row_len = __shfl_sync(kWholeWarp, len, row_node);
        seen.end[r] = has_node(on_path, row_node) ? row_len - first_key : 0;
      }
      // The same in every lane; from one of them the compiler sees it, and lets warps go on without meeting before every mma.
      seen.last = __shfl_sync(kWholeWarp, leaf_len - first_key, 0);
      find_path_rows(tile, leaf, leaf_len);
      // The window of the path's first node begins first.
      if constexpr (kWindowed && !kTogether) {
        const int first_lane = __ffs(static_cast<int>(on_path[0])) - 1;
        seen.first = window_begin(__shfl_sync(kWholeWarp, len, first_lane)) - first_key;
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
    if (key_end <= key_begin) {
      if (CtaRows::meets_units()) CtaRows::merge_units(unit_keys, [] {});
      return;
    }
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
    if (CtaRows::meets_units())
      CtaRows::merge_units(unit_keys, [&] { CtaRows::leave_states(unit_idx, unit_keys); });
    else if (has_rows)
      emit(unit_idx, unit_keys);
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
