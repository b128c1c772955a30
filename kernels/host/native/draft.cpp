// Native twins of kernels/draft.cu.
#include <algorithm>

#include "digests.hpp"
#include "draft.cuh"
#include "exact.hpp"

namespace {

constexpr int kLanes = 16;
constexpr int kMaxTopK = 32;

// The best k candidates offered so far, best first. Indices must be offered in ascending order.
struct TopList {
  u64 held[kMaxTopK] = {};
  int k;

  // A logit that can enter is above this one, or any while the list has room.
  float worst(const float* values) const {
    return held[k - 1] != 0 && key_of(held[k - 1]) != 0 ? values[index_of(held[k - 1])] : -INFINITY;
  }
  void offer(u64 rank) {
    if (rank <= held[k - 1]) return;
    int place = k - 1;
    for (; place > 0 && held[place - 1] < rank; --place) held[place] = held[place - 1];
    held[place] = rank;
  }
};

VECTORISED_EXACT bool any_above(const float* values, float limit) {
  int found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= values[lane] > limit;
  return found != 0;
}

void offer_range(TopList& top, const float* values, int i, int end) {
  while (i < end) {
    const int chunk = std::min(kLanes, end - i);
    if (chunk < kLanes || any_above(values + i, top.worst(values)))
      for (int lane = 0; lane < chunk; ++lane) top.offer(rank_of(values[i + lane], i + lane));
    i += chunk;
  }
}

TopList best_of(const float* values, int count, int k, int index_offset = 0) {
  TopList top = {.k = k};
  int i = 0;
  for (; i < std::min(k, count); ++i) top.offer(rank_of(values[i], i));
  offer_range(top, values, i, count);
  for (int place = 0; place < std::min(k, count); ++place) top.held[place] -= static_cast<u64>(index_offset);
  return top;
}

// A row after the other.
void digest(const simt::NativeLaunch& launch, const float* logits, Digest* digests, int vocab_size) {
  simt::parallel_for(launch.grid.x, [&](uint32_t row_idx) {
    const float* row = logits + static_cast<int64_t>(row_idx) * vocab_size;
    Digest* const of_row = digests + static_cast<int64_t>(row_idx) * num_digests(vocab_size);
    for (int first = 0; first < vocab_size; first += kDigestLen)
      of_row[first / kDigestLen] =
          digest_of_slice(row + first, first, std::min(kDigestLen, vocab_size - first));
  });
}

void topk(const simt::NativeLaunch& launch, DraftTopkParams p) {
  const int num_slices = num_digests(p.vocab_size);
  simt::parallel_for(launch.grid.x, [&](uint32_t row_idx) {
    const float* row = p.logits + static_cast<int64_t>(row_idx) * p.vocab_size;
    const Digest* const digests = p.digests + static_cast<int64_t>(row_idx) * num_slices;
    TopList slices = {.k = p.k};
    for (int slice = 0; slice < num_slices; ++slice) slices.offer(digests[slice].best);
    const uint32_t key = key_of(slices.held[0]);
    const float max_logit = key != 0 ? value_of_key(key) : NAN;
    u64 mass = 0;
    for (int slice = 0; slice < num_slices; ++slice) {
      const uint32_t own = key_of(digests[slice].best);
      if (own == 0) continue;  // nothing possible
      mass +=
          mass_in_row(digests[slice].mass, portable_exp(relative_logit(value_of_key(own), max_logit, 1.0f)));
    }
    TopList top = {.k = p.k};
    for (int i = 0; i < std::min(p.k, num_slices); ++i) {
      const int first = index_of(slices.held[i]) / kDigestLen * kDigestLen;
      const int end = std::min(first + kDigestLen, p.vocab_size);
      // A logit that can enter is above the worst, or equal and before it.
      const float worst = top.worst(row);
      for (int id = first; id < end; ++id)
        if (!(row[id] < worst)) top.offer(rank_of(row[id], id));
    }
    for (int place = 0; place < p.k; ++place) {
      const int id = index_of(top.held[place]);
      write_child(p, static_cast<int>(launch.grid.x), static_cast<int>(row_idx), place, id,
                  log_softmax(row[id], max_logit, mass));
    }
  });
  if (p.posted != nullptr) store_release_system(p.flag, p.call[1]);
}

void beam(const simt::NativeLaunch& launch, const float* path_logp, const int* row_run, int* runs_used,
          FrontierRow* frontier, int rows_per_sequence, int k, int width) {
  const int num_candidates = rows_per_sequence * k;
  for (int sequence = 0; sequence < static_cast<int>(launch.grid.x); ++sequence) {
    const int first = sequence * num_candidates;
    const TopList top = best_of(path_logp + first, num_candidates, width, first);
    for (int place = 0; place < width; ++place) {
      const int candidate = index_of(top.held[place]);
      frontier[sequence * width + place] = {sequence, candidate, row_run[candidate / k],
                                            runs_used[sequence] + place};
    }
    runs_used[sequence] += width;
  }
}

void frontier(const simt::NativeLaunch&, DraftFrontierParams params) {
  std::copy_n(params.host_words, params.num_words, params.words);
  for (int row_idx = 0; row_idx < params.num_rows; ++row_idx) pack_frontier_row(params, row_idx);
}

}  // namespace

NATIVE_TWIN(draft_digest_f32, digest)
NATIVE_TWIN(draft_topk_f32, topk)
NATIVE_TWIN(draft_beam, beam)
NATIVE_TWIN(draft_frontier, frontier)
