// wgmma: descriptors, products that are done late or early, and what must have happened before them.
#include "warpgroup.hpp"

#include <string.h>

#include <algorithm>

#include "block.hpp"
#include "sanitizer.hpp"

namespace simt {

namespace {

// A tile as a descriptor names it: rows of 128 or 64 bytes, swizzled so, in groups of eight.
struct Tile {
  uint32_t start, row_bytes, group_bytes, block_bytes;
  bool is_across;  // the product's K goes across the rows, and N along them

  Tile(uint64_t descriptor, bool across)
      : start(uint32_t(descriptor & 0x3fff) << 4),
        block_bytes(uint32_t(descriptor >> 16 & 0x3fff) << 4),
        is_across(across) {
    const uint64_t swizzle = descriptor >> 62;
    if (swizzle != 1 && swizzle != 2) fail("wgmma: the descriptor's swizzle is not that of 128 or 64 bytes");
    row_bytes = swizzle == 1 ? 128 : 64;
    group_bytes = 8 * row_bytes;
    if ((descriptor >> 32 & 0x3fff) << 4 != group_bytes)
      fail("wgmma: the descriptor's groups of 8 rows are not as far apart as 8 rows are long");
    if (descriptor >> 49 & 7) fail("wgmma: the descriptor has a base offset");
    const uint32_t within = start % group_bytes;
    if (is_across ? within != 0 : within >= row_bytes || within % 32)
      fail("wgmma: a tile does not start on eight rows (1024 bytes, or 512) and a step of 16 along K");
  }

  // Rows of a block that the product reads, and blocks.
  uint32_t num_rows(int width) const { return is_across ? 16 : uint32_t(width); }
  uint32_t num_blocks(int width) const {
    return is_across ? (uint32_t(width) * 2 + row_bytes - 1) / row_bytes : 1;
  }

  void check(Block& block, int width) const {
    if (num_blocks(width) > 1 && (block_bytes == 0 || block_bytes % group_bytes))
      fail("wgmma: the descriptor's blocks along N are not whole groups of 8 rows apart");
    for (uint32_t i = 0; i < num_blocks(width); i++)
      block.check_tile(start / group_bytes * group_bytes + i * block_bytes, num_rows(width) * row_bytes);
  }

  // Where the 16 bytes lie that are `offset` bytes behind the start in a tile that is not swizzled.
  uint32_t swizzled(uint32_t offset) const {
    offset += start;
    return offset ^ (offset >> 7 & (row_bytes == 128 ? 7 : 3)) << 4;
  }
  // Half (8 elements) of the 16 elements of a row that are a row of A or a column of B.
  uint32_t along(int row, int half) const {
    return swizzled(uint32_t(row) * row_bytes + uint32_t(half) * 16);
  }
  // Eight neighbours along N of row `k`.
  uint32_t across(int k, int eight) const {
    const uint32_t byte = uint32_t(eight) * 16;
    return swizzled(byte / row_bytes * block_bytes + uint32_t(k) * row_bytes + byte % row_bytes);
  }
};

// This lane's rows of A: the first, and the one 8 below.
int first_row(const Fiber& fiber) {
  return int(fiber.warp % 4 * 16 + fiber.lane / 4);
}

// use(address of 16 bytes) for this lane's share of what its warp reads.
template <class Use>
void for_each_chunk(const Fiber& fiber, const Product& product, Use use) {
  const int width = int(product.call.width), lane = int(fiber.lane);
  if (!product.registers) {
    Tile a(product.call.a, false);
    for (int half = 0; half < 2; half++)
      for (int i = 0; i < 2; i++) use(a.along(first_row(fiber) + i * 8, half));
  }
  Tile b(product.call.b, product.call.is_across);
  if (b.is_across) {
    for (int eight = lane / 16; eight < width / 8; eight += 2) use(b.across(lane % 16, eight));
  } else {
    for (int half = 0; half < 2; half++)
      for (int column = lane % 4 * 2; column < width; column += 8)
        for (int i = 0; i < 2; i++) use(b.along(column + i, half));
  }
}

template <class T>
float widened(uint16_t bits) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float({bits});
  else
    return __half2float({bits});
}

template <class T>
void read_row(const unsigned char* shared, const Tile& tile, int row, float (&elements)[16]) {
  for (int half = 0; half < 2; half++) {
    uint16_t values[8];
    memcpy(values, shared + tile.along(row, half), 16);
    for (int i = 0; i < 8; i++) elements[half * 8 + i] = widened<T>(values[i]);
  }
}

// Columns `column` and the next of B.
template <class T>
void read_columns(const unsigned char* shared, const Tile& tile, int column, float (&elements)[2][16]) {
  if (!tile.is_across) {
    for (int i = 0; i < 2; i++) read_row<T>(shared, tile, column + i, elements[i]);
    return;
  }
  for (int k = 0; k < 16; k++) {
    uint16_t pair[2];
    memcpy(pair, shared + tile.across(k, column / 8) + column % 8 * 2, 4);
    for (int i = 0; i < 2; i++) elements[i][k] = widened<T>(pair[i]);
  }
}

// k ascending, as in mma.
template <class T>
void multiply(const Fiber& fiber, const unsigned char* shared, const Product& product, float* sums) {
  const WgmmaCall& call = product.call;
  Tile tile_b(call.b, call.is_across);
  float a[2][16], b[2][16];
  for (int i = 0; i < 2; i++) {
    if (product.registers)
      for (int k = 0; k < 16; k++) a[i][k] = widened<T>(product.a_rows[i][k]);
    else
      read_row<T>(shared, Tile(call.a, false), first_row(fiber) + i * 8, a[i]);
  }
  for (int group = 0; group < int(call.width) / 8; group++) {
    read_columns<T>(shared, tile_b, group * 8 + int(fiber.lane % 4) * 2, b);
    for (int half = 0; half < 2; half++)
      for (int i = 0; i < 2; i++)
        for (int k = 0; k < 16; k++) sums[group * 4 + half * 2 + i] += a[half][k] * b[i][k];
  }
}

AccumulatorsInFlight& in_flight(Fiber& fiber, float* home) {
  for (AccumulatorsInFlight& sums : fiber.in_flight)
    if (sums.home == home) return sums;
  fail("wgmma: accumulators that are not in flight");
}

void check_registers(const Product& product) {
  if (product.registers && memcmp(product.registers, product.given, sizeof product.given))
    fail("wgmma: registers of A were written before the wait for it");
}

// Does the products before `end` that are not done yet, in order.
void complete(Fiber& fiber, uint32_t end) {
  const unsigned char* shared = current_block()->shared_begin();
  for (uint32_t i = 0; i < end; i++) {
    Product& product = fiber.products[i];
    if (product.is_done) continue;
    product.is_done = true;
    for_each_chunk(fiber, product, [&](uint32_t chunk) { tsan::reads(shared + chunk, 16); });
    tsan::Ignore ignore;
    float* sums = in_flight(fiber, product.home).values;
    (product.is_bf16 ? multiply<__nv_bfloat16> : multiply<__half>)(fiber, shared, product, sums);
  }
}

// What a lane brings: the product that all lanes mean, and its registers of A.
struct WgmmaOperand {
  WgmmaCall call;
  uint32_t registers[4];
};
static_assert(sizeof(WgmmaOperand) <= slot_bytes);

// The lanes of a warp mean the same product.
void check_lanes(Slot* slots) {
  for (int lane = 1; lane < 32; lane++)
    if (memcmp(slots[lane], slots[0], sizeof(WgmmaCall)))
      fail("wgmma: lanes of one warp give different descriptors");
}

// The rows of A that the four lanes of a group of lanes hold together: two pairs each of both.
void gather_rows(const Slot* slots, unsigned lane, uint16_t (&rows)[2][16]) {
  for (unsigned other = 0; other < 4; other++) {
    WgmmaOperand operand;
    memcpy(&operand, slots[lane / 4 * 4 + other], sizeof operand);
    for (unsigned i = 0; i < 4; i++) memcpy(&rows[i % 2][i / 2 * 8 + other * 2], &operand.registers[i], 4);
  }
}

void meet(WarpOp op) {
  rendezvous(~0u, op, nullptr, 0, nullptr);
}

}  // namespace

uint32_t shared_address(const void* p) {
  return current_block()->shared_offset(p);
}

void fence_async_proxy() {
  current_fiber()->proxy_fences++;
}

void wgmma_fence() {
  meet(WarpOp::wgmma_fence);
  current_fiber()->has_fenced_registers = true;
}

void wgmma_issue(float* sums, int width, bool is_bf16, const WgmmaFactors& factors) {
  Fiber* self = current_fiber();
  Block* block = current_block();
  if ((self->warp / 4 + 1) * 128 > block->num_threads)
    fail("wgmma by a warp whose warpgroup has not four of them");
  if (!self->has_fenced_registers) fail("wgmma without a wgmma_fence before it");
  WgmmaOperand operand{{factors.a, factors.b, uint32_t(width), factors.is_across}, {}};
  if (factors.registers) memcpy(operand.registers, factors.registers, sizeof operand.registers);
  Slot* slots = rendezvous(~0u, WarpOp::wgmma, &operand, sizeof operand, check_lanes);
  block->note_wgmma(operand.call);

  Product product{sums, is_bf16, operand.call, factors.registers, {}, {}, false};
  memcpy(product.given, operand.registers, sizeof product.given);
  if (factors.registers)
    gather_rows(slots, self->lane, product.a_rows);
  else
    Tile(factors.a, false).check(*block, 64);
  Tile(factors.b, factors.is_across).check(*block, width);
  const unsigned char* shared = block->shared_begin();
  for_each_chunk(*self, product, [&](uint32_t chunk) {
    tsan::reads(shared + chunk, 16);
    block->check_proxy(chunk);
  });
  tsan::Ignore ignore;
  auto same = [&](const AccumulatorsInFlight& other) { return other.home == sums; };
  auto found = std::find_if(self->in_flight.begin(), self->in_flight.end(), same);
  if (found == self->in_flight.end()) {
    self->in_flight.push_back({sums, 0, {}});
    found = self->in_flight.end() - 1;
    memcpy(found->values, sums, size_t(width) / 2 * sizeof(float));
    memset(sums, 0xFF, size_t(width) / 2 * sizeof(float));
  }
  found->num_products++;
  self->products.push_back(product);
  if (block->toss()) complete(*self, uint32_t(self->products.size()));
}

void wgmma_commit() {
  meet(WarpOp::wgmma_commit);
  tsan::Ignore ignore;
  Fiber* self = current_fiber();
  self->product_ends.push_back(uint32_t(self->products.size()));
}

void wgmma_wait(int groups_left) {
  meet(WarpOp::wgmma_wait);
  Fiber* self = current_fiber();
  if (int(self->product_ends.size()) <= groups_left) return;
  size_t done = self->product_ends.size() - size_t(groups_left);
  uint32_t end = self->product_ends[done - 1];
  complete(*self, end);
  for (uint32_t i = 0; i < end; i++) check_registers(self->products[i]);
  tsan::Ignore ignore;
  self->has_fenced_registers = false;  // what the wait gives back may be written
  for (uint32_t i = 0; i < end; i++) {
    AccumulatorsInFlight& sums = in_flight(*self, self->products[i].home);
    if (--sums.num_products) continue;
    memcpy(sums.home, sums.values, size_t(self->products[i].call.width) / 2 * sizeof(float));
    sums = self->in_flight.back();
    self->in_flight.pop_back();
  }
  self->products.erase(self->products.begin(), self->products.begin() + end);
  self->product_ends.erase(self->product_ends.begin(), self->product_ends.begin() + long(done));
  for (uint32_t& product_end : self->product_ends) product_end -= end;
}

// ---- what a block knows -------------------------------------------------------------------------------------

// The warps of a warpgroup issue the same products in the same order.
void Block::note_wgmma(const WgmmaCall& call) {
  tsan::Ignore ignore;
  const Fiber& self = *current_fiber();
  if (self.lane) return;
  if (warpgroup_calls_.size() < num_warps / 4) warpgroup_calls_.resize(num_warps / 4);
  std::vector<WgmmaCall>& calls = warpgroup_calls_[self.warp / 4];
  uint32_t& count = warps[self.warp].num_wgmma;
  if (count == calls.size()) calls.push_back(call);
  if (memcmp(&calls[count++], &call, sizeof call))
    fail("wgmma: warps of one warpgroup give different descriptors");
}

std::string Block::incomplete_wgmma() const {
  for (unsigned w = 0; w < num_warps; w++)
    if (w / 4 < warpgroup_calls_.size() && warps[w].num_wgmma != warpgroup_calls_[w / 4].size())
      return "wgmma: warp " + std::to_string(w) + " has not issued all products of its warpgroup";
  return {};
}

bool Block::toss() {
  return random() && next_random() % 2;
}

}  // namespace simt
