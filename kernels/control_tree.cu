// WHAT      The trees of a round on the device: pools reset and grown, and the chosen nodes packed for the
//           target. With control_scan.cu the executor of a plan, bit for bit that of src/control/round.
//
//           control_begin; then per level: control_frontier, the drafter's pass (draft_frontier ...
//           draft_topk), control_extend, control_select; at last control_pack. A level that control_frontier
//           leaves empty ends the drafting: whatever is launched for it and after it changes nothing.
//
// DATA      control.cuh
//
// ---- control_begin
// MATH      pool[b] = {root};  state = the verification scan of no candidates at all
// LAUNCH    grid 1, block any multiple of 32 up to 1024
//
// ---- control_extend
// MATH      the frontier's rows of sequence b bring top_k children each, appended to its pool in their order:
//           logp      = min(candidate's, 0), -inf for NaN
//           c         = linear between the knots of the curve of its depth, at logp
//           q         = c * odds / (1 - c + c * odds), within [0, 1]; 0 where logp is -inf
//           path_logp = parent's + logp;  path_prob = parent's * q
// LAUNCH    grid kMaxSequences of the buffers, block any multiple of 32 up to 1024: a CTA a sequence
// REQUIRES  draft_topk has written candidates first_candidate + row * top_k + rank
//
// ---- control_pack
// MATH      verified nodes of sequence b: those of the verification scan's prefix; or its top_n nodes by
//           path_logp (descending, ties to the smaller node); or all. They are packed depth first, at every
//           fork the child of the smaller key first:
//           place(v) = sum over the path u from the root's child to v of (1 + the verified nodes below and
//           of the siblings of u with smaller keys)
//           state.selection = what the verified nodes are expected to bring and to take
// SHAPES    seq_start i32 [B + 1]; tree_* [T] at the rows seq_start[b] + place, the root's place 0: tokens,
//           parents (places; -1: root), depths, ancestors u64 [T, 4] (bits over places, its own included),
//           nodes (of the pool)
// LAUNCH    grid kMaxSequences of the buffers, block any multiple of 32 up to 1024: a CTA a sequence;
//           16 * sort_capacity bytes of dynamic shared memory
// REQUIRES  at most 255 verified nodes a sequence; once a round
// NUMERICS  exact, see control.cuh
// TWINS     src/kernels/control.rs, src/control/round (the oracle), tests/kernels/control.rs
// SOURCE    EAGLE-2, arXiv 2406.16858 (trees by path probability); packing: src/control/round/pack.rs
#include "control.cuh"

__device__ __forceinline__ int depth_bin(int depth) {
  if (depth <= 4) return depth > 0 ? depth - 1 : 0;
  return depth <= 6 ? 4 : 5;
}

// Probability that a child is accepted (src/control/acceptance.rs, Calibration::q).
__device__ __forceinline__ float acceptance_of(const ControlParams& p, const ControlSequence& sequence,
                                               int depth, float logp) {
  if (logp == -INFINITY) return 0.0f;
  const float* knots = p.plan->knots;
  const float* curve =
      plan_table<float>(p, p.plan->curves_at) + (sequence.curve * kCurveDepths + depth_bin(depth)) * kKnots;
  int low = 0;
  while (low < kKnots - 2 && knots[low + 1] <= logp) ++low;
  float share = (logp - knots[low]) / (knots[low + 1] - knots[low]);
  share = share > 0.0f ? (share < 1.0f ? share : 1.0f) : 0.0f;
  const float curve_q = __fadd_rn(curve[low], __fmul_rn(share, curve[low + 1] - curve[low]));
  const float raised = __fmul_rn(curve_q, sequence.odds);
  const float q = raised / __fadd_rn(1.0f - curve_q, raised);
  return q < 0.0f ? 0.0f : q > 1.0f ? 1.0f : q;
}

extern "C" __global__ void __launch_bounds__(kMaxBlock)
    control_begin(const __grid_constant__ ControlParams p) {
  const int num_sequences = p.plan->num_sequences;
  for (int i = threadIdx.x; i < num_sequences; i += blockDim.x) {
    const int token = sequence_of(p, i).root_token;
    pool_node(p, i, 0) = {-1, 0, token, 0.0f, 0.0f, 1.0f, 1.0f, -1, -1, -1, 0, 0, 1};
    p.sequence_state[i] = {1, 1, 0, 0};
  }
  if (threadIdx.x != 0) return;
  RoundState state = {};
  state.sunk_ns = p.plan->overhead_ns;
  state.selection.expected = num_sequences * kFixedOne;
  state.selection.tokens = num_sequences;
  state.selection.ns = state.sunk_ns + p.plan->attention_ns + verify_linear_ns(p, num_sequences);
  state.selection.price =
      price_of(p, state.selection.expected, state.selection.ns, num_sequences, 1.0f, 0.0f);
  *p.state = state;
}
EXPORT_KERNEL(control_begin)

extern "C" __global__ void __launch_bounds__(kMaxBlock)
    control_extend(const __grid_constant__ ControlParams p) {
  const int sequence_idx = blockIdx.x;
  const int top_k = p.plan->top_k;
  if (sequence_idx >= p.plan->num_sequences || p.state->frontier_len == 0) return;
  const int first_row = p.frontier_start[sequence_idx];
  const int num_children = (p.frontier_start[sequence_idx + 1] - first_row) * top_k;
  const ControlSequence& sequence = sequence_of(p, sequence_idx);
  const int first_node = p.sequence_state[sequence_idx].num_nodes;
  for (int i = threadIdx.x; i < num_children; i += blockDim.x) {
    const int row = first_row + i / top_k;
    const int candidate = p.state->first_candidate + first_row * top_k + i;
    const int parent = p.frontier_node[row];
    ControlNode& above = pool_node(p, sequence_idx, parent);
    const float given = p.logp[candidate];
    // A log-probability is at most 0; rounding may say otherwise and NaN means a broken drafter.
    const float logp = given != given ? -INFINITY : given < 0.0f ? given : 0.0f;
    const int depth = above.depth + 1;
    const float q = acceptance_of(p, sequence, depth, logp);
    const int node = first_node + i;
    pool_node(p, sequence_idx, node) = {parent,
                                        depth,
                                        p.tokens[candidate],
                                        logp,
                                        above.path_logp + logp,
                                        q,
                                        above.path_prob * q,
                                        candidate,
                                        -1,
                                        -1,
                                        0,
                                        0,
                                        0};
    if (i % top_k == 0) {
      above.first_child = node;
      above.num_children = top_k;
    }
  }
  __syncthreads();  // every thread has read the length
  if (threadIdx.x == 0) {
    p.sequence_state[sequence_idx].newest = first_node;
    p.sequence_state[sequence_idx].num_nodes = first_node + num_children;
  }
}
EXPORT_KERNEL(control_extend)

// Nodes of a sequence that are verified.
__device__ __forceinline__ int num_verified(const ControlParams& p, int sequence) {
  const SequenceState& state = p.sequence_state[sequence];
  if (p.plan->selection_rule == kUnionScan) {
    const int prefix = p.state->selection.prefix;
    if (prefix == 0) return 0;
    return lower_bound(p.kept_of + sequence * kMaxNodes, state.num_kept, p.kept[prefix - 1] + 1);
  }
  const int most = p.plan->selection_rule == kTopN ? p.plan->top_n : kMaxNodes - 1;
  const int drafted = state.num_nodes - 1;
  return drafted < most ? drafted : most;
}

// Keys of the verified nodes by path probability, in `order` or `spare`.
__device__ __forceinline__ u64* sort_verified(const ControlParams& p, int sequence, int count, u64* order,
                                              u64* spare, u64* sort_space) {
  if (p.plan->selection_rule == kUnionScan) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) order[i] = p.kept_of[sequence * kMaxNodes + i];
    __syncthreads();
    return order;
  }
  const int drafted = p.sequence_state[sequence].num_nodes - 1;
  const bool fits = drafted <= p.sort_capacity;
  const int64_t scratch = static_cast<int64_t>(sequence) * p.pool_stride;
  u64* ranked = fits ? sort_space : p.keys_a + scratch;
  for (int i = threadIdx.x; i < drafted; i += blockDim.x)
    ranked[i] = key_by_logp(pool_node(p, sequence, i + 1).path_logp, sequence, i + 1);
  ranked = block_sort(ranked, fits ? sort_space + p.sort_capacity : p.keys_b + scratch, drafted);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int node = node_of_key(ranked[i]);
    order[i] = key_by_value(pool_node(p, sequence, node).path_prob, sequence, node);
  }
  return block_sort(order, spare, count);
}

// Adds the verified nodes of a sequence to the totals of the round; the block that comes last completes the
// selection.
__device__ __forceinline__ void add_to_selection(const ControlParams& p, u64 expected, u64 context, int count,
                                                 int num_tokens) {
  const int num_sequences = p.plan->num_sequences;
  RoundState& state = *p.state;
  atomicAdd(&state.packed_expected, expected);
  atomicAdd(&state.packed_ns, attention_tiles_ns(p, context, count / p.plan->tile_nodes + 1) -
                                  attention_tiles_ns(p, context, 1));
  fence_gpu();
  if (atomicAdd(&state.num_packed, 1) != num_sequences - 1) return;
  fence_gpu();
  state.selection.expected = num_sequences * kFixedOne + atomicAdd(&state.packed_expected, 0ull);
  state.selection.tokens = num_tokens;
  state.selection.ns = state.sunk_ns + p.plan->attention_ns + atomicAdd(&state.packed_ns, 0ull) +
                       verify_linear_ns(p, num_tokens);
}

extern "C" __global__ void __launch_bounds__(kMaxBlock)
    control_pack(const __grid_constant__ ControlParams p) {
  SHARED(u64[kMaxWarps], reduction);
  SHARED(u64[kMaxNodes], order);
  SHARED(u64[kMaxNodes], spare);
  SHARED(int[kMaxNodes], parent_of);  // its place in the order; -1: the root
  SHARED(int[kMaxNodes], subtree);
  SHARED(int[kMaxNodes], advance);  // from the parent's place to its own
  SHARED(int[kMaxNodes], place);
  DYN_SMEM(u64, sort_space);
  const int sequence = blockIdx.x;
  const int num_sequences = p.plan->num_sequences;
  if (sequence >= num_sequences) return;

  // Rows of the sequences before this one, and of all.
  u64 rows = 0;
  for (int i = threadIdx.x; i < num_sequences; i += blockDim.x) {
    const u64 own = 1 + num_verified(p, i);
    rows += own << 32 | (i < sequence ? own : 0);
  }
  rows = block_combine<Sum>(rows, reduction);
  const int first_row = static_cast<int>(rows & 0xffffffff);
  const int num_tokens = static_cast<int>(rows >> 32);
  const int count = num_verified(p, sequence);
  const u64* sorted = sort_verified(p, sequence, count, order, spare, sort_space);

  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int parent = pool_node(p, sequence, node_of_key(sorted[i])).parent;
    const float prob = pool_node(p, sequence, parent).path_prob;
    parent_of[i] = parent == 0 ? -1 : lower_bound(sorted, count, key_by_value(prob, sequence, parent));
    subtree[i] = 1;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    for (int above = parent_of[i]; above >= 0; above = parent_of[above]) atomicAdd(&subtree[above], 1);
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    int steps = 1;
    for (int other = 0; other < i; ++other)
      if (parent_of[other] == parent_of[i]) steps += subtree[other];
    advance[i] = steps;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    int own = 0;
    for (int on_path = i; on_path >= 0; on_path = parent_of[on_path]) own += advance[on_path];
    place[i] = own;
  }
  __syncthreads();

  u64 expected = 0;
  for (int i = threadIdx.x - 1; i < count; i += blockDim.x) {
    const bool is_root = i < 0;
    const int node_idx = is_root ? 0 : node_of_key(sorted[i]);
    ControlNode& node = pool_node(p, sequence, node_idx);
    const int row = first_row + (is_root ? 0 : place[i]);
    p.tree_tokens[row] = node.token;
    p.tree_parents[row] = is_root ? -1 : parent_of[i] < 0 ? 0 : place[parent_of[i]];
    p.tree_depths[row] = node.depth;
    p.tree_nodes[row] = node_idx;
    for (int word = 0; word < kAncestorWords; ++word) {
      u64 bits = word == 0;
      for (int on_path = i; on_path >= 0; on_path = parent_of[on_path])
        if (place[on_path] / 64 == word) bits |= 1ull << (place[on_path] % 64);
      p.tree_ancestors[static_cast<int64_t>(row) * kAncestorWords + word] = bits;
    }
    if (is_root) continue;
    node.verified = 1;
    expected += fixed_point(node.path_prob);
  }
  expected = block_combine<Sum>(expected, reduction);
  if (threadIdx.x != 0) return;
  p.seq_start[sequence] = first_row;
  if (sequence == num_sequences - 1) p.seq_start[num_sequences] = num_tokens;
  add_to_selection(p, expected, sequence_of(p, sequence).context, count, num_tokens);
}
EXPORT_KERNEL(control_pack)
