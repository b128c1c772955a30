// Native twins of kernels/layernorm.cu.
#include "rows.hpp"

namespace {

template <class T>
ROW_BODY void add_and_normalise(T* residual, const T* delta, const T* weight, const T* bias, T* out, int H,
                                float eps) {
  if (delta != nullptr) {
    for (int i = 0; i < H; ++i) residual[i] = narrow<T>(simt::widen(residual[i]) + simt::widen(delta[i]));
  }
  // Sums in sixteen lanes: one order of additions whatever the vector width.
  constexpr int kLanes = 16;
  float lanes[kLanes] = {};
  const int whole = H - H % kLanes;
  auto total = [&](float rest) {
    for (float& lane : lanes) {
      rest += lane;
      lane = 0.0f;
    }
    return rest;
  };
  for (int i = 0; i < whole; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += simt::widen(residual[i + lane]);
  }
  float rest = 0.0f;
  for (int i = whole; i < H; ++i) rest += simt::widen(residual[i]);
  const float mean = total(rest) / static_cast<float>(H);
  for (int i = 0; i < whole; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float difference = simt::widen(residual[i + lane]) - mean;
      lanes[lane] += difference * difference;
    }
  }
  rest = 0.0f;
  for (int i = whole; i < H; ++i) {
    const float difference = simt::widen(residual[i]) - mean;
    rest += difference * difference;
  }
  const float scale = 1.0f / std::sqrt(total(rest) / static_cast<float>(H) + eps);
  for (int i = 0; i < H; ++i) {
    const float scaled = (simt::widen(residual[i]) - mean) * scale;
    out[i] = narrow<T>(scaled * simt::widen(weight[i]) + simt::widen(bias[i]));
  }
}

#define LAYERNORM_ROW(T)                                                                                    \
  ROW_KERNEL void layernorm_row(T* residual, const T* delta, const T* weight, const T* bias, T* out, int H, \
                                float eps) {                                                                \
    add_and_normalise<T>(residual, delta, weight, bias, out, H, eps);                                       \
  }
LAYERNORM_ROW(bf16)
LAYERNORM_ROW(f16)
LAYERNORM_ROW(float)

template <class T>
void layernorm(const simt::NativeLaunch& launch, T* residual, const T* delta, const T* weight, const T* bias,
               T* out, int H, float eps) {
  for_rows(launch.grid.x, H, [&](int64_t row) {
    layernorm_row(residual + row * H, row_of(delta, row, H), weight, bias, out + row * H, H, eps);
  });
}

NATIVE_TWIN(layernorm_bf16, layernorm<bf16>)
NATIVE_TWIN(layernorm_f16, layernorm<f16>)
NATIVE_TWIN(layernorm_f32, layernorm<float>)

}  // namespace
