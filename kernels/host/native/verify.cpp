// Native twin of kernels/verify.cu: the walk as a plain loop.
#include "native.hpp"

namespace {

void walk(const simt::NativeLaunch& launch, const int* seq_start, const int* tokens, const int* parents,
          const int* drawn, int* accepted, int* accepted_len, int* bonus, int max_accepted) {
  for (uint32_t sequence = 0; sequence < launch.grid.x; ++sequence) {
    const int root = seq_start[sequence];
    const int num_nodes = seq_start[sequence + 1] - root;
    int node = 0, path_len = 0;
    for (int child = 1; child < num_nodes; ++child) {
      // Children lie behind their parents: one pass meets the path in order.
      if (parents[root + child] != node || tokens[root + child] != drawn[root + node]) continue;
      if (path_len < max_accepted) accepted[sequence * max_accepted + path_len] = child;
      ++path_len;
      node = child;
    }
    accepted_len[sequence] = path_len;
    bonus[sequence] = num_nodes > 0 ? drawn[root + node] : -1;
  }
}

}  // namespace

NATIVE_TWIN(verify_walk, walk)
