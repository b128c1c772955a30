// The CUDA C++ language on the host: keywords, vector types, 16-bit floats and intrinsics that need no other
// thread. Included by kernels through prims.cuh and by native twins; keep it light, every kernel pays for it.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#ifndef __restrict__
#define __restrict__ __restrict
#endif
// `__shared__` is deliberately not defined: kernels use SHARED and DYN_SMEM, which the host can poison and
// fence.

// ---- dimensions and vectors -------------------------------------------------------------------------------

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define SIMT_VECTOR(T, name)                                   \
  struct alignas(2 * sizeof(T)) name##2 {                      \
    T x, y;                                                    \
  };                                                           \
  struct alignas(sizeof(T) > 4 ? 16 : 4 * sizeof(T)) name##4 { \
    T x, y, z, w;                                              \
  };                                                           \
  inline name##2 make_##name##2(T x, T y) {                    \
    return {x, y};                                             \
  }                                                            \
  inline name##4 make_##name##4(T x, T y, T z, T w) {          \
    return {x, y, z, w};                                       \
  }
SIMT_VECTOR(float, float)
SIMT_VECTOR(double, double)
SIMT_VECTOR(int, int)
SIMT_VECTOR(unsigned, uint)
SIMT_VECTOR(short, short)
SIMT_VECTOR(unsigned short, ushort)
SIMT_VECTOR(signed char, char)
SIMT_VECTOR(unsigned char, uchar)
SIMT_VECTOR(long long, longlong)
SIMT_VECTOR(unsigned long long, ulonglong)
#undef SIMT_VECTOR

// ---- 16-bit floats: storage types, converted explicitly ---------------------------------------------------

struct __nv_bfloat16 {
  uint16_t x;
};
struct __half {
  uint16_t x;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};

__forceinline__ float __bfloat162float(__nv_bfloat16 v) {
  return __builtin_bit_cast(float, uint32_t(v.x) << 16);
}

// Round to nearest even; NaN becomes the canonical one, as on the device.
__forceinline__ __nv_bfloat16 __float2bfloat16(float v) {
  uint32_t bits = __builtin_bit_cast(uint32_t, v);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : rounded)};
}

// Multiplying by 2^112 moves the half's exponent bias to the float's and normalises subnormals on the way.
__forceinline__ float __half2float(__half v) {
  uint32_t magnitude = uint32_t(v.x & 0x7fff) << 13;
  float scaled = __builtin_bit_cast(float, magnitude) * 0x1p112f;
  uint32_t bits = __builtin_bit_cast(uint32_t, scaled);
  if (magnitude >= 0x7c00u << 13) bits = magnitude | 0x7f800000;  // infinity and NaN keep their mantissa
  return __builtin_bit_cast(float, bits | uint32_t(v.x & 0x8000) << 16);
}

// Round to nearest even, by bits: the exponent is rebased, subnormals are rounded by a float addition.
__forceinline__ __half __float2half(float v) {
  uint32_t bits = __builtin_bit_cast(uint32_t, v), sign = (bits >> 16) & 0x8000,
           magnitude = bits & 0x7fffffff;
  uint32_t result;
  if (magnitude > 0x7f800000) {
    return {0x7fff};
  } else if (magnitude >= 0x47800000) {  // 2^16 and above
    result = 0x7c00;
  } else if (magnitude < 0x38800000) {  // below the smallest normal half, 2^-14
    float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    result = __builtin_bit_cast(uint32_t, shifted) - 0x3f000000;
  } else {
    result = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  return {uint16_t(sign | result)};
}

inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  return __float2bfloat16(v);
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return {__float2bfloat16(a), __float2bfloat16(b)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
  return {__bfloat162float(v.x), __bfloat162float(v.y)};
}
inline __half __float2half_rn(float v) {
  return __float2half(v);
}
inline __half2 __floats2half2_rn(float a, float b) {
  return {__float2half(a), __float2half(b)};
}
inline float2 __half22float2(__half2 v) {
  return {__half2float(v.x), __half2float(v.y)};
}

// ---- arithmetic intrinsics --------------------------------------------------------------------------------

// Macros, because glibc declares functions of the same names.
#define __expf expf
#define __exp2f exp2f
#define __logf logf
#define __log2f log2f
#define __sinf sinf
#define __cosf cosf
#define __powf powf
__forceinline__ float rsqrtf(float v) {
  return 1.0f / sqrtf(v);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline float __fmul_rn(float a, float b) {
  // The barrier keeps the compiler from contracting the product into a later sum, as on the device.
  float product = a * b;
  asm("" : "+x"(product));
  return product;
}
inline float __fadd_rn(float a, float b) {
  asm("" : "+x"(a), "+x"(b));
  return a + b;
}

__forceinline__ int __float_as_int(float v) {
  return __builtin_bit_cast(int, v);
}
__forceinline__ unsigned __float_as_uint(float v) {
  return __builtin_bit_cast(unsigned, v);
}
__forceinline__ float __int_as_float(int v) {
  return __builtin_bit_cast(float, v);
}
__forceinline__ float __uint_as_float(unsigned v) {
  return __builtin_bit_cast(float, v);
}

__forceinline__ long long __double_as_longlong(double v) {
  return __builtin_bit_cast(long long, v);
}

__forceinline__ int __popc(unsigned v) {
  return __builtin_popcount(v);
}
__forceinline__ int __popcll(unsigned long long v) {
  return __builtin_popcountll(v);
}
__forceinline__ int __ffs(int v) {
  return __builtin_ffs(v);
}
inline int __ffsll(long long v) {
  return __builtin_ffsll(v);
}
inline int __clz(int v) {
  return v ? __builtin_clz(unsigned(v)) : 32;
}
inline int __clzll(long long v) {
  return v ? __builtin_clzll((unsigned long long)(v)) : 64;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return unsigned((uint64_t(a) * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}

template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}

template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T __ldcs(const T* p) {
  return *p;
}
template <class T>
inline T __ldcg(const T* p) {
  return *p;
}
template <class T>
inline void __stcs(T* p, std::type_identity_t<T> v) {
  *p = v;
}
