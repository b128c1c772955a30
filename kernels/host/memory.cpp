#include "memory.hpp"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <array>
#include <deque>
#include <map>
#include <vector>

#include "sanitizer.hpp"
#include "planned_failure.hpp"

namespace simt {

namespace {

constexpr uint64_t zone_bytes = 256;  // also the alignment of device memory
constexpr unsigned char zone_pattern = 0xA5;
constexpr uint64_t largest_poisoned = 256
                                      << 20;  // beyond that, touching the pages would cost more than it finds
constexpr uint64_t quarantine_bytes = 64 << 20;
constexpr size_t quarantine_entries = 4096;

// Three quarters of the machine's memory: what the device claims to have.
uint64_t total_bytes() {
  static const uint64_t bytes = uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE)) / 4 * 3;
  return bytes;
}

struct Allocation {
  uint64_t bytes;
  bool live = true, touched = false;
  const char* last_kernel = nullptr;
};

// By address. Freed ones stay for a while, unreused, so that a stale pointer is recognised as such.
std::map<DevicePointer, Allocation> allocations;
std::map<const void*, uint64_t> pinned;
std::deque<DevicePointer> quarantine;
std::vector<DevicePointer> touched;
uint64_t bytes_used = 0, bytes_quarantined = 0;

unsigned char* bytes_at(DevicePointer p) {
  return reinterpret_cast<unsigned char*>(p);
}

uint64_t padded(uint64_t bytes) {
  return (bytes + zone_bytes - 1) / zone_bytes * zone_bytes;
}

// The allocation whose range, its end included, holds the pointer: an empty view may start at the end.
std::map<DevicePointer, Allocation>::iterator find(DevicePointer p) {
  auto next = allocations.upper_bound(p);
  if (next == allocations.begin()) return allocations.end();
  auto candidate = std::prev(next);
  return p <= candidate->first + candidate->second.bytes ? candidate : allocations.end();
}

std::string hex(uint64_t value) {
  char text[24];
  snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

std::string describe(DevicePointer p) {
  auto found = find(p);
  if (found == allocations.end()) return "points to no device allocation (foreign pointer)";
  return "points into freed device memory (" + std::to_string(found->second.bytes) + " bytes at " +
         hex(found->first) + ")";
}

// As `find`, of pinned host memory.
std::map<const void*, uint64_t>::iterator find_pinned(DevicePointer p) {
  auto next = pinned.upper_bound(bytes_at(p));
  if (next == pinned.begin()) return pinned.end();
  auto candidate = std::prev(next);
  const bool inside = bytes_at(p) <= static_cast<const unsigned char*>(candidate->first) + candidate->second;
  return inside ? candidate : pinned.end();
}

bool is_host_memory(DevicePointer p) {
  return find_pinned(p) != pinned.end();
}

void set_zones(DevicePointer p, uint64_t bytes) {
  uint64_t behind = zone_bytes + padded(bytes) - bytes;
  if (asan::enabled) {
    asan::poison(bytes_at(p - zone_bytes), zone_bytes);
    asan::poison(bytes_at(p + bytes), behind);
  } else {
    memset(bytes_at(p - zone_bytes), zone_pattern, zone_bytes);
    memset(bytes_at(p + bytes), zone_pattern, behind);
  }
}

// Called for every allocation a step has touched, hence the comparison in one go.
bool intact(const unsigned char* zone, uint64_t bytes) {
  static const auto pattern = [] {
    std::array<unsigned char, 2 * zone_bytes> block;
    block.fill(zone_pattern);
    return block;
  }();
  return !memcmp(zone, pattern.data(), bytes);
}

Result check_zones(DevicePointer p, const Allocation& a) {
  uint64_t behind = padded(a.bytes) - a.bytes + zone_bytes;
  if (asan::enabled ||
      (intact(bytes_at(p - zone_bytes), zone_bytes) && intact(bytes_at(p + a.bytes), behind)))
    return CUDA_SUCCESS;
  uint64_t distance = 0;
  const char* where = "past its end";
  while (distance < behind && bytes_at(p + a.bytes)[distance] == zone_pattern) distance++;
  if (distance == behind) {
    where = "before its start";
    for (distance = 1; bytes_at(p - distance)[0] == zone_pattern;) distance++;
  }
  std::string text = "write out of bounds of a device allocation of " + std::to_string(a.bytes) + " bytes, " +
                     std::to_string(distance) + " bytes " + where;
  if (a.last_kernel) text += std::string("; the last kernel that was given it is ") + a.last_kernel;
  set_zones(p, a.bytes);
  return sticky_error(CUDA_ERROR_ILLEGAL_ADDRESS, text);
}

void release(DevicePointer p) {
  auto found = allocations.find(p);
  asan::unpoison(bytes_at(p - zone_bytes), padded(found->second.bytes) + 2 * zone_bytes);
  free(bytes_at(p - zone_bytes));
  allocations.erase(found);
}

}  // namespace

Result allocate_device(DevicePointer* pointer, size_t bytes) {
  if (!bytes) return error(CUDA_ERROR_INVALID_VALUE, "allocation of 0 bytes");
  if (is_planned_to_fail("alloc"))
    return error(CUDA_ERROR_OUT_OF_MEMORY, "a failure on purpose (SIMT_FAIL) of an allocation");
  if (bytes_used + bytes > total_bytes())
    return error(CUDA_ERROR_OUT_OF_MEMORY, "out of device memory: " + std::to_string(bytes) +
                                               " bytes asked, " + std::to_string(total_bytes() - bytes_used) +
                                               " free");
  void* base = aligned_alloc(zone_bytes, padded(bytes) + 2 * zone_bytes);
  if (!base)
    return error(CUDA_ERROR_OUT_OF_MEMORY, "out of host memory: " + std::to_string(bytes) + " bytes asked");
  *pointer = reinterpret_cast<DevicePointer>(base) + zone_bytes;
  if (bytes <= largest_poisoned) memset(bytes_at(*pointer), 0xFF, bytes);
  set_zones(*pointer, bytes);
  allocations[*pointer] = {.bytes = bytes};
  bytes_used += bytes;
  return CUDA_SUCCESS;
}

Result free_device(DevicePointer pointer, const char* call) {
  if (!pointer) return CUDA_SUCCESS;
  auto found = allocations.find(pointer);
  if (found == allocations.end())
    return error(CUDA_ERROR_INVALID_VALUE,
                 std::string(call) + ": " + hex(pointer) + " is not the start of an allocation");
  Allocation& a = found->second;
  if (!a.live)
    return error(CUDA_ERROR_INVALID_VALUE, std::string(call) + ": " + hex(pointer) + " was freed before");
  Result zones = check_zones(pointer, a);
  a.live = false;
  bytes_used -= a.bytes;
  bytes_quarantined += a.bytes;
  quarantine.push_back(pointer);
  if (a.bytes <= quarantine_bytes) {
    memset(bytes_at(pointer), 0xFF, a.bytes);
    asan::poison(bytes_at(pointer), a.bytes);
  }
  while (bytes_quarantined > quarantine_bytes || quarantine.size() > quarantine_entries) {
    bytes_quarantined -= allocations[quarantine.front()].bytes;
    release(quarantine.front());
    quarantine.pop_front();
  }
  return zones;
}

Result allocate_host(void** pointer, size_t bytes) {
  if (is_planned_to_fail("alloc"))
    return error(CUDA_ERROR_OUT_OF_MEMORY, "a failure on purpose (SIMT_FAIL) of an allocation");
  *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (!*pointer) return error(CUDA_ERROR_OUT_OF_MEMORY, "out of host memory");
  pinned[*pointer] = bytes;
  return CUDA_SUCCESS;
}

Result free_host(void* pointer) {
  if (pointer && !pinned.erase(pointer))
    return error(CUDA_ERROR_INVALID_VALUE, "cuMemFreeHost: not pinned memory");
  free(pointer);
  return CUDA_SUCCESS;
}

bool is_pinned(const void* pointer) {
  return is_host_memory(reinterpret_cast<DevicePointer>(pointer));
}

bool find_memory(DevicePointer pointer, AllocationRange* range) {
  if (find_allocation(pointer, range)) return true;
  auto found = find_pinned(pointer);
  if (found == pinned.end()) return false;
  *range = {reinterpret_cast<DevicePointer>(found->first), found->second};
  return true;
}

bool find_allocation(DevicePointer pointer, AllocationRange* range) {
  auto found = find(pointer);
  if (found == allocations.end() || !found->second.live) return false;
  *range = {found->first, found->second.bytes};
  return true;
}

Result check_range(DevicePointer pointer, uint64_t bytes, const char* call) {
  if (!bytes || is_host_memory(pointer)) return CUDA_SUCCESS;
  auto found = find(pointer);
  if (found == allocations.end() || !found->second.live)
    return error(CUDA_ERROR_INVALID_VALUE,
                 std::string(call) + ": address " + hex(pointer) + " " + describe(pointer));
  uint64_t room = found->first + found->second.bytes - pointer;
  if (bytes > room)
    return error(CUDA_ERROR_INVALID_VALUE, std::string(call) + " of " + std::to_string(bytes) +
                                               " bytes, but the allocation ends after " +
                                               std::to_string(room));
  return CUDA_SUCCESS;
}

Result check_arguments(const Kernel& kernel, void** parameters) {
  for (PointerField field : kernel.pointers) {
    DevicePointer p;
    memcpy(&p, static_cast<const char*>(parameters[field.parameter]) + field.offset, sizeof p);
    if (!p) continue;
    auto found = find(p);
    if (found != allocations.end() && found->second.live) {
      Allocation& a = found->second;
      a.last_kernel = kernel.name;
      if (!a.touched) a.touched = true, touched.push_back(found->first);
    } else if (!is_host_memory(p)) {
      std::string which = "argument " + std::to_string(field.parameter);
      if (kernel.parameters[field.parameter].size != sizeof p)
        which += " (field at byte " + std::to_string(field.offset) + ")";
      return sticky_error(CUDA_ERROR_ILLEGAL_ADDRESS,
                          which + " " + describe(p) + " (kernel " + kernel.name + ")");
    }
  }
  return CUDA_SUCCESS;
}

Result check_red_zones() {
  Result result = CUDA_SUCCESS;
  for (DevicePointer p : touched) {
    auto found = allocations.find(p);
    if (found == allocations.end()) continue;
    found->second.touched = false;
    if (!found->second.live || result) continue;
    result = check_zones(p, found->second);
  }
  touched.clear();
  return result;
}

MemoryUse memory_use() {
  return {bytes_used, total_bytes()};
}

}  // namespace simt
