// Native twins of kernels/penalties.cu.
#include "penalties.cuh"

#include <algorithm>
#include <vector>

#include "exact.hpp"

namespace {

void penalise(const simt::NativeLaunch& launch, float* logits, const int* row_sequence,
              const PenaltyParams* params, const int* counts, const int* bias_tokens,
              const float* bias_values, const int* seq_start, const int* tokens, const int* parents,
              int vocab_size, int max_biases) {
  simt::parallel_for(launch.grid.x, [&](uint32_t row_idx) {
    const int sequence = row_sequence[row_idx];
    const PenaltyParams& p = params[sequence];
    if (changes_nothing(p)) return;
    float* row = logits + static_cast<int64_t>(row_idx) * vocab_size;
    const int* count = counts + static_cast<int64_t>(sequence) * vocab_size;
    const int root = seq_start[sequence];
    struct Step {
      int token;
      float logit;
    };
    std::vector<Step> path;
    for (int node = static_cast<int>(row_idx) - root; node > 0; node = parents[root + node])
      path.push_back({tokens[root + node], row[tokens[root + node]]});
    std::sort(path.begin(), path.end(), [](const Step& a, const Step& b) { return a.token < b.token; });
    for (int token = 0; token < vocab_size; ++token) row[token] = penalised(row[token], count[token], p);
    for (size_t i = 0; i < path.size();) {
      const Step step = path[i];
      int times = 0;
      for (; i < path.size() && path[i].token == step.token; ++i) ++times;
      row[step.token] = penalised(step.logit, count[step.token] + kOnceEmitted * times, p);
    }
    for (int i = 0; i < p.num_biases; ++i) {
      const int64_t at = static_cast<int64_t>(sequence) * max_biases + i;
      row[bias_tokens[at]] += bias_values[at];
    }
  });
}

void count(const simt::NativeLaunch&, const int* entries, int* counts, int num_entries, int vocab_size) {
  for (const int* entry = entries; entry != entries + 3 * num_entries; entry += 3) {
    int& own = counts[static_cast<int64_t>(entry[0]) * vocab_size + entry[1]];
    own = entry[2] != 0 ? own + kOnceEmitted : own | kInPrompt;
  }
}

}  // namespace

NATIVE_TWIN(penalise_f32, penalise)
NATIVE_TWIN(count_tokens, count)
