// What the row-wise native twins share: rounding by element type, the loop over rows and the attributes of a
// row's loops.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "../native.hpp"

// A row's work is a template body, inlined into one concrete function a dtype, which the compiler clones for
// the vector widths of x86-64. No flag lets it reorder sums: a row's order of additions is what the source
// says.
#define ROW_BODY inline __attribute__((always_inline))
#define ROW_KERNEL                                                                    \
  static __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), \
                        optimize("O3", "no-math-errno")))

template <class T>
ROW_BODY T narrow(float value);
template <>
ROW_BODY float narrow<float>(float value) {
  return value;
}
template <>
ROW_BODY bf16 narrow<bf16>(float value) {
  return __float2bfloat16(value);
}
template <>
ROW_BODY f16 narrow<f16>(float value) {
  return __float2half(value);
}

// Row `row` of a matrix that may be null.
template <class T>
T* row_of(T* matrix, int64_t row, int64_t stride) {
  return matrix == nullptr ? nullptr : matrix + row * stride;
}

// The sum of the squares of `length` elements, in one order of additions whatever the vector width.
template <class T>
ROW_BODY float sum_of_squares(const T* __restrict row, int length) {
  constexpr int kLanes = 16;
  float lanes[kLanes] = {};
  const int whole = length - length % kLanes;
  for (int i = 0; i < whole; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = simt::widen(row[i + lane]);
      lanes[lane] += value * value;
    }
  }
  float squares = 0.0f;
  for (const float lane : lanes) squares += lane;
  for (int i = whole; i < length; ++i) squares += simt::widen(row[i]) * simt::widen(row[i]);
  return squares;
}

// RMSNorm of a row, in place perhaps.
template <class T>
ROW_BODY void normalise(const T* row, const T* weight, T* out, int H, float eps) {
  const float scale = 1.0f / std::sqrt(sum_of_squares(row, H) / static_cast<float>(H) + eps);
  for (int i = 0; i < H; ++i) out[i] = narrow<T>(simt::widen(row[i]) * scale * simt::widen(weight[i]));
}

// body(row) for every row; on this thread alone where waking the others would take longer than the work.
template <class Body>
void for_rows(uint32_t num_rows, int64_t row_elements, Body body) {
  constexpr int64_t kWorthWaking = 16384;  // elements; some 5 us of the cheapest of these loops
  if (num_rows * row_elements < kWorthWaking) {
    for (uint32_t row = 0; row < num_rows; ++row) body(static_cast<int64_t>(row));
  } else {
    simt::parallel_for(num_rows, [&](uint32_t row) { body(static_cast<int64_t>(row)); });
  }
}

// e^x within 2 ulp, in operations that vectorise: x = n ln 2 + r with |r| <= ln 2 / 2, a Taylor polynomial
// for e^r (its next term, r^8 / 8!, is below 2^-26), and 2^n by its exponent bits. Below -87 the result stays
// at e^-87.
ROW_BODY float exp_vectorisable(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low mantissa bits
  constexpr float kMax = 88.0f, kMin = -87.0f;
  float clamped = x < kMin ? kMin : x;
  clamped = clamped > kMax ? kMax : clamped;
  const float shifted = clamped * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r =
      (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact in n
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127) << 23);
  return x > kMax ? std::numeric_limits<float>::infinity() : p * power;
}
