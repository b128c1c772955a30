// Kernels of the host driver's self-test: healthy ones that must never raise an alarm, and ones with a
// planted bug each.
#include "../../prims.cuh"

// ---- healthy ----------------------------------------------------------------------------------------------

// Block-wide sum through shuffles and shared memory; out[block] = sum of in[block * n ..][n].
template <bool kBarrier>
__device__ __forceinline__ void block_sum(const float* in, float* out, int n) {
  SHARED(float[32], partial);
  int t = threadIdx.x;
  float sum = 0;
  for (int i = t; i < n; i += blockDim.x) sum += in[size_t(blockIdx.x) * n + i];
  for (int offset = 16; offset; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (t % 32 == 0) partial[t / 32] = sum;
  if (kBarrier) __syncthreads();
  if (t == 0) {
    float total = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++) total += partial[w];
    out[blockIdx.x] = total;
  }
}

extern "C" __global__ void healthy_sum(const float* in, float* out, int n) {
  block_sum<true>(in, out, n);
}
EXPORT_KERNEL(healthy_sum)

// One warp, C[16x8] = A[16x16] * B[16x8]; B is given transposed, [8][16].
template <class T>
__device__ __forceinline__ void multiply(const T* a, const T* b, float* c) {
  SHARED(T[16 * 16], tile_a);
  SHARED(T[16 * 16], tile_b);
  int lane = threadIdx.x;
  cp_async16(tile_a + lane * 8, a + lane * 8);
  cp_async16(tile_b + lane * 8, b + (lane < 16 ? lane * 8 : 0), lane < 16);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t fragment_a[4], rows_b[4];
  ldmatrix_x4(fragment_a, tile_a + lane % 16 * 16 + lane / 16 * 8);
  ldmatrix_x4(rows_b, tile_b + lane % 16 * 16 + lane / 16 * 8);
  const uint32_t fragment_b[2] = {rows_b[0], rows_b[2]};
  float sum[4] = {0, 0, 0, 0};
  mma<T>(sum, fragment_a, fragment_b);
  for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
extern "C" __global__ void healthy_mma_bf16(const bf16* a, const bf16* b, float* c) {
  multiply(a, b, c);
}
EXPORT_KERNEL(healthy_mma_bf16)
extern "C" __global__ void healthy_mma_f16(const f16* a, const f16* b, float* c) {
  multiply(a, b, c);
}
EXPORT_KERNEL(healthy_mma_f16)

// A 16x16 tile transposed by ldmatrix.trans.
extern "C" __global__ void healthy_transpose(const bf16* in, bf16* out) {
  SHARED(bf16[16 * 16], tile);
  int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) tile[i] = in[i];
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4_trans(r, tile + lane % 16 * 16 + lane / 16 * 8);
  for (int i = 0; i < 4;
       i++) {  // matrix i: rows i%2*8.., columns i/2*8..; transposed: row lane/4, column pair
    int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2 * 8;
    memcpy(out + row * 16 + column, &r[i], 4);
  }
}
EXPORT_KERNEL(healthy_transpose)

// Shared tiles double-buffered by cp.async; out = sum over tiles of in[tile][t * 4 ..][4].
template <int kPending>
__device__ __forceinline__ void pipeline(const float* in, float* out, int tiles) {
  DYN_SMEM(float, buffer);  // [2][blockDim * 4]
  int t = threadIdx.x, width = blockDim.x * 4;
  auto fetch = [&](int tile) {
    if (tile < tiles) cp_async16(buffer + tile % 2 * width + t * 4, in + size_t(tile) * width + t * 4);
    cp_async_commit();
  };
  float sum = 0;
  fetch(0);
  for (int tile = 0; tile < tiles; tile++) {
    fetch(tile + 1);
    cp_async_wait<kPending>();
    __syncthreads();
    int neighbour = (t + 1) % blockDim.x;
    for (int i = 0; i < 4; i++) sum += buffer[tile % 2 * width + neighbour * 4 + i];
    __syncthreads();
  }
  out[(t + 1) % blockDim.x] = sum;
}
extern "C" __global__ void healthy_pipeline(const float* in, float* out, int tiles) {
  pipeline<1>(in, out, tiles);
}
EXPORT_KERNEL(healthy_pipeline)

// Sums of products of tiles that come by cp.async: in holds for each tile 64 rows of A, then 8 columns of B,
// of 64 elements; out[64][8] = sum over tiles of A * B. Each way to get it wrong is one of these.
enum class WgmmaBug {
  none,
  early_refill,
  no_proxy_fence,
  no_register_fence,
  no_wait,
  crooked_tile,
  split_warpgroup,
  early_read,
  fence_once,
  early_registers,
  unfenced_fill
};

template <WgmmaBug kBug>
__device__ __forceinline__ void wgmma_sum(const bf16* in, float* out, int tiles) {
  constexpr int kSlots = kBug == WgmmaBug::early_refill ? 2 : 3, kTileBytes = 72 * 128;
  DYN_SMEM_TILES(unsigned char, ring);
  auto fetch = [&](int tile) {
    for (int i = threadIdx.x; tile < tiles && i < 72 * 8; i += 128) {
      const int row = i / 8, chunk = i % 8;
      cp_async16(ring + tile % kSlots * kTileBytes + row * 128 + (chunk ^ row % 8) * 16,
                 in + (size_t(tile) * 72 * 8 + i) * 8);
    }
    cp_async_commit();
  };
  float sums[4] = {0, 0, 0, 0};
  uint32_t zeros[4] = {};  // A in registers
  float spare[16] = {};
  fetch(0);
  for (int tile = 0; tile < tiles; tile++) {
    cp_async_wait<0>();
    if (kBug != WgmmaBug::no_proxy_fence) fence_async_proxy();
    __syncthreads();
    const unsigned char* const slot =
        ring + tile % kSlots * kTileBytes + (kBug == WgmmaBug::crooked_tile ? 128 : 0);
    const uint64_t a = wgmma_tile(slot), b = wgmma_tile(slot + 64 * 128);
    if (kBug == WgmmaBug::unfenced_fill && threadIdx.x == 5) {
      fill_tile16(ring + tile % kSlots * kTileBytes, *reinterpret_cast<const uint4*>(slot));
    }
    if (kBug != WgmmaBug::no_register_fence && (kBug != WgmmaBug::fence_once || tile == 0)) wgmma_fence();
    for (int step = 0; step < 4; step++) {
      const int own = kBug == WgmmaBug::split_warpgroup && threadIdx.x >= 96 ? 3 - step : step;
      wgmma<bf16, 8>(sums, wgmma_step(a, own), wgmma_step(b, own));
    }
    if (kBug == WgmmaBug::early_registers) wgmma<bf16, 32, KAxis::kAlongRows>(spare, zeros, a);
    wgmma_commit();
    if (kBug == WgmmaBug::early_registers) zeros[tile % 4] = 1;
    fetch(tile + 1);
    if (kBug == WgmmaBug::fence_once) wgmma_wait<0>();
    wgmma_wait<1>();
  }
  if (kBug != WgmmaBug::no_wait && kBug != WgmmaBug::early_read) wgmma_wait<0>();
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
  for (int i = 0; i < 4; i++) out[(row + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
  if (kBug == WgmmaBug::early_read) wgmma_wait<0>();
}

#define WGMMA_SUM(name, bug)                                               \
  extern "C" __global__ void name(const bf16* in, float* out, int tiles) { \
    wgmma_sum<WgmmaBug::bug>(in, out, tiles);                              \
  }                                                                        \
  EXPORT_HOPPER_KERNEL(name)

WGMMA_SUM(healthy_wgmma, none)
WGMMA_SUM(bug_wgmma_early_refill, early_refill)
WGMMA_SUM(bug_wgmma_no_proxy_fence, no_proxy_fence)
WGMMA_SUM(bug_wgmma_no_register_fence, no_register_fence)
WGMMA_SUM(bug_wgmma_no_wait, no_wait)
WGMMA_SUM(bug_wgmma_crooked_tile, crooked_tile)
WGMMA_SUM(bug_wgmma_split_warpgroup, split_warpgroup)
WGMMA_SUM(bug_wgmma_early_read, early_read)
WGMMA_SUM(bug_wgmma_fence_once, fence_once)
WGMMA_SUM(bug_wgmma_early_registers, early_registers)
WGMMA_SUM(bug_wgmma_unfenced_fill, unfenced_fill)

// Atomics, votes, named barriers: out[0] counts threads, out[1] odd lanes, out[2] blocks that saw their four
// warps.
extern "C" __global__ void healthy_counts(int* out) {
  atomicAdd(&out[0], 1);
  uint32_t odd = __ballot_sync(~0u, threadIdx.x & 1);
  if (threadIdx.x % 32 == 0) atomicAdd(&out[1], __popc(odd));
  SHARED(int[4], seen);
  if (threadIdx.x % 32 == 0) seen[threadIdx.x / 32] = 1;
  named_barrier_sync(threadIdx.x < 64 ? 1 : 2, 64);
  int count = __syncthreads_count(threadIdx.x % 32 == 0 && seen[threadIdx.x / 32 ^ 1] == 1);
  if (threadIdx.x == 0) atomicAdd(&out[2], count == 4);
}
EXPORT_KERNEL(healthy_counts)

// The last block to finish adds up what all have written.
extern "C" __global__ void healthy_last_block(float* parts, unsigned* tickets, float* out) {
  if (threadIdx.x != 0) return;
  parts[blockIdx.x] = float(blockIdx.x + 1);
  __threadfence();
  if (atomicAdd(tickets, 1u) != gridDim.x - 1) return;
  __threadfence();
  float total = 0;
  for (unsigned b = 0; b < gridDim.x; b++) total += parts[b];
  out[0] = total;
}
EXPORT_KERNEL(healthy_last_block)

extern "C" __global__ void fill(int* out, int value, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = value;
}
EXPORT_KERNEL(fill)

extern "C" __global__ void copy_to(const int* in, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = in[i];
}
EXPORT_KERNEL(copy_to)

struct Pair {
  const int* in;
  int* out;
  int n;
};
POINTER_FIELDS(Pair, &Pair::in, &Pair::out)
extern "C" __global__ void copy_pair(__grid_constant__ const Pair pair, float scale) {
  int i = threadIdx.x;
  if (i < pair.n) pair.out[i] = int(float(pair.in[i]) * scale);
}
EXPORT_KERNEL(copy_pair)

extern "C" __global__ void many_parameters(int* a, int b, uint64_t c, float d, __grid_constant__ const Pair e,
                                           uint8_t f) {
  a[0] = int(b + c + d + e.n + f);
}
EXPORT_KERNEL(many_parameters)

// ---- planted bugs -----------------------------------------------------------------------------------------

extern "C" __global__ void bug_missing_barrier(const float* in, float* out, int n) {
  block_sum<false>(in, out, n);
}
EXPORT_KERNEL(bug_missing_barrier)

extern "C" __global__ void bug_short_wait(const float* in, float* out, int tiles) {
  pipeline<2>(in, out, tiles);
}
EXPORT_KERNEL(bug_short_wait)

extern "C" __global__ void bug_dynamic_overrun(float* out) {
  DYN_SMEM(float, buffer);
  buffer[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = buffer[threadIdx.x];
}
EXPORT_KERNEL(bug_dynamic_overrun)

extern "C" __global__ void bug_static_overrun(float* out) {
  SHARED(float[32], staging);
  staging[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = staging[threadIdx.x];
}
EXPORT_KERNEL(bug_static_overrun)

extern "C" __global__ void bug_uninitialised(float* out) {
  SHARED(float[64], values);
  if (threadIdx.x < 10) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}
EXPORT_KERNEL(bug_uninitialised)

extern "C" __global__ void bug_divergent_barrier(float* out) {
  if (threadIdx.x < 40)
    __syncthreads();
  else if (threadIdx.x < 50)
    __syncwarp();
  out[threadIdx.x] = 1;
}
EXPORT_KERNEL(bug_divergent_barrier)

extern "C" __global__ void bug_mixed_operations(float* out) {
  float v = float(threadIdx.x);
  if (threadIdx.x < 16)
    v = __shfl_xor_sync(~0u, v, 1);
  else
    v = float(__ballot_sync(~0u, 1));
  out[threadIdx.x] = v;
}
EXPORT_KERNEL(bug_mixed_operations)

extern "C" __global__ void bug_exited_lane(float* out) {
  if (threadIdx.x == 31) return;
  out[threadIdx.x] = __shfl_down_sync(~0u, 1.f, 1);
}
EXPORT_KERNEL(bug_exited_lane)

extern "C" __global__ void bug_misaligned(const float* in, float* out) {
  SHARED(float[64], staging);
  cp_async16(staging, in + 1);
  cp_async_commit();
  cp_async_wait<0>();
  out[0] = staging[0];
}
EXPORT_KERNEL(bug_misaligned)

extern "C" __global__ void bug_wild_pointer(uint64_t address) {
  if (threadIdx.x == 5) *(volatile float*)(address) = 1;
}
EXPORT_KERNEL(bug_wild_pointer)

__device__ int deep(volatile int* out, int n) {
  volatile char frame[1024];
  frame[n % 1024] = char(n);
  return n ? deep(out, n - 1) + frame[n % 1024] : *out;
}
extern "C" __global__ void bug_stack_overflow(int* out) {
  out[0] = deep(out, 1 << 20);
}
EXPORT_KERNEL(bug_stack_overflow)

extern "C" __global__ void bug_large_static(float* out) {
  SHARED(float[10 * 1024], values);
  values[threadIdx.x] = 1;
  out[threadIdx.x] = values[threadIdx.x];
}
EXPORT_KERNEL(bug_large_static)

// The second thread goes without having waited for the launches before.
extern "C" __global__ void bug_early_exit(float* out) {
  if (threadIdx.x == 1) return;
  take_turn();
  out[threadIdx.x] = 1;
}
EXPORT_KERNEL(bug_early_exit)

// Two blocks add to the same cell without an atomic: right in almost every schedule, a race in all.
extern "C" __global__ void bug_block_race(float* out) {
  if (threadIdx.x == 0) out[0] += 1;
}
EXPORT_KERNEL(bug_block_race)

// Writes `value` at out[index]: whether that is in bounds is up to the caller.
extern "C" __global__ void store_at(int* out, int index, int value) {
  out[index] = value;
}
EXPORT_KERNEL(store_at)

// ---- twins ------------------------------------------------------------------------------------------------

extern "C" __global__ void scale(const float* in, float* out, int n, float factor) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = in[i] * factor;
}
EXPORT_KERNEL(scale)

extern "C" __global__ void empty(float* out) {
  if (threadIdx.x == 0) out[0] = 0;
}
EXPORT_KERNEL(empty)

extern "C" __global__ void empty_emulated(float* out) {
  if (threadIdx.x == 0) out[0] = 0;
}
EXPORT_KERNEL(empty_emulated)

extern "C" __global__ void mismatched(float* out, int n) {
  out[0] = float(n);
}
EXPORT_KERNEL(mismatched)
