// Vector code whose results must agree with the kernel in every bit.
#pragma once
#include "native.hpp"

// As SIMT_VECTORISED, but without leave to reassociate or to ignore the sign of zero.
#define VECTORISED_EXACT                                                       \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), \
                 optimize("O3", "no-math-errno", "no-trapping-math")))
