// WHAT      What the machine allows at best: kernels that only read, or only start. No engine launches them; benches/kernels
//           relates the others to what they reach.
// MATH      ceiling_read*: out[b] = sum modulo 2^32 of the 32-bit words that block b has read, `passes` times each:
//           in pass p pieces (b + p * shift) mod grid and every grid-th behind it; a piece is 32 KiB, 8 vectors of
//           16 bytes for each of 256 threads
// SHAPES    x    u32 [8192 num_pieces]  in   16-byte aligned
//           out  u32 [grid]             out
// LAUNCH    ceiling_read*: grid as asked, 256 threads, _bulk 288 and 64 KiB of dynamic shared memory; ceiling_empty: one
//           block of one warp
// NUMERICS  exact, in any order
// TWINS     src/kernels/ceilings.rs, src/reference/ceilings.rs, tests/kernels/ceilings.rs
//
// A pass shifts pieces to other blocks, so that data that fits L2 comes from there and not from the L1 of the SM that
// read it before. Vectors are interleaved over threads: each load of a warp is 512 bytes in a row.
//
// The dependents of a read may start at once, and a read loads before it waits for what it depends on: what it reads
// is nobody's output. That is what a pass may do with weights; its gain is the time of a chain of reads with
// programmatic edges against one without.
#include "prims.cuh"

constexpr int kReadThreads = 256;
constexpr int kPieceVectors = 8;  // of a thread; in flight together
constexpr int kPiece = kReadThreads * kPieceVectors;

__device__ __forceinline__ uint32_t sum_words(uint4 v) {
  return v.x + v.y + v.z + v.w;
}

// The block's sum of `sum` to out[blockIdx.x].
__device__ __forceinline__ void store_block_sum(uint32_t sum, uint32_t* out) {
  SHARED(uint32_t[kReadThreads / 32 + 1], partial);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  // An earlier read of the chain may still be writing to the same place.
  wait_for_predecessors();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) sum += partial[warp];
  out[blockIdx.x] = sum;
}

// The first piece of the block in a pass; the others follow a grid apart.
__device__ __forceinline__ int first_piece(int pass, int shift) {
  return static_cast<int>((blockIdx.x + static_cast<int64_t>(pass) * shift) % gridDim.x);
}

extern "C" __global__ void __launch_bounds__(kReadThreads)
    ceiling_read(const uint4* __restrict__ x, uint32_t* out, int num_pieces, int passes, int shift) {
  let_successor_start();
  uint32_t sum = 0;
  for (int pass = 0; pass < passes; ++pass) {
    for (int piece = first_piece(pass, shift); piece < num_pieces; piece += gridDim.x) {
      const uint4* const source = x + static_cast<int64_t>(piece) * kPiece + threadIdx.x;
      uint4 values[kPieceVectors];
#pragma unroll
      for (int i = 0; i < kPieceVectors; ++i) values[i] = __ldg(source + i * kReadThreads);
#pragma unroll
      for (int i = 0; i < kPieceVectors; ++i) sum += sum_words(values[i]);
    }
  }
  store_block_sum(sum, out);
}
EXPORT_KERNEL(ceiling_read)

// The same through shared memory, a piece ahead of the one that is summed. A thread reads what it has copied itself, so
// its own wait is enough.
extern "C" __global__ void __launch_bounds__(kReadThreads)
    ceiling_read_async(const uint4* __restrict__ x, uint32_t* out, int num_pieces, int passes, int shift) {
  DYN_SMEM(uint4, stages);  // [2][kPieceVectors][kReadThreads]
  let_successor_start();
  uint32_t sum = 0;
  auto copy = [&](int piece, int stage) {
    const uint4* const source = x + static_cast<int64_t>(piece) * kPiece + threadIdx.x;
    if (piece < num_pieces) {
#pragma unroll
      for (int i = 0; i < kPieceVectors; ++i) {
        cp_async16(stages + (stage * kPieceVectors + i) * kReadThreads + threadIdx.x,
                   source + i * kReadThreads);
      }
    }
    cp_async_commit();
  };
  for (int pass = 0; pass < passes; ++pass) {
    int stage = 0;
    copy(first_piece(pass, shift), stage);
    for (int piece = first_piece(pass, shift); piece < num_pieces; piece += gridDim.x) {
      copy(piece + gridDim.x, stage ^ 1);
      cp_async_wait<1>();
#pragma unroll
      for (int i = 0; i < kPieceVectors; ++i) {
        sum += sum_words(stages[(stage * kPieceVectors + i) * kReadThreads + threadIdx.x]);
      }
      stage ^= 1;
    }
    cp_async_wait<0>();
  }
  store_block_sum(sum, out);
}
EXPORT_KERNEL(ceiling_read_async)

#if HAS_WGMMA

// The same by bulk copies, which a thread of a ninth warp asks for: half a piece each, as 128 rows of 128 bytes, four in
// flight. How they are swizzled does not matter to a sum.
constexpr int kBoxBytes = kPiece * 16 / 2, kBoxRows = kBoxBytes / 128, kBoxSlots = 4;

extern "C" __global__ void __launch_bounds__(kReadThreads + 32)
    ceiling_read_bulk(const __grid_constant__ TensorMap x, uint32_t* out, int num_pieces, int passes,
                      int shift) {
  DYN_SMEM_TILES(unsigned char, slots);  // [kBoxSlots][kBoxBytes]
  SHARED(uint64_t[kBoxSlots], full);
  SHARED(uint64_t[kBoxSlots], empty);
  let_successor_start();
  const bool is_producer = threadIdx.x >= kReadThreads;
  if (threadIdx.x == kReadThreads) {
    prefetch_tensor_map(x);
    for (int slot = 0; slot < kBoxSlots; ++slot) {
      mbarrier_init(&full[slot], 1);
      mbarrier_init(&empty[slot], kReadThreads / 32);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  // use(first row of a box, its slot, how often the slot was used before)
  auto for_each_box = [&](auto&& use) {
    int box = 0;
    for (int pass = 0; pass < passes; ++pass) {
      for (int piece = first_piece(pass, shift); piece < num_pieces; piece += gridDim.x) {
        for (int half = 0; half < 2; ++half, ++box) {
          use((piece * 2 + half) * kBoxRows, box % kBoxSlots, box / kBoxSlots);
        }
      }
    }
  };
  uint32_t sum = 0;
  if (threadIdx.x == kReadThreads) {
    for_each_box([&](int row, int slot, int round) {
      mbarrier_wait(&empty[slot], round % 2 ^ 1);
      mbarrier_arrive_expect(&full[slot], kBoxBytes);
      bulk_load(slots + slot * kBoxBytes, x, 0, row, &full[slot]);
    });
  } else if (!is_producer) {
    for_each_box([&](int, int slot, int round) {
      const uint4* const vectors = reinterpret_cast<const uint4*>(slots + slot * kBoxBytes) + threadIdx.x;
      mbarrier_wait(&full[slot], round % 2);
#pragma unroll
      for (int i = 0; i < kPieceVectors / 2; ++i) sum += sum_words(vectors[i * kReadThreads]);
      __syncwarp();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[slot]);
    });
  }
  __syncwarp();
  store_block_sum(sum, out);
}
EXPORT_HOPPER_KERNEL(ceiling_read_bulk)

#endif  // HAS_WGMMA

// What a launch costs that does nothing.
extern "C" __global__ void __launch_bounds__(32) ceiling_empty() {
  let_successor_start();
  wait_for_predecessors();
}
EXPORT_KERNEL(ceiling_empty)
