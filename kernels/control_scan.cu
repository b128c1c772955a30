// WHAT      The two scans of the tree controller on the device: which of the drafted nodes to verify, and which
//           to run through the drafter next. With control_tree.cu, where the order of launches stands, the
//           executor of a plan.
//
//           Both are the loops of src/control/scan.rs taken a block of keys at a time: prefix sums over the
//           block give each thread the state in which the loop would reach its key.
//
// DATA      control.cuh
//
// ---- control_select
// MATH      kept = the newest nodes merged into the kept ones; a sequence keeps its first max_draft_tokens
//           prefix j of it: expected(j) = B + sum P;  ns(j) = sunk + linear(B + j) + attention of all
//           selection = the prefix of the greatest expected / ns among those behind which time rises, and the
//           whole; ties to the shorter. P below 2^-32 is worth nothing and ends the scan.
//           price = the time of one place at that rate, within [first value left out, last value taken]
// LAUNCH    grid 1, block any multiple of 32 up to 1024; 16 * sort_capacity bytes of dynamic shared memory
// REQUIRES  control_extend has run. Selection rules all and top-n need no scan: nothing happens.
//
// ---- control_frontier
// MATH      level 0: the roots of the sequences that draft. Then, of the nodes above max_depth:
//           beam:  of each sequence the beam_width newest by path_logp (descending, ties to the smaller node)
//           scan:  of the kept ones not yet run, worth P * g(depth, P / price, logp) each; of each sequence those
//                  that leave room for later levels; of these in descending order the width of the greatest
//                  (expected + sum of worth) / (ns + drafter's time), at most max_rows, and none unless it beats
//                  the present rate
//           Rows are grouped by sequence, in that order; each is a run of its node, the next slot.
// LAUNCH    as control_select
// NUMERICS  exact, see control.cuh
// TWINS     src/kernels/control.rs, src/control/scan.rs and src/control/round (the oracles),
//           tests/kernels/control.rs
// SOURCE    SMART, arXiv 2604.09731 (the rule as src/control/scan.rs has it)
#include "control.cuh"

struct BlockScratch {
  u64 sums[3][kMaxWarps];
  u64 reduction[kMaxWarps];
  SequenceCounts counts;
};

__device__ __forceinline__ void clear_counts(SequenceCounts& counts, int num_sequences) {
  for (int i = threadIdx.x; i < num_sequences; i += blockDim.x) counts.seen[i] = 0;
  __syncthreads();
}

// Key of the i-th of the newest nodes, sequence by sequence.
struct NewestNodes {
  const ControlParams& p;
  int top_k;

  __device__ __forceinline__ void locate(int i, int& sequence, int& node) const {
    sequence = p.frontier[i / top_k].sequence;
    node = p.sequence_state[sequence].newest + i - p.frontier_start[sequence] * top_k;
  }
};

// Sorts the newest nodes and merges them with the kept ones; returns where the result lies.
__device__ __forceinline__ const u64* merge_newest(const ControlParams& p, int num_new, int num_old,
                                                   u64* sort_space) {
  const bool fits = num_new <= p.sort_capacity;
  u64* fresh = fits ? sort_space : p.keys_a;
  const NewestNodes newest{p, p.plan->top_k};
  for (int i = threadIdx.x; i < num_new; i += blockDim.x) {
    int sequence, node;
    newest.locate(i, sequence, node);
    fresh[i] = key_by_value(pool_node(p, sequence, node).path_prob, sequence, node);
  }
  fresh = block_sort(fresh, fits ? sort_space + p.sort_capacity : p.keys_b, num_new);
  u64* merged = fresh == p.keys_a ? p.keys_b : p.keys_a;
  for (int i = threadIdx.x; i < num_old; i += blockDim.x)
    merged[i + lower_bound(fresh, num_new, p.kept[i])] = p.kept[i];
  for (int i = threadIdx.x; i < num_new; i += blockDim.x)
    merged[i + lower_bound(p.kept, num_old, fresh[i])] = fresh[i];
  __syncthreads();
  return merged;
}

extern "C" __global__ void __launch_bounds__(kMaxBlock)
    control_select(const __grid_constant__ ControlParams p) {
  SHARED(BlockScratch, scratch);
  DYN_SMEM(u64, sort_space);
  const ControlPlan& plan = *p.plan;
  if (plan.selection_rule != kUnionScan) return;
  RoundState& state = *p.state;
  const int num_new = state.frontier_len * plan.top_k;
  const int num_merged = state.num_kept + num_new;
  const u64 base_ns = state.sunk_ns + plan.attention_ns;
  const u64 base_expected = plan.num_sequences * kFixedOne;
  clear_counts(scratch.counts, plan.num_sequences);
  const u64* merged = merge_newest(p, num_new, state.num_kept, sort_space);

  BestPrefix best;
  int num_kept = 0, num_scanned = 0;
  u64 expected = base_expected, attention_ns = base_ns;
  for (int first = 0; first < num_merged; first += blockDim.x) {
    const int i = first + threadIdx.x;
    const u64 key = i < num_merged ? merged[i] : kNoKey;
    const int sequence = i < num_merged ? sequence_of_key(key) : -1;
    const int rank = rank_in_sequence(sequence, plan.num_sequences, scratch.counts);
    const bool is_kept = sequence >= 0 && rank < plan.max_draft_tokens;
    const u64 value = is_kept ? fixed_point(value_of_key(key)) : 0;
    const u64 step_ns = value > 0 ? attention_step_ns(p, sequence_of(p, sequence).context, rank + 1) : 0;
    u64 before[3] = {static_cast<u64>(value > 0) << 32 | static_cast<u64>(is_kept), value, step_ns};
    u64 totals[3];
    block_prefix(before, totals, scratch.sums);
    const int place = num_kept + static_cast<int>(before[0] & 0xffffffff);
    if (is_kept) {
      p.kept[place] = key;
      p.kept_of[sequence * kMaxNodes + rank] = key;
    }
    if (value > 0) {
      // Valueless nodes come last, so `place` nodes are taken before this one. If it costs time, they end a
      // run.
      const int tokens = plan.num_sequences + place;
      const u64 present_ns = attention_ns + before[2] + verify_linear_ns(p, tokens);
      const u64 next_ns = attention_ns + before[2] + step_ns + verify_linear_ns(p, tokens + 1);
      if (next_ns > present_ns) best.offer(expected + before[1], present_ns, place);
    }
    num_kept += static_cast<int>(totals[0] & 0xffffffff);
    num_scanned += static_cast<int>(totals[0] >> 32);
    expected += totals[1];
    attention_ns += totals[2];
  }
  if (threadIdx.x == 0)
    best.offer(expected, attention_ns + verify_linear_ns(p, plan.num_sequences + num_scanned), num_scanned);

  const BlockBest found = block_best(best, scratch.reduction);  // its barriers publish the kept keys
  if (best.rate == found.rate && best.prefix == found.prefix) {
    const int tokens = plan.num_sequences + best.prefix;
    const float last_taken = best.prefix > 0 ? value_of_key(p.kept[best.prefix - 1]) : 1.0f;
    const float left_out = best.prefix < num_kept ? value_of_key(p.kept[best.prefix]) : 0.0f;
    const float price = price_of(p, best.expected, best.ns, tokens, last_taken, left_out);
    state.selection = {best.expected, best.ns, best.prefix, tokens, price, 0};
  }
  if (threadIdx.x == 0) state.num_kept = num_kept;
  for (int i = threadIdx.x; i < plan.num_sequences; i += blockDim.x) {
    const int seen = scratch.counts.seen[i];
    p.sequence_state[i].num_kept = seen < plan.max_draft_tokens ? seen : plan.max_draft_tokens;
  }
}
EXPORT_KERNEL(control_select)

// Gain of running a node per unit of its path probability (src/control/gain.rs, GainTable::gain).
__device__ __forceinline__ float gain_of(const ControlPlan& plan, const ControlNode& node, float price) {
  int headroom = 0;
  float factor = 2.0f;
  while (headroom < kHeadrooms - 1 && node.path_prob >= price * factor) {
    ++headroom;
    factor *= 2.0f;
  }
  int confidence = 0;
  while (confidence < kConfidences - 1 && node.logp >= plan.confidence_edges[confidence]) ++confidence;
  const int depth = node.depth < 1 ? 1 : node.depth < kGainDepths ? node.depth : kGainDepths;
  return plan.gains[depth - 1][headroom][confidence];
}

// Nodes that may be run next: the i-th one's key, or kNoKey.
struct FrontierSource {
  const ControlParams& p;
  int num_levels;
  int num_offered;
  float price;

  __device__ __forceinline__ u64 key(int i) const {
    const ControlPlan& plan = *p.plan;
    if (num_levels == 0) return sequence_of(p, i).drafts ? key_by_value(1.0f, i, 0) : kNoKey;
    int sequence, node_idx;
    if (plan.width_rule == kBeam) {
      NewestNodes{p, plan.top_k}.locate(i, sequence, node_idx);
    } else {
      const u64 kept = p.kept[i];
      sequence = sequence_of_key(kept);
      node_idx = node_of_key(kept);
    }
    const ControlNode& node = pool_node(p, sequence, node_idx);
    if (node.depth >= sequence_of(p, sequence).max_depth) return kNoKey;
    if (plan.width_rule == kBeam) return key_by_logp(node.path_logp, sequence, node_idx);
    if (node.row >= 0) return kNoKey;
    const float value = node.path_prob * gain_of(plan, node, price);
    return value > 0.0f ? key_by_value(value, sequence, node_idx) : kNoKey;
  }
};

// Writes the keys of `source` to keys[0, count) in any order; returns count. Starts and ends with a barrier.
__device__ __forceinline__ int gather_keys(const FrontierSource& source, u64* keys, int& shared_count) {
  if (threadIdx.x == 0) shared_count = 0;
  __syncthreads();
  for (int first = 0; first < source.num_offered; first += blockDim.x) {
    const int i = first + threadIdx.x;
    const u64 key = i < source.num_offered ? source.key(i) : kNoKey;
    const unsigned chosen = __ballot_sync(kWholeWarp, key != kNoKey);
    int place = 0;
    if (lane_index() == 0) place = atomicAdd(&shared_count, __popc(chosen));
    place = __shfl_sync(kWholeWarp, place, 0) + __popc(chosen & ((1u << lane_index()) - 1));
    if (key != kNoKey) keys[place] = key;
  }
  __syncthreads();
  return shared_count;
}

struct FrontierRoom {
  int room[kMaxSequences];  // rows that a sequence may take; then its first row
  int first_slot[kMaxSequences];
  int pass_row[kMaxSequences];  // its first row of the pass, catch-up rows included
  int count;
};

// A key's rank in its sequence above, sequence and node below.
__device__ __forceinline__ u64 ranked_node(u64 key, int rank) {
  return static_cast<u64>(rank) << 32 | (key & 0xffffffff);
}

// Takes from the sorted keys those that have room, best first, as ranked nodes; returns how many of them to run.
__device__ __forceinline__ int choose_width(const ControlParams& p, const u64* sorted, int count,
                                            bool is_scanned, const FrontierRoom& frontier, u64* taken,
                                            BlockScratch& scratch) {
  const ControlPlan& plan = *p.plan;
  const ControlSelection current = p.state->selection;
  BestPrefix best;
  int num_taken = 0;
  u64 expected = current.expected, ns = current.ns;
  for (int first = 0; first < count; first += blockDim.x) {
    const int i = first + threadIdx.x;
    const u64 key = i < count ? sorted[i] : kNoKey;
    const int sequence = i < count ? sequence_of_key(key) : -1;
    const int rank = rank_in_sequence(sequence, plan.num_sequences, scratch.counts);
    const bool fits = sequence >= 0 && rank < frontier.room[sequence];
    const u64 value = fits ? fixed_point(value_of_key(key)) : 0;
    const u64 attention_ns = fits && rank == 0 ? sequence_of(p, sequence).draft_attention_ns : 0;
    u64 before[3] = {static_cast<u64>(fits), value, attention_ns};
    u64 totals[3];
    block_prefix(before, totals, scratch.sums);
    const int place = num_taken + static_cast<int>(before[0]);
    if (fits) taken[place] = ranked_node(key, rank);
    if (fits && is_scanned && place < plan.max_rows) {
      const int rows = place + 1;
      best.offer(expected + before[1] + value, ns + before[2] + attention_ns + draft_linear_ns(p, rows),
                 rows);
    }
    num_taken += static_cast<int>(totals[0]);
    expected += totals[1];
    ns += totals[2];
  }
  if (!is_scanned) {
    __syncthreads();
    return num_taken;
  }
  const BlockBest found = block_best(best, scratch.reduction);
  return found.rate > rate_bits(current.expected, current.ns) ? found.prefix : 0;
}

// Gives every sequence its rows of the frontier: counts.seen[b] of them from frontier.room[b] on. Accounts for
// the pass.
__device__ __forceinline__ void place_sequences(const ControlParams& p, bool is_first, int rows_run,
                                                FrontierRoom& frontier, BlockScratch& scratch) {
  const ControlPlan& plan = *p.plan;
  u64 sums[3] = {0, 0, 0};  // rows of the frontier, rows of the pass, attention
  for (int first = 0; first < plan.num_sequences; first += blockDim.x) {
    const int i = first + threadIdx.x;
    const int rows = i < plan.num_sequences ? scratch.counts.seen[i] : 0;
    u64 before[3] = {static_cast<u64>(rows), static_cast<u64>(rows), 0};
    if (rows > 0 && is_first) before[1] = sequence_of(p, i).catch_up_rows;
    if (rows > 0) before[2] = sequence_of(p, i).draft_attention_ns;
    u64 totals[3];
    block_prefix(before, totals, scratch.sums);
    if (i < plan.num_sequences) {
      frontier.room[i] = static_cast<int>(sums[0] + before[0]);
      frontier.pass_row[i] = static_cast<int>(sums[1] + before[1]);
      p.frontier_start[i] = frontier.room[i];
      if (!is_first) p.sequence_state[i].num_slots = frontier.first_slot[i] + rows;
    }
    for (int n = 0; n < 3; ++n) sums[n] += totals[n];
  }
  if (threadIdx.x == 0) {
    RoundState& state = *p.state;
    p.frontier_start[plan.num_sequences] = static_cast<int>(sums[0]);
    state.first_candidate += state.frontier_len * plan.top_k;
    state.frontier_len = static_cast<int>(sums[0]);
    if (sums[0] > 0) {
      const int rows = static_cast<int>(sums[1]);
      const u64 ns = draft_linear_ns(p, rows) + sums[2];
      p.levels[state.num_levels] = {ns, rows_run, rows, state.selection.price, 0};
      state.num_levels += 1;
      state.rows_run += rows;
      state.sunk_ns += ns;
    }
  }
  __syncthreads();
}

extern "C" __global__ void __launch_bounds__(kMaxBlock)
    control_frontier(const __grid_constant__ ControlParams p) {
  SHARED(BlockScratch, scratch);
  SHARED(FrontierRoom, frontier);
  DYN_SMEM(u64, sort_space);
  const ControlPlan& plan = *p.plan;
  const int num_levels = p.state->num_levels;
  const int rows_run = p.state->rows_run;
  const bool is_first = num_levels == 0;
  const bool is_scanned = !is_first && plan.width_rule == kWidthScan;

  const ControlSelection& selection = p.state->selection;
  FrontierSource source{p, num_levels, 0, selection.price};
  if (num_levels < plan.max_levels) {
    const int num_newest = p.state->frontier_len * plan.top_k;
    source.num_offered = is_first ? plan.num_sequences : is_scanned ? p.state->num_kept : num_newest;
  }
  for (int i = threadIdx.x; i < plan.num_sequences; i += blockDim.x) {
    const int used = p.sequence_state[i].num_slots;
    const int left = kMaxRuns - used;
    frontier.first_slot[i] = used;
    if (is_first) {
      frontier.room[i] = 1;
    } else if (is_scanned) {
      // Each level gets an equal share of the slots that are left.
      const int levels_left = plan.max_levels - num_levels;
      frontier.room[i] = levels_left > 0 ? (left + levels_left - 1) / levels_left : 0;
    } else {
      frontier.room[i] = left < plan.beam_width ? left : plan.beam_width;
    }
  }
  clear_counts(scratch.counts, plan.num_sequences);

  // Where many are offered few may be chosen: they are sorted in shared memory all the same.
  u64* keys = source.num_offered <= p.sort_capacity ? sort_space : p.keys_a;
  const int count = gather_keys(source, keys, frontier.count);
  const bool fits = count <= p.sort_capacity;
  if (fits && keys == p.keys_a) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) sort_space[i] = p.keys_a[i];
    keys = sort_space;
    __syncthreads();
  }
  keys = block_sort(keys, fits ? sort_space + p.sort_capacity : p.keys_b, count);
  u64* taken = keys == p.keys_a ? p.keys_b : p.keys_a;
  const int width = choose_width(p, keys, count, is_scanned, frontier, taken, scratch);

  clear_counts(scratch.counts, plan.num_sequences);
  for (int i = threadIdx.x; i < width; i += blockDim.x)
    atomicAdd(&scratch.counts.seen[sequence_of_key(taken[i])], 1);
  __syncthreads();
  place_sequences(p, is_first, rows_run, frontier, scratch);

  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const int sequence = sequence_of_key(taken[i]), node_idx = node_of_key(taken[i]);
    const int rank = static_cast<int>(taken[i] >> 32);
    const int row = frontier.room[sequence] + rank;
    ControlNode& node = pool_node(p, sequence, node_idx);
    // The root's own row is the last of its catch-up rows; it needs no slot.
    node.row = rows_run + frontier.pass_row[sequence] +
               (is_first ? sequence_of(p, sequence).catch_up_rows - 1 : rank);
    node.slot = is_first ? -1 : frontier.first_slot[sequence] + rank;
    const int parent_slot = is_first ? -1 : pool_node(p, sequence, node.parent).slot;
    p.frontier[row] = {sequence, node.candidate, parent_slot, node.slot};
    p.frontier_node[row] = node_idx;
  }
}
EXPORT_KERNEL(control_frontier)
