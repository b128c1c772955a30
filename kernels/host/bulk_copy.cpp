// Bulk tensor copies: what they take, when they arrive, and what must not happen before.
#include "bulk_copy.hpp"

#include <string.h>

#include <algorithm>

#include "cluster.hpp"
#include "memory.hpp"
#include "sanitizer.hpp"

namespace simt {

constexpr uint32_t chunk_bytes = 16, chunk_elements = 8;

// use(row of the box, chunk of the row, where it goes in shared memory)
template <class Use>
static void for_each_chunk(const BulkCopy& copy, Use use) {
  const uint32_t row_bytes = copy.map.box_columns * 2;
  for (uint32_t row = 0; row < copy.map.box_rows; row++) {
    for (uint32_t chunk = 0; chunk < row_bytes / chunk_bytes; chunk++) {
      const uint32_t offset = copy.tile + row * row_bytes + chunk * chunk_bytes;
      use(row, chunk, offset ^ (offset >> 7 & copy.map.swizzle_mask) * chunk_bytes);
    }
  }
}

// Columns [begin, end) of the matrix that a row of the box has.
static void columns_of(const BulkCopy& copy, int64_t& begin, int64_t& end) {
  begin = std::max<int64_t>(copy.column, 0);
  end = std::min<int64_t>(int64_t(copy.column) + copy.map.box_columns, int64_t(copy.map.columns));
}

static const unsigned char* row_of(const BulkCopy& copy, uint32_t row) {
  const int64_t number = int64_t(copy.row) + row;
  const bool is_inside = number >= 0 && number < int64_t(copy.map.rows);
  return is_inside ? copy.map.base + uint64_t(number) * copy.map.row_bytes : nullptr;
}

// Eight neighbours of a row; zeros where the matrix has none.
static void read_chunk(const BulkCopy& copy, uint32_t row, uint32_t chunk, unsigned char* to) {
  memset(to, 0, chunk_bytes);
  const unsigned char* from = row_of(copy, row);
  int64_t begin, end;
  columns_of(copy, begin, end);
  const int64_t first = int64_t(copy.column) + chunk * chunk_elements;
  begin = std::max(begin, first), end = std::min(end, first + int64_t(chunk_elements));
  if (from && begin < end) memcpy(to + (begin - first) * 2, from + begin * 2, size_t(end - begin) * 2);
}

static void check(Block& block, const BulkCopy& copy) {
  const TensorMap& map = copy.map;
  if (map.signature != TensorMap::kSignature)
    fail("bulk_load: the tensor map was not made by cuTensorMapEncodeTiled");
  if (copy.tile % 128) fail("bulk_load: the tile's address is no multiple of 128 bytes");
  if (!block.holds_shared(copy.tile, map.box_bytes()))
    current_block()->die("bulk_load: a box of " + std::to_string(map.box_bytes()) + " bytes at " +
                         block.describe_shared(copy.tile) + " is not inside of one shared variable");
  for_each_chunk(copy, [&](uint32_t, uint32_t, uint32_t to) {
    if (block.is_being_filled(to)) fail("bulk_load into a tile that another copy is still filling");
  });
  AllocationRange range;
  const auto base = reinterpret_cast<DevicePointer>(map.base);
  const uint64_t bytes = (map.rows - 1) * map.row_bytes + map.columns * 2;
  if (!find_memory(base, &range)) fail("bulk_load: the tensor map's memory is not live");
  if (base + bytes > range.begin + range.bytes)
    current_block()->die("bulk_load: the tensor map has " + std::to_string(bytes) +
                         " bytes, but its allocation ends after " +
                         std::to_string(range.begin + range.bytes - base));
}

// The engine reads, and the writes are the issuing thread's, ordered before whoever waits for the barrier.
static void announce(Block& block, const BulkCopy& copy) {
  int64_t begin, end;
  columns_of(copy, begin, end);
  for (uint32_t row = 0; row < copy.map.box_rows; row++)
    if (const unsigned char* from = row_of(copy, row); from && begin < end)
      tsan::reads(from + begin * 2, size_t(end - begin) * 2);
  unsigned char* shared = block.shared_begin();
  tsan::writes(shared + copy.tile, copy.map.box_bytes());
}

// To shared memory of `block`.
static void issue(Block& block, const void* tile, const TensorMap& map, int column, int row,
                  const uint64_t* address) {
  Mbarrier& barrier = find_mbarrier(block, address, "bulk_load");
  if (!barrier.is_fenced) fail("bulk_load: its mbarrier was initialised without mbarrier_init_fence");
  const BulkCopy copy{.map = map,
                      .column = column,
                      .row = row,
                      .tile = block.shared_offset(tile),
                      .barrier = barrier.offset,
                      .thread = current_fiber()->number(),
                      .issuer = current_block()->rank};
  check(block, copy);
  announce(block, copy);
  tsan::release(phase_of(block, barrier, barrier.phase));
  tsan::Ignore ignore;
  for_each_chunk(copy, [&](uint32_t, uint32_t, uint32_t to) {
    memset(block.shared_begin() + to, 0xFF, chunk_bytes);
    block.note_bulk_copy(to);
  });
  barrier.issued += map.box_bytes();
  block.bulk_copies.push_back(copy);
  if (block.toss()) deliver(block, block.bulk_copies.size() - 1);
}

void issue_bulk_copy(void* tile, const TensorMap& map, int column, int row, uint64_t* barrier) {
  Block& self = *current_block();
  issue(self, tile, map, column, row, barrier);
  self.maybe_preempt();
}

void issue_bulk_copy(void* tile, const TensorMap& map, int column, int row, uint64_t* barrier,
                     uint16_t blocks) {
  Block& self = *current_block();
  if (!blocks) fail("bulk_load_multicast to no block");
  for (unsigned rank = 0; rank < 16; rank++) {
    if (!(blocks >> rank & 1)) continue;
    const unsigned char* their_barrier = peer_shared(barrier, sizeof *barrier, rank);
    // The box may be wrong for the variable, which is said below: its first byte says where it goes.
    issue(self.cluster->block(rank), peer_shared(tile, 1, rank), map, column, row,
          reinterpret_cast<const uint64_t*>(their_barrier));
  }
  self.maybe_preempt();
}

void deliver(Block& block, size_t index) {
  tsan::Ignore ignore;
  const BulkCopy copy = block.bulk_copies[index];
  block.bulk_copies.erase(block.bulk_copies.begin() + long(index));
  for_each_chunk(copy, [&](uint32_t row, uint32_t chunk, uint32_t to) {
    read_chunk(copy, row, chunk, block.shared_begin() + to);
    block.note_arrival(to);
  });
  for (Mbarrier& barrier : block.mbarriers) {
    if (barrier.offset != copy.barrier) continue;
    barrier.brought += copy.map.box_bytes();
    settle(block, barrier);
  }
}

void deliver_by_chance(Block& block) {
  if (!block.random() || block.bulk_copies.empty() || block.next_random() % 8) return;
  deliver(block, block.next_random() % block.bulk_copies.size());
}

bool deliver_awaited(Block& block) {
  for (size_t i = 0; i < block.bulk_copies.size(); i++) {
    for (unsigned t = 0; t < block.num_threads; t++) {
      if (block.fibers[t].waits_for != block.bulk_copies[i].barrier) continue;
      deliver(block, i);
      return true;
    }
  }
  return false;
}

}  // namespace simt
