// Native twins of kernels/rmsnorm.cu.
#include "rows.hpp"

namespace {

template <class T>
ROW_BODY void add_and_normalise(T* residual, const T* delta, const T* weight, T* out, T* tap, int H,
                                float eps) {
  if (delta != nullptr) {
    for (int i = 0; i < H; ++i) residual[i] = narrow<T>(simt::widen(residual[i]) + simt::widen(delta[i]));
  }
  if (tap != nullptr) std::copy_n(residual, H, tap);
  normalise(residual, weight, out, H, eps);
}

#define RMSNORM_ROW(T)                                                                             \
  ROW_KERNEL void rmsnorm_row(T* residual, const T* delta, const T* weight, T* out, T* tap, int H, \
                              float eps) {                                                         \
    add_and_normalise<T>(residual, delta, weight, out, tap, H, eps);                               \
  }
RMSNORM_ROW(bf16)
RMSNORM_ROW(f16)
RMSNORM_ROW(float)

template <class T>
void rmsnorm(const simt::NativeLaunch& launch, T* residual, const T* delta, const T* weight, T* out, T* tap,
             int H, int residual_stride, int delta_stride, int out_stride, int tap_stride, float eps) {
  for_rows(launch.grid.x, H, [&](int64_t row) {
    rmsnorm_row(residual + row * residual_stride, row_of(delta, row, delta_stride), weight,
                out + row * out_stride, row_of(tap, row, tap_stride), H, eps);
  });
}

NATIVE_TWIN(rmsnorm_bf16, rmsnorm<bf16>)
NATIVE_TWIN(rmsnorm_f16, rmsnorm<f16>)
NATIVE_TWIN(rmsnorm_f32, rmsnorm<float>)

}  // namespace
