// Failures on purpose, for tests of what follows one: the n-th launch of a kernel, or the n-th allocation, is refused, or the device is lost at
// the n-th launch.
#pragma once
#include <string>

namespace simt {

// Whether this launch of kernel `name` (or, named "alloc", this allocation) is to fail. Counts the call.
bool is_planned_to_fail(const std::string& name);

// Whether the device is to be lost at this launch. Counts it.
bool is_planned_to_be_lost();

}  // namespace simt
