// WHAT  What repetition costs a sequence, and how its tokens are counted: shared by the kernel, its native twin and
//       src/kernels/penalties.rs (PenaltyParams there).
#pragma once

#include "prims.cuh"

struct PenaltyParams {
  float repetition;  // 1: none
  float presence;    // 0: none
  float frequency;   // 0: none
  int num_biases;    // tokens with a bias of their own
};
static_assert(sizeof(PenaltyParams) == 16, "layout shared with Rust");

// A token's count in a text: bit 0 says whether the prompt has it, the others how often it was emitted.
constexpr int kInPrompt = 1;
constexpr int kOnceEmitted = 2;

__device__ __forceinline__ bool changes_nothing(const PenaltyParams& params) {
  return params.repetition == 1.0f && params.presence == 0.0f && params.frequency == 0.0f &&
         params.num_biases == 0;
}

// Every step is rounded by itself, so that all machines agree in every bit.
__device__ __forceinline__ float penalised(float logit, int count, const PenaltyParams& params) {
  if (count == 0) return logit;
  if (params.repetition != 1.0f)
    logit = logit > 0.0f ? logit / params.repetition : __fmul_rn(logit, params.repetition);
  const int emitted = count / kOnceEmitted;
  if (emitted == 0) return logit;
  const float often = __fmul_rn(params.frequency, static_cast<float>(emitted));
  return __fadd_rn(__fadd_rn(logit, -often), -params.presence);
}
