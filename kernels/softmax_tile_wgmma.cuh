// One softmax step of tree attention by wgmma: 64 rows against 64 keys that fill a stage of the ring, in logical
// order. Queries are A, in shared memory, weights A in registers; keys are B with the head dimension along the
// rows of their tile, values B with it across.
//
// wgmma gathers nothing: the keys of a path that do not stand in order in a stage are copied to one that is
// kept free for that. Paths of a tree share most of their keys, so only what differs from the path before is copied.
#pragma once
#include "softmax_rows.cuh"

#if HAS_WGMMA

constexpr int kWarpgroupThreads = 128;

template <typename T_, int kHeadDim_>
struct WarpgroupTile : SoftmaxRows<T_, kHeadDim_, 1, false, kWarpgroupThreads> {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  using Rows = SoftmaxRows<T, kHeadDim, 1, false, kWarpgroupThreads>;
  using Rows::has_rows, Rows::lane_idx, Rows::split_acc, Rows::split_sum;
  using Rows::kOnes, Rows::kQueryFragments;
  static constexpr int kThreads = kWarpgroupThreads;
  static constexpr int kRowTiles = 4;
  static constexpr int kPathTiles = 4;  // wgmma is one step of all
  // At most 112 KB, so that two CTAs share an SM: while one's scores become weights the other multiplies.
  static constexpr int kStages = kHeadDim == 128 ? 3 : 4;
  static constexpr int kRingRows = kStages * kTileKeys;
  static constexpr int kBatchRows = kRingRows - kTileKeys;  // one stage is for paths
  static constexpr bool kFillsTiles = true;  // a weight of zero times what was never written may be NaN
  // A stage of K or V is blocks of 64 dimensions (of 32, if head_dim is no multiple of 64): 64 keys in rows of
  // 128 (64) bytes, a block after the other. So no row is filled in part.
  static constexpr int kBlockDims = kHeadDim % 64 == 0 ? 64 : 32;
  static constexpr int kRowBytes = kBlockDims * 2;
  static constexpr int kBlock = kTileKeys * kBlockDims;
  static constexpr int kStage = kTileKeys * kHeadDim;

  // Ring rows that the path stage holds, as each warp notes them for itself.
  struct Exchange {
    uint8_t held_rows[kThreads / 32][kTileKeys];
  };

  T* const k_ring;  // [kStages] tiles of keys, behind them of values, and one of the CTA's 64 queries
  T* const v_ring;
  T* const query_tile;
  uint8_t* const held_rows;
  bool holds_path = false;
  const int row_tile;

  // `ring` is the dynamic shared memory, on a boundary of 1024 bytes.
  __device__ __forceinline__ WarpgroupTile(const TreeAttentionParams& params, T* ring, Exchange& notes)
      : Rows(params, nullptr),
        k_ring(ring),
        v_ring(ring + kStages * kStage),
        query_tile(ring + 2 * kStages * kStage),
        held_rows(notes.held_rows[threadIdx.x / 32]),
        row_tile(threadIdx.x / 32) {}

  // Where piece `chunk` (16 bytes) of ring row `row` lies, in elements.
  static __device__ __forceinline__ int ring_offset(int row, int chunk) {
    constexpr int kRowChunks = kBlockDims / 8;
    const int key = row % kTileKeys;
    return row / kTileKeys * kStage + chunk / kRowChunks * kBlock + key * kBlockDims +
           tile_chunk<kRowBytes>(key, chunk % kRowChunks) * 8;
  }

  // Piece `chunk` of query `row` of the CTA.
  static constexpr bool kQueriesInTile = true;
  __device__ __forceinline__ void set_query(int row, int chunk, uint4 piece) const {
    fill_tile16(query_tile + ring_offset(row, chunk), piece);
  }

  // Makes copies that have arrived visible to tensor cores.
  static __device__ __forceinline__ void show_copies() { fence_async_proxy(); }

  // The ring has changed, or may.
  __device__ __forceinline__ void forget_path() { holds_path = false; }

  // Adds the keys of stage `stage` to the split state. Warps without rows only multiply.
  template <Visible kVisible>
  __device__ __forceinline__ void step_stage(const SeenKeys& seen, int stage) {
    float score[kTileKeys / 2];
#pragma unroll
    for (int i = 0; i < kTileKeys / 2; ++i) score[i] = 0.0f;
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kQueryFragments; ++k) {
      constexpr int kSteps = kBlockDims / 16;
      const uint64_t queries = wgmma_tile<kRowBytes>(query_tile + k / kSteps * kBlock);
      const uint64_t keys = wgmma_tile<kRowBytes>(k_ring + stage * kStage + k / kSteps * kBlock);
      wgmma<T, kTileKeys>(score, wgmma_step(queries, k % kSteps), wgmma_step(keys, k % kSteps));
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_arrived(score);

    uint32_t fragment[4][4] = {};
    // Under a window the registers would not do for that branch; a row that does not exist sees nothing.
    if (kVisible == Visible::kWindow || has_rows) {
      float tile_max[2] = {kNoScore, kNoScore}, base[2], rescale[2];
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        Rows::template raise<kVisible>(tile_max, seen, b * 16, score + 8 * b, score + 8 * b + 4);
      }
      Rows::share_max(tile_max);
      Rows::raise_split(tile_max, base, rescale);
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        Rows::template weigh<kVisible>(fragment[b], seen, b * 16, base, score + 8 * b, score + 8 * b + 4);
      }
      Rows::rescale_split(rescale);
    }

    // Keys that no row sees are multiplied, too: their weights are zero, and zeros are what is behind the last.
    auto& acc = reinterpret_cast<float (&)[kHeadDim / 2]>(split_acc);
    const uint64_t values =
        wgmma_tile_across<kRowBytes>(v_ring + stage * kStage, kBlock * static_cast<int>(sizeof(T)));
    // The weights are added up first: between its issue and its wait nobody may touch what wgmma reads as A.
    split_sum[1] = split_sum[0];  // columns are equal: between steps two registers are enough
    split_sum[3] = split_sum[2];
#pragma unroll
    for (int b = 0; b < 4; ++b) mma<T>(split_sum, fragment[b], {kOnes, kOnes});
    wgmma_fence();
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      wgmma<T, kHeadDim, KAxis::kAcrossRows>(acc, fragment[b], wgmma_step_across<kRowBytes>(values, b));
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_arrived(acc);
  }

  // The same of a tile whose keys are the ring rows path_rows[0..63]; the stage before that of `ring_begin` is free.
  template <Visible kVisible>
  __device__ __forceinline__ void step_path(const SeenKeys& seen, const uint8_t* path_rows, int ring_begin) {
    const int first = path_rows[0];
    bool is_in_order = first % kTileKeys == 0;
#pragma unroll
    for (int key = lane_idx; key < kTileKeys; key += 32) {
      is_in_order = is_in_order && (key >= seen.last || path_rows[key] == first + key);
    }
    int stage = first / kTileKeys;
    if (!__all_sync(kWholeWarp, is_in_order)) {
      stage = (ring_begin / kTileKeys + kStages - 1) % kStages;
      gather_path(path_rows, stage);
    }
    step_stage<kVisible>(seen, stage);
  }

  // Copies the ring rows path_rows[0..63] to `stage`, as far as they are not there.
  __device__ __forceinline__ void gather_path(const uint8_t* path_rows, int stage) {
    constexpr int kChunks = kHeadDim / 8;
    __syncthreads();  // all warps have waited for the products of the path before
#pragma unroll 2
    for (int i = threadIdx.x; i < kTileKeys * kChunks; i += kThreads) {
      const int key = i / kChunks, chunk = i % kChunks, source = path_rows[key];
      if (holds_path && held_rows[key] == source) continue;
      const int from = ring_offset(source, chunk), to = ring_offset(stage * kTileKeys + key, chunk);
      fill_tile16(k_ring + to, *reinterpret_cast<const uint4*>(k_ring + from));
      fill_tile16(v_ring + to, *reinterpret_cast<const uint4*>(v_ring + from));
    }
    fence_async_proxy();
    __syncthreads();
#pragma unroll
    for (int key = lane_idx; key < kTileKeys; key += 32) held_rows[key] = path_rows[key];
    holds_path = true;
  }
};

#endif  // HAS_WGMMA
