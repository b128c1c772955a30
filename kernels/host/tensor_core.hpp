// Lane-accurate host bodies of the tensor-core instructions: mma.m16n8k16 and ldmatrix.x4.
#pragma once
#include "warp.hpp"

namespace simt {

// One lane's part of D = A * B + C. A is 16x16 row-major, B 16x8 column-major, both as pairs of 16-bit values
// in 32-bit registers; C and D are 16x8 f32. Lane l owns rows g = l/4 and g+8, columns 2*(l%4) and the next.
struct MmaOperands {
  uint32_t a[4], b[2];
  float c[4];
};
static_assert(sizeof(MmaOperands) <= slot_bytes);

template <class T>
SIMT_UNTRACKED inline float widen(uint32_t bits) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float({uint16_t(bits)});
  else
    return __half2float({uint16_t(bits)});
}

// Gathers the fragments into matrices, multiplies with k ascending in f32, and hands the results back.
template <class T>
SIMT_UNTRACKED void mma_combine(Slot* slots) {
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const auto& own = *reinterpret_cast<const MmaOperands*>(slots[lane]);
    int group = lane >> 2, pair = (lane & 3) * 2;
    for (int i = 0; i < 4; i++) {
      int row = group + (i & 1) * 8, column = pair + (i >> 1) * 8;
      a[row][column] = widen<T>(own.a[i] & 0xffff);
      a[row][column + 1] = widen<T>(own.a[i] >> 16);
      c[group + (i >> 1) * 8][pair + (i & 1)] = own.c[i];
    }
    for (int i = 0; i < 2; i++) {
      b[pair + i * 8][group] = widen<T>(own.b[i] & 0xffff);
      b[pair + i * 8 + 1][group] = widen<T>(own.b[i] >> 16);
    }
  }
  for (int row = 0; row < 16; row++)
    for (int k = 0; k < 16; k++)
      for (int column = 0; column < 8; column++) c[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; lane++) {
    auto& own = *reinterpret_cast<MmaOperands*>(slots[lane]);
    int group = lane >> 2, pair = (lane & 3) * 2;
    for (int i = 0; i < 4; i++) own.c[i] = c[group + (i >> 1) * 8][pair + (i & 1)];
  }
}

template <class T>
inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaOperands own;
  memcpy(own.a, a, sizeof a);
  memcpy(own.b, b, sizeof b);
  memcpy(own.c, c, sizeof c);
  Slot* slots = rendezvous(~0u, WarpOp::mma, &own, sizeof own, mma_combine<T>);
  own = read_slot<MmaOperands>(slots[current->lane]);
  memcpy(c, own.c, sizeof c);
}

// Lane l brings row l%8 of matrix l/8; each lane leaves with one 32-bit pair of every 8x8 matrix.
template <bool kTranspose>
SIMT_UNTRACKED inline void ldmatrix_gather(uint32_t (&r)[4], const Slot* rows) {
  int lane = int(current->lane);
  for (int i = 0; i < 4; i++) {
    const Slot* matrix = rows + i * 8;
    if constexpr (kTranspose) {
      auto element = [&](int row) {
        return uint32_t(reinterpret_cast<const uint16_t*>(matrix[row])[lane >> 2]);
      };
      r[i] = element((lane & 3) * 2) | element((lane & 3) * 2 + 1) << 16;
    } else {
      r[i] = reinterpret_cast<const uint32_t*>(matrix[lane >> 2])[lane & 3];
    }
  }
}

template <bool kTranspose>
inline void ldmatrix(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) & 15) fail("ldmatrix: row address is not 16-byte aligned");
  uint32_t own[4];
  for (int i = 0; i < 4; i++) own[i] = static_cast<const uint32_t*>(row)[i];
  ldmatrix_gather<kTranspose>(r, rendezvous(~0u, WarpOp::ldmatrix, own, sizeof own, nullptr));
}

}  // namespace simt
