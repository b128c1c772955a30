// WHAT  Data and arithmetic of the draft step that its kernels, their native twins and src/kernels/draft.rs
//       share. The words used here are explained at the head of draft.cu.
#pragma once

#include "digest.cuh"

constexpr int kMaxRuns = 256;  // runs of a sequence in a round
constexpr int kAncestorWords = kMaxRuns / 64;

constexpr int kLanesOfSlice = kDigestLen / 4;  // of a slice that is read by quads, one a lane

// The digest of a slice, each lane of which has four logits, those of ids from `first_id` on. The lanes of a warp call
// together, also those behind the last id.
template <typename Four>
__device__ __forceinline__ Digest digest_of_quads(const Four& four, int first_id, int vocab_size) {
  return digest_of_lanes<kLanesOfSlice>([&](auto&& use) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first_id + i < vocab_size) use(four.logit[i], first_id + i);
    }
  });
}

struct DraftTopkParams {
  const float* logits;       // [R, Vd]
  const Digest* digests;     // [R, ceil(Vd / 64)]
  const int* d2t;            // [Vd] offsets from draft to target ids; null: the ids are equal
  const float* parent_logp;  // [R] path_logp of the row's own node (0 for the root)
  const int* call;  // [2] index of the first candidate, what the flag becomes; null: 0, and nothing is posted
  int* tokens;      // [P] out, target ids; of a row the best first, as all of the following
  float* logp;      // [P] out
  float* path_logp;    // [P] out
  int* posted;         // [2, R, k] out, of the host: tokens, then the bits of logp; null: they stay here
  int* flag;           // [1] out, of the host; null without `posted`
  unsigned* arrivals;  // [1] inout, 0 between launches; null without `posted`
  int vocab_size;      // Vd
  int k;
};
static_assert(sizeof(DraftTopkParams) == 96, "layout shared with Rust");
POINTER_FIELDS(DraftTopkParams, &DraftTopkParams::logits, &DraftTopkParams::digests, &DraftTopkParams::d2t,
               &DraftTopkParams::parent_logp, &DraftTopkParams::call, &DraftTopkParams::tokens,
               &DraftTopkParams::logp, &DraftTopkParams::path_logp, &DraftTopkParams::posted,
               &DraftTopkParams::flag, &DraftTopkParams::arrivals)

// One candidate to be run in the next drafter pass.
struct FrontierRow {
  int sequence;    // -1: nothing is run, the row fills the pass up
  int candidate;   // flat index into the pool
  int parent_run;  // run of its parent; -1: the root
  int run;         // its own run
};
static_assert(sizeof(FrontierRow) == 16, "layout shared with Rust");

struct DraftFrontierParams {
  const uint32_t* host_words;   // [n] of the host; null without words
  uint32_t* words;              // [n] out: where the arrays that come from the host are to be
  const FrontierRow* frontier;  // [R]
  const int* pool_tokens;       // [P] target ids
  const float* pool_path_logp;  // [P]
  const int* first_position;    // [B] logical position of a child of the root in the drafter
  const int* prefix_len;        // [B] drafter K/V before the runs of this round
  const int* page_table;        // [B, max_pages]
  const int* root_feature_row;  // [B] row of the feature buffer with the root pair's hidden output
  const int* moves;             // [R, 2] row of the pass, row of the feature buffer for its hidden output
  u64* run_ancestors;           // [B, 256, 4] inout
  int* run_feature_row;         // [B, 256] inout
  int* tokens;                  // [R] out
  int* positions;               // [R] out
  int* slots;                   // [R] out
  u64* ancestors;               // [R, 4] out
  float* parent_logp;           // [R] out
  int* feature_row;             // [R] out
  int* row_run;                 // [R] out
  int num_rows;                 // R
  int max_pages;
  int page_size;
  int num_words;  // n
};
static_assert(sizeof(DraftFrontierParams) == 168, "layout shared with Rust");
POINTER_FIELDS(DraftFrontierParams, &DraftFrontierParams::host_words, &DraftFrontierParams::words,
               &DraftFrontierParams::frontier, &DraftFrontierParams::pool_tokens,
               &DraftFrontierParams::pool_path_logp, &DraftFrontierParams::first_position,
               &DraftFrontierParams::prefix_len, &DraftFrontierParams::page_table,
               &DraftFrontierParams::root_feature_row, &DraftFrontierParams::moves,
               &DraftFrontierParams::run_ancestors, &DraftFrontierParams::run_feature_row,
               &DraftFrontierParams::tokens, &DraftFrontierParams::positions, &DraftFrontierParams::slots,
               &DraftFrontierParams::ancestors, &DraftFrontierParams::parent_logp,
               &DraftFrontierParams::feature_row, &DraftFrontierParams::row_run)

// logp of a logit, given the greatest logit and the row's mass. -inf for NaN, -inf, and any token of an
// impossible row.
__device__ __forceinline__ float log_softmax(float logit, float max_logit, u64 mass) {
  constexpr float kMassStep = 9.094947017729282e-13f;  // 2^-40, one unit of mass
  const float relative = relative_logit(logit, max_logit, 1.0f);
  if (!(relative > -INFINITY)) return -INFINITY;
  return relative - portable_ln(static_cast<float>(mass) * kMassStep);
}

// The child of a row at `place`, with draft id `id`: to the pool, and to the host if it is to go there. `num_rows` have
// children.
__device__ __forceinline__ void write_child(const DraftTopkParams& p, int num_rows, int row_idx, int place,
                                            int id, float logp) {
  const int64_t slot = static_cast<int64_t>(row_idx) * p.k + place;
  const int64_t candidate = slot + (p.call == nullptr ? 0 : p.call[0]);
  const int token = p.d2t == nullptr ? id : id + p.d2t[id];
  p.tokens[candidate] = token;
  p.logp[candidate] = logp;
  p.path_logp[candidate] = p.parent_logp[row_idx] + logp;
  if (p.posted == nullptr) return;
  p.posted[slot] = token;
  p.posted[static_cast<int64_t>(num_rows) * p.k + slot] = static_cast<int>(__float_as_uint(logp));
}

// The inputs of one row of the next drafter pass: see draft_frontier in draft.cu.
__device__ __forceinline__ void pack_frontier_row(const DraftFrontierParams& p, int row_idx) {
  const FrontierRow row = p.frontier[row_idx];
  if (row.sequence < 0) {
    // Whatever is safe to read, and no place to write to.
    for (int word = 0; word < kAncestorWords; ++word) p.ancestors[row_idx * kAncestorWords + word] = 0;
    p.tokens[row_idx] = 0;
    p.positions[row_idx] = 0;
    p.slots[row_idx] = -1;
    p.parent_logp[row_idx] = 0.0f;
    p.feature_row[row_idx] = 0;
    p.row_run[row_idx] = -1;
    return;
  }
  const int own = row.sequence * kMaxRuns + row.run;
  const int parent = row.sequence * kMaxRuns + row.parent_run;
  const bool below_root = row.parent_run < 0;
  int depth = 0;
  for (int word = 0; word < kAncestorWords; ++word) {
    u64 runs = below_root ? 0 : p.run_ancestors[parent * kAncestorWords + word];
    depth += __popcll(runs);
    if (row.run / 64 == word) runs |= 1ull << (row.run % 64);
    p.run_ancestors[own * kAncestorWords + word] = runs;
    p.ancestors[row_idx * kAncestorWords + word] = runs;
  }
  const int kv_position = p.prefix_len[row.sequence] + row.run;
  const int page = p.page_table[row.sequence * p.max_pages + kv_position / p.page_size];
  p.tokens[row_idx] = p.pool_tokens[row.candidate];
  p.positions[row_idx] = p.first_position[row.sequence] + depth;
  p.slots[row_idx] = page * p.page_size + kv_position % p.page_size;
  p.parent_logp[row_idx] = p.pool_path_logp[row.candidate];
  p.feature_row[row_idx] = below_root ? p.root_feature_row[row.sequence] : p.run_feature_row[parent];
  p.run_feature_row[own] = p.moves[2 * row_idx + 1];
  p.row_run[row_idx] = row.run;
}
