// Native twins of kernels/draft.cu.
#include <algorithm>

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

VECTORISED_EXACT float greatest_of(const float* values, int count) {
  constexpr int kWide = 4 * kLanes;  // comparisons that do not wait for each other
  float lanes[kWide];
  for (float& lane : lanes) lane = -INFINITY;
  int i = 0;
  for (; i + kWide <= count; i += kWide)
    for (int lane = 0; lane < kWide; ++lane)
      lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
  for (; i < count; ++i) lanes[0] = values[i] > lanes[0] ? values[i] : lanes[0];
  float greatest = -INFINITY;
  for (float lane : lanes) greatest = lane > greatest ? lane : greatest;
  return greatest;
}

// The sum of mass_of() over the weights of a slice, in two 20-bit digits: vectors convert floats to 32-bit
// integers only.
VECTORISED_EXACT u64 mass_of_slice(const float* slice, int count, float max_logit) {
  constexpr float kDigit = 1048576.0f;  // 2^20; kMassUnit is its square
  u64 high_total = 0, low_total = 0;
  for (int i = 0; i < count; ++i) {
    const float scaled = portable_exp(relative_logit(slice[i], max_logit, 1.0f)) * kDigit;
    const int high = static_cast<int>(scaled);
    const int low = static_cast<int>((scaled - static_cast<float>(high)) * kDigit);
    high_total += static_cast<uint32_t>(high);
    low_total += static_cast<uint32_t>(low);
  }
  return (high_total << 20) + low_total;
}

constexpr int kMaxSlices = (1 << 18) / kSliceLen;

// The children and the mass of a row.
struct RowTop {
  TopList top;
  float max_logit;  // NaN if nothing is possible
  u64 mass = 0;

  RowTop(const float* row, int vocab_size, int k) : top(best_of(row, std::min(kSliceLen, vocab_size), k)) {
    float greatest[kMaxSlices];
    const int num_slices = (vocab_size + kSliceLen - 1) / kSliceLen;
    const auto slice_len = [&](int slice) { return std::min(kSliceLen, vocab_size - slice * kSliceLen); };
    greatest[0] = key_of(top.held[0]) != 0 ? row[index_of(top.held[0])] : -INFINITY;
    for (int slice = 1; slice < num_slices; ++slice) {
      const int first = slice * kSliceLen, end = first + slice_len(slice);
      greatest[slice] = greatest_of(row + first, end - first);
      if (greatest[slice] > top.worst(row)) offer_range(top, row, first, end);
    }
    max_logit = key_of(top.held[0]) != 0 ? row[index_of(top.held[0])] : NAN;
    for (int slice = 0; slice < num_slices; ++slice) {
      if (greatest[slice] == -INFINITY) continue;  // nothing possible
      const u64 own = mass_of_slice(row + slice * kSliceLen, slice_len(slice), greatest[slice]);
      mass += mass_in_row(own, portable_exp(relative_logit(greatest[slice], max_logit, 1.0f)));
    }
  }
};

// A row after the other, whatever the slices: nothing is left to be put together.
void topk(const simt::NativeLaunch& launch, const float* logits, const int* d2t, const float* parent_logp,
          int* tokens, float* logp, float* path_logp, u64*, unsigned*, int vocab_size, int k) {
  simt::parallel_for(launch.grid.x, [&](uint32_t row_idx) {
    const float* row = logits + static_cast<int64_t>(row_idx) * vocab_size;
    const RowTop found(row, vocab_size, k);
    for (int place = 0; place < k; ++place) {
      const int id = index_of(found.top.held[place]);
      const float score = log_softmax(row[id], found.max_logit, found.mass);
      const int64_t slot = static_cast<int64_t>(row_idx) * k + place;
      tokens[slot] = d2t == nullptr ? id : id + d2t[id];
      logp[slot] = score;
      path_logp[slot] = parent_logp[row_idx] + score;
    }
  });
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
  for (int row_idx = 0; row_idx < params.num_rows; ++row_idx) pack_frontier_row(params, row_idx);
}

}  // namespace

NATIVE_TWIN(draft_topk_f32, topk)
NATIVE_TWIN(draft_beam, beam)
NATIVE_TWIN(draft_frontier, frontier)
