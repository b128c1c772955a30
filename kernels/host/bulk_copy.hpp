// Host body of bulk tensor copies: boxes that arrive some time between their issue and the moment when nobody can go
// on without them. The bodies are in bulk_copy.cpp.
#pragma once
#include "kernel_registry.hpp"
#include "thread.hpp"

namespace simt {

// What cuTensorMapEncodeTiled of the host driver writes: a matrix of 16-bit elements, and the box of a copy.
struct alignas(128) TensorMap {
  const unsigned char* base;
  uint64_t columns, rows;
  uint64_t row_bytes;  // from one row to the next
  uint32_t box_columns, box_rows;
  uint32_t swizzle_mask;  // of the chunk's number in its row, with the address's bits from 7 on
  uint32_t signature;

  static constexpr uint32_t kSignature = 0x70616d74;
  uint32_t box_bytes() const { return box_columns * box_rows * 2; }
};

// Fills the box at `tile` with poison and, late or early, by seed, with what it asks for.
void issue_bulk_copy(void* tile, const TensorMap& map, int column, int row, uint64_t* barrier);
// The same in all blocks of the cluster that `blocks` has a bit for.
void issue_bulk_copy(void* tile, const TensorMap& map, int column, int row, uint64_t* barrier,
                     uint16_t blocks);

}  // namespace simt

POINTER_FIELDS(simt::TensorMap, &simt::TensorMap::base)
