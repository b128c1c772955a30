// WHAT      After verification: moves the accepted rows of every sequence's tree to where plain decoding
//           would have put them, in all layers, K and V, by one launch.
// MATH      kv[l, c, position prefix_len[b] + 1 + i] = kv[l, c, position prefix_len[b] + accepted[b, i]],
//           i < accepted_len[b]; the root at prefix_len[b] stays
// SHAPES    see KvCompactParams (kv_compact.cuh); kv inout, all else in
// LAUNCH    grid (16-byte columns of all heads / block, layer * {K, V}, sequence), block up to 128;
//           one thread a column, which it moves down row by row
// REQUIRES  accepted ascending, so that accepted[b, i] >= i + 1; rows of head_dim elements a multiple of 16
//           bytes; page tables without a page twice
// NUMERICS  moves bytes: any element type
// TWINS     src/kernels/kv_compact.rs, src/reference/kv_compact.rs, tests/kernels/kv_compact.rs,
//           kernels/host/native/kv_compact.cpp
//
// Source and destination ranges overlap. Only a row that lies before it in the list can come from where row i
// goes (accepted[j] = i + 1 implies j <= i), and a thread moves the rows of its column in list order, so
// every row is read before it is overwritten. Columns are independent: no barrier. Rows are staged in
// registers eight at a time, for memory latency only.
#include "kv_compact.cuh"

constexpr int kStagedRows = 8;

extern "C" __global__ void __launch_bounds__(128) kv_compact(const __grid_constant__ KvCompactParams p) {
  take_turn();
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= p.num_kv_heads * p.row_pieces) return;
  const int head_idx = column / p.row_pieces, piece = column % p.row_pieces;
  const int seq_idx = blockIdx.z;
  const int num_rows = min(p.accepted_len[seq_idx], p.max_accepted);
  const int prefix_len = p.prefix_len[seq_idx];
  const int* pages = p.page_table + static_cast<int64_t>(seq_idx) * p.max_pages;
  const int* accepted = p.accepted + static_cast<int64_t>(seq_idx) * p.accepted_stride;
  const int64_t plane_pages = static_cast<int64_t>(blockIdx.y) * p.num_pages;

  auto piece_at = [&](int kv_pos) {
    const int64_t page = plane_pages + pages[kv_pos / p.page_size];
    const int64_t row = (page * p.num_kv_heads + head_idx) * p.page_size + kv_pos % p.page_size;
    return static_cast<uint4*>(p.kv) + row * p.row_pieces + piece;
  };
  for (int first = 0; first < num_rows; first += kStagedRows) {
    uint4 staged[kStagedRows];
#pragma unroll
    for (int i = 0; i < kStagedRows; ++i) {
      if (first + i < num_rows) staged[i] = *piece_at(prefix_len + accepted[first + i]);
    }
#pragma unroll
    for (int i = 0; i < kStagedRows; ++i) {
      if (first + i < num_rows && accepted[first + i] != first + i + 1) {
        *piece_at(prefix_len + 1 + first + i) = staged[i];
      }
    }
  }
}
EXPORT_KERNEL(kv_compact)
