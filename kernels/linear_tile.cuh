// What the tensor-core kernels of linear layers share: where tiles lie, and what becomes of finished sums.
#pragma once
#include "digest.cuh"
#include "last_block.cuh"

constexpr int kTileK = 64;  // 128 bytes a row: whole DRAM lines, and the swizzle's period

// Where the outputs of a linear layer go, and by what way; see linear.cu.
template <typename T>
struct LinearOutputs {
  const T* bias;
  void* out;
  float* partial;
  int num_rows, N, K, out_stride, tiles_per_split, out_is_f32;
  unsigned* tickets;
  Digest* digests;
};

// Where a CTA's tile of outputs lies, and the tiles of K that its split sums.
struct LinearPlace {
  int token0, weight0, tile_begin, tile_end;
};

template <typename Shape, typename T>
__device__ __forceinline__ LinearPlace linear_place(const LinearOutputs<T>& layer) {
  LinearPlace place;
  // Unsigned: products of ints are taken for non-negative, which costs registers where addresses are made of them.
  place.token0 = blockIdx.x * Shape::kTokens;
  place.weight0 = blockIdx.y * Shape::kWeights;
  place.tile_begin = blockIdx.z * layer.tiles_per_split;
  place.tile_end = min((layer.K + kTileK - 1) / kTileK, place.tile_begin + layer.tiles_per_split);
  return place;
}

// Sums of four neighbouring weights.
struct Quad {
  float value[4];
};

// A finished sum, with its bias.
template <typename T>
__device__ __forceinline__ float with_bias(float sum, const T* bias, int n) {
  return bias != nullptr ? sum + to_float(bias[n]) : sum;
}

// The gated activation, of gate and up as they would have been stored.
template <typename T>
__device__ __forceinline__ T swiglu(float gate, float up) {
  const float g = to_float(from_float<T>(gate));
  return from_float<T>(g / (1.0f + expf(-g)) * to_float(from_float<T>(up)));
}

// Stores one finished sum as out's element type.
template <typename T>
__device__ __forceinline__ void store_sum(void* out, int64_t offset, float sum, const T* bias, int n,
                                          int out_is_f32) {
  sum = with_bias(sum, bias, n);
  if (out_is_f32) {
    static_cast<float*>(out)[offset] = sum;
  } else {
    static_cast<T*>(out)[offset] = from_float<T>(sum);
  }
}

// Which blocks of a cluster have the parts of a tile: the rank of the first, and from one to the next.
struct ClusterParts {
  int first, apart;
};

#if HAS_CLUSTERS
// Where K is cut and the parts of a tile are in a cluster, with those of its neighbours along y perhaps: each leaves
// its sums in its shared memory, and then adds up its share of the outputs over the parts of all.
template <bool kGated, typename Shape, typename T, typename ForEachSum, typename Finish>
__device__ __forceinline__ void add_in_cluster(const LinearOutputs<T>& layer, const LinearPlace& place,
                                               const ClusterParts& ranks, float* part,
                                               ForEachSum&& for_each_sum, Finish&& finish) {
  // Four columns more than there are: neither the fragments of a warp nor its float4 meet in a bank.
  constexpr int kStride = Shape::kWeights + 4;
  static_assert(
      Shape::kTokens * kStride * sizeof(float) <= Shape::kStages * Shape::kStageElements * sizeof(T),
      "the sums of a tile fit where its stages were");
  constexpr int kQuads = (kGated ? Shape::kWeights / 2 : Shape::kWeights) / 4;  // outputs of a row, by fours
  constexpr int kInFlight = 4;
  __syncthreads();  // every warp has read its last tile
  for_each_sum([&](int, int n, int token, float sum, float) {
    part[(token - place.token0) * kStride + n - place.weight0] = sum;
  });
  cluster_sync();
  auto total = [&](int token, int n) {
    const float4* const own = reinterpret_cast<float4*>(part + token * kStride + n);
    Quad sum{{0.0f, 0.0f, 0.0f, 0.0f}};
    for (unsigned first = 0; first < gridDim.z; first += kInFlight) {
      float4 parts[kInFlight];
#pragma unroll
      for (unsigned i = 0; i < kInFlight; ++i) {
        if (first + i < gridDim.z) parts[i] = load_peer(own, ranks.first + (first + i) * ranks.apart);
      }
#pragma unroll
      for (unsigned i = 0; i < kInFlight; ++i) {
        if (first + i >= gridDim.z) break;
        sum.value[0] += parts[i].x;
        sum.value[1] += parts[i].y;
        sum.value[2] += parts[i].z;
        sum.value[3] += parts[i].w;
      }
    }
    return sum;
  };
  const int num_quads = min(Shape::kTokens, layer.num_rows - place.token0) * kQuads;
  for (int i = blockIdx.z * Shape::kThreads + threadIdx.x; i < num_quads; i += gridDim.z * Shape::kThreads) {
    const int token = i / kQuads, output = i % kQuads * 4;
    const int n = kGated ? output / 8 * 16 + output % 8 : output;
    const Quad sums = total(token, n);
    const Quad up_sums = kGated ? total(token, n + 8) : Quad{};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (place.weight0 + n + j < layer.N)
        finish(place.token0 + token, place.weight0 + n + j, sums.value[j], up_sums.value[j]);
    }
  }
  cluster_meet();  // nobody reads here any more
}
#endif

// Of a head: the tile's finished sums with their bias, logits, and their digests. They are stored from shared memory: a
// second use of the sums in registers costs more of them than the widest tile has.
template <typename Shape, typename T, typename ForEachSum>
__device__ __forceinline__ void finish_head(const LinearOutputs<T>& layer, const LinearPlace& place,
                                            float* tile, ForEachSum&& for_each_sum) {
  constexpr int kStride = Shape::kWeights + 4;  // as in add_in_cluster
  static_assert(Shape::kWeights % kDigestLen == 0, "tiles have whole slices");
  static_assert(
      Shape::kTokens * kStride * sizeof(float) <= Shape::kStages * Shape::kStageElements * sizeof(T),
      "the sums of a tile fit where its stages were");
  constexpr int kThreads = Shape::kWarps * 32;  // those that have multiplied
  constexpr int kDigests = Shape::kTokens * (Shape::kWeights / kDigestLen);
  constexpr int kLanes = kThreads >= 16 * kDigests ? 16 : kThreads > kDigests ? kThreads / kDigests : 1;
  __syncthreads();  // every warp has read its last tile
  for_each_sum([&](int, int n, int token, float sum, float) {
    tile[(token - place.token0) * kStride + n - place.weight0] = with_bias(sum, layer.bias, n);
  });
  __syncthreads();
  if (threadIdx.x >= kThreads) return;  // a warp that fetches
  const int num_tokens = min(Shape::kTokens, layer.num_rows - place.token0);
  const int num_weights = min(Shape::kWeights, layer.N - place.weight0);
  for (int i = threadIdx.x; i < num_tokens * Shape::kWeights; i += kThreads) {
    const int token = i / Shape::kWeights, n = i % Shape::kWeights;
    if (n < num_weights) {
      const int64_t row = place.token0 + token;
      static_cast<float*>(layer.out)[row * layer.out_stride + place.weight0 + n] = tile[token * kStride + n];
    }
  }
  for (int i = threadIdx.x; i < kDigests * kLanes; i += kThreads) {
    const int token = i / kLanes % Shape::kTokens, slice = i / kLanes / Shape::kTokens, lane = i % kLanes;
    const int first_n = place.weight0 + slice * kDigestLen;
    const bool exists = place.token0 + token < layer.num_rows && first_n < layer.N;
    const int num_logits = exists ? min(kDigestLen, layer.N - first_n) : 0;
    const float* const logits = tile + token * kStride + slice * kDigestLen;
    auto for_each = [&](auto&& use) {
#pragma unroll 4
      for (int first = 4 * lane; first < num_logits; first += 4 * kLanes) {
        const float4 four = *reinterpret_cast<const float4*>(logits + first);
        const float each[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (first + j < num_logits) use(each[j], first_n + first + j);
        }
      }
    };
    const Digest digest = digest_of_lanes<kLanes>(for_each);
    if (exists && lane == 0) {
      const int64_t row = place.token0 + token;
      layer.digests[row * num_digests(layer.N) + first_n / kDigestLen] = digest;
    }
  }
}

// What follows the sum over K; where K is cut the parts meet in memory or, where there is no room in that, in a
// cluster. `for_each_sum(use)` calls use(i, n, token, sum, other) for every output of this thread that exists, where
// i is its register in the fragment of m16n8 and `other` the sum of weight row n + 8 if i < 2, of n - 8 else: gate and
// up. `scratch` is shared memory that nobody needs any more.
template <bool kGated,  // linear_swiglu
          typename Shape, typename T, typename ForEachSum>
__device__ __forceinline__ void finish_tile(const LinearOutputs<T>& layer, const LinearPlace& place,
                                            const ClusterParts& ranks, T* scratch,
                                            ForEachSum&& for_each_sum) {
  auto finish = [&](int token, int n, float sum, float up_sum) {
    const int64_t row = static_cast<int64_t>(token) * layer.out_stride;
    if constexpr (kGated) {
      static_cast<T*>(layer.out)[row + n / 16 * 8 + n % 8] =
          swiglu<T>(with_bias(sum, layer.bias, n), with_bias(up_sum, layer.bias, n + 8));
    } else {
      store_sum(layer.out, row + n, sum, layer.bias, n, layer.out_is_f32);
    }
  };

  if (gridDim.z == 1) {
    if constexpr (!kGated) {
      if (layer.digests != nullptr) {
        finish_head<Shape>(layer, place, reinterpret_cast<float*>(scratch), for_each_sum);
        return;
      }
    }
    for_each_sum([&](int i, int n, int token, float sum, float other) {
      if (!kGated || i < 2) finish(token, n, sum, other);
    });
    return;
  }
#if HAS_CLUSTERS
  if (layer.partial == nullptr) {
    add_in_cluster<kGated, Shape>(layer, place, ranks, reinterpret_cast<float*>(scratch), for_each_sum,
                                  finish);
    return;
  }
#endif
  const int64_t split_stride = static_cast<int64_t>(layer.num_rows) * layer.N;
  for_each_sum([&](int, int n, int token, float sum, float) {
    layer.partial[blockIdx.z * split_stride + static_cast<int64_t>(token) * layer.N + n] = sum;
  });
  // In memory that nobody needs any more: one variable more would exceed 48 KB.
  unsigned* ticket = layer.tickets + blockIdx.x * gridDim.y + blockIdx.y;
  if (!is_last_block(ticket, gridDim.z, *reinterpret_cast<int*>(scratch))) return;
  auto total = [&](int token, int n) {
    const float* term = layer.partial + static_cast<int64_t>(token) * layer.N + n;
    float sum = 0.0f;
#pragma unroll 8  // loads in flight
    for (unsigned split = 0; split < gridDim.z; ++split, term += split_stride) sum += load_fresh(term);
    return sum;
  };
  constexpr int kOutputs = kGated ? Shape::kWeights / 2 : Shape::kWeights;
  for (int i = threadIdx.x; i < Shape::kTokens * kOutputs; i += Shape::kThreads) {
    const int output = i % kOutputs;
    const int n = place.weight0 + (kGated ? output / 8 * 16 + output % 8 : output);
    const int token = place.token0 + i / kOutputs;
    if (n < layer.N && token < layer.num_rows) {
      finish(token, n, total(token, n), kGated ? total(token, n + 8) : 0.0f);
    }
  }
}
