#include "planned_failure.hpp"

#include <stdint.h>
#include <stdlib.h>

#include <atomic>
#include <mutex>

#include "export.hpp"

namespace simt {

namespace {

struct Plan {
  std::mutex mutex;
  std::atomic<bool> is_active;
  std::string prefix;  // of kernel names; empty: any kernel
  uint64_t calls_left;
  uint64_t failures_left;

  void set(const std::string& what, uint64_t nth, uint64_t count) {
    std::lock_guard lock(mutex);
    prefix = what == "*" ? "" : what;
    calls_left = nth;
    failures_left = count;
    is_active = nth > 0 && count > 0;
  }
};

// SIMT_FAIL=NAME:n or NAME:n:count
Plan& plan() {
  static Plan& instance = *[] {
    auto* made = new Plan{};
    const char* text = getenv("SIMT_FAIL");
    const std::string spec = text ? text : "";
    const size_t colon = spec.find(':');
    if (colon != std::string::npos) {
      char* rest = nullptr;
      const uint64_t nth = strtoull(spec.c_str() + colon + 1, &rest, 10);
      made->set(spec.substr(0, colon), nth, *rest == ':' ? strtoull(rest + 1, nullptr, 10) : 1);
    }
    return made;
  }();
  return instance;
}

}  // namespace

bool is_planned_to_fail(const std::string& name) {
  Plan& own = plan();
  if (!own.is_active) return false;
  std::lock_guard lock(own.mutex);
  const bool is_allocation = name == "alloc";
  if (own.prefix == "alloc" ? !is_allocation : is_allocation || name.rfind(own.prefix, 0) != 0) return false;
  if (own.calls_left > 1) {
    own.calls_left--;
    return false;
  }
  if (--own.failures_left == 0) own.is_active = false;
  return true;
}

}  // namespace simt

// From the `nth` call on (1: the next), `count` launches of kernels whose names begin with `what` are refused; "*" is any kernel, "alloc"
// allocations. 0 ends it.
SIMT_EXPORT void simt_fail(const char* what, uint64_t nth, uint64_t count) {
  simt::plan().set(what, nth, count);
}
