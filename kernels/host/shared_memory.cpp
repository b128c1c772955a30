// Shared memory of a block: poisoned before use, fenced on both sides, filled late by cp.async, read by
// tensor cores.
#include <stdlib.h>

#include <algorithm>

#include "launch.hpp"
#include "sanitizer.hpp"

namespace simt {

constexpr uint32_t fence_bytes = 256;
constexpr unsigned char fence_pattern = 0xA5,
                        poison = 0xFF;  // 0xFF..: NaN in every float type, -1 as an integer
// The most a block can have, and room for fences; addresses of shared memory have 18 bits in descriptors.
constexpr uint32_t arena_bytes = 256 << 10;
static_assert(max_shared_on_hopper + 48 * fence_bytes < arena_bytes);

static uint32_t round_up(uint32_t value, uint32_t step) {
  return (value + step - 1) / step * step;
}

// Dynamic memory starts on a 1024-byte boundary, as the strictest consumers (TMA) would find it.
void Block::lay_out_shared() {
  if (!arena_) arena_ = static_cast<unsigned char*>(aligned_alloc(1024, arena_bytes));
  asan::unpoison(arena_, arena_bytes);
  dynamic_shared = arena_ + 1024;
}

void Block::fence(uint32_t offset) {
  if (asan::enabled)
    asan::poison(arena_ + offset, fence_bytes);
  else
    memset(arena_ + offset, fence_pattern, fence_bytes);
}

void* Block::shared_variable(const SharedKey* key, size_t bytes, size_t alignment) {
  tsan::Ignore ignore;
  for (const SharedVariable& v : variables_)
    if (v.key == key) return arena_ + v.offset;
  uint32_t size = uint32_t(bytes), offset = round_up(arena_used_, uint32_t(alignment));
  static_bytes_ += size;
  auto refuse = [&](const char* limit) {
    die("shared variable `" + std::string(key->name) + "` makes " + limit);
  };
  if (static_bytes_ > 48 << 10) refuse("static shared memory exceed 48 KB");
  // The attribute speaks of dynamic shared memory alone; static and dynamic together are limited by the GPU.
  if (static_bytes_ + shared_bytes_ > (kernel->asks_for_shared ? most_shared(*kernel) : 48u << 10))
    refuse("static and dynamic shared memory exceed what a block can have");
  if (offset + size + fence_bytes > arena_bytes) refuse("too many shared variables for the host driver");
  variables_.push_back({key, offset, size});
  asan::unpoison(arena_ + offset, size);
  memset(arena_ + offset, poison, size);
  fence(offset + size);
  arena_used_ = offset + size + fence_bytes;
  return arena_ + offset;
}

void Block::start_shared() {
  static_bytes_ = 0;
  proxy_writes_.clear();
  uint32_t dynamic_offset = uint32_t(dynamic_shared - arena_);
  asan::unpoison(dynamic_shared, shared_bytes_);
  memset(dynamic_shared, poison, shared_bytes_);
  fence(dynamic_offset - fence_bytes);
  fence(dynamic_offset + shared_bytes_);
  arena_used_ = dynamic_offset + shared_bytes_ + fence_bytes;
}

// The bytes of a fence that were overwritten, as the distance of the first from the fenced variable.
bool Block::fence_broken(uint32_t offset, bool behind, uint32_t* distance) const {
  if (asan::enabled) return false;  // reported where it happened
  for (uint32_t i = 0; i < fence_bytes; i++) {
    uint32_t at = behind ? i : fence_bytes - 1 - i;
    if (arena_[offset + at] != fence_pattern) return *distance = i, true;
  }
  return false;
}

std::string Block::broken_fences() {
  uint32_t dynamic_offset = uint32_t(dynamic_shared - arena_), distance = 0;
  auto report = [&](const std::string& what, const char* where) {
    return "write out of bounds of " + what + ", " + std::to_string(distance) + " bytes " + where;
  };
  auto dynamic_name = [&] { return "dynamic shared memory (" + std::to_string(shared_bytes_) + " bytes)"; };
  if (fence_broken(dynamic_offset - fence_bytes, false, &distance))
    return report(dynamic_name(), "before its start");
  if (fence_broken(dynamic_offset + shared_bytes_, true, &distance))
    return report(dynamic_name(), "past its end");
  for (const SharedVariable& v : variables_)
    if (fence_broken(v.offset + v.bytes, true, &distance))
      return report(
          std::string("shared variable `") + v.key->name + "` (" + std::to_string(v.bytes) + " bytes)",
          "past its end");
  return {};
}

// ---- tiles that tensor cores read -------------------------------------------------------------------------

uint32_t Block::shared_offset(const void* p) const {
  const auto* byte = static_cast<const unsigned char*>(p);
  if (byte < dynamic_shared || byte >= arena_ + arena_used_) fail("an address is not one of shared memory");
  return uint32_t(byte - arena_);
}

bool Block::is_shared(const void* p) const {
  const auto* byte = static_cast<const unsigned char*>(p);
  return byte >= arena_ && byte < arena_ + arena_bytes;
}

bool Block::holds_shared(uint32_t offset, uint32_t bytes) const {
  auto holds = [&](uint32_t begin, uint32_t size) {
    return offset >= begin && offset + bytes <= begin + size;
  };
  bool found = holds(uint32_t(dynamic_shared - arena_), shared_bytes_);
  for (const SharedVariable& v : variables_) found |= holds(v.offset, v.bytes);
  return found;
}

std::string Block::describe_shared(uint32_t offset) const {
  auto byte = [&](uint32_t begin) { return "byte " + std::to_string(offset - begin) + " of "; };
  for (const SharedVariable& v : variables_)
    if (offset >= v.offset && offset < v.offset + v.bytes)
      return byte(v.offset) + "shared variable `" + v.key->name + "`";
  return byte(uint32_t(dynamic_shared - arena_)) + "dynamic shared memory";
}

void Block::check_tile(uint32_t offset, uint32_t bytes) {
  if (!holds_shared(offset, bytes)) fail("wgmma: a tile is not inside of the block's shared memory");
}

unsigned char* Block::same_place(const Block& other, const void* place, size_t size) const {
  const auto* byte = static_cast<const unsigned char*>(place);
  auto inside = [&](const unsigned char* begin, uint32_t length) {
    return byte >= begin && byte + size <= begin + length;
  };
  if (inside(other.dynamic_shared, shared_bytes_)) return dynamic_shared + (byte - other.dynamic_shared);
  for (const SharedVariable& theirs : other.variables_) {
    if (!inside(other.arena_ + theirs.offset, theirs.bytes)) continue;
    for (const SharedVariable& own : variables_)
      if (own.key == theirs.key) return arena_ + own.offset + (byte - (other.arena_ + theirs.offset));
  }
  return nullptr;
}

void Block::note_write(const void* chunk, bool has_arrived) {
  if (!is_shared(chunk)) return;
  const auto* begin = static_cast<const unsigned char*>(chunk);
  if (proxy_writes_.empty()) proxy_writes_.resize(arena_bytes / 16);
  const Fiber& self = *current_fiber();
  proxy_writes_[size_t(begin - arena_) / 16] = {self.warp * 32 + self.lane, self.proxy_fences, has_arrived};
}

void Block::note_bulk_copy(uint32_t offset) {
  if (proxy_writes_.empty()) proxy_writes_.resize(arena_bytes / 16);
  proxy_writes_[offset / 16] = {.thread = current_fiber()->number(), .is_bulk = true};
}

bool Block::is_being_filled(uint32_t offset) const {
  return !proxy_writes_.empty() && proxy_writes_[offset / 16].is_bulk;
}

void Block::note_arrival(uint32_t offset) {
  proxy_writes_[offset / 16] = {};
}

void Block::check_proxy(uint32_t offset) {
  if (proxy_writes_.empty()) return;
  const ProxyWrite& write = proxy_writes_[offset / 16];
  if (write.thread == ProxyWrite::nobody) return;
  if (write.is_bulk) fail("wgmma: a tile is still being filled by a bulk copy");
  if (!write.has_arrived) fail("wgmma: a tile is still being filled by cp.async");
  if (fibers[write.thread].proxy_fences == write.fences)
    fail("wgmma: a tile was filled by a thread that has not called fence_async_proxy since");
}

void fill_tile(void* tile, uint4 values) {
  if (reinterpret_cast<uintptr_t>(tile) % 16) fail("fill_tile16: the address is no multiple of 16 bytes");
  tsan::writes(tile, 16);
  tsan::Ignore ignore;
  memcpy(tile, &values, 16);
  current_block()->note_write(tile, true);
}

void* shared_variable(const SharedKey* key, size_t bytes, size_t alignment) {
  return current_block()->shared_variable(key, bytes, alignment);
}

// ---- cp.async ---------------------------------------------------------------------------------------------

void async_copy(void* shared, const void* global, int bytes, int valid_bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes ||
      (valid_bytes && reinterpret_cast<uintptr_t>(global) % bytes))
    fail("cp.async: address is not aligned to the size of the copy");
  tsan::writes(shared, size_t(bytes));
  if (valid_bytes) tsan::reads(global, size_t(valid_bytes));
  tsan::Ignore ignore;
  memset(shared, poison, size_t(bytes));
  current_fiber()->copies.push_back({shared, global, bytes, valid_bytes});
  current_block()->note_write(shared, false);
}

void async_copy_commit() {
  tsan::Ignore ignore;
  Fiber* self = current_fiber();
  self->group_ends.push_back(uint32_t(self->copies.size()));
}

void async_copy_wait(int groups_left) {
  Fiber* self = current_fiber();
  if (int(self->group_ends.size()) <= groups_left) return;
  size_t done = self->group_ends.size() - size_t(groups_left);
  uint32_t end = self->group_ends[done - 1];
  for (uint32_t i = 0; i < end; i++) {
    AsyncCopy& copy = self->copies[i];
    tsan::writes(copy.shared, size_t(copy.bytes));
    tsan::Ignore ignore;
    if (copy.valid_bytes) memcpy(copy.shared, copy.global, size_t(copy.valid_bytes));
    if (copy.valid_bytes < copy.bytes)
      memset(static_cast<char*>(copy.shared) + copy.valid_bytes, 0, size_t(copy.bytes - copy.valid_bytes));
    current_block()->note_write(copy.shared, true);
  }
  tsan::Ignore ignore;
  self->copies.erase(self->copies.begin(), self->copies.begin() + end);
  self->group_ends.erase(self->group_ends.begin(), self->group_ends.begin() + long(done));
  for (uint32_t& group_end : self->group_ends) group_end -= end;
}

}  // namespace simt
