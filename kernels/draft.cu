// WHAT      The drafter's steps between two passes: scores of the best children, choice of the next beam, and
//           the inputs of the next pass, all on the device; and the best children on their way to the host.
//
// DATA      A *candidate* is a child that draft_topk proposed. Its flat index c = row * k + rank counts
//           through the rows of one draft_topk output, or of several written one behind the other (the pool):
//           c / k is the row of its parent.
//           A candidate that is itself put through the drafter becomes a *run* of its sequence: run j (from 0
//           to 255, in order) of the round has its K/V at drafter position prefix_len + j. What its children
//           need of a run is kept by (sequence, run): run_ancestors (the runs it sees) and run_feature_row
//           (where its hidden output is). The root's own pair is the last of the prefix, so it has no run:
//           parent_run = -1 names it.
//           The *frontier* lists the candidates to run next, one FrontierRow each. draft_beam writes it, or
//           the host.
//
// ---- draft_digest_f32
// MATH      digests[r, s] of logits 64 s to 64 s + 63 of row r, as digest.cuh says. Heads leave them behind their
//           logits (linear.cu); this is for logits that come from elsewhere or have changed.
// SHAPES    logits       f32 [R, Vd]  in
//           digests      Digest [R, ceil(Vd / 64)]  out
// LAUNCH    grid (R, ceil(digests of a row / slices of a block)), block any multiple of 32: 16 threads a slice
// NUMERICS  as digest.cuh says: the same bits as a head's
//
// ---- draft_topk_f32
// MATH      the k greatest logits, ties to the smaller draft id;  token = id + d2t[id]
//           logp_i = (logit_i - max) - ln sum_j exp(logit_j - max);  path_logp = parent_logp + logp
//           The sum is that of the masses of digests. The k greatest logits are in the k slices with the greatest
//           best ones, so no others are read.
//           With `call`, children of row r become candidates call[0] + r * k + rank. With `posted` they go into the
//           host's memory, too, and when all of them are there flag = call[1].
// SHAPES    as in DraftTopkParams
// LAUNCH    grid R, block any multiple of 32 up to 256
// REQUIRES  1 <= k <= 32, k <= Vd < 2^18
// NUMERICS  f32; masses are integers (units of 2^-40 of the slice's greatest term), rounded down where they are
//           made relative to the row's: the same bits for any block size. NaN and -inf sort last, with logp =
//           -inf; ids stay below Vd whatever the row holds.
//
// ---- draft_beam
// MATH      frontier[b * width + w] = {b, c, row_run[c / k], runs_used[b] + w}, c the w-th best candidate of
//           sequence b by (path_logp descending, c ascending)
// SHAPES    path_logp  f32 [B * rows_per_sequence, k]  in   sequence b owns rows b * rows_per_sequence ..
//           row_run    i32 [B * rows_per_sequence]     in   run of each row; -1: the root
//           runs_used  i32 [B]                         inout  runs of the round so far; grows by width
//           frontier   FrontierRow [B, width]          out
// LAUNCH    grid B, block 32
// REQUIRES  1 <= width <= min(32, rows_per_sequence * k)
//
// ---- draft_frontier
// MATH      words[i] = host_words[i], as fetch_words would: frontier, moves and what else the host says may lie there.
//           Then {b, c, parent, run} = frontier[r];  p = prefix_len[b] + run
//           above          = parent < 0 ? {} : run_ancestors[b][parent]
//           ancestors[r]   = run_ancestors[b][run] = above + {run}
//           tokens[r]      = pool_tokens[c];  parent_logp[r] = pool_path_logp[c]
//           positions[r]   = first_position[b] + |above|
//           slots[r]       = page_table[b][p / page_size] * page_size + p % page_size
//           feature_row[r] = parent < 0 ? root_feature_row[b] : run_feature_row[b][parent]
//           run_feature_row[b][run] = moves[r, 1];  row_run[r] = run
//           b = -1: a row that fills the pass up: token, position and feature_row 0, slot -1, no ancestors, run -1
// SHAPES    as in DraftFrontierParams
// LAUNCH    grid any, one with words: all of them come before the first row; block any: a thread a row
// REQUIRES  the parents' runs belong to earlier passes; runs of a sequence ascend
//
// TWINS     src/kernels/draft.rs, src/reference/draft.rs, host/native/draft.cpp, tests/kernels/draft.rs
// SOURCE    beam: Li, Wei, Zhang, Zhang: EAGLE-2 (2024)
#include "draft.cuh"
#include "host_words.cuh"
#include "last_block.cuh"
#include "ranking.cuh"

constexpr int kMaxTopKBlock = 256;

// What the warps of a block have found: their best k each, in shared memory.
struct Finalists {
  u64 (&ranks)[kMaxTopKBlock];
  int count;
  u64 best;  // of all

  // Every warp brings its own.
  __device__ Finalists(u64 (&shared)[kMaxTopKBlock], const WarpTop& top, int k, u64 (&reduction)[kMaxWarps])
      : ranks(shared), count(num_warps() * k) {
    if (lane_index() < k) ranks[warp_index() * k + lane_index()] = top.held;
    best = block_combine<Maximum>(top.held, reduction);  // its barriers publish the finalists
  }

  // use(place, rank) for the best k, which the threads of the block share.
  template <typename Use>
  __device__ void for_each_winner(int k, Use&& use) const {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const u64 rank = ranks[i];
      int place = 0;
      for (int other = 0; other < count; ++other) place += ranks[other] > rank;
      if (rank != 0 && place < k) use(place, rank);
    }
  }
};

extern "C" __global__ void __launch_bounds__(256)
    draft_digest_f32(const float* __restrict__ logits, Digest* __restrict__ digests, int vocab_size) {
  take_turn();
  const float* row = logits + static_cast<int64_t>(blockIdx.x) * vocab_size;
  const int num_slices = num_digests(vocab_size);
  const int slice = (blockIdx.y * blockDim.x + threadIdx.x) / kLanesOfSlice;
  const int quad = slice * kLanesOfSlice + lane_index() % kLanesOfSlice, first_id = 4 * quad;
  const Quad four = first_id < vocab_size ? load_quad(row, quad, vocab_size) : Quad{};
  const Digest digest = digest_of_quads(four, first_id, vocab_size);
  if (slice < num_slices && lane_index() % kLanesOfSlice == 0)
    digests[static_cast<int64_t>(blockIdx.x) * num_slices + slice] = digest;
}
EXPORT_KERNEL(draft_digest_f32)

// One block a multiprocessor is asked for: left to itself, ptxas wants more, and spills.
extern "C" __global__ void __launch_bounds__(kMaxTopKBlock, 1)
    draft_topk_f32(const __grid_constant__ DraftTopkParams params) {
  SHARED(u64[kMaxWarps], reduction);
  SHARED(u64[kMaxTopKBlock], shared_ranks);
  SHARED(int[kWarp], best_slices);
  SHARED(int, is_last);
  take_turn();
  const int row_idx = blockIdx.x, k = params.k, vocab_size = params.vocab_size;
  const int num_slices = num_digests(vocab_size);
  const Digest* digests = params.digests + static_cast<int64_t>(row_idx) * num_slices;

  // The slices with the best tokens.
  WarpTop slice_top;
  for (int first = warp_index() * kWarp; first < num_slices; first += kInFlight * blockDim.x) {
    u64 candidates[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int slice = first + i * blockDim.x + lane_index();
      candidates[i] = slice < num_slices ? digests[slice].best : 0;
    }
    slice_top.offer(candidates, k);
  }
  const Finalists slices(shared_ranks, slice_top, k, reduction);
  // NaN, relative to which nothing has mass, if there is no possible token.
  const float max_logit = key_of(slices.best) != 0 ? value_of_key(key_of(slices.best)) : NAN;
  slices.for_each_winner(k, [&](int place, u64 best) { best_slices[place] = index_of(best) / kDigestLen; });
  u64 mass = 0;
  for (int slice = threadIdx.x; slice < num_slices; slice += blockDim.x) {
    const Digest digest = digests[slice];
    if (key_of(digest.best) == 0) continue;
    const float relative = relative_logit(value_of_key(key_of(digest.best)), max_logit, 1.0f);
    mass += mass_in_row(digest.mass, portable_exp(relative));
  }
  mass = block_combine<Sum>(mass, reduction);  // its barriers publish the slices

  // The best tokens of these.
  const float* row = params.logits + static_cast<int64_t>(row_idx) * vocab_size;
  const int num_quads = (num_slices < k ? num_slices : k) * kLanesOfSlice;
  WarpTop top;
  for (int first = warp_index() * kWarp; first < num_quads; first += blockDim.x) {
    const int i = first + lane_index();
    u64 candidates[4] = {};
    if (i < num_quads) {
      const int quad = best_slices[i / kLanesOfSlice] * kLanesOfSlice + i % kLanesOfSlice;
      const Quad four = 4 * quad < vocab_size ? load_quad(row, quad, vocab_size) : Quad{};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (4 * quad + j < vocab_size) candidates[j] = rank_of(four.logit[j], 4 * quad + j);
      }
    }
    top.offer(candidates, k);
  }
  const Finalists children(shared_ranks, top, k, reduction);
  children.for_each_winner(k, [&](int place, u64 rank) {
    const int id = index_of(rank);
    write_child(params, gridDim.x, row_idx, place, id, log_softmax(row[id], max_logit, mass));
  });
  if (params.posted == nullptr || !is_last_block(params.arrivals, gridDim.x, is_last)) return;
  // All blocks' words are there for whoever sees this one.
  if (threadIdx.x == 0) store_release_system(params.flag, params.call[1]);
}
EXPORT_KERNEL(draft_topk_f32)

extern "C" __global__ void __launch_bounds__(kWarp)
    draft_beam(const float* __restrict__ path_logp, const int* __restrict__ row_run,
               int* __restrict__ runs_used, FrontierRow* __restrict__ frontier, int rows_per_sequence, int k,
               int width) {
  take_turn();
  const int sequence = blockIdx.x;
  const int num_candidates = rows_per_sequence * k;
  const int first_candidate = sequence * num_candidates;
  WarpTop top;
  for (int first = 0; first < num_candidates; first += kWarp) {
    const int i = first + lane_index();
    u64 candidate[1] = {i < num_candidates ? rank_of(path_logp[first_candidate + i], first_candidate + i)
                                           : 0};
    top.offer(candidate, width);
  }
  const int first_run = runs_used[sequence];
  if (lane_index() < width) {
    const int candidate = index_of(top.held);
    frontier[sequence * width + lane_index()] = {sequence, candidate, row_run[candidate / k],
                                                 first_run + lane_index()};
  }
  __syncwarp();  // every lane has read the count
  if (lane_index() == 0) runs_used[sequence] = first_run + width;
}
EXPORT_KERNEL(draft_beam)

extern "C" __global__ void __launch_bounds__(1024)
    draft_frontier(const __grid_constant__ DraftFrontierParams params) {
  take_turn();
  copy_words(params.host_words, params.words, params.num_words);
  __syncthreads();
  const int stride = gridDim.x * blockDim.x;
  for (int row_idx = blockIdx.x * blockDim.x + threadIdx.x; row_idx < params.num_rows; row_idx += stride) {
    pack_frontier_row(params, row_idx);
  }
}
EXPORT_KERNEL(draft_frontier)
