// Native twins of kernels/silu_residual.cu.
#include "rows.hpp"

namespace {

template <class T>
ROW_BODY void added(const T* x, const T* y, T* out, int H) {
  // out may be x or y, element for element.
#pragma GCC ivdep
  for (int i = 0; i < H; ++i) {
    const float value = simt::widen(y[i]);
    out[i] = narrow<T>(simt::widen(x[i]) + value / (1.0f + exp_vectorisable(-value)));
  }
}

#define SILU_RESIDUAL_ROW(T)                                                 \
  ROW_KERNEL void silu_residual_row(const T* x, const T* y, T* out, int H) { \
    added<T>(x, y, out, H);                                                  \
  }
SILU_RESIDUAL_ROW(bf16)
SILU_RESIDUAL_ROW(f16)
SILU_RESIDUAL_ROW(float)

template <class T>
void silu_residual(const simt::NativeLaunch& launch, const T* x, const T* y, T* out, int H, int x_stride,
                   int y_stride, int out_stride) {
  const int groups = static_cast<int>(launch.grid.z);
  for_rows(launch.grid.x, static_cast<int64_t>(groups) * H, [&](int64_t row) {
    for (int group = 0; group < groups; ++group) {
      const int64_t first = static_cast<int64_t>(group) * H;
      silu_residual_row(x + row * x_stride, y + row * y_stride + first, out + row * out_stride + first, H);
    }
  });
}

NATIVE_TWIN(silu_residual_bf16, silu_residual<bf16>)
NATIVE_TWIN(silu_residual_f16, silu_residual<f16>)
NATIVE_TWIN(silu_residual_f32, silu_residual<float>)

}  // namespace
