// replay FILE...: runs dumped launches by emulation, in order of schedule and in two random ones; exits with
// 1 when a launch fails. Built by tools/sanitize.sh together with the driver and the kernels; a sanitizer
// adds its own reports.
#include <stdio.h>

#include "../dump.hpp"
#include "../export.hpp"
#include "../options.hpp"

SIMT_EXPORT const char* simt_last_error();

int main(int count, char** files) {
  simt::options().native = 0;
  int failed = 0;
  for (int i = 1; i < count; i++) {
    fprintf(stderr, "replay: %s\n", files[i]);  // before the launch: a sanitizer may end the process
    for (uint64_t seed : {0, 1, 2}) {
      simt::options().seed = seed;
      if (!simt::replay_launch(files[i])) continue;
      fprintf(stderr, "%s\n", simt_last_error());
      failed++;
      break;
    }
  }
  fprintf(stderr, "replay: %d launches, %d failed\n", count - 1, failed);
  return failed ? 1 : 0;
}
