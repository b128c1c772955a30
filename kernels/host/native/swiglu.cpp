// Native twins of kernels/swiglu.cu.
#include "rows.hpp"

namespace {

template <class T>
ROW_BODY void gated(const T* __restrict gate, const T* __restrict up, T* __restrict out, int I) {
  for (int i = 0; i < I; ++i) {
    const float g = simt::widen(gate[i]);
    out[i] = narrow<T>(g / (1.0f + exp_vectorisable(-g)) * simt::widen(up[i]));
  }
}

#define SWIGLU_ROW(T)                                                     \
  ROW_KERNEL void swiglu_row(const T* gate, const T* up, T* out, int I) { \
    gated<T>(gate, up, out, I);                                           \
  }
SWIGLU_ROW(bf16)
SWIGLU_ROW(f16)
SWIGLU_ROW(float)

template <class T>
void swiglu(const simt::NativeLaunch& launch, const T* gate_up, T* out, int I, int gate_up_stride,
            int out_stride) {
  for_rows(launch.grid.x, 2 * static_cast<int64_t>(I), [&](int64_t row) {
    const T* const gate = gate_up + row * gate_up_stride;
    swiglu_row(gate, gate + I, out + row * out_stride, I);
  });
}

NATIVE_TWIN(swiglu_bf16, swiglu<bf16>)
NATIVE_TWIN(swiglu_f16, swiglu<f16>)
NATIVE_TWIN(swiglu_f32, swiglu<float>)

}  // namespace
