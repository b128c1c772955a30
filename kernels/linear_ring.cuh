// How tiles of weights and tokens come to a block by Hopper's copy engine: one thread asks for them, kStages ahead,
// and other warps multiply what has arrived. Two barriers a slot: `full` counts the bytes of its tiles; at `empty`
// every warp arrives that multiplies, of all blocks that share tokens, once it has done with them. No barrier of the
// block, and no thread but one that makes addresses.
//
// A Shape has kTokens, kWeights, kStages, kStageElements, and kWarps that multiply; the one behind them fetches.
#pragma once
#include "linear_tile.cuh"

#if HAS_WGMMA

template <typename T, typename Shape>
struct TileRing {
  static_assert(Shape::kThreads == Shape::kWarps * 32 + 32, "a warp that fetches");
  static_assert(Shape::kTokens % 8 == 0 && Shape::kWeights % 64 == 0, "tiles of a stage start on 1024 bytes");

  const TensorMap& x;       // boxes of kTokens / num_sharing rows, 64 columns
  const TensorMap& weight;  // of kWeights
  const LinearPlace& place;
  T* stages;  // each holds the weight tile, then the token tile
  uint64_t* full;
  uint64_t* empty;
  // Blocks of a cluster along y that share tokens, a power of two; 1: none. Where parts of a cut K are in it, too, they
  // come behind each other along z.
  int num_sharing;

  __device__ __forceinline__ bool multiplies() const { return threadIdx.x < Shape::kWarps * 32; }
  __device__ __forceinline__ bool fetches() const { return threadIdx.x == Shape::kWarps * 32; }
  __device__ __forceinline__ bool shares() const { return num_sharing > 1; }
  // Rank of the first block of those that share tokens with this one.
  __device__ __forceinline__ int first_sharing() const { return blockIdx.z * num_sharing; }
  __device__ __forceinline__ int rank_sharing() const {
    return shares() ? cluster_rank() - first_sharing() : 0;
  }
  __device__ __forceinline__ ClusterParts parts() const { return {rank_sharing(), num_sharing}; }

  __device__ __forceinline__ T* weights_of(int slot) const { return stages + slot * Shape::kStageElements; }
  __device__ __forceinline__ T* tokens_of(int slot) const {
    return weights_of(slot) + Shape::kWeights * kTileK;
  }

  __device__ __forceinline__ void fetch_weights(int tile, int slot) const {
    mbarrier_arrive_expect(&full[slot], Shape::kStageElements * sizeof(T));
    bulk_load(weights_of(slot), weight, tile * kTileK, place.weight0, &full[slot]);
  }
  __device__ __forceinline__ void fetch_tokens(int tile, int slot) const {
    if (!shares()) {
      bulk_load(tokens_of(slot), x, tile * kTileK, place.token0, &full[slot]);
      return;
    }
    const int rows = Shape::kTokens / num_sharing;
    const int first = rank_sharing() * rows;
    bulk_load_multicast(tokens_of(slot) + first * kTileK, x, tile * kTileK, place.token0 + first, &full[slot],
                        ((1 << num_sharing) - 1) << first_sharing());
  }
  __device__ __forceinline__ int first_end() const {
    return min(place.tile_end, place.tile_begin + Shape::kStages);
  }

  // All threads, first of all. Weights are on their way when it returns, and predecessors have ended.
  __device__ __forceinline__ void open() const {
    if (fetches()) {
      prefetch_tensor_map(weight);
      prefetch_tensor_map(x);
      for (int slot = 0; slot < Shape::kStages; ++slot) {
        mbarrier_init(&full[slot], 1);
        mbarrier_init(&empty[slot], Shape::kWarps * num_sharing);
      }
      mbarrier_init_fence();
      for (int tile = place.tile_begin; tile < first_end(); ++tile)
        fetch_weights(tile, tile - place.tile_begin);
    }
    __syncwarp();
    if (shares()) {
      cluster_meet();  // the others' barriers are there
    } else {
      __syncthreads();
    }
    wait_for_predecessors();
  }

  // The thread that fetches: everything else.
  __device__ __forceinline__ void fill() const {
    for (int tile = place.tile_begin; tile < first_end(); ++tile) fetch_tokens(tile, tile - place.tile_begin);
    int slot = 0, parity = 0;
    for (int tile = first_end(); tile < place.tile_end; ++tile) {
      mbarrier_wait(&empty[slot], parity);
      fetch_weights(tile, slot);
      fetch_tokens(tile, slot);
      if (++slot == Shape::kStages) slot = 0, parity ^= 1;
    }
  }

  // A warp that multiplies, when it has done with the slot of `tile`.
  __device__ __forceinline__ void release(int tile, int slot) const {
    if (tile + Shape::kStages >= place.tile_end) return;  // nobody fills it again
    const int lane_idx = threadIdx.x % 32;
    __syncwarp();  // every lane has done with it
    if (shares()) {
      if (lane_idx < num_sharing) mbarrier_arrive_at(&empty[slot], first_sharing() + lane_idx);
    } else if (lane_idx == 0) {
      mbarrier_arrive(&empty[slot]);
    }
  }

  // All threads, last of all.
  __device__ __forceinline__ void close() const {
    if (shares()) cluster_meet();  // what this block has fetched for others has arrived
  }
};

// Parameters of an entry point whose tiles come so, in the order of linear.cu but for the matrices.
#define RING_KERNEL(name, T, threads, ...)                                                                  \
  extern "C" __global__ void __launch_bounds__(threads)                                                     \
      name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,                   \
           const T* __restrict__ bias, void* __restrict__ out, float* partial, int num_rows, int N, int K,  \
           int out_stride, int tiles_per_split, int out_is_f32, unsigned* tickets, Digest* digests,         \
           int num_sharing) {                                                                               \
    const LinearOutputs<T> layer{bias,       out,     partial, num_rows, N, K, out_stride, tiles_per_split, \
                                 out_is_f32, tickets, digests};                                             \
    __VA_ARGS__(x, weight, layer, num_sharing);                                                             \
  }                                                                                                         \
  EXPORT_HOPPER_KERNEL(name)

#endif  // HAS_WGMMA
