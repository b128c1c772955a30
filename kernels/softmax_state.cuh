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

// The states of a row's units, one after the other, of which this thread has kColumns columns: first those of a span become
// one, then the spans.
template <int kColumns>
struct UnitFold {
  float span_acc[kColumns] = {}, span_sum = 0.0f, span_max = kNoScore;
  float acc[kColumns] = {}, sum = 0.0f, max = kNoScore;

  __device__ __forceinline__ void add(const float (&unit_acc)[kColumns], float unit_max, float unit_sum) {
    const Fold fold(span_max, unit_max);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) span_acc[i] = fold(span_acc[i], unit_acc[i]);
    span_sum = fold(span_sum, unit_sum);
    span_max = fold.max;
  }

  __device__ __forceinline__ void end_span() {
    const Fold fold(max, span_max);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) acc[i] = fold(acc[i], span_acc[i]);
    sum = fold(sum, span_sum);
    max = fold.max;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) span_acc[i] = 0.0f;
    span_sum = 0.0f;
    span_max = kNoScore;
  }
};

// What a row outputs. The zero it adds turns -0 into +0: whether an all-masked block was skipped or added
// must not show in the sign of a zero.
__device__ __forceinline__ float softmax_output(float acc, float sum) {
  return fmaf(acc, sum > 0.0f ? 1.0f / sum : 0.0f, 0.0f);
}
