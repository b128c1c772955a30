// WHAT  Data and arithmetic of the tree controller on the device: what control_tree.cu, control_scan.cu and
//       src/kernels/control.rs share.
//
// DATA  A round is one ControlParams: pointers alone, so that a captured graph replays round after round.
//       Whatever changes from round to round lies in device memory:
//       - the *plan*: written by the host before a round. A ControlPlan and, behind it at the byte offsets it
//         names, the ControlSequences, the cost tables and the calibration curves.
//       - the *state*: a RoundState, a SequenceState a sequence, the pools. control_begin resets it.
//       A *pool* holds the nodes drafted for a sequence, node 0 the root, parents before children, the
//       children of a row side by side. Candidates, runs and the frontier are those of draft.cu.
//       A *key* is a node as one number, its order above and sequence and node below: ascending keys are
//       descending values, ties to the smaller sequence, then the smaller node. No two keys are equal, so
//       every correct sort gives the same order. (src/control/scan.rs, Candidate)
// MATH  Probabilities are f32 and every operation on them is rounded once, in the order of the Rust
//       executor: products that meet a sum are __fmul_rn, which no compiler contracts. Sums of probabilities
//       are fixed point (units of 2^-32), times whole nanoseconds: the same in any order. Ratios are single
//       f64 divisions, compared as bits.
#pragma once

#include "draft.cuh"
#include "ranking.cuh"

constexpr int kMaxSequences = 256;  // of a batch
constexpr int kMaxNodes = 256;      // of a tree, root included
constexpr int kMaxBlock = 1024;
constexpr int kKnots = 20;
constexpr int kCurveDepths = 6;
constexpr int kGainDepths = 8, kHeadrooms = 6, kConfidences = 3;
constexpr u64 kNoKey = ~0ull;

enum WidthRule { kBeam = 0, kWidthScan = 1 };
enum SelectionRule { kAll = 0, kTopN = 1, kUnionScan = 2 };

struct ControlPlan {
  u64 overhead_ns;   // of a drafted round outside its passes
  u64 attention_ns;  // target attention with one tile a sequence
  int num_sequences;
  int top_k;
  int max_levels;
  int max_rows;  // of a drafter pass whose width is scanned
  int width_rule;
  int beam_width;
  int selection_rule;
  int top_n;
  int max_draft_tokens;  // of a sequence
  int tread;             // target rows that cost the same
  int draft_tread;
  int tile_nodes;
  // Tables behind the plan: byte offset and, where it bounds an index, length.
  int sequences_at;
  int verify_at, verify_len;
  int draft_at, draft_len;
  int rate_at, rate_len;
  int curves_at;
  float knots[kKnots];
  float confidence_edges[kConfidences - 1];
  float gains[kGainDepths][kHeadrooms][kConfidences];
};
static_assert(sizeof(ControlPlan) == 760, "layout shared with Rust");

struct ControlSequence {
  u64 context;  // cached tokens
  u64 draft_attention_ns;
  int root_token;
  int drafts;  // 0: not in this round
  int max_depth;
  int curve;  // index of its calibration curves
  float odds;
  int catch_up_rows;  // rows of its first drafter pass, the root's own the last
};
static_assert(sizeof(ControlSequence) == 40, "layout shared with Rust");

// A node of a pool. -1: none.
struct ControlNode {
  int parent;
  int depth;
  int token;
  float logp;
  float path_logp;
  float q;
  float path_prob;
  int candidate;
  int row;   // of the drafter, counted over the round
  int slot;  // its run
  int first_child;
  int num_children;
  int verified;
};
static_assert(sizeof(ControlNode) == 52, "layout shared with Rust");

struct SequenceState {
  int num_nodes;  // of the pool
  int newest;     // first node of the newest level
  int num_slots;  // drafter rows, root excluded
  int num_kept;
};
static_assert(sizeof(SequenceState) == 16, "layout shared with Rust");

// What a verification scan found (src/control/scan.rs, Selection).
struct ControlSelection {
  u64 expected;
  u64 ns;
  int prefix;
  int tokens;
  float price;
  int unused;
};

struct RoundState {
  u64 sunk_ns;
  ControlSelection selection;
  u64 packed_expected;  // sums of control_pack over its sequences
  u64 packed_ns;
  int num_levels;
  int rows_run;         // catch-up rows included
  int first_candidate;  // of the newest level
  int frontier_len;     // rows of the newest level, catch-up rows excluded
  int num_kept;
  int num_packed;
};
static_assert(sizeof(RoundState) == 80, "layout shared with Rust");

struct ControlLevel {
  u64 ns;
  int first_row;
  int rows;
  float price;
  int unused;
};
static_assert(sizeof(ControlLevel) == 24, "layout shared with Rust");

struct ControlParams {
  const ControlPlan* plan;
  const int* tokens;              // [P] candidates of the round, as draft_topk wrote them
  const float* logp;              // [P]
  RoundState* state;              // [1]
  SequenceState* sequence_state;  // [B]
  ControlNode* pool;              // [B, pool_stride]
  FrontierRow* frontier;  // [R] grouped by sequence, best first in each; roots have candidate and run -1
  int* frontier_node;     // [R] node of each row
  int* frontier_start;    // [B + 1] first row of each sequence
  ControlLevel* levels;   // [256]
  u64* kept;              // [B * 255] keys of the nodes that could be verified, sorted
  u64* kept_of;           // [B, 256] the same by sequence
  u64* keys_a;            // [K] scratch
  u64* keys_b;            // [K] scratch
  int* seq_start;         // [B + 1]
  int* tree_tokens;       // [T]
  int* tree_parents;      // [T]
  int* tree_depths;       // [T]
  u64* tree_ancestors;    // [T, 4]
  int* tree_nodes;        // [T]
  int pool_stride;
  int sort_capacity;  // keys that each of the two sort buffers in shared memory holds
};
static_assert(sizeof(ControlParams) == 168, "layout shared with Rust");
POINTER_FIELDS(ControlParams, &ControlParams::plan, &ControlParams::tokens, &ControlParams::logp,
               &ControlParams::state, &ControlParams::sequence_state, &ControlParams::pool,
               &ControlParams::frontier, &ControlParams::frontier_node, &ControlParams::frontier_start,
               &ControlParams::levels, &ControlParams::kept, &ControlParams::kept_of, &ControlParams::keys_a,
               &ControlParams::keys_b, &ControlParams::seq_start, &ControlParams::tree_tokens,
               &ControlParams::tree_parents, &ControlParams::tree_depths, &ControlParams::tree_ancestors,
               &ControlParams::tree_nodes)

// ---- tables behind the plan -------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ const T* plan_table(const ControlParams& p, int offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const unsigned char*>(p.plan) + offset);
}
__device__ __forceinline__ const ControlSequence& sequence_of(const ControlParams& p, int sequence) {
  return plan_table<ControlSequence>(p, p.plan->sequences_at)[sequence];
}
__device__ __forceinline__ ControlNode& pool_node(const ControlParams& p, int sequence, int node) {
  return p.pool[static_cast<int64_t>(sequence) * p.pool_stride + node];
}

// ---- costs (src/control/cost/tables.rs) -------------------------------------------------------------------

// Entry of a staircase for `rows` >= 1; the last stands for anything wider.
__device__ __forceinline__ u64 staircase_ns(const u64* table, int len, int rows, int tread) {
  const int entry = (rows - 1) / tread + 1;
  return table[entry < len ? entry : len - 1];
}
__device__ __forceinline__ u64 verify_linear_ns(const ControlParams& p, int tokens) {
  return staircase_ns(plan_table<u64>(p, p.plan->verify_at), p.plan->verify_len, tokens, p.plan->tread);
}
__device__ __forceinline__ u64 draft_linear_ns(const ControlParams& p, int rows) {
  return staircase_ns(plan_table<u64>(p, p.plan->draft_at), p.plan->draft_len, rows, p.plan->draft_tread);
}
// What a row costs of a target pass that goes on beyond `tokens` rows: up to where a row costs least.
__device__ __forceinline__ double verify_slope_ns(const ControlParams& p, int tokens) {
  constexpr int kSlopeTreads = 8;
  const u64 here = verify_linear_ns(p, tokens);
  double least = 0.0;
  for (int treads = 1; treads <= kSlopeTreads; ++treads) {
    const int rows = treads * p.plan->tread;
    const double slope =
        static_cast<double>(verify_linear_ns(p, tokens + rows) - here) / static_cast<double>(rows);
    least = treads == 1 || slope < least ? slope : least;
  }
  return least;
}
// Attention of a sequence by tiles of its nodes.
__device__ __forceinline__ u64 attention_tiles_ns(const ControlParams& p, u64 context, int tiles) {
  constexpr int kRateBits = 20;
  const int last = p.plan->rate_len - 1;
  return (context * plan_table<u64>(p, p.plan->rate_at)[tiles < last ? tiles : last]) >> kRateBits;
}
// What one more node costs a sequence that has `nodes` already.
__device__ __forceinline__ u64 attention_step_ns(const ControlParams& p, u64 context, int nodes) {
  if (nodes % p.plan->tile_nodes != 0) return 0;
  const int tiles = nodes / p.plan->tile_nodes;
  return attention_tiles_ns(p, context, tiles + 1) - attention_tiles_ns(p, context, tiles);
}

// ---- keys (src/control/scan.rs) ---------------------------------------------------------------------------

__device__ __forceinline__ u64 key_of_bits(uint32_t bits, int sequence, int node) {
  return static_cast<u64>(bits) << 32 | static_cast<u64>(sequence) << 16 | static_cast<u64>(node);
}
// A node worth `value`; NaN counts as 0.
__device__ __forceinline__ u64 key_by_value(float value, int sequence, int node) {
  return key_of_bits(~(value > 0.0f ? __float_as_uint(value) : 0u), sequence, node);
}
// A node ranked by cumulative log-probability; NaN is no one's choice.
__device__ __forceinline__ u64 key_by_logp(float path_logp, int sequence, int node) {
  const float loss = 0.0f - path_logp;
  const uint32_t bits = path_logp != path_logp ? ~0u : loss > 0.0f ? __float_as_uint(loss) : 0u;
  return key_of_bits(bits, sequence, node);
}
__device__ __forceinline__ float value_of_key(u64 key) {
  return __uint_as_float(~static_cast<uint32_t>(key >> 32));
}
__device__ __forceinline__ int sequence_of_key(u64 key) {
  return static_cast<int>(key >> 16 & 0xffff);
}
__device__ __forceinline__ int node_of_key(u64 key) {
  return static_cast<int>(key & 0xffff);
}

constexpr u64 kFixedOne = 1ull << 32;

// Fixed point, rounded down; bounded as Rust's conversion is.
__device__ __forceinline__ u64 fixed_point(float value) {
  constexpr float kTwo32 = 4294967296.0f, kTwo64 = 18446744073709551616.0f;
  const float scaled = value * kTwo32;
  if (!(scaled > 0.0f)) return 0;
  return scaled < kTwo64 ? static_cast<u64>(scaled) : ~0ull;
}

// Expected tokens per nanosecond. Rates are not negative, so their bits order as they do.
__device__ __forceinline__ double rate_of(u64 expected, u64 ns) {
  return static_cast<double>(expected) / static_cast<double>(ns);
}
__device__ __forceinline__ u64 rate_bits(u64 expected, u64 ns) {
  return static_cast<u64>(__double_as_longlong(rate_of(expected, ns)));
}

// Price of a place in the target pass: see Selection::price. `last_taken` is the value of the last node taken
// (1: none), `left_out` that of the first one that was not (0: none).
__device__ __forceinline__ float price_of(const ControlParams& p, u64 expected, u64 ns, int tokens,
                                          float last_taken, float left_out) {
  const float place = static_cast<float>(rate_of(expected, ns) * verify_slope_ns(p, tokens) / 4294967296.0);
  const float bounded = place < last_taken ? place : last_taken;  // NaN, of no time at all, is no bound
  return bounded > left_out ? bounded : left_out;
}

// ---- work of a block --------------------------------------------------------------------------------------

// First place in the ascending keys[0, len) whose key is not below `key`.
__device__ __forceinline__ int lower_bound(const u64* keys, int len, u64 key) {
  int first = 0;
  while (len > 0) {
    const int half = len / 2;
    if (keys[first + half] < key) {
      first += half + 1;
      len -= half + 1;
    } else {
      len = half;
    }
  }
  return first;
}

// Sorts keys[0, len) by merging runs of doubling length; a key's place in a merged run is its place in its own
// and, by a search, in the other. Returns the buffer, `keys` or `spare`, that holds the result. Starts and
// ends with a barrier.
__device__ __forceinline__ u64* block_sort(u64* keys, u64* spare, int len) {
  for (int run = 1; run < len; run *= 2) {
    __syncthreads();
    for (int i = threadIdx.x; i < len; i += blockDim.x) {
      const int own = i & ~(run - 1);
      const int other = own ^ run;
      const int left = len - other;
      const int other_len = left < 0 ? 0 : left < run ? left : run;
      const u64 key = keys[i];
      spare[(own & ~run) + (i - own) + lower_bound(keys + other, other_len, key)] = key;
    }
    u64* const sorted = spare;
    spare = keys;
    keys = sorted;
  }
  __syncthreads();
  return keys;
}

// Replaces the numbers of each thread by their sums over the threads before it, and gives the sums over all.
template <int N>
__device__ __forceinline__ void block_prefix(u64 (&values)[N], u64 (&totals)[N],
                                             u64 (&scratch)[N][kMaxWarps]) {
  u64 own[N];
  for (int n = 0; n < N; ++n) {
    own[n] = values[n];
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const u64 left = __shfl_up_sync(kWholeWarp, values[n], distance);
      if (lane_index() >= distance) values[n] += left;
    }
  }
  __syncthreads();  // the scratch of an earlier call has been read
  for (int n = 0; n < N; ++n)
    if (lane_index() == kWarp - 1) scratch[n][warp_index()] = values[n];
  __syncthreads();
  for (int n = 0; n < N; ++n) {
    u64 before = 0, total = 0;
    for (int warp = 0; warp < num_warps(); ++warp) {
      if (warp == warp_index()) before = total;
      total += scratch[n][warp];
    }
    values[n] += before - own[n];
    totals[n] = total;
  }
}

// Counts by sequence over a list that a block walks, one key a thread at a time.
struct SequenceCounts {
  int seen[kMaxSequences];  // up to the keys of the present step
  uint16_t before_warp[kMaxWarps][kMaxSequences];
};

// How many keys of the list before the thread's own are of its sequence (-1: it has no key). A barrier of the
// caller's must lie between two calls.
__device__ __forceinline__ int rank_in_sequence(int sequence, int num_sequences, SequenceCounts& counts) {
  for (int i = threadIdx.x; i < num_warps() * num_sequences; i += blockDim.x)
    counts.before_warp[i / num_sequences][i % num_sequences] = 0;
  __syncthreads();
  const unsigned peers = __match_any_sync(kWholeWarp, sequence);
  const int before = __popc(peers & ((1u << lane_index()) - 1));
  if (sequence >= 0 && before == 0) counts.before_warp[warp_index()][sequence] = __popc(peers);
  __syncthreads();
  for (int i = threadIdx.x; i < num_sequences; i += blockDim.x) {
    int running = counts.seen[i];
    for (int warp = 0; warp < num_warps(); ++warp) {
      const int own = counts.before_warp[warp][i];
      counts.before_warp[warp][i] = static_cast<uint16_t>(running);
      running += own;
    }
    counts.seen[i] = running;
  }
  __syncthreads();
  return sequence < 0 ? 0 : counts.before_warp[warp_index()][sequence] + before;
}

// The first prefix of the greatest rate among those that a thread has offered, in ascending order of prefixes.
struct BestPrefix {
  u64 rate = 0;  // bits
  u64 expected = 0, ns = 0;
  int prefix = 0;

  __device__ __forceinline__ void offer(u64 new_expected, u64 new_ns, int new_prefix) {
    const u64 new_rate = rate_bits(new_expected, new_ns);
    if (new_rate <= rate) return;
    rate = new_rate;
    expected = new_expected;
    ns = new_ns;
    prefix = new_prefix;
  }
};

// Over all threads: the greatest rate, and the shortest prefix that has it.
struct BlockBest {
  u64 rate;
  int prefix;
};
__device__ __forceinline__ BlockBest block_best(const BestPrefix& own, u64 (&scratch)[kMaxWarps]) {
  const u64 rate = block_combine<Maximum>(own.rate, scratch);
  const u64 shortness = own.rate == rate ? 0x100000000ull - own.prefix : 0;
  return {rate, static_cast<int>(0x100000000ull - block_combine<Maximum>(shortness, scratch))};
}
