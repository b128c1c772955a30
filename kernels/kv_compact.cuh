// Parameters of kv_compact.cu, shared with its native twin.
#pragma once
#include "prims.cuh"

struct KvCompactParams {
  void* kv;               // T [num_layers, 2, num_pages, num_kv_heads, page_size, head_dim]
  const int* page_table;  // [num_sequences, max_pages]
  const int* prefix_len;  // [num_sequences]
  const int* accepted;  // [num_sequences, accepted_stride] node indices of the accepted path without the root
  const int* accepted_len;  // [num_sequences]
  int num_pages;
  int num_kv_heads;
  int page_size;
  int row_pieces;  // 16-byte pieces of head_dim elements
  int max_pages;
  int accepted_stride;
  int max_accepted;  // bound of accepted_len
};
POINTER_FIELDS(KvCompactParams, &KvCompactParams::kv, &KvCompactParams::page_table,
               &KvCompactParams::prefix_len, &KvCompactParams::accepted, &KvCompactParams::accepted_len)
