// Lane-accurate host body of wgmma.mma_async: products of four warps that read shared memory some time
// between their issue and the wait for them. The bodies are in warpgroup.cpp.
#pragma once
#include "thread.hpp"

namespace simt {

// Where `p` lies in the block's shared memory, which begins on a boundary of 1024 bytes.
uint32_t shared_address(const void* p);

// What this thread has copied is there for tensor cores.
void fence_async_proxy();

void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int groups_left);

// This lane's part of an m64nNk16 product, N = `width`: sums[width / 2] += A * B as soon as possible or as
// late as allowed, by seed. The sums are poison until the wait.
void wgmma_issue(float* sums, int width, bool is_bf16, uint64_t a, uint64_t b);

template <class T>
inline void wgmma(float* sums, int width, uint64_t a, uint64_t b) {
  wgmma_issue(sums, width, std::is_same_v<T, __nv_bfloat16>, a, b);
}

}  // namespace simt
