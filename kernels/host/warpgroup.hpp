// Lane-accurate host body of wgmma.mma_async: products of four warps that read shared memory and registers
// some time between their issue and the wait for them. The bodies are in warpgroup.cpp.
#pragma once
#include "thread.hpp"

namespace simt {

// Where `p` lies in the block's shared memory, which begins on a boundary of 1024 bytes.
uint32_t shared_address(const void* p);

// What this thread has copied is there for tensor cores.
void fence_async_proxy();

// 16 bytes of a tile by this thread's own hand.
void fill_tile(void* tile, uint4 values);

void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int groups_left);

// The factors of an m64nNk16 product: A by its descriptor or, where `registers` is not null, this lane's
// fragment of it; B, whose K runs along the rows of its tile or across them.
struct WgmmaFactors {
  const uint32_t* registers;
  uint64_t a, b;
  bool is_across;
};

// This lane's part of the product, N = `width`: sums[width / 2] += A * B as soon as possible or as late as
// allowed, by seed. The sums are poison until the wait.
void wgmma_issue(float* sums, int width, bool is_bf16, const WgmmaFactors& factors);

template <class T>
inline void wgmma(float* sums, int width, uint64_t a, uint64_t b) {
  wgmma_issue(sums, width, std::is_same_v<T, __nv_bfloat16>, {nullptr, a, b, false});
}
template <class T>
inline void wgmma(float* sums, int width, const uint32_t* a, uint64_t b, bool is_across) {
  wgmma_issue(sums, width, std::is_same_v<T, __nv_bfloat16>, {a, 0, b, is_across});
}

}  // namespace simt
