// Parameters of gather_norm.cu, which its native twin shares.
#pragma once
#include "prims.cuh"

constexpr int kMaxGatherParts = 2;

struct GatherNormParams {
  const void* src[kMaxGatherParts];     // [S, H]
  const int* index[kMaxGatherParts];    // [rows]; null: row r is row r
  const void* weight[kMaxGatherParts];  // [H]; null: rows are copied
  void* out[kMaxGatherParts];           // [rows, H] out
  void* copy[kMaxGatherParts];          // [rows, H] out; may be null
  int num_src_rows[kMaxGatherParts];    // S
  int src_stride[kMaxGatherParts];
  int out_stride[kMaxGatherParts];
  int copy_stride[kMaxGatherParts];
  int copies_out[kMaxGatherParts];  // whether `copy` is of what goes out, or else of what was gathered
  int H;
  float eps;
};
static_assert(sizeof(GatherNormParams) == 128, "layout shared with Rust");
POINTER_FIELDS(GatherNormParams, &GatherNormParams::src, &GatherNormParams::index, &GatherNormParams::weight,
               &GatherNormParams::out, &GatherNormParams::copy)
