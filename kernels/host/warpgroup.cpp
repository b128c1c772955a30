// wgmma: descriptors, products that are done late or early, and what must have happened before them.
#include "warpgroup.hpp"

#include <string.h>

#include <algorithm>

#include "block.hpp"
#include "sanitizer.hpp"

namespace simt {

namespace {

constexpr uint32_t group_bytes = 1024;  // 8 rows of 128 bytes: what the swizzle permutes

// A tile as a descriptor names it. One layout is decoded: K along rows of 128 bytes, swizzled so.
struct Tile {
  uint32_t start;

  explicit Tile(uint64_t descriptor) : start(uint32_t(descriptor & 0x3fff) << 4) {
    if (descriptor >> 62 != 1) fail("wgmma: the descriptor's swizzle is not that of 128 bytes");
    if ((descriptor >> 32 & 0x3fff) << 4 != group_bytes)
      fail("wgmma: the descriptor's groups of 8 rows are not 1024 bytes apart");
    if (descriptor >> 49 & 7) fail("wgmma: the descriptor has a base offset");
    if (start % group_bytes >= 128 || start % 32)
      fail("wgmma: a tile does not start on 1024 bytes and a step of 16 along K");
  }

  // Half (8 elements) of the 16 elements of a row.
  uint32_t chunk(int row, int half) const {
    uint32_t offset = start + uint32_t(row) / 8 * group_bytes + uint32_t(row) % 8 * 128 + uint32_t(half) * 16;
    return offset ^ (offset >> 7 & 7) << 4;
  }
};

// This lane's rows of A: the first, and the one 8 below.
int first_row(const Fiber& fiber) {
  return int(fiber.warp % 4 * 16 + fiber.lane / 4);
}

// use(address of 16 bytes) for all that this lane's part of a product reads.
template <class Use>
void for_each_chunk(const Fiber& fiber, const Product& product, Use use) {
  Tile a(product.a), b(product.b);
  for (int half = 0; half < 2; half++) {
    for (int i = 0; i < 2; i++) use(a.chunk(first_row(fiber) + i * 8, half));
    for (int column = int(fiber.lane % 4) * 2; column < product.width; column += 8)
      for (int i = 0; i < 2; i++) use(b.chunk(column + i, half));
  }
}

template <class T>
void read_row(const unsigned char* shared, const Tile& tile, int row, float (&elements)[16]) {
  for (int half = 0; half < 2; half++) {
    T values[8];
    memcpy(values, shared + tile.chunk(row, half), 16);
    for (int i = 0; i < 8; i++) {
      if constexpr (std::is_same_v<T, __nv_bfloat16>)
        elements[half * 8 + i] = __bfloat162float(values[i]);
      else
        elements[half * 8 + i] = __half2float(values[i]);
    }
  }
}

// k ascending, as in mma.
template <class T>
void multiply(const Fiber& fiber, const unsigned char* shared, const Product& product, float* sums) {
  Tile tile_a(product.a), tile_b(product.b);
  float a[2][16], b[16];
  for (int i = 0; i < 2; i++) read_row<T>(shared, tile_a, first_row(fiber) + i * 8, a[i]);
  for (int group = 0; group < product.width / 8; group++)
    for (int i = 0; i < 2; i++) {
      read_row<T>(shared, tile_b, group * 8 + int(fiber.lane % 4) * 2 + i, b);
      for (int half = 0; half < 2; half++)
        for (int k = 0; k < 16; k++) sums[group * 4 + half * 2 + i] += a[half][k] * b[k];
    }
}

AccumulatorsInFlight& in_flight(Fiber& fiber, float* home) {
  for (AccumulatorsInFlight& sums : fiber.in_flight)
    if (sums.home == home) return sums;
  fail("wgmma: accumulators that are not in flight");
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

// The lanes of a warp mean the same product.
void check_lanes(Slot* slots) {
  for (int lane = 1; lane < 32; lane++)
    if (memcmp(slots[lane], slots[0], sizeof(WgmmaCall)))
      fail("wgmma: lanes of one warp give different descriptors");
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
  current_fiber()->has_fenced_sums = true;
}

void wgmma_issue(float* sums, int width, bool is_bf16, uint64_t a, uint64_t b) {
  Fiber* self = current_fiber();
  Block* block = current_block();
  if (block->num_threads % 128) fail("wgmma in a block that is not made of warpgroups of 128 threads");
  if (!self->has_fenced_sums) fail("wgmma without a wgmma_fence before it");
  WgmmaCall call{a, b, uint64_t(width)};
  rendezvous(~0u, WarpOp::wgmma, &call, sizeof call, check_lanes);
  block->note_wgmma(call);

  const Product product{sums, width, is_bf16, a, b, false};
  block->check_tile(Tile(a).start / group_bytes * group_bytes, 64 / 8 * group_bytes);
  block->check_tile(Tile(b).start / group_bytes * group_bytes, uint32_t(width) / 8 * group_bytes);
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
  tsan::Ignore ignore;
  for (uint32_t i = 0; i < end; i++) {
    AccumulatorsInFlight& sums = in_flight(*self, self->products[i].home);
    if (--sums.num_products) continue;
    memcpy(sums.home, sums.values, size_t(self->products[i].width) / 2 * sizeof(float));
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
