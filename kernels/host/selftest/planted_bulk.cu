// Kernels of the host driver's self-test that bring boxes by bulk copies: a healthy one, and ones with a planted bug
// each.
#include "../../prims.cuh"

enum class BulkBug {
  none,
  no_init,
  no_init_fence,
  no_barrier,
  overwritten,
  crooked_barrier,
  crooked_tile,
  outside,
  two_fills,
  extra_arrival,
  missing_arrival,
  few_bytes,
  many_bytes,
  no_bytes,
  early_end,
  early_read,
  early_refill
};

// Boxes of 8 rows of 64 elements go through two slots, from a thread of the first warp to the second warp.
// out[64] = sums of columns.
template <BulkBug kBug>
__device__ __forceinline__ void bulk_sum(const TensorMap& map, float* out, int tiles) {
  constexpr int kTileBytes = 8 * 128;
  DYN_SMEM_TILES(unsigned char, ring);
  SHARED(uint64_t[2], full);
  SHARED(uint64_t[2], empty);
  const int thread = threadIdx.x, lane = thread % 32;
  if (thread == 0 && kBug != BulkBug::no_init) {
    for (int slot = 0; slot < 2; slot++) {
      mbarrier_init(&full[slot], 1);
      mbarrier_init(&empty[slot], 1);
    }
    if (kBug != BulkBug::no_init_fence) mbarrier_init_fence();
    if (kBug == BulkBug::overwritten) empty[1] = 0;
  }
  if (kBug != BulkBug::no_barrier) __syncthreads();
  if (thread == 0) {
    const int loads = kBug == BulkBug::early_end ? tiles + 1 : tiles;
    for (int tile = 0; tile < loads; tile++) {
      const int slot = tile % 2;
      uint64_t* const barrier = reinterpret_cast<uint64_t*>(reinterpret_cast<unsigned char*>(&full[slot]) +
                                                            (kBug == BulkBug::crooked_barrier ? 4 : 0));
      // That a box has arrived does not say that it was read.
      mbarrier_wait(kBug == BulkBug::early_refill ? &full[slot] : &empty[slot], tile / 2 % 2 ^ 1);
      mbarrier_arrive_expect(barrier, kBug == BulkBug::few_bytes    ? kTileBytes / 2
                                      : kBug == BulkBug::many_bytes ? kTileBytes * 2
                                      : kBug == BulkBug::no_bytes   ? 0
                                                                    : kTileBytes);
      unsigned char* const target = ring + slot * kTileBytes + (kBug == BulkBug::crooked_tile ? 64 : 0) +
                                    (kBug == BulkBug::outside ? 1024 + 128 : 0);
      bulk_load(target, map, 0, tile * 8, barrier);
      if (kBug == BulkBug::two_fills) bulk_load(target, map, 0, tile * 8, barrier);
      if (kBug == BulkBug::extra_arrival) mbarrier_arrive(barrier);
    }
  }
  if (thread < 32) return;
  float sums[2] = {0, 0};
  for (int tile = 0; tile < tiles; tile++) {
    const int slot = tile % 2;
    if (kBug != BulkBug::early_read) mbarrier_wait(&full[slot], tile / 2 % 2);
    for (int row = 0; row < 8; row++) {
      const unsigned char* const chunk =
          ring + slot * kTileBytes + row * 128 + tile_chunk<128>(row, lane / 4) * 16;
      for (int i = 0; i < 2; i++) sums[i] += to_float(reinterpret_cast<const bf16*>(chunk)[lane % 4 * 2 + i]);
    }
    if (kBug == BulkBug::early_read) mbarrier_wait(&full[slot], tile / 2 % 2);
    __syncwarp();
    if (lane == 0 && kBug != BulkBug::missing_arrival) mbarrier_arrive(&empty[slot]);
  }
  for (int i = 0; i < 2; i++) out[lane * 2 + i] = sums[i];
}

#define BULK_SUM(name, bug)                                                                       \
  extern "C" __global__ void name(const __grid_constant__ TensorMap map, float* out, int tiles) { \
    bulk_sum<BulkBug::bug>(map, out, tiles);                                                      \
  }                                                                                               \
  EXPORT_HOPPER_KERNEL(name)

BULK_SUM(healthy_bulk, none)
BULK_SUM(bug_bulk_no_init, no_init)
BULK_SUM(bug_bulk_no_init_fence, no_init_fence)
BULK_SUM(bug_bulk_no_barrier, no_barrier)
BULK_SUM(bug_bulk_overwritten, overwritten)
BULK_SUM(bug_bulk_crooked_barrier, crooked_barrier)
BULK_SUM(bug_bulk_crooked_tile, crooked_tile)
BULK_SUM(bug_bulk_outside, outside)
BULK_SUM(bug_bulk_two_fills, two_fills)
BULK_SUM(bug_bulk_extra_arrival, extra_arrival)
BULK_SUM(bug_bulk_missing_arrival, missing_arrival)
BULK_SUM(bug_bulk_few_bytes, few_bytes)
BULK_SUM(bug_bulk_many_bytes, many_bytes)
BULK_SUM(bug_bulk_no_bytes, no_bytes)
BULK_SUM(bug_bulk_early_end, early_end)
BULK_SUM(bug_bulk_early_read, early_read)
BULK_SUM(bug_bulk_early_refill, early_refill)

// Multiplies a tile that nobody has waited for.
extern "C" __global__ void bug_bulk_wgmma(const __grid_constant__ TensorMap map, float* out, int) {
  DYN_SMEM_TILES(unsigned char, tile);
  SHARED(uint64_t, full);
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(&full, 8 * 128);
    bulk_load(tile, map, 0, 0, &full);
  }
  __syncthreads();
  float sums[4] = {};
  wgmma_fence();
  wgmma<bf16, 8>(sums, wgmma_tile(tile), wgmma_tile(tile));
  wgmma_commit();
  wgmma_wait<0>();
  mbarrier_wait(&full, 0);
  out[threadIdx.x] = sums[0];
}
EXPORT_HOPPER_KERNEL(bug_bulk_wgmma)

// ---- in clusters ------------------------------------------------------------------------------------------

enum class MulticastBug {
  none,
  early_refill,
  no_fence,
  before_meeting,
  wrong_rank,
  early_exit,
  late_arrivals
};

// Boxes of 8 rows of 64 elements, of which the blocks of a cluster bring each other a share, through two slots.
// out[block][64] = sums of columns.
template <MulticastBug kBug>
__device__ __forceinline__ void multicast_sum(const TensorMap& map, float* out, int tiles) {
  constexpr int kRows = 8, kTileBytes = kRows * 128;
  DYN_SMEM_TILES(unsigned char, ring);
  SHARED(uint64_t[2], full);
  SHARED(uint64_t[2], empty);
  const int thread = threadIdx.x, lane = thread % 32, blocks = cluster_size();
  const int share = kRows / blocks, first = cluster_rank() * share;
  // What waits for this block's reader alone does not know of the others.
  const int arrivals = kBug == MulticastBug::early_refill ? 1 : blocks;
  if (thread == 0) {
    for (int slot = 0; slot < 2; slot++) {
      mbarrier_init(&full[slot], 1);
      mbarrier_init(&empty[slot], arrivals);
    }
    if (kBug != MulticastBug::no_fence || cluster_rank() == 0) mbarrier_init_fence();
  }
  if (kBug == MulticastBug::before_meeting) {
    __syncthreads();
  } else {
    cluster_meet();
  }
  if (thread == 0) {
    for (int tile = 0; tile < tiles; tile++) {
      const int slot = tile % 2;
      mbarrier_wait(&empty[slot], tile / 2 % 2 ^ 1);
      mbarrier_arrive_expect(&full[slot], kTileBytes);
      bulk_load_multicast(ring + slot * kTileBytes + first * 128, map, 0, tile * kRows + first, &full[slot],
                          (1 << blocks) - 1 + (kBug == MulticastBug::wrong_rank ? 1 << blocks : 0));
    }
  }
  if (thread >= 32) {
    float sums[2] = {0, 0};
    for (int tile = 0; tile < tiles; tile++) {
      const int slot = tile % 2;
      mbarrier_wait(&full[slot], tile / 2 % 2);
      for (int row = 0; row < kRows; row++) {
        const unsigned char* const chunk =
            ring + slot * kTileBytes + row * 128 + tile_chunk<128>(row, lane / 4) * 16;
        for (int i = 0; i < 2; i++)
          sums[i] += to_float(reinterpret_cast<const bf16*>(chunk)[lane % 4 * 2 + i]);  // of the cluster
      }
      __syncwarp();
      // Nobody waits for the last ones, whose block may have ended when they come.
      if (kBug != MulticastBug::late_arrivals && tile + 2 >= tiles) continue;
      if (arrivals == 1) {
        if (lane == 0) mbarrier_arrive(&empty[slot]);
      } else if (lane < blocks) {
        mbarrier_arrive_at(&empty[slot], lane);
      }
    }
    for (int i = 0; i < 2; i++) out[blockIdx.x * 64 + lane * 2 + i] = sums[i];
  }
  __syncwarp();
  if (kBug != MulticastBug::early_exit) cluster_meet();
}

#define MULTICAST_SUM(name, bug)                                                                  \
  extern "C" __global__ void name(const __grid_constant__ TensorMap map, float* out, int tiles) { \
    multicast_sum<MulticastBug::bug>(map, out, tiles);                                            \
  }                                                                                               \
  EXPORT_HOPPER_KERNEL(name)

MULTICAST_SUM(healthy_multicast, none)
MULTICAST_SUM(bug_multicast_early_refill, early_refill)
MULTICAST_SUM(bug_multicast_no_fence, no_fence)
MULTICAST_SUM(bug_multicast_before_meeting, before_meeting)
MULTICAST_SUM(bug_multicast_wrong_rank, wrong_rank)
MULTICAST_SUM(bug_multicast_early_exit, early_exit)
MULTICAST_SUM(bug_multicast_late_arrivals, late_arrivals)
