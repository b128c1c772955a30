// The state of an online softmax over part of a row's keys, and how two states become one.
//
// A state is (max, sum, acc): the greatest score so far, sum of 2^(score - max), and sum of 2^(score - max) *
// v. Scores are in base 2: the caller folds log2(e) into the softmax scale. An empty state has max =
// -infinity and zeros. Bits depend on the order of merging, so every kernel merges in the same one
// (tree_attention.cu, ORDER) and through the same operations: each product that reaches a sum is an explicit
// fmaf or the addend of one, so that no compiler may contract them differently in two places.
#pragma once
#include "prims.cuh"

constexpr float kNoScore = -INFINITY;

// The base that scores are taken relative to: finite even before the first visible key.
__device__ __forceinline__ float softmax_base(float max_score) {
  return max_score == kNoScore ? 0.0f : max_score;
}

// How an older state and a newer one combine: x = fold_sum(older.x, newer.x) for the sum and every acc.
struct Fold {
  float max, older, newer;

  __device__ __forceinline__ Fold(float older_max, float newer_max) {
    max = fmaxf(older_max, newer_max);
    const float base = softmax_base(max);
    older = exp2_approx(older_max -
                        base);  // 1 where the newer state is empty or not greater, 0 where this is empty
    newer = exp2_approx(newer_max - base);
  }
  __device__ __forceinline__ float operator()(float older_value, float newer_value) const {
    return fmaf(older_value, older, newer_value * newer);
  }
};

// What a row outputs. The zero it adds turns -0 into +0: whether an all-masked block was skipped or added
// must not show in the sign of a zero.
__device__ __forceinline__ float softmax_output(float acc, float sum) {
  return fmaf(acc, sum > 0.0f ? 1.0f / sum : 0.0f, 0.0f);
}
