// replay FILE...: runs dumped launches by emulation; exits with 1 when one fails. Built by tools/sanitize.sh
// together with the driver and the kernels; a sanitizer adds its own reports and exit code. Of each kernel
// only the smallest REPLAY_PER_KERNEL launches are run (default 2), of grids with one dimension and of others,
// where blocks may share a result: a fiber costs the race detector half a millisecond.
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "../dump.hpp"
#include "../export.hpp"
#include "../options.hpp"

SIMT_EXPORT const char* simt_last_error();

int main(int count, char** files) {
  simt::options().native = 0;
  simt::options().seed = 1;
  const char* limit = getenv("REPLAY_PER_KERNEL");
  size_t per_kernel = limit ? size_t(atoi(limit)) : 2;

  int failed = 0, run = 0;
  std::map<std::pair<std::string, bool>, std::vector<std::pair<uint64_t, const char*>>> by_kernel;
  for (int i = 1; i < count; i++) {
    std::string kernel;
    simt::Geometry geometry;
    if (simt::read_launch_header(files[i], &kernel, &geometry)) {
      fprintf(stderr, "%s\n", simt_last_error());
      failed++;
    } else {
      const bool is_flat = geometry.grid.y == 1 && geometry.grid.z == 1;
      by_kernel[{kernel, is_flat}].emplace_back(geometry.num_blocks() * geometry.num_threads(), files[i]);
    }
  }
  for (auto& [kernel, launches] : by_kernel) {
    std::sort(launches.begin(), launches.end());
    if (launches.size() > per_kernel) launches.resize(per_kernel);
    for (auto& [threads, path] : launches) {
      // Before the launch: a sanitizer may end the process.
      fprintf(stderr, "replay: %s (%llu threads)\n", path, static_cast<unsigned long long>(threads));
      run++;
      if (!simt::replay_launch(path)) continue;
      fprintf(stderr, "%s\n", simt_last_error());
      failed++;
    }
  }
  fprintf(stderr, "replay: %d of %d launches run, %d failed\n", run, count - 1, failed);
  return failed || !run ? 1 : 0;
}
