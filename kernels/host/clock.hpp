// Time as events see it: the machine's, or modelled time from a cost table (SIMT_CLOCK=table.json).
//
//   {"rules": [{"kernel": "linear_bf16", "where": {"6": 256, "7": 896}, "by": 5,
//               "points": [[1, 31.0], [8, 31.0], [16, 31.4]], "interpolation": "step"},
//              {"kernel": "rmsnorm_bf16", "us": 2.1}],
//    "default_us": 1.3, "copy_us": 2.0}
//
// A launch costs what the first rule of its kernel says whose `where` holds: argument index -> value, integer
// arguments only. `by` names the integer argument that is looked up in `points`. "step": the first point that
// is not less (the tread it stands on), the last one beyond the table. "linear" (the default): between the
// neighbours, continued beyond both ends but never below 0. Without a rule: `default_us`; copies and fills:
// `copy_us` (both 0).
#pragma once
#include <stdint.h>

#include <string>

#include "error.hpp"
#include "kernel_registry.hpp"

namespace simt {

// Every stream and the host have their own virtual time; launches and copies advance it, waiting takes the
// maximum.
uint64_t wall_ns();
bool clock_is_virtual();
uint64_t modelled_kernel_ns(const Kernel& kernel, void** parameters);
uint64_t modelled_copy_ns();

// Null: back to the machine's time.
Result load_clock(const char* path);

}  // namespace simt
