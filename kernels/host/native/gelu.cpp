// Native twins of kernels/gelu.cu.
#include "rows.hpp"

namespace {

struct Erf {
  static ROW_BODY float of(float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678f)); }
};
struct Tanh {
  static ROW_BODY float of(float x) {
    return 0.5f * x * (1.0f + std::tanh(0.79788456f * (0.044715f * x * x * x + x)));
  }
};
struct Quick {
  static ROW_BODY float of(float x) { return x / (1.0f + exp_vectorisable(-1.702f * x)); }
};

// Elements of a task: a few tens of microseconds.
constexpr int kBlock = 16384;

#define GELU(function, Function, dtype, T)                                                 \
  ROW_KERNEL void function##_block_##dtype(const T* x, T* out, int len) {                  \
    for (int i = 0; i < len; ++i) out[i] = narrow<T>(Function::of(simt::widen(x[i])));     \
  }                                                                                        \
  void gelu_##function##_##dtype(const simt::NativeLaunch&, const T* x, T* out, int len) { \
    for_rows((len + kBlock - 1) / kBlock, kBlock, [&](int64_t block) {                     \
      const int64_t start = block * kBlock;                                                \
      function##_block_##dtype(x + start, out + start,                                     \
                               static_cast<int>(std::min<int64_t>(kBlock, len - start)));  \
    });                                                                                    \
  }                                                                                        \
  NATIVE_TWIN(gelu_##function##_##dtype, gelu_##function##_##dtype)

#define GELUS(function, Function)      \
  GELU(function, Function, bf16, bf16) \
  GELU(function, Function, f16, f16)   \
  GELU(function, Function, f32, float)

GELUS(erf, Erf)
GELUS(tanh, Tanh)
GELUS(quick, Quick)

}  // namespace
