// WHAT      Verification walk: which path of every draft tree the target's own draws accept, and the bonus
//           token.
// MATH      node = root; loop: token = drawn[node]; if a child of node holds token, accept it and descend
//           (the smallest index among duplicates); else token is the bonus token and the walk ends.
//           Greedy and sampled decoding alike: the draws decide, the candidates are only looked up
//           (ARCHITECTURE.md, invariants).
// SHAPES    seq_start     i32 [B + 1]   in   sequence b owns rows seq_start[b] .. seq_start[b + 1]; the first
//                                            is the root
//           tokens        i32 [T]       in   token of the node
//           parents       i32 [T]       in   parent's index within the sequence; -1 for the root
//           drawn         i32 [T]       in   the token that the target draws after the node
//           accepted      i32 [B, N]    out  indices within the sequence of the accepted nodes, ascending,
//                                            root excluded; entries from accepted_len[b] on keep their value,
//                                            and of a longer path the first N are named
//           accepted_len  i32 [B]       out
//           bonus         i32 [B]       out
// LAUNCH    grid B, block 32: one warp a sequence; a lane looks at every 32nd node
// REQUIRES  parents before children; tokens >= 0; at most 256 rows a sequence
// NUMERICS  integers. A draw of -1 (no possible token) matches no child and becomes the bonus; so does a sequence without rows.
// TWINS     src/kernels/verify.rs, src/reference/verify.rs, host/native/verify.cpp, tests/kernels/verify.rs
#include "prims.cuh"

constexpr int kWarp = 32;

extern "C" __global__ void __launch_bounds__(kWarp)
    verify_walk(const int* __restrict__ seq_start, const int* __restrict__ tokens,
                const int* __restrict__ parents, const int* __restrict__ drawn, int* __restrict__ accepted,
                int* __restrict__ accepted_len, int* __restrict__ bonus, int max_accepted) {
  take_turn();
  const int sequence = blockIdx.x;
  const int lane_idx = threadIdx.x;
  const int root = seq_start[sequence];
  const int num_nodes = seq_start[sequence + 1] - root;

  int node = 0;
  int path_len = 0;
  int token = num_nodes > 0 ? drawn[root] : -1;
  // A child lies behind its parent, so the search goes on from where it found the node.
  int first = 0;
  while (first < num_nodes) {
    const int candidate = first + lane_idx;
    const bool is_match = candidate > node && candidate < num_nodes && parents[root + candidate] == node &&
                          tokens[root + candidate] == token;
    const unsigned matches = __ballot_sync(kWholeWarp, is_match);
    if (matches == 0) {
      first += kWarp;
      continue;
    }
    node = first + __ffs(static_cast<int>(matches)) - 1;
    if (lane_idx == 0 && path_len < max_accepted) accepted[sequence * max_accepted + path_len] = node;
    ++path_len;
    token = drawn[root + node];
  }
  if (lane_idx == 0) {
    accepted_len[sequence] = path_len;
    bonus[sequence] = token;
  }
}
EXPORT_KERNEL(verify_walk)
