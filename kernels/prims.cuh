// The named device primitives, with prims_warpgroup.cuh, prims_bulk.cuh and prims_cluster.cuh the only place with PTX. Every primitive has two bodies, inline PTX for nvcc
// and a lane-accurate one for the host driver (host/), and a conformance test that runs both.
//
// A kernel file includes this header and other .cuh of ours, nothing else. It may use what is here and the
// CUDA language itself: threadIdx and friends, __syncthreads, __syncwarp, shuffles, votes, atomics, the
// arithmetic intrinsics of host/language.hpp.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

template <class T>
using simt_type = T;

// SHARED(float[32], partial): a block-wide variable. DYN_SMEM(T, name): the launch's dynamic shared memory.
// DYN_SMEM_TILES: the same on a boundary of 1024 bytes, as the tiles of wgmma want it.
#define SHARED(T, name) __shared__ __align__(16) simt_type<T> name
#define DYN_SMEM(T, name)                                      \
  extern __shared__ __align__(128) unsigned char smem_bytes[]; \
  T* name = reinterpret_cast<T*>(smem_bytes)
#define DYN_SMEM_TILES(T, name)                                 \
  extern __shared__ __align__(1024) unsigned char smem_tiles[]; \
  T* name = reinterpret_cast<T*>(smem_tiles)

// Host bookkeeping only: registers a kernel by name (one that sm_90a images alone have may use as much shared
// memory as Hopper has); declares the pointers inside a parameter struct.
#define EXPORT_KERNEL(kernel)
#define EXPORT_HOPPER_KERNEL(kernel)
#define POINTER_FIELDS(Struct, ...)

#define PRIMITIVE __device__ __forceinline__
// One source, two bodies.
#define PTX_OR_HOST(ptx, host) ptx

#else

#include "host/bulk_copy.hpp"
#include "host/condition.hpp"
#include "host/kernel_registry.hpp"
#include "host/mbarrier.hpp"
#include "host/tensor_core.hpp"
#include "host/warpgroup.hpp"

#define PRIMITIVE inline
#define PTX_OR_HOST(ptx, host) host

#endif

// Whether what only sm_90a has is there. Kernels that use it are not defined in other images: nobody finds
// them by name there.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif

using bf16 = __nv_bfloat16;
using f16 = __half;

// Of shuffles and votes that every lane takes part in.
constexpr unsigned kWholeWarp = 0xffffffffu;

// Where `p` lies in the block's shared memory.
PRIMITIVE uint32_t shared_address(const void* p) {
  return PTX_OR_HOST(static_cast<uint32_t>(__cvta_generic_to_shared(p)), simt::shared_address(p));
}

// ---- conversions, templated over the element type ---------------------------------------------------------

PRIMITIVE float to_float(float v) {
  return v;
}
PRIMITIVE float to_float(bf16 v) {
  return __bfloat162float(v);
}
PRIMITIVE float to_float(f16 v) {
  return __half2float(v);
}

// from_float<T>(v) rounds to nearest even.
template <class T>
PRIMITIVE T from_float(float v);
template <>
PRIMITIVE float from_float<float>(float v) {
  return v;
}
template <>
PRIMITIVE bf16 from_float<bf16>(float v) {
  return __float2bfloat16(v);
}
template <>
PRIMITIVE f16 from_float<f16>(float v) {
  return __float2half(v);
}

// Two values rounded into one 32-bit register, the first in the low half: the element order of mma fragments.
PRIMITIVE uint32_t pack_bf16(float low, float high) {
  __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return bits;
}
PRIMITIVE uint32_t pack_f16(float low, float high) {
  __half2 v = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return bits;
}
template <class T>
PRIMITIVE uint32_t pack(float low, float high);
template <>
PRIMITIVE uint32_t pack<bf16>(float low, float high) {
  return pack_bf16(low, high);
}
template <>
PRIMITIVE uint32_t pack<f16>(float low, float high) {
  return pack_f16(low, high);
}

// The reverse: both halves of a register as floats.
template <class T>
PRIMITIVE float2 unpack(uint32_t bits);
template <>
PRIMITIVE float2 unpack<bf16>(uint32_t bits) {
  __nv_bfloat162 v;
  memcpy(&v, &bits, 4);
  return __bfloat1622float2(v);
}
template <>
PRIMITIVE float2 unpack<f16>(uint32_t bits) {
  __half2 v;
  memcpy(&v, &bits, 4);
  return __half22float2(v);
}

// Two neighbouring 16-bit elements of memory as one register; they lie at a multiple of 4 bytes. Of memcpy, which does not
// know that, nvcc makes four loads of a byte.
template <class T>
PRIMITIVE uint32_t load_pair(const T* pair) {
  static_assert(sizeof(T) == 2, "two fill a register");
  return *reinterpret_cast<const uint32_t*>(pair);
}
template <class T>
PRIMITIVE void store_pair(T* pair, uint32_t bits) {
  static_assert(sizeof(T) == 2, "two fill a register");
  *reinterpret_cast<uint32_t*>(pair) = bits;
}

// 2^x within 2 ulp; exactly 1 at 0 and 0 at -infinity. On the device results below 2^-126 become 0.
PRIMITIVE float exp2_approx(float x) {
  float y;
  PTX_OR_HOST(asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)), y = exp2f(x));
  return y;
}

// ---- tensor cores -----------------------------------------------------------------------------------------

// c += A[16x16] * B[16x8], f32 accumulation; the whole warp calls it together. Lane l holds, with g = l/4 and
// t = 2*(l%4), elements listed by ascending register:
//   a = A[g][t..t+1], A[g+8][t..t+1], A[g][t+8..t+9], A[g+8][t+8..t+9]
//   b = B[t..t+1][g], B[t+8..t+9][g]
//   c = C[g][t], C[g][t+1], C[g+8][t], C[g+8][t+1]

PRIMITIVE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  PTX_OR_HOST(asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                           "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" : "+f"(c[0]),
                           "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),
                           "r"(b[0]), "r"(b[1])),
              simt::mma_m16n8k16<bf16>(c, a, b));
}

PRIMITIVE void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  PTX_OR_HOST(asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                           "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" : "+f"(c[0]),
                           "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),
                           "r"(b[0]), "r"(b[1])),
              simt::mma_m16n8k16<f16>(c, a, b));
}

template <class T>
PRIMITIVE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
PRIMITIVE void mma<bf16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_bf16(c, a, b);
}
template <>
PRIMITIVE void mma<f16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_f16(c, a, b);
}

// Four 8x8 matrices of 16-bit elements from shared memory: lane l gives the address of row l%8 of matrix l/8
// (16-byte aligned) and receives, of each matrix, elements (l/4, 2*(l%4)) and the next one in the row.
PRIMITIVE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  PTX_OR_HOST(asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]),
                           "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory"),
              simt::ldmatrix<false>(r, row));
}

// The same with every matrix transposed on the way.
PRIMITIVE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  PTX_OR_HOST(asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]),
                           "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory"),
              simt::ldmatrix<true>(r, row));
}

// ---- tensor cores of a warpgroup (Hopper) ------------------------------------------------------------------

#include "prims_warpgroup.cuh"

// ---- blocks that run together (Hopper) ----------------------------------------------------------------------

#include "prims_cluster.cuh"

// ---- asynchronous copies, global to shared ----------------------------------------------------------------

// 16 bytes, both addresses 16-byte aligned. With `valid` false nothing is read and the destination becomes
// zero.
PRIMITIVE void cp_async16(void* shared, const void* global, bool valid = true) {
  PTX_OR_HOST(asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                           "l"(global), "r"(valid ? 16 : 0) : "memory"),
              simt::async_copy(shared, global, 16, valid ? 16 : 0));
}

PRIMITIVE void cp_async_commit() {
  PTX_OR_HOST(asm volatile("cp.async.commit_group;" :: : "memory"), simt::async_copy_commit());
}

// Waits until at most N of this thread's newest groups are still under way.
template <int N>
PRIMITIVE void cp_async_wait() {
  PTX_OR_HOST(asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"), simt::async_copy_wait(N));
}

// ---- bulk copies and their barriers (Hopper) ---------------------------------------------------------------

#include "prims_bulk.cuh"

// ---- what other blocks of the same launch have written -----------------------------------------------------

// What this thread has written or seen written, by others of its block before a barrier too, comes before whatever it does
// next, for whoever on this GPU learns of that by an atomic operation.
PRIMITIVE void fence_gpu() {
  PTX_OR_HOST(asm volatile("fence.acq_rel.gpu;" :: : "memory"), __threadfence());
}

// From the second-level cache, past what this multiprocessor may have kept; the writer has fenced before it told.
PRIMITIVE float load_fresh(const float* address) {
  float value;
  PTX_OR_HOST(asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(address) : "memory"),
              value = *address);
  return value;
}
PRIMITIVE unsigned long long load_fresh(const unsigned long long* address) {
  unsigned long long value;
  PTX_OR_HOST(asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory"),
              value = *address);
  return value;
}

// ---- what a later launch reads ------------------------------------------------------------------------------

// Asks for the sector of global memory with this byte to be brought into the second-level cache; waits for nothing and
// changes nothing.
PRIMITIVE void prefetch_sector(const unsigned char* address) {
  PTX_OR_HOST(asm volatile("prefetch.global.L2 [%0];" ::"l"(address)),
              (void)*static_cast<const volatile unsigned char*>(address));
}

// ---- what the host reads while the launch is not known to have ended ---------------------------------------

// Writes `value` so that who sees it, the host too, also sees what this thread has written or seen written before,
// by its block up to the latest barrier. Mapped host memory, 4-byte aligned.
PRIMITIVE void store_release_system(int* address, int value) {
  PTX_OR_HOST(asm volatile("st.release.sys.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory"),
              __atomic_store_n(address, value, __ATOMIC_RELEASE));
}

// ---- launches that overlap (programmatic dependent launch) --------------------------------------------------

// A kernel launched so may start while its predecessor still runs. Until `wait_for_predecessors` returns it must
// touch nothing that any earlier launch reads or writes: weights it may read. Every thread of every block
// calls it, those without work too, as the next launch takes this one's end for the end of all before. Before
// sm_90, and where the launch did not ask for it, launches do not overlap and this does nothing.
PRIMITIVE void wait_for_predecessors() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  PTX_OR_HOST(asm volatile("griddepcontrol.wait;" :: : "memory"), simt::wait_for_predecessors());
#endif
}

// Lets the next launch start once every block of this one has called it or ended.
PRIMITIVE void let_successor_start() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  PTX_OR_HOST(asm volatile("griddepcontrol.launch_dependents;" :: :), (void)0);
#endif
}

// The first thing in a kernel that has nothing to do before its turn comes.
PRIMITIVE void take_turn() {
  let_successor_start();
  wait_for_predecessors();
}

// ---- barriers between some warps of a block ---------------------------------------------------------------

// `id` 1..15; `threads` is a multiple of 32. Barrier 0 is __syncthreads.
PRIMITIVE void named_barrier_sync(int id, int threads) {
  PTX_OR_HOST(asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"),
              simt::barrier(id, threads, 0));
}

// ---- conditional nodes of graphs --------------------------------------------------------------------------

// What the conditional node of `handle` will see: of an if whether, of a while whether again, of a switch which.
// One thread of the graph calls it. The function is the driver's own, so there is no instruction to name.
PRIMITIVE void set_condition(uint64_t handle, unsigned value) {
  PTX_OR_HOST(cudaGraphSetConditional(handle, value), simt::set_condition(handle, value));
}
