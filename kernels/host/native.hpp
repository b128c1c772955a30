// Native twins: plain vectorised C++ for a hot kernel, under the kernel's name and contract. A twin gets the
// kernel's own parameters, preceded by the launch geometry:
//
//   static void rmsnorm(const simt::NativeLaunch& launch, const bf16* x, const bf16* weight, bf16* y, int n,
//   float eps) {
//     simt::parallel_for(launch.grid.x, [&](uint32_t row) { ... });
//   }
//   NATIVE_TWIN(rmsnorm_bf16, rmsnorm)
//
// The result of a row may not depend on the other rows, nor on the number of threads. SIMT_NATIVE=0 (or
// simt_set_option("native", 0)) runs the kernel itself; tests do both and compare within the kernel's
// tolerance.
#pragma once
#include "kernel_registry.hpp"
#include "pool.hpp"

// A function compiled three times, for the widest vectors the machine has; put it before hot loops'
// functions.
#define SIMT_VECTORISED                                             \
  __attribute__((                                                   \
      target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), \
      optimize("O3", "no-math-errno", "associative-math", "no-signed-zeros", "no-trapping-math")))

using bf16 = __nv_bfloat16;
using f16 = __half;

namespace simt {

struct NativeLaunch {
  dim3 grid, block;
  uint32_t shared_bytes;
};

struct NativeTwin {
  const char* kernel_name;
  void (*invoke)(const NativeLaunch&, void** parameters);
  std::span<const Parameter> parameters;
  const NativeTwin* next = nullptr;
  NativeTwin(const char* kernel_name, void (*invoke)(const NativeLaunch&, void**),
             std::span<const Parameter>);
};

template <class... Args>
Signature<Args...> twin_signature_of(void (*)(const NativeLaunch&, Args...));

__forceinline__ float widen(float v) {
  return v;
}
__forceinline__ float widen(__nv_bfloat16 v) {
  return __bfloat162float(v);
}
__forceinline__ float widen(__half v) {
  return __half2float(v);
}

}  // namespace simt

#define NATIVE_TWIN(kernel, function)                                                             \
  static simt::NativeTwin simt_twin_##kernel{                                                     \
      #kernel,                                                                                    \
      [](const simt::NativeLaunch& launch, void** parameters) {                                   \
        using S = decltype(simt::twin_signature_of(&function));                                   \
        S::call(&function, parameters, std::make_index_sequence<S::parameters.size()>{}, launch); \
      },                                                                                          \
      decltype(simt::twin_signature_of(&function))::parameters};
