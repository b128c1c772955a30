// The primitives of Hopper's warpgroup tensor cores: a part of prims.cuh, which includes it.
#pragma once

#if HAS_WGMMA

// Four warps, the first of them a multiple of four, multiply tiles in shared memory together, asynchronously:
//   fence_async_proxy, a barrier   what threads have copied or stored is there for tensor cores
//   wgmma_fence                    registers that threads have written are there, too: accumulators, and A
//   wgmma ..., wgmma_commit        a group of products
//   wgmma_wait<N>                  all but this thread's N newest groups have ended
// Between a wgmma and the wait for it nobody writes to its tiles, touches its accumulators or writes to its A.

PRIMITIVE void fence_async_proxy() {
  PTX_OR_HOST(asm volatile("fence.proxy.async.shared::cta;" :: : "memory"), simt::fence_async_proxy());
}

// Stores 16 bytes of a tile, at an address that is a multiple of 16.
PRIMITIVE void fill_tile16(void* tile, uint4 values) {
  PTX_OR_HOST(*static_cast<uint4*>(tile) = values, simt::fill_tile(tile, values));
}

PRIMITIVE void wgmma_fence() {
  PTX_OR_HOST(asm volatile("wgmma.fence.sync.aligned;" :: : "memory"), simt::wgmma_fence());
}

PRIMITIVE void wgmma_commit() {
  PTX_OR_HOST(asm volatile("wgmma.commit_group.sync.aligned;" :: : "memory"), simt::wgmma_commit());
}

template <int N>
PRIMITIVE void wgmma_wait() {
  PTX_OR_HOST(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"), simt::wgmma_wait(N));
}

// Keeps the compiler from reading sums before the wait that stands above: to it they were there since wgmma.
template <int kCount>
PRIMITIVE void wgmma_arrived(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) PTX_OR_HOST(asm volatile("" : "+f"(d[i])::"memory"), (void)d[i]);
}

// ---- tiles ----

// A tile is rows of 128 or 64 bytes (64 or 32 16-bit elements), the first of them on a boundary of eight.
// Their 16-byte chunks are permuted so that neither eight rows nor a row's chunks meet in a bank: where chunk
// `chunk` of row `row` lies in its row.
template <int kRowBytes>
PRIMITIVE int tile_chunk(int row, int chunk) {
  static_assert(kRowBytes == 128 || kRowBytes == 64, "a row that a swizzle has a period for");
  return chunk ^ (kRowBytes == 128 ? row % 8 : row / 2 % 4);
}

// Descriptor of a tile for wgmma. Bits 0-13 are the address, 16-29 the leading and 32-45 the stride byte
// offset, all in units of 16 bytes; 62-63 the swizzle: 1 of rows of 128 bytes, 2 of 64.
template <int kRowBytes>
PRIMITIVE uint64_t tile_descriptor(const void* tile, int leading_bytes) {
  constexpr uint64_t kSwizzle = kRowBytes == 128 ? 1 : 2;
  constexpr uint64_t kStride = 8 * kRowBytes >> 4;  // from eight rows to the next eight
  return (shared_address(tile) >> 4 & 0x3fff) | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
         kStride << 32 | kSwizzle << 62;
}

// A tile whose rows are rows of A or columns of B, the product's K along them: "K-major". The leading offset
// does not count.
template <int kRowBytes = 128>
PRIMITIVE uint64_t wgmma_tile(const void* tile) {
  return tile_descriptor<kRowBytes>(tile, 16);
}

// The same tile, so many steps of 16 elements further along K.
PRIMITIVE uint64_t wgmma_step(uint64_t tile, int steps) {
  return tile + steps * (32 >> 4);
}

// A tile whose rows are rows of B, the product's N along them: "MN-major". Where N is wider than a row it
// goes on in further tiles, each `tile_bytes` behind the one before.
template <int kRowBytes>
PRIMITIVE uint64_t wgmma_tile_across(const void* tile, int tile_bytes) {
  return tile_descriptor<kRowBytes>(tile, tile_bytes);
}

// The same tile, so many steps of 16 rows further along K.
template <int kRowBytes>
PRIMITIVE uint64_t wgmma_step_across(uint64_t tile, int steps) {
  return tile + steps * (16 * kRowBytes >> 4);
}

// ---- products ----

// Lists of registers for wgmma: ten of the decade `t`, the first of them, and the operands that they are.
#define REGISTERS_2(t) "%" #t "0,%" #t "1"
#define REGISTERS_4(t) REGISTERS_2(t) ",%" #t "2,%" #t "3"
#define REGISTERS_6(t) REGISTERS_4(t) ",%" #t "4,%" #t "5"
#define REGISTERS_8(t) REGISTERS_6(t) ",%" #t "6,%" #t "7"
#define REGISTERS_10(t) REGISTERS_8(t) ",%" #t "8,%" #t "9,"
#define REGISTERS_30 REGISTERS_10() REGISTERS_10(1) REGISTERS_10(2)
#define REGISTERS_60 REGISTERS_30 REGISTERS_10(3) REGISTERS_10(4) REGISTERS_10(5)
#define REGISTERS_120                                                                           \
  REGISTERS_60 REGISTERS_10(6) REGISTERS_10(7) REGISTERS_10(8) REGISTERS_10(9) REGISTERS_10(10) \
      REGISTERS_10(11)
#define SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS_8(i) SUMS_4(i), SUMS_4(i + 4)
#define SUMS_16(i) SUMS_8(i), SUMS_8(i + 8)
#define SUMS_32(i) SUMS_16(i), SUMS_16(i + 16)
#define SUMS_48(i) SUMS_32(i), SUMS_16(i + 32)
#define SUMS_64(i) SUMS_32(i), SUMS_32(i + 32)
#define SUMS_128(i) SUMS_64(i), SUMS_64(i + 64)

template <class T>
constexpr bool kIsBf16 = false;
template <>
constexpr bool kIsBf16<bf16> = true;

// `operands` are A, B and immediates, the rest what their numbers stand for.
#define WGMMA(n, type, registers, sums, operands, ...)                                                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" registers "}, " operands \
               ";"                                                                                           \
               : sums(0)                                                                                     \
               : __VA_ARGS__                                                                                 \
               : "memory")

#define WGMMA_WIDTH(n, registers, sums, operands, ...)                                       \
  if constexpr (N == n && is_bf16) WGMMA(n, "bf16", registers, sums, operands, __VA_ARGS__); \
  if constexpr (N == n && !is_bf16) WGMMA(n, "f16", registers, sums, operands, __VA_ARGS__)

// d += A[64 x 16] * B[16 x N], f32 accumulation, where A's tile has 64 rows and B's N, a column of B a row.
// Lane l of warp w of the warpgroup holds, with g = 16 w + l/4 and t = 2*(l%4), for each j < N / 8 the
// fragment c of mma of rows g, g+8 and columns 8j+t, 8j+t+1 in d[4j..4j+3].
template <class T, int N>
PRIMITIVE void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 128 || N == 256,
                "a width with a list of registers");
#ifdef __CUDACC__
  constexpr bool is_bf16 = kIsBf16<T>;
#define TILE_A(a_operand, b_operand) a_operand ", " b_operand ", 1, 1, 1, 0, 0"
  WGMMA_WIDTH(8, REGISTERS_4(), SUMS_4, TILE_A("%4", "%5"), "l"(a), "l"(b));
  WGMMA_WIDTH(16, REGISTERS_8(), SUMS_8, TILE_A("%8", "%9"), "l"(a), "l"(b));
  WGMMA_WIDTH(32, REGISTERS_10() REGISTERS_6(1), SUMS_16, TILE_A("%16", "%17"), "l"(a), "l"(b));
  WGMMA_WIDTH(64, REGISTERS_30 REGISTERS_2(3), SUMS_32, TILE_A("%32", "%33"), "l"(a), "l"(b));
  WGMMA_WIDTH(128, REGISTERS_60 REGISTERS_4(6), SUMS_64, TILE_A("%64", "%65"), "l"(a), "l"(b));
  WGMMA_WIDTH(256, REGISTERS_120 REGISTERS_8(12), SUMS_128, TILE_A("%128", "%129"), "l"(a), "l"(b));
#undef TILE_A
#else
  simt::wgmma<T>(d, N, a, b);
#endif
}

// How B lies in its tile: wgmma_tile, or wgmma_tile_across.
enum class KAxis { kAlongRows, kAcrossRows };

// The same with A in registers: each warp's fragment a of mma, of its 16 rows.
template <class T, int N, KAxis kAxis>
PRIMITIVE void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {
  static_assert(N == 32 || N == 64 || N == 96 || N == 128, "a width with a list of registers");
  constexpr int kAcross = kAxis == KAxis::kAcrossRows;
#ifdef __CUDACC__
  constexpr bool is_bf16 = kIsBf16<T>;
#define REGISTER_A(a0, a1, a2, a3, b, across) \
  "{%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #b ", 1, 1, 1, %" #across
#define INPUTS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAcross)
  WGMMA_WIDTH(32, REGISTERS_10() REGISTERS_6(1), SUMS_16, REGISTER_A(16, 17, 18, 19, 20, 21), INPUTS);
  WGMMA_WIDTH(64, REGISTERS_30 REGISTERS_2(3), SUMS_32, REGISTER_A(32, 33, 34, 35, 36, 37), INPUTS);
  WGMMA_WIDTH(96, REGISTERS_30 REGISTERS_10(3) REGISTERS_8(4), SUMS_48, REGISTER_A(48, 49, 50, 51, 52, 53),
              INPUTS);
  WGMMA_WIDTH(128, REGISTERS_60 REGISTERS_4(6), SUMS_64, REGISTER_A(64, 65, 66, 67, 68, 69), INPUTS);
#undef INPUTS
#undef REGISTER_A
#else
  simt::wgmma<T>(d, N, a, b, kAcross);
#endif
}

#endif  // HAS_WGMMA
