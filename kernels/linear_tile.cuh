// What the tensor-core kernels of linear layers share: how tiles get into shared memory, and what becomes of
// finished sums.
#pragma once
#include "last_block.cuh"

constexpr int kTileK = 64;  // 128 bytes a row: whole DRAM lines, and the swizzle's period
constexpr int kChunk = 8;   // elements of a 16-byte copy
constexpr int kRowChunks = kTileK / kChunk;

// What a linear layer works on; see linear.cu.
template <typename T>
struct LinearOperands {
  const T* x;
  const T* weight;
  const T* bias;
  void* out;
  float* partial;
  int num_rows, N, K, x_stride, out_stride, tiles_per_split, out_is_f32;
  unsigned* tickets;
};

// Where a CTA's tile of outputs lies, and the tiles of K that its split sums.
struct LinearPlace {
  int token0, weight0, tile_begin, tile_end;
};

template <typename Shape, typename T>
__device__ __forceinline__ LinearPlace linear_place(const LinearOperands<T>& layer) {
  LinearPlace place;
  // Unsigned: products of ints are taken for non-negative, which costs registers where addresses are made of them.
  place.token0 = blockIdx.x * Shape::kTokens;
  place.weight0 = blockIdx.y * Shape::kWeights;
  place.tile_begin = blockIdx.z * layer.tiles_per_split;
  place.tile_end = min((layer.K + kTileK - 1) / kTileK, place.tile_begin + layer.tiles_per_split);
  return place;
}

// Address of a 16-byte chunk in a tile of kTileK-element rows.
template <typename T>
__device__ __forceinline__ T* swizzled(T* tile, int row, int chunk) {
  return tile + row * kTileK + (chunk ^ (row % kRowChunks)) * kChunk;
}

// Copies rows [row0, row0 + kRows) x one k tile of `source` into `tile`; what lies outside the matrix becomes
// zero. kThreads threads of the CTA share the work.
template <int kRows, int kThreads, typename T>
__device__ __forceinline__ void fetch_tile(T* tile, const T* source, int row0, int num_rows,
                                           int64_t row_stride, int k0, int K) {
  constexpr int kRowsPerPass = kThreads / kRowChunks;
  const int chunk = threadIdx.x % kRowChunks;
  const int k = k0 + chunk * kChunk;
#pragma unroll
  for (int first = 0; first < kRows; first += kRowsPerPass) {
    const int row = first + threadIdx.x / kRowChunks;
    if (kRows % kRowsPerPass == 0 || row < kRows) {
      const bool inside = row0 + row < num_rows && k < K;
      cp_async16(swizzled(tile, row, chunk), inside ? source + (row0 + row) * row_stride + k : source,
                 inside);
    }
  }
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

#if HAS_CLUSTERS
// Where K is cut and the parts of a tile are the blocks of a cluster: each leaves its sums in its shared memory, and
// then adds up its share of the outputs over the parts of all.
template <bool kGated, typename Shape, typename T, typename ForEachSum, typename Finish>
__device__ __forceinline__ void add_in_cluster(const LinearOperands<T>& layer, const LinearPlace& place,
                                               float* part, ForEachSum&& for_each_sum, Finish&& finish) {
  // Four columns more than there are: neither the fragments of a warp nor its float4 meet in a bank.
  constexpr int kStride = Shape::kWeights + 4;
  static_assert(Shape::kTokens * kStride * sizeof(float) <= Shape::kStages * Shape::kStageElements * sizeof(T),
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
        if (first + i < gridDim.z) parts[i] = load_peer(own, first + i);
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
  cluster_sync();  // nobody reads here any more
}
#endif

// What follows the sum over K; where K is cut the parts meet in memory, or in a cluster. `for_each_sum(use)` calls use(i, n, token, sum, other) for every output of
// this thread that exists, where i is its register in the fragment of m16n8 and `other` the sum of weight row
// n + 8 if i < 2, of n - 8 else: gate and up. `scratch` is shared memory that nobody needs any more.
template <bool kGated,  // linear_swiglu
          typename Shape, typename T, typename ForEachSum>
__device__ __forceinline__ void finish_tile(const LinearOperands<T>& layer, const LinearPlace& place,
                                            T* scratch, ForEachSum&& for_each_sum) {
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
    for_each_sum([&](int i, int n, int token, float sum, float other) {
      if (!kGated || i < 2) finish(token, n, sum, other);
    });
    return;
  }
#if HAS_CLUSTERS
  if (layer.partial == nullptr) {
    add_in_cluster<kGated, Shape>(layer, place, reinterpret_cast<float*>(scratch), for_each_sum, finish);
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

// An entry point: `body` gets the operands.
#define LINEAR_KERNEL(name, T, threads, body)                                                                \
  extern "C" __global__ void __launch_bounds__(threads)                                                      \
      name(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,                \
           void* __restrict__ out, float* partial, int num_rows, int N, int K, int x_stride, int out_stride, \
           int tiles_per_split, int out_is_f32, unsigned* tickets) {                                         \
    const LinearOperands<T> layer{x,      weight, bias,     out,        partial,         num_rows,           \
                                  N,      K,      x_stride, out_stride, tiles_per_split, out_is_f32,         \
                                  tickets};                                                                  \
    body(layer);                                                                                             \
  }
