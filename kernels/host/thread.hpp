// What a running CUDA thread can see and ask of the runtime: its indices, its block's shared memory, the
// block's barriers, its warp. The bodies are in block.cpp, warp.cpp and shared_memory.cpp.
#pragma once
#include "language.hpp"

// Under ThreadSanitizer the kernels are instrumented and the runtime is not: what a kernel header does on the
// runtime's behalf (reading a warp's exchange slots) must stay invisible.
#if defined(__SANITIZE_THREAD__)
#define SIMT_UNTRACKED __attribute__((no_sanitize("thread"), noinline))
#else
#define SIMT_UNTRACKED
#endif

namespace simt {

struct BlockView {
  uint3 index{};
  dim3 dim, grid;
  unsigned char* dynamic_shared = nullptr;
};

struct Thread {
  uint3 index{};
  unsigned lane = 0, warp = 0;
  BlockView* block = nullptr;
};

// The thread whose fiber runs on this OS thread. Initial-exec: a plain %fs access, although the library is
// dlopened.
extern __thread Thread* current __attribute__((tls_model("initial-exec")));

// Ends the block with an error; the text gets kernel, block and thread appended.
[[noreturn]] void fail(const char* what);

// ---- warp -------------------------------------------------------------------------------------------------

enum class WarpOp {
  none,
  syncwarp,
  shuffle,
  vote,
  match,
  mma,
  ldmatrix,
  wgmma,
  wgmma_fence,
  wgmma_commit,
  wgmma_wait
};

constexpr int slot_bytes = 48;
using Slot = unsigned char[slot_bytes];

// Every lane of `mask` brings an operand; when the last has come, `combine` (may be null) runs once over the
// 32 slots. Returns the slots, which stay valid until the warp has met twice more.
Slot* rendezvous(uint32_t mask, WarpOp op, const void* operand, int bytes, void (*combine)(Slot*));

// ---- block ------------------------------------------------------------------------------------------------

struct BarrierResult {
  int any, all, count;
};
// `threads` = 0: every thread of the block that has not exited.
BarrierResult barrier(int id, int threads, int predicate);

// ---- cluster ----------------------------------------------------------------------------------------------

// Every thread of all blocks of the cluster that has not exited.
void cluster_sync();
void cluster_meet();      // and sees nothing of what the others have written
unsigned cluster_rank();  // of this block
unsigned cluster_size();

// What the block of that rank has where this one has `own`, both in shared memory.
float4 load_peer(const float4* own, unsigned rank);
unsigned long long load_peer(const unsigned long long* own, unsigned rank);
// Where that lies; fails where that block may not have it (any more).
unsigned char* peer_shared(const void* own, size_t bytes, unsigned rank);

// ---- shared memory ----------------------------------------------------------------------------------------

// Identity of a SHARED variable: the address of its key; the name is for error texts.
struct SharedKey {
  const char* name;
};
void* shared_variable(const SharedKey* key, size_t bytes, size_t alignment);

// cp.async at its latest legal moment: the destination is poisoned at issue and filled by the wait that
// covers it.
void async_copy(void* shared, const void* global, int bytes, int valid_bytes);
void async_copy_commit();
void async_copy_wait(int groups_left);

// ---- launches that overlap -----------------------------------------------------------------------------------

// Notes that this thread has waited; in an overlapping launch one that ends without is an error.
void wait_for_predecessors();

}  // namespace simt

#define threadIdx (simt::current->index)
#define blockIdx (simt::current->block->index)
#define blockDim (simt::current->block->dim)
#define gridDim (simt::current->block->grid)
#define warpSize 32

template <class T>
using simt_type = T;

#define SHARED(T, name)                                                   \
  static constexpr simt::SharedKey simt_key_##name{#name};                \
  simt_type<T>& name = *static_cast<simt_type<T>*>(simt::shared_variable( \
      &simt_key_##name, sizeof(simt_type<T>), alignof(simt_type<T>) > 16 ? alignof(simt_type<T>) : 16))

#define DYN_SMEM(T, name) T* name = reinterpret_cast<T*>(simt::current->block->dynamic_shared)
#define DYN_SMEM_TILES(T, name) DYN_SMEM(T, name)
