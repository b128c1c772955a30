// WHAT      Runs every primitive of prims.cuh on given inputs, so that one oracle judges both of its bodies:
//           the PTX on a GPU, the lane-accurate one on the host driver. No engine launches these kernels.
// SHAPES    every kernel reads and writes 32-bit words, so many as src/kernels/prims_check.rs says
// LAUNCH    one block, or one cluster; threads as in src/kernels/prims_check.rs
// TWINS     src/kernels/prims_check.rs, src/reference/prims_check.rs, tests/kernels/prims.rs
#include "prims.cuh"

// ---- conversions: ten words a thread, for bf16 and for f16 the bits, their value, the pair (x, -x), its
// values

template <class T>
__device__ uint16_t bits_of(T v) {
  uint16_t bits;
  memcpy(&bits, &v, 2);
  return bits;
}

template <class T>
__device__ void check_conversions(float x, uint32_t* out) {
  const T rounded = from_float<T>(x);
  const uint32_t pair = pack<T>(x, -x);
  const float2 back = unpack<T>(pair);
  out[0] = bits_of(rounded);
  out[1] = __float_as_uint(to_float(rounded));
  out[2] = pair;
  out[3] = __float_as_uint(back.x);
  out[4] = __float_as_uint(back.y);
}

extern "C" __global__ void prims_conversions(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  const float x = __uint_as_float(in[threadIdx.x]);
  check_conversions<bf16>(x, out + threadIdx.x * 10);
  check_conversions<f16>(x, out + threadIdx.x * 10 + 5);
}
EXPORT_KERNEL(prims_conversions)

extern "C" __global__ void prims_exp2(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  out[threadIdx.x] = __float_as_uint(exp2_approx(__uint_as_float(in[threadIdx.x])));
}
EXPORT_KERNEL(prims_exp2)

// ---- mma: in = A[16][16] and B[8][16] (a column of B a row) as 16-bit pairs, then C[16][8] in f32

template <class T>
__device__ void check_mma(const uint32_t* in, uint32_t* out) {
  const uint32_t* const a_pairs = in;
  const uint32_t* const b_pairs = in + 128;
  const uint32_t* const c_words = in + 192;
  const int group = threadIdx.x / 4, pair = threadIdx.x % 4;
  const uint32_t a[4] = {a_pairs[group * 8 + pair], a_pairs[(group + 8) * 8 + pair],
                         a_pairs[group * 8 + pair + 4], a_pairs[(group + 8) * 8 + pair + 4]};
  const uint32_t b[2] = {b_pairs[group * 8 + pair], b_pairs[group * 8 + pair + 4]};
  const int top = group * 8 + pair * 2, bottom = top + 64;
  float c[4] = {__uint_as_float(c_words[top]), __uint_as_float(c_words[top + 1]),
                __uint_as_float(c_words[bottom]), __uint_as_float(c_words[bottom + 1])};
  mma<T>(c, a, b);
  out[top] = __float_as_uint(c[0]);
  out[top + 1] = __float_as_uint(c[1]);
  out[bottom] = __float_as_uint(c[2]);
  out[bottom + 1] = __float_as_uint(c[3]);
}

extern "C" __global__ void prims_mma_bf16(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  check_mma<bf16>(in, out);
}
EXPORT_KERNEL(prims_mma_bf16)

extern "C" __global__ void prims_mma_f16(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  check_mma<f16>(in, out);
}
EXPORT_KERNEL(prims_mma_f16)

// ---- ldmatrix: in = four 8x8 matrices of 16-bit elements; out = four registers a lane, plain, then
// transposed

extern "C" __global__ void prims_ldmatrix(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  SHARED(uint32_t[128], matrices);
  const int lane = threadIdx.x;
  for (int i = lane; i < 128; i += 32) matrices[i] = in[i];
  __syncwarp();
  uint32_t plain[4], transposed[4];
  ldmatrix_x4(plain, matrices + lane * 4);
  ldmatrix_x4_trans(transposed, matrices + lane * 4);
  for (int i = 0; i < 4; ++i) {
    out[lane * 4 + i] = plain[i];
    out[128 + lane * 4 + i] = transposed[i];
  }
}
EXPORT_KERNEL(prims_ldmatrix)

// ---- cp.async: three groups of 16 bytes a thread, read as each must have arrived; every fifth copy is
// invalid

extern "C" __global__ void prims_cp_async(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  SHARED(uint4[3 * 64], staged);
  const int thread = threadIdx.x;
  uint4* const stage = staged + thread;
  const uint4* const source = reinterpret_cast<const uint4*>(in) + thread;
  uint4* const target = reinterpret_cast<uint4*>(out) + thread;
  for (int group = 0; group < 3; ++group) stage[group * 64] = make_uint4(1, 2, 3, 4);
  for (int group = 0; group < 3; ++group) {
    cp_async16(stage + group * 64, source + group * 64, (thread + group) % 5 != 0);
    cp_async_commit();
  }
  cp_async_wait<2>();
  target[0] = stage[0];
  cp_async_wait<1>();
  target[64] = stage[64];
  cp_async_wait<0>();
  // The last group is read by another thread, which takes a barrier as well.
  __syncthreads();
  target[128] = staged[128 + (thread ^ 33)];
}
EXPORT_KERNEL(prims_cp_async)

// ---- wgmma: in = A[64][64] and B[N][64] (a column of B a row) as 16-bit pairs, then C[64][N] in f32;
// out = C + A * B. Two groups of two steps of K each, of which the second is issued before the first has
// ended; the tiles come by cp.async

#if HAS_WGMMA

// What is checked of wgmma: A and B in tiles of rows of 128 or of 64 bytes; A in registers, B's K along the rows of its
// tile or across them, which are as long as blocks of N (or, along them, of K) allow.
enum class WgmmaForm { kTiles, kNarrowTiles, kAlong, kAcross };

// `in` holds 64 rows of A, N columns of B, both of 64 16-bit elements along K, and C[64][N].
template <class T, int N, WgmmaForm kForm>
__device__ void check_wgmma(const uint32_t* in, uint32_t* out) {
  constexpr bool kIsNarrow = kForm == WgmmaForm::kNarrowTiles || N % 64 == 32;
  constexpr int kRowBytes = kIsNarrow && kForm != WgmmaForm::kTiles ? 64 : 128;
  constexpr int kRowElements = kRowBytes / 2, kRowChunks = kRowBytes / 16;
  DYN_SMEM_TILES(uint16_t, a_tile);
  uint16_t* const b_tile = a_tile + 64 * 64;
  const uint32_t* const b_words = in + 64 * 32;
  // Chunk `chunk` of a row of 64 elements of a tile of `rows` rows, in blocks as wide as rows are long.
  auto place = [&](uint16_t* tile, int rows, int row, int chunk) {
    return tile + chunk / kRowChunks * rows * kRowElements + row * kRowElements +
           tile_chunk<kRowBytes>(row, chunk % kRowChunks) * 8;
  };
  for (int i = threadIdx.x; i < 64 * 8; i += 128) {
    cp_async16(place(a_tile, 64, i / 8, i % 8), reinterpret_cast<const uint4*>(in) + i);
  }
  if (kForm == WgmmaForm::kAcross) {
    const auto* const b = reinterpret_cast<const uint16_t*>(b_words);
    for (int i = threadIdx.x; i < 64 * (N / 8); i += 128) {
      const int k = i / (N / 8), chunk = i % (N / 8);
      uint16_t columns[8];
      for (int j = 0; j < 8; ++j) columns[j] = b[(chunk * 8 + j) * 64 + k];
      uint4 values;
      memcpy(&values, columns, 16);
      fill_tile16(place(b_tile, 64, k, chunk), values);
    }
  } else {
    for (int i = threadIdx.x; i < N * 8; i += 128) {
      cp_async16(place(b_tile, N, i / 8, i % 8), reinterpret_cast<const uint4*>(b_words) + i);
    }
  }
  cp_async_commit();
  float sums[N / 2];
  const uint32_t* const c = b_words + N * 32;
  const int top = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, left = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    sums[i] = __uint_as_float(c[(top + i / 2 % 2 * 8) * N + i / 4 * 8 + left + i % 2]);
  }
  uint32_t a[4][4];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    a[i / 4][i % 4] = in[(top + i % 2 * 8) * 32 + i / 4 * 8 + i / 2 % 2 * 4 + left / 2];
  }
  cp_async_wait<0>();
  fence_async_proxy();
  __syncthreads();
  auto multiply = [&](int step) {
    constexpr int kSteps = kRowElements / 16;
    const uint64_t along =
        wgmma_step(wgmma_tile<kRowBytes>(b_tile + step / kSteps * N * kRowElements), step % kSteps);
    if constexpr (kForm == WgmmaForm::kTiles || kForm == WgmmaForm::kNarrowTiles) {
      const uint64_t a_step =
          wgmma_step(wgmma_tile<kRowBytes>(a_tile + step / kSteps * 64 * kRowElements), step % kSteps);
      wgmma<T, N>(sums, a_step, along);
    } else if constexpr (kForm == WgmmaForm::kAlong) {
      wgmma<T, N, KAxis::kAlongRows>(sums, a[step], along);
    } else {
      const uint64_t across = wgmma_tile_across<kRowBytes>(b_tile, 64 * kRowBytes);
      wgmma<T, N, KAxis::kAcrossRows>(sums, a[step], wgmma_step_across<kRowBytes>(across, step));
    }
  };
  wgmma_fence();
  multiply(0);
  multiply(1);
  wgmma_commit();
  multiply(2);
  multiply(3);
  wgmma_commit();
  wgmma_wait<1>();
  wgmma_wait<0>();
  wgmma_arrived(sums);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    out[(top + i / 2 % 2 * 8) * N + i / 4 * 8 + left + i % 2] = __float_as_uint(sums[i]);
  }
}

#define CHECK_WGMMA(name, T, n, form)                                                            \
  extern "C" __global__ void name(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) { \
    check_wgmma<T, n, WgmmaForm::form>(in, out);                                                 \
  }                                                                                              \
  EXPORT_HOPPER_KERNEL(name)

#define CHECK_WGMMA_FORM(name, T, form) \
  CHECK_WGMMA(name##_n32, T, 32, form)  \
  CHECK_WGMMA(name##_n64, T, 64, form)  \
  CHECK_WGMMA(name##_n96, T, 96, form)  \
  CHECK_WGMMA(name##_n128, T, 128, form)

#define CHECK_WGMMA_FORMS(name, T)                          \
  CHECK_WGMMA(name##_tiles_n8, T, 8, kTiles)                \
  CHECK_WGMMA(name##_tiles_n16, T, 16, kTiles)              \
  CHECK_WGMMA(name##_tiles_n32, T, 32, kTiles)              \
  CHECK_WGMMA(name##_tiles_n64, T, 64, kTiles)              \
  CHECK_WGMMA(name##_tiles_n128, T, 128, kTiles)            \
  CHECK_WGMMA(name##_tiles_n256, T, 256, kTiles)            \
  CHECK_WGMMA(name##_narrow_tiles_n64, T, 64, kNarrowTiles) \
  CHECK_WGMMA_FORM(name##_along, T, kAlong)                 \
  CHECK_WGMMA_FORM(name##_across, T, kAcross)

CHECK_WGMMA_FORMS(prims_wgmma_bf16, bf16)
CHECK_WGMMA_FORMS(prims_wgmma_f16, f16)

// ---- bulk copies and mbarriers: boxes of 16 rows of 64 elements, from row -4 and column -8 on, three to the right
// and four down, go through two slots; out = what they bring, [64][192], two elements a word

constexpr int kBoxRows = 16, kBoxBytes = kBoxRows * 128, kBoxesAcross = 3, kBoxesDown = 4, kBoxSlots = 2;

// Chunk `chunk` of row `row` of a tile.
__device__ uint4 read_tile(const unsigned char* tile, int row, int chunk) {
  return *reinterpret_cast<const uint4*>(tile + row * 128 + tile_chunk<128>(row, chunk) * 16);
}

// One thread of the first warp asks for boxes, the other two warps read them.
__device__ void check_bulk_load(const TensorMap& map, uint32_t* out) {
  DYN_SMEM_TILES(unsigned char, slots);
  SHARED(uint64_t[kBoxSlots], full);
  SHARED(uint64_t[kBoxSlots], empty);
  constexpr int kBoxes = kBoxesAcross * kBoxesDown;
  const int thread = threadIdx.x, reader = thread - 32;
  if (thread == 0) {
    prefetch_tensor_map(map);
    for (int slot = 0; slot < kBoxSlots; ++slot) {
      mbarrier_init(&full[slot], 1);
      mbarrier_init(&empty[slot], 2);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (thread == 0) {
    for (int box = 0; box < kBoxes; ++box) {
      const int slot = box % kBoxSlots;
      mbarrier_wait(&empty[slot], box / kBoxSlots % 2 ^ 1);
      mbarrier_arrive_expect(&full[slot], kBoxBytes);
      bulk_load(slots + slot * kBoxBytes, map, box % kBoxesAcross * 64 - 8, box / kBoxesAcross * kBoxRows - 4,
                &full[slot]);
    }
  }
  if (reader < 0) return;
  for (int box = 0; box < kBoxes; ++box) {
    const int slot = box % kBoxSlots;
    mbarrier_wait(&full[slot], box / kBoxSlots % 2);
    for (int i = reader; i < kBoxRows * 8; i += 64) {
      const int row = box / kBoxesAcross * kBoxRows + i / 8, chunk = box % kBoxesAcross * 8 + i % 8;
      reinterpret_cast<uint4*>(out)[row * kBoxesAcross * 8 + chunk] =
          read_tile(slots + slot * kBoxBytes, i / 8, i % 8);
    }
    __syncwarp();
    if (thread % 32 == 0) mbarrier_arrive(&empty[slot]);
  }
}

extern "C" __global__ void prims_bulk_load(const __grid_constant__ TensorMap map,
                                           uint32_t* __restrict__ out) {
  check_bulk_load(map, out);
}
EXPORT_HOPPER_KERNEL(prims_bulk_load)

// Boxes of four rows fill a tile: the swizzle goes by address. out = the tile, [16][64], two elements a word.
__device__ void check_bulk_parts(const TensorMap& map, uint32_t* out) {
  DYN_SMEM_TILES(unsigned char, tile);
  SHARED(uint64_t, full);
  const int thread = threadIdx.x;
  if (thread == 0) {
    mbarrier_init(&full, 4);
    mbarrier_init_fence();
  }
  __syncthreads();
  // Four threads bring a box each, two of them before they say so.
  if (thread < 4) {
    if (thread < 2) bulk_load(tile + thread * 512, map, 0, thread * 4, &full);
    mbarrier_arrive_expect(&full, 512);
    if (thread >= 2) bulk_load(tile + thread * 512, map, 0, thread * 4, &full);
  }
  mbarrier_wait(&full, 0);
  for (int i = thread; i < 16 * 8; i += 32) reinterpret_cast<uint4*>(out)[i] = read_tile(tile, i / 8, i % 8);
}

extern "C" __global__ void prims_bulk_parts(const __grid_constant__ TensorMap map,
                                            uint32_t* __restrict__ out) {
  check_bulk_parts(map, out);
}
EXPORT_HOPPER_KERNEL(prims_bulk_parts)

// Tiles of 16 rows of 64 elements go through two slots of all blocks of a cluster, of which each brings its share of the
// rows to all. out = [blocks][96][64], two elements a word: every block has read all of it.
__device__ void check_bulk_multicast(const TensorMap& map, uint32_t* out) {
  DYN_SMEM_TILES(unsigned char, slots);
  SHARED(uint64_t[2], full);
  SHARED(uint64_t[2], empty);
  constexpr int kTiles = 6, kRows = 16, kBytes = kRows * 128;
  const int thread = threadIdx.x, lane = thread % 32, blocks = cluster_size();
  const int share = kRows / blocks, first = cluster_rank() * share;
  if (thread == 0) {
    for (int slot = 0; slot < 2; ++slot) {
      mbarrier_init(&full[slot], 1);
      mbarrier_init(&empty[slot], blocks);
    }
    mbarrier_init_fence();
  }
  __syncwarp();
  cluster_meet();
  if (thread == 0) {
    for (int tile = 0; tile < kTiles; ++tile) {
      const int slot = tile % 2;
      mbarrier_wait(&empty[slot], tile / 2 % 2 ^ 1);
      mbarrier_arrive_expect(&full[slot], kBytes);
      bulk_load_multicast(slots + slot * kBytes + first * 128, map, 0, tile * kRows + first, &full[slot],
                          (1 << blocks) - 1);
    }
  }
  if (thread >= 32) {
    for (int tile = 0; tile < kTiles; ++tile) {
      const int slot = tile % 2;
      mbarrier_wait(&full[slot], tile / 2 % 2);
      for (int i = lane; i < kRows * 8; i += 32) {
        reinterpret_cast<uint4*>(out)[(blockIdx.x * kTiles + tile) * kRows * 8 + i] =
            read_tile(slots + slot * kBytes, i / 8, i % 8);
      }
      __syncwarp();
      // Nobody waits for the last ones, whose block may have ended when they come.
      if (lane < blocks && tile + 2 < kTiles) mbarrier_arrive_at(&empty[slot], lane);
    }
  }
  __syncwarp();
  cluster_meet();
}

extern "C" __global__ void prims_bulk_multicast(const __grid_constant__ TensorMap map,
                                                uint32_t* __restrict__ out) {
  check_bulk_multicast(map, out);
}
EXPORT_HOPPER_KERNEL(prims_bulk_multicast)

// As prims_wgmma_*_tiles_n32 with A and B brought by bulk copies; C and the sums are `c` and `out`.
template <class T>
__device__ void check_bulk_wgmma(const TensorMap& map_a, const TensorMap& map_b, const uint32_t* c,
                                 uint32_t* out) {
  constexpr int kColumns = 32, kBytesA = 64 * 128, kBytesB = kColumns * 128;
  DYN_SMEM_TILES(unsigned char, tiles);
  SHARED(uint64_t, full);
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(&full, kBytesA + kBytesB);
    bulk_load(tiles, map_a, 0, 0, &full);
    bulk_load(tiles + kBytesA, map_b, 0, 0, &full);
  }
  __syncthreads();
  const int top = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, left = threadIdx.x % 4 * 2;
  float sums[kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    sums[i] = __uint_as_float(c[(top + i / 2 % 2 * 8) * kColumns + i / 4 * 8 + left + i % 2]);
  }
  mbarrier_wait(&full, 0);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    wgmma<T, kColumns>(sums, wgmma_step(wgmma_tile(tiles), step),
                       wgmma_step(wgmma_tile(tiles + kBytesA), step));
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_arrived(sums);
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    out[(top + i / 2 % 2 * 8) * kColumns + i / 4 * 8 + left + i % 2] = __float_as_uint(sums[i]);
  }
}

#define CHECK_BULK_WGMMA(name, T)                                                                           \
  extern "C" __global__ void name(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, \
                                  const uint32_t* __restrict__ c, uint32_t* __restrict__ out) {             \
    check_bulk_wgmma<T>(a, b, c, out);                                                                      \
  }                                                                                                         \
  EXPORT_HOPPER_KERNEL(name)

CHECK_BULK_WGMMA(prims_bulk_wgmma_bf16, bf16)
CHECK_BULK_WGMMA(prims_bulk_wgmma_f16, f16)

#endif  // HAS_WGMMA

// ---- barriers between pairs of warps: what the partner warp wrote is there

extern "C" __global__ void prims_named_barrier(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  SHARED(uint32_t[128], words);
  const int thread = threadIdx.x, half = thread / 64;
  uint32_t value = in[thread];
  for (int round = 0; round < 4; ++round) {
    words[thread] = value;
    named_barrier_sync(1 + half, 64);
    value = words[thread ^ 32] * 3 + 1;
    named_barrier_sync(1 + half, 64);
  }
  out[thread] = value;
}
EXPORT_KERNEL(prims_named_barrier)

// ---- clusters: four blocks of 64 threads with 16 bytes a thread; out = rank and size of the cluster, and what the
// block two further on has for the mirrored thread: 16 bytes at once, then the first 8 of them, eight words a thread

#if HAS_CLUSTERS
extern "C" __global__ void prims_cluster(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  SHARED(float4[64], own);
  const int thread = threadIdx.x, rank = cluster_rank(), size = cluster_size();
  own[thread] = reinterpret_cast<const float4*>(in)[blockIdx.x * 64 + thread];
  cluster_sync();
  const float4 peer = load_peer(own + (63 - thread), (rank + 2) % size);
  const auto* const halves = reinterpret_cast<const unsigned long long*>(own + (63 - thread));
  const unsigned long long half = load_peer(halves, (rank + 2) % size);
  cluster_sync();
  uint32_t* const words = out + (blockIdx.x * 64 + thread) * 8;
  words[0] = rank;
  words[1] = size;
  words[2] = __float_as_uint(peer.x);
  words[3] = __float_as_uint(peer.y);
  words[4] = __float_as_uint(peer.z);
  words[5] = __float_as_uint(peer.w);
  words[6] = static_cast<uint32_t>(half);
  words[7] = static_cast<uint32_t>(half >> 32);
}
EXPORT_KERNEL(prims_cluster)
#endif

// ---- warp and bit operations of the language that kernels use: 16 words a lane

extern "C" __global__ void prims_warp(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  const unsigned all = 0xffffffffu;
  const int lane = threadIdx.x;
  const uint32_t x = in[lane];
  const uint64_t wide = uint64_t(x) << 32 | in[(lane + 1) % 32];
  const uint32_t words[16] = {
      __shfl_sync(all, x, 7),
      __shfl_sync(all, x, (lane * 5 + 3) % 32),
      __shfl_up_sync(all, x, 3),
      __shfl_xor_sync(all, x, 19),
      __shfl_down_sync(all, x, 9),
      __ballot_sync(all, x & 1),
      __reduce_max_sync(all, x),
      __reduce_or_sync(all, x & 0x01010101u << (lane % 8)),
      uint32_t(__popc(x)),
      uint32_t(__popcll(wide)),
      uint32_t(__ffs(int(x))),
      uint32_t(__clz(int(x))),
      __umulhi(x, 0x9e3779b9u),
      __float_as_uint(__fmul_rn(__uint_as_float(x & 0x3fffffffu), 1.1f)),
      __float_as_uint(__fadd_rn(__fmul_rn(float(x >> 8), 0.1f), 0.3f)),
      uint32_t(__any_sync(all, x == in[31])) | uint32_t(__all_sync(all, x != 0)) << 1,
  };
  for (int i = 0; i < 16; ++i) out[lane * 16 + i] = words[i];
}
EXPORT_KERNEL(prims_warp)
