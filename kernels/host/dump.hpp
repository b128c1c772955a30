// Launches written to files, to be run again in a sanitizer build (tools/sanitize.sh).
//
// SIMT_DUMP=folder makes the driver write each launch before it runs: one per kernel and geometry, at most
// eight per kernel and process, and none over SIMT_DUMP_MAX bytes (16 MiB). File
// KERNEL-PROCESS-NUMBER.launch, little-endian:
//
//   "SIMTLNC2"
//   u32 length, kernel name
//   u32 grid x y z, block x y z, dynamic shared bytes, dynamic shared limit
//   u32 number of parameters; for each: u32 size, bytes
//   u32 number of allocations; for each: u64 address, u64 size, contents
//
// Allocations are those that the pointer parameters point into. Device pointers inside device memory are not
// followed.
#pragma once
#include "launch.hpp"

namespace simt {

void dump_launch(const Kernel& kernel, const Geometry& geometry, void** parameters);

Result read_launch_header(const char* path, std::string* kernel, Geometry* geometry);

// Runs a dumped launch on fresh allocations.
Result replay_launch(const char* path);

}  // namespace simt
