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

  // Counts a call that `is_meant` says the plan is for; whether it is to fail.
  template <class IsMeant>
  bool meets(IsMeant&& is_meant) {
    if (!is_active) return false;
    std::lock_guard lock(mutex);
    if (!is_meant(prefix)) return false;
    if (calls_left > 1) {
      calls_left--;
      return false;
    }
    if (--failures_left == 0) is_active = false;
    return true;
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
  return plan().meets([&](const std::string& planned) {
    const bool is_allocation = name == "alloc";
    return planned == "alloc" ? is_allocation : !is_allocation && name.rfind(planned, 0) == 0;
  });
}

bool is_planned_to_be_lost() {
  return plan().meets([](const std::string& planned) { return planned == "lost"; });
}

}  // namespace simt

// From the `nth` call on (1: the next), `count` launches of kernels whose names begin with `what` are refused; "*" is any kernel, "alloc"
// allocations. "lost": at the `nth` launch of any kernel the device is lost, until simt_reset(). 0 ends it.
SIMT_EXPORT void simt_fail(const char* what, uint64_t nth, uint64_t count) {
  simt::plan().set(what, nth, count);
}
