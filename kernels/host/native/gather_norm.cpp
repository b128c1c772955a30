// Native twins of kernels/gather_norm.cu.
#include "gather_norm.cuh"
#include "rows.hpp"

namespace {

#define NORM_ROW(T)                                                                   \
  ROW_KERNEL void norm_row(const T* row, const T* weight, T* out, int H, float eps) { \
    normalise<T>(row, weight, out, H, eps);                                           \
  }
NORM_ROW(bf16)
NORM_ROW(f16)
NORM_ROW(float)

template <class T>
void gather_norm(const simt::NativeLaunch& launch, GatherNormParams p) {
  for_rows(launch.grid.x * launch.grid.y, p.H, [&](int64_t task) {
    const int part = static_cast<int>(task / launch.grid.x);
    const int64_t row = task % launch.grid.x;
    const int64_t src_row = p.index[part] == nullptr ? row : p.index[part][row];
    const T* const weight = static_cast<const T*>(p.weight[part]);
    T* const out = static_cast<T*>(p.out[part]) + row * p.out_stride[part];
    T* const copy = row_of(static_cast<T*>(p.copy[part]), row, p.copy_stride[part]);
    const bool exists = src_row >= 0 && src_row < p.num_src_rows[part];
    const T* const src = static_cast<const T*>(p.src[part]) + (exists ? src_row * p.src_stride[part] : 0);
    if (!exists) {
      // Zeros are zeros when they are normed, unless a weight is not finite.
      std::fill_n(out, p.H, narrow<T>(0.0f));
      if (weight != nullptr) norm_row(out, weight, out, p.H, p.eps);
    } else if (weight != nullptr) {
      norm_row(src, weight, out, p.H, p.eps);
    } else {
      std::copy_n(src, p.H, out);
    }
    if (copy == nullptr) return;
    if (p.copies_out[part] != 0 || weight == nullptr) {
      std::copy_n(out, p.H, copy);
    } else if (exists) {
      std::copy_n(src, p.H, copy);
    } else {
      std::fill_n(copy, p.H, narrow<T>(0.0f));
    }
  });
}

NATIVE_TWIN(gather_norm_bf16, gather_norm<bf16>)
NATIVE_TWIN(gather_norm_f16, gather_norm<f16>)
NATIVE_TWIN(gather_norm_f32, gather_norm<float>)

}  // namespace
