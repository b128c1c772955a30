// Ancestor words: the set of KV rows behind the prefix that a row of the pass sees, as 256 bits.
//
// Bit j stands for KV position prefix_len + j. Parents come before children, so the set bits in ascending
// order are the path from the root, and the r-th of them has logical position prefix_len + r. Everything here
// turns bits into such ranks or back; nothing here knows attention.
#pragma once
#include "prims.cuh"

constexpr int kMaskWords = 8;  // 32-bit words of a 256-bit set

using TreeMask = uint32_t[kMaskWords];

// `words` is 16-byte aligned: two loads, where every lane has a sector of its own.
__device__ __forceinline__ void load_mask(TreeMask& mask, const unsigned long long* words) {
#pragma unroll
  for (int i = 0; i < kMaskWords; i += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(words + i / 2);
    mask[i] = four.x;
    mask[i + 1] = four.y;
    mask[i + 2] = four.z;
    mask[i + 3] = four.w;
  }
}

__device__ __forceinline__ int count_bits(const TreeMask& mask) {
  int count = 0;
#pragma unroll
  for (int i = 0; i < kMaskWords; ++i) count += __popc(mask[i]);
  return count;
}

// The set without its `count` lowest members. A loop: it runs only where a path crosses a tile boundary.
__device__ __forceinline__ uint32_t drop_lowest(uint32_t bits, int count) {
  for (int i = 0; i < count; ++i) bits &= bits - 1;
  return bits;
}

// Keeps the members whose rank lies in [begin, end).
__device__ __forceinline__ void keep_ranks(TreeMask& mask, int begin, int end) {
  int rank = 0;  // of the lowest member of mask[i]
#pragma unroll
  for (int i = 0; i < kMaskWords; ++i) {
    const int count = __popc(mask[i]);
    if (rank + count > end) mask[i] ^= drop_lowest(mask[i], max(end - rank, 0));
    if (rank < begin) mask[i] = drop_lowest(mask[i], min(begin - rank, count));
    rank += count;
  }
}

// Whether path `mask` is the upper part of path `leaf`: both agree up to the highest member of `mask`.
__device__ __forceinline__ bool is_upper_part(const TreeMask& mask, const TreeMask& leaf) {
  bool below = false;  // a higher word of `mask` has members, so all of this word counts
  bool agree = true;
#pragma unroll
  for (int i = kMaskWords - 1; i >= 0; --i) {
    const uint32_t up_to_highest = below ? ~0u : mask[i] == 0 ? 0u : ~0u >> __clz(static_cast<int>(mask[i]));
    agree = agree && ((mask[i] ^ leaf[i]) & up_to_highest) == 0;
    below = below || mask[i] != 0;
  }
  return agree;
}

// A set spread over a warp: lane l holds members 8l..8l+7 and the number of members below those.
struct LaneBits {
  uint32_t bits;
  int below;
};

// Every lane passes the same mask.
__device__ __forceinline__ LaneBits spread(const TreeMask& mask) {
  const int own_word = threadIdx.x % 32 / 4, shift = threadIdx.x % 4 * 8;
  const uint32_t below_own_byte = (1u << shift) - 1;
  LaneBits own{0, 0};
#pragma unroll
  for (int i = 0; i < kMaskWords;
       ++i) {  // selection by arithmetic: an indexed register array would go to memory
    const uint32_t is_own = i == own_word ? ~0u : 0u, is_lower = i < own_word ? ~0u : 0u;
    own.bits |= mask[i] & is_own;
    own.below += __popc(mask[i] & (is_lower | (is_own & below_own_byte)));
  }
  own.bits = own.bits >> shift & 0xff;
  return own;
}

// Calls visit(bit, rank) for every member that this lane holds.
template <typename Visit>
__device__ __forceinline__ void for_each_member(const LaneBits& own, Visit visit) {
  int rank = own.below;
  for (uint32_t left = own.bits; left != 0; left &= left - 1, ++rank) {
    visit(static_cast<int>(threadIdx.x % 32) * 8 + __ffs(static_cast<int>(left)) - 1, rank);
  }
}
