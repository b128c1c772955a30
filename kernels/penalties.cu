// WHAT      What repeated tokens cost, and biases of single tokens, before anything is drawn; and the counts that this goes by.
//
// ---- penalise_f32
// MATH      at a node of a draft tree, with n_i = how often token i was emitted, drafted ancestors and the node itself included, and
//           seen_i = n_i > 0 or i is in the prompt:
//             l = logit_i;  if seen_i: l = l > 0 ? l / repetition : l * repetition
//             if n_i > 0: l = l - frequency * n_i - presence
//             logit_i = l + bias_i
// SHAPES    logits        f32 [T, V]           inout  one row a node
//           row_sequence  i32 [T]              in     row of `params`, `counts` and the biases
//           params        PenaltyParams [S]    in
//           counts        i32 [S, V]           in     counts of the committed text, the root included; see penalties.cuh
//           bias_tokens   i32 [S, M]           in     the first num_biases count, each token once
//           bias_values   f32 [S, M]           in
//           seq_start     i32 [B + 1]          in     sequence b owns nodes seq_start[b] .. seq_start[b + 1]
//           tokens        i32 [T]              in     of the nodes
//           parents       i32 [T]              in     parent's index within the sequence; -1 for the root
// LAUNCH    grid T, block any multiple of 32 up to 1024: one CTA a row. One that changes nothing reads its params and ends; others
//           read V counts and touch the logits of tokens that have one.
// REQUIRES  parents before children; 1..256 nodes a sequence; row_sequence < B <= S
// NUMERICS  f32, every operation rounded: the same bits on every machine
//
// ---- count_tokens
// MATH      counts[slot, token] |= 1 (prompt) or += 2 (emitted)
// SHAPES    entries  i32 [n, 3]   in     (slot, token, 0: prompt, 1: emitted); an entry may come again
//           counts   i32 [S, V]   inout
// LAUNCH    grid ceil(n / 256), block 256: a thread an entry
// REQUIRES  slot < S, token < V
//
// TWINS     src/kernels/penalties.rs, src/reference/penalties.rs, host/native/penalties.cpp, tests/kernels/penalties.rs
// SOURCE    repetition: Keskar et al., CTRL (arXiv 1909.05858), section 4.1; presence and frequency: the API of OpenAI
#include "penalties.cuh"

constexpr int kMaxNodes = 256;

extern "C" __global__ void __launch_bounds__(1024)
    penalise_f32(float* __restrict__ logits, const int* __restrict__ row_sequence,
                 const PenaltyParams* __restrict__ params, const int* __restrict__ counts,
                 const int* __restrict__ bias_tokens, const float* __restrict__ bias_values,
                 const int* __restrict__ seq_start, const int* __restrict__ tokens,
                 const int* __restrict__ parents, int vocab_size, int max_biases) {
  SHARED(int[kMaxNodes], path);          // tokens from the node up to the root's child
  SHARED(float[kMaxNodes], path_logit);  // their logits as they came
  SHARED(int[1], shared_len);
  const int row_idx = blockIdx.x;
  const int sequence = row_sequence[row_idx];
  const PenaltyParams p = params[sequence];
  if (changes_nothing(p)) return;  // the whole block

  float* row = logits + static_cast<int64_t>(row_idx) * vocab_size;
  const int* count = counts + static_cast<int64_t>(sequence) * vocab_size;
  const int root = seq_start[sequence];
  if (threadIdx.x == 0) {
    int len = 0;
    for (int node = row_idx - root; node > 0 && len < kMaxNodes; node = parents[root + node])
      path[len++] = tokens[root + node];
    shared_len[0] = len;
  }
  __syncthreads();
  const int len = shared_len[0];
  for (int i = threadIdx.x; i < len; i += blockDim.x) path_logit[i] = row[path[i]];
  __syncthreads();

  for (int token = threadIdx.x; token < vocab_size; token += blockDim.x) {
    const int n = count[token];
    if (n != 0) row[token] = penalised(row[token], n, p);
  }
  __syncthreads();
  // Tokens of the path once more, from the logits as they came, with what the path adds to their counts.
  for (int i = threadIdx.x; i < len; i += blockDim.x) {
    bool is_first = true;
    int times = 0;
    for (int other = 0; other < len; ++other) {
      if (path[other] != path[i]) continue;
      is_first &= other >= i;
      ++times;
    }
    if (is_first) row[path[i]] = penalised(path_logit[i], count[path[i]] + kOnceEmitted * times, p);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < p.num_biases; i += blockDim.x) {
    const int64_t at = static_cast<int64_t>(sequence) * max_biases + i;
    row[bias_tokens[at]] += bias_values[at];
  }
}
EXPORT_KERNEL(penalise_f32)

extern "C" __global__ void __launch_bounds__(256)
    count_tokens(const int* __restrict__ entries, int* __restrict__ counts, int num_entries, int vocab_size) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= num_entries) return;
  const int* entry = entries + 3 * i;
  int* count = counts + static_cast<int64_t>(entry[0]) * vocab_size + entry[1];
  if (entry[2] != 0)
    atomicAdd(count, kOnceEmitted);
  else
    atomicOr(count, kInPrompt);
}
EXPORT_KERNEL(count_tokens)
