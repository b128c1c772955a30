// WHAT      The drafter's steps between two passes: scores of the best children, choice of the next beam, and
//           the inputs of the next pass, all on the device.
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
// ---- draft_topk_f32
// MATH      the k greatest logits, ties to the smaller draft id;  token = id + d2t[id]
//           logp_i = (logit_i - max) - ln sum_j exp(logit_j - max);  path_logp = parent_logp + logp
//           The sum is that of slices of 4096 logits, each relative to its own greatest until all are known.
// SHAPES    logits       f32 [R, Vd]  in
//           d2t          i32 [Vd]     in   offsets from draft to target ids; null: the ids are equal
//           parent_logp  f32 [R]      in   path_logp of the row's own node (0 for the root)
//           tokens       i32 [R, k]   out  target ids, best first
//           logp         f32 [R, k]   out
//           path_logp    f32 [R, k]   out
//           lists        u64 [R, slices, k + 1]  scratch  the best k of every slice and its mass
//           tickets      u32 [R]      inout  0 between launches;  of one slice: both null
// LAUNCH    grid (R, slices = ceil(Vd / 4096)), block any multiple of 32 up to 512, no smaller than slices. A CTA
//           reads its slice twice, from memory once; the last one of a row puts the slices together.
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
// MATH      {b, c, parent, run} = frontier[r];  p = prefix_len[b] + run
//           above          = parent < 0 ? {} : run_ancestors[b][parent]
//           ancestors[r]   = run_ancestors[b][run] = above + {run}
//           tokens[r]      = pool_tokens[c];  parent_logp[r] = pool_path_logp[c]
//           positions[r]   = first_position[b] + |above|
//           slots[r]       = page_table[b][p / page_size] * page_size + p % page_size
//           feature_row[r] = parent < 0 ? root_feature_row[b] : run_feature_row[b][parent]
//           run_feature_row[b][run] = moves[r, 1];  row_run[r] = run
//           b = -1: a row that fills the pass up: token, position and feature_row 0, slot -1, no ancestors, run -1
// SHAPES    as in DraftFrontierParams
// LAUNCH    grid ceil(R / block), block any: a thread a row
// REQUIRES  the parents' runs belong to earlier passes; runs of a sequence ascend
//
// TWINS     src/kernels/draft.rs, src/reference/draft.rs, host/native/draft.cpp, tests/kernels/draft.rs
// SOURCE    beam: Li, Wei, Zhang, Zhang: EAGLE-2 (2024)
#include "draft.cuh"
#include "last_block.cuh"
#include "ranking.cuh"

constexpr int kMaxTopKBlock = 512;

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

// The greatest logit; NaN, relative to which nothing has mass, if there is no possible token.
__device__ __forceinline__ float logit_of(const float* __restrict__ row, u64 best) {
  return key_of(best) != 0 ? row[index_of(best)] : NAN;
}

extern "C" __global__ void __launch_bounds__(kMaxTopKBlock)
    draft_topk_f32(const float* __restrict__ logits, const int* __restrict__ d2t,
                   const float* __restrict__ parent_logp, int* __restrict__ tokens, float* __restrict__ logp,
                   float* __restrict__ path_logp, u64* lists, unsigned* tickets, int vocab_size, int k) {
  SHARED(u64[kMaxWarps], reduction);
  SHARED(u64[kMaxTopKBlock], shared_ranks);
  SHARED(int, is_last);
  take_turn();
  const int row_idx = blockIdx.x, slice = blockIdx.y, num_slices = gridDim.y;
  const float* row = logits + static_cast<int64_t>(row_idx) * vocab_size;
  auto write_child = [&](int place, u64 rank, float max_logit, u64 mass) {
    const int id = index_of(rank);
    const float score = log_softmax(row[id], max_logit, mass);
    const int64_t slot = static_cast<int64_t>(row_idx) * k + place;
    tokens[slot] = d2t == nullptr ? id : id + d2t[id];
    logp[slot] = score;
    path_logp[slot] = parent_logp[row_idx] + score;
  };

  // Every warp keeps the best k of what it sees of the slice.
  const QuadRange range = quads_of_slice(slice, vocab_size);
  const int end_id = 4 * range.end < vocab_size ? 4 * range.end : vocab_size;
  WarpTop top;
  for_each_batch(row, vocab_size, range, [&](int quad, int stride, const Quad(&quads)[kInFlight]) {
    u64 candidates[4 * kInFlight];
#pragma unroll
    for (int i = 0; i < 4 * kInFlight; ++i) {
      const int id = 4 * (quad + i / 4 * stride) + i % 4;
      candidates[i] = id < end_id ? rank_of(quads[i / 4].logit[i % 4], id) : 0;
    }
    top.offer(candidates, k);
  });
  const Finalists finalists(shared_ranks, top, k, reduction);
  const float slice_max = logit_of(row, finalists.best);
  u64 mass = 0;
  for_each_quad(row, vocab_size, range, [&](int, const Quad& four) {
    for (float logit : four.logit) mass += mass_of(portable_exp(relative_logit(logit, slice_max, 1.0f)));
  });
  mass = block_combine<Sum>(mass, reduction);
  if (num_slices == 1) {
    finalists.for_each_winner(k, [&](int place, u64 rank) { write_child(place, rank, slice_max, mass); });
    return;
  }

  u64* row_lists = lists + static_cast<int64_t>(row_idx) * num_slices * (k + 1);
  u64* list = row_lists + slice * (k + 1);
  finalists.for_each_winner(k, [&](int place, u64 rank) { list[place] = rank; });
  const int num_tokens = end_id - 4 * range.first;
  if (static_cast<int>(threadIdx.x) >= num_tokens && threadIdx.x < k) list[threadIdx.x] = 0;
  if (threadIdx.x == 0) list[k] = mass;
  if (!is_last_block(tickets + row_idx, num_slices, is_last)) return;

  // A thread a slice, and all of them over the slices' best.
  u64 slice_best = 0, slice_mass = 0;
  if (static_cast<int>(threadIdx.x) < num_slices) {
    slice_best = load_fresh(row_lists + threadIdx.x * (k + 1));
    slice_mass = load_fresh(row_lists + threadIdx.x * (k + 1) + k);
  }
  WarpTop row_top;
  for (int first = warp_index() * kWarp; first < num_slices * k; first += blockDim.x) {
    const int i = first + lane_index();
    u64 candidate[1] = {i < num_slices * k ? load_fresh(row_lists + i / k * (k + 1) + i % k) : 0};
    row_top.offer(candidate, k);
  }
  const Finalists row_finalists(shared_ranks, row_top, k, reduction);
  const float max_logit = logit_of(row, row_finalists.best);
  u64 row_mass = 0;
  if (key_of(slice_best) != 0) {
    const float relative = relative_logit(row[index_of(slice_best)], max_logit, 1.0f);
    row_mass = mass_in_row(slice_mass, portable_exp(relative));
  }
  row_mass = block_combine<Sum>(row_mass, reduction);
  row_finalists.for_each_winner(k,
                                [&](int place, u64 rank) { write_child(place, rank, max_logit, row_mass); });
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

extern "C" __global__ void __launch_bounds__(256)
    draft_frontier(const __grid_constant__ DraftFrontierParams params) {
  take_turn();
  const int row_idx = blockIdx.x * blockDim.x + threadIdx.x;
  if (row_idx < params.num_rows) pack_frontier_row(params, row_idx);
}
EXPORT_KERNEL(draft_frontier)
