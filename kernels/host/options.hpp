// The switches of the host driver: from the environment at load, from simt_set_option() later.
#pragma once
#include <stdint.h>

#include <atomic>

namespace simt {

struct Options {
  std::atomic<uint64_t> seed;  // SIMT_SEED     0: in order; else random schedules
  std::atomic<uint64_t>
      lazy;  // SIMT_LAZY     0: run at once; 1: as late as possible; else interleaved by seed
  std::atomic<uint64_t> threads;   // SIMT_THREADS  0: all cores
  std::atomic<uint64_t> native;    // SIMT_NATIVE   1: kernels with a native twin run as that
  std::atomic<uint64_t> dump_max;  // SIMT_DUMP_MAX bytes of one dumped launch
  uint64_t sm;                     // SIMT_SM       90; less: a GPU before Hopper, without what came with it
  const char* clock_file;          // SIMT_CLOCK
  const char* dump_folder;         // SIMT_DUMP
  const char* ptx_folder;          // SIMT_PTX
  const char* counts_file;         // SIMT_PTX_COUNTS
};

Options& options();

inline bool is_hopper() {
  return options().sm >= 90;
}

}  // namespace simt
