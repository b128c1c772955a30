// Vector code whose results must agree with the kernel in every bit.
#pragma once
#include <cmath>

#include "native.hpp"

// As SIMT_VECTORISED, but without leave to reassociate or to ignore the sign of zero.
#define VECTORISED_EXACT                                                       \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), \
                 optimize("O3", "no-math-errno", "no-trapping-math")))

// First index of the greatest logit; -1 if none is a number above -inf.
VECTORISED_EXACT inline int argmax(const float* row, int vocab_size) {
  constexpr int kLanes = 16;
  float lanes[kLanes];
  for (float& lane : lanes) lane = -INFINITY;
  int i = 0;
  for (; i + kLanes <= vocab_size; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane)
      lanes[lane] = row[i + lane] > lanes[lane] ? row[i + lane] : lanes[lane];
  for (; i < vocab_size; ++i) lanes[0] = row[i] > lanes[0] ? row[i] : lanes[0];
  float greatest = -INFINITY;
  for (float lane : lanes) greatest = lane > greatest ? lane : greatest;
  if (greatest == -INFINITY) return -1;
  for (i = 0; i + kLanes <= vocab_size; i += kLanes) {
    int found = 0;
    for (int lane = 0; lane < kLanes; ++lane) found |= row[i + lane] == greatest;
    if (found) break;
  }
  while (row[i] != greatest) ++i;
  return i;
}
