// Rows of bf16, f16 or f32 elements, moved 16 bytes at a time and widened to f32 in registers.
//
// A row is cut into vectors of kVector<T> elements counted from its first element. A vector is loaded whole
// when the row is 16-byte aligned and element by element otherwise; both ways give the same thread the same
// elements, so alignment changes speed and never bits.
#pragma once
#include "prims.cuh"

// Elements of one 16-byte vector.
template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// Whether `row` may be moved in 16-byte vectors.
__device__ __forceinline__ bool is_aligned16(const void* row) {
  return (reinterpret_cast<uintptr_t>(row) & 15) == 0;
}

// A vector in flight: one 16-byte register group seen as elements.
template <typename T>
struct __align__(16) Vector {
  T element[kVector<T>];
};

// Reads `valid` elements (at most a vector) at `source`; the others become `fill`.
template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* source, int valid, bool aligned, T fill) {
  Vector<T> vector;
  if (aligned && valid >= kVector<T>) {
    *reinterpret_cast<uint4*>(&vector) = *reinterpret_cast<const uint4*>(source);
    return vector;
  }
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) vector.element[i] = i < valid ? source[i] : fill;
  return vector;
}

// Writes the first `valid` elements (at most a vector) to `target`.
template <typename T>
__device__ __forceinline__ void store_vector(T* target, const Vector<T>& vector, int valid, bool aligned) {
  if (aligned && valid >= kVector<T>) {
    *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(&vector);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    if (i < valid) target[i] = vector.element[i];
  }
}

// Elements times `scale` times their weights, each rounded once.
template <typename T>
__device__ __forceinline__ Vector<T> scaled_vector(const Vector<T>& values, float scale,
                                                   const Vector<T>& weights) {
  Vector<T> scaled;
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i)
    scaled.element[i] = from_float<T>(to_float(values.element[i]) * scale * to_float(weights.element[i]));
  return scaled;
}
