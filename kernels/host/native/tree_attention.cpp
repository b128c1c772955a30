// Native twins of kernels/tree_attention*.cu, whatever instructions those multiply with: attention on the CPU.
//
// A task is (row, kv head, up to four of its q heads). The keys that the row sees are listed in logical order
// once; from there on the task knows nothing of prefix, tree or pages, so the bits of a row depend on its
// query and its logical keys alone. Scores come 16 at a time from vertical sums and one transposing
// reduction; softmax and P*V run over them in vectors of 16. The units and the combining kernel of the GPU
// are not needed: the attention twin finishes its rows.
#include <algorithm>
#include <vector>

#include "../native.hpp"
#include "rows.hpp"
#include "tree_attention.cuh"

#pragma GCC diagnostic ignored "-Wpsabi"  // 64-byte vectors never cross a call that is not inlined

namespace {

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

// One instantiation a dtype, head size and number of heads, cloned for the vector widths of x86-64. Products
// may be fused into sums: the compiler does so in the same places for every row.
#define ATTENTION_KERNEL                                                              \
  static __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), \
                        optimize("O3", "no-math-errno", "fp-contract=fast")))

ROW_BODY Lanes load_lanes(const float* source) {
  Lanes v;
  memcpy(&v, source, sizeof v);
  return v;
}
ROW_BODY Lanes load_lanes(const bf16* source) {
  Halves halves;
  memcpy(&halves, source, sizeof halves);
  return (Lanes)(__builtin_convertvector(halves, Bits) << 16);
}
// As __half2float: the exponent is rebased by a multiplication, which normalises subnormals.
ROW_BODY Lanes load_lanes(const f16* source) {
  Halves halves;
  memcpy(&halves, source, sizeof halves);
  const Bits bits = __builtin_convertvector(halves, Bits);
  const Bits magnitude = (bits & 0x7fff) << 13;
  const Bits scaled = (Bits)((Lanes)magnitude * 0x1p112f);
  const Bits is_special = (Bits)(magnitude >= (0x7c00u << 13));
  return (Lanes)((is_special & (magnitude | 0x7f800000)) | (~is_special & scaled) | (bits & 0x8000) << 16);
}

// Sums of the lanes of 16 vectors: lane i of the result is the sum of vectors[i].
ROW_BODY Lanes sum_each(const Lanes (&vectors)[16]) {
  // Each level halves the vectors and the lanes of a sum; sums come out in bit-reversed order.
  constexpr int kReversed[16] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
  Lanes a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) {
    const Lanes x = vectors[kReversed[i]], y = vectors[kReversed[i + 8]];
    a[i] = __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; ++i) {
    b[i] =
        __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
        __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; ++i) {
    c[i] =
        __builtin_shufflevector(b[i], b[i + 2], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
        __builtin_shufflevector(b[i], b[i + 2], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  }
  return __builtin_shufflevector(c[0], c[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(c[0], c[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

ROW_BODY float sum_lanes(Lanes v) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  }
  return v[0];
}

ROW_BODY Lanes select(Bits mask, Lanes where_set, Lanes elsewhere) {
  return (Lanes)((mask & (Bits)where_set) | (~mask & (Bits)elsewhere));
}

// 2^x for x <= 0, 0 below 2^-126: x = n + r with |r| <= 1/2, a Taylor polynomial in r ln 2 (next term 2^-23),
// 2^n by bits.
ROW_BODY Lanes exp2_lanes(Lanes x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low mantissa bits
  const Bits is_normal = (Bits)(x >= -126.0f);
  x = select(is_normal, x, Lanes{} - 126.0f);
  const Lanes shifted = x + kRound;
  const Lanes r = (x - (shifted - kRound)) * 0.693147181f;
  Lanes p = r * (1.0f / 720) + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Lanes power = (Lanes)(((Bits)shifted + 127) << 23);
  return select(is_normal, p * power, Lanes{});
}

// What a task reads and writes.
template <class T>
struct Task {
  const T* q;        // [heads, head_dim]
  const T* k_cache;  // of the kv head: rows at key_offsets
  const T* v_cache;
  const int64_t* key_offsets;  // [num_keys], in elements
  int num_keys;
  float scale_log2;
  float* weights;  // scratch [heads, num_keys rounded up to 16]
  T* out;          // [heads, head_dim]
};

template <class T, int kHeadDim, int kHeads>
ROW_BODY void attend(const Task<T>& task) {
  constexpr int kKeys = 16 / kHeads;  // of a block of scores
  constexpr int kColumns = kHeadDim / kLanes;
  const int stride = (task.num_keys + 15) / 16 * 16;

  Lanes q[kHeads][kColumns];
  for (int h = 0; h < kHeads; ++h) {
    for (int c = 0; c < kColumns; ++c)
      q[h][c] = load_lanes(task.q + h * kHeadDim + c * kLanes) * task.scale_log2;
  }

  // scores; positions behind the last key repeat it and are overwritten below
  for (int first = 0; first < task.num_keys; first += kKeys) {
    Lanes dots[16];
    for (int i = 0; i < kKeys; ++i) {
      const T* key = task.k_cache + task.key_offsets[std::min(first + i, task.num_keys - 1)];
      for (int h = 0; h < kHeads; ++h) dots[h * kKeys + i] = Lanes{};
      for (int c = 0; c < kColumns; ++c) {
        const Lanes k = load_lanes(key + c * kLanes);
        for (int h = 0; h < kHeads; ++h) dots[h * kKeys + i] += q[h][c] * k;
      }
    }
    const Lanes sums = sum_each(dots);
    for (int h = 0; h < kHeads; ++h) {
      memcpy(task.weights + h * stride + first, reinterpret_cast<const float*>(&sums) + h * kKeys, kKeys * 4);
    }
  }

  // softmax
  float sums[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    float* weights = task.weights + h * stride;
    std::fill(weights + task.num_keys, weights + stride, -std::numeric_limits<float>::infinity());
    Lanes max = load_lanes(weights);
    for (int i = kLanes; i < stride; i += kLanes) {
      const Lanes score = load_lanes(weights + i);
      max = select((Bits)(score > max), score, max);
    }
    float row_max = max[0];
    for (int i = 1; i < kLanes; ++i) row_max = max[i] > row_max ? max[i] : row_max;
    Lanes sum = {};
    for (int i = 0; i < stride; i += kLanes) {
      const Lanes weight = exp2_lanes(load_lanes(weights + i) - row_max);
      memcpy(weights + i, &weight, sizeof weight);
      sum += weight;
    }
    sums[h] = sum_lanes(sum);
  }

  // P*V, keys in order, 32 columns at a time in registers
  for (int column = 0; column < kHeadDim; column += 2 * kLanes) {
    Lanes acc[kHeads][2] = {};
    for (int i = 0; i < task.num_keys; ++i) {
      const T* value = task.v_cache + task.key_offsets[i] + column;
      const Lanes v0 = load_lanes(value), v1 = load_lanes(value + kLanes);
      for (int h = 0; h < kHeads; ++h) {
        const float weight = task.weights[h * stride + i];
        acc[h][0] += weight * v0;
        acc[h][1] += weight * v1;
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      const float scale = 1.0f / sums[h];
      T* out = task.out + h * kHeadDim + column;
      for (int i = 0; i < kLanes; ++i) {
        out[i] = narrow<T>(acc[h][0][i] * scale);
        out[i + kLanes] = narrow<T>(acc[h][1][i] * scale);
      }
    }
  }
}

#define ATTEND(name, T, D, heads)                              \
  ATTENTION_KERNEL void name##_h##heads(const Task<T>& task) { \
    attend<T, D, heads>(task);                                 \
  }

// The routines of a dtype and head size for 1, 2 and 4 heads.
template <class T, int kHeadDim>
struct Routines;
#define ROUTINES(name, T, D)                          \
  ATTEND(name, T, D, 1)                               \
  ATTEND(name, T, D, 2)                               \
  ATTEND(name, T, D, 4)                               \
  template <>                                         \
  struct Routines<T, D> {                             \
    static void run(const Task<T>& task, int heads) { \
      if (heads == 4)                                 \
        name##_h4(task);                              \
      else if (heads == 2)                            \
        name##_h2(task);                              \
      else                                            \
        name##_h1(task);                              \
    }                                                 \
  };

// KV positions of the keys that a row sees, in logical order, as element offsets into one head of the cache: of
// the prefix and the row's path those that its window reaches.
void list_keys(const TreeAttentionParams& p, int seq_idx, int row, int head_dim,
               std::vector<int64_t>& offsets) {
  const int* pages = p.page_table + static_cast<int64_t>(seq_idx) * p.max_pages;
  const int prefix_len = p.prefix_len[seq_idx];
  const int64_t page_elements = static_cast<int64_t>(p.num_kv_heads) * p.page_size * head_dim;
  auto offset_of = [&](int kv_pos) {
    return pages[kv_pos / p.page_size] * page_elements +
           static_cast<int64_t>(kv_pos % p.page_size) * head_dim;
  };
  const auto* const words = p.ancestors + static_cast<int64_t>(row) * 4;
  int kv_len = prefix_len;
  for (int word = 0; word < 4; ++word) kv_len += std::popcount(static_cast<uint64_t>(words[word]));
  const int begin = p.window > 0 ? std::max(kv_len - p.window, 0) : 0;
  offsets.clear();
  for (int first = begin; first < prefix_len;) {
    const int64_t row_in_page = offset_of(first);
    const int count = std::min(p.page_size - first % p.page_size, prefix_len - first);
    for (int i = 0; i < count; ++i) offsets.push_back(row_in_page + static_cast<int64_t>(i) * head_dim);
    first += count;
  }
  int position = prefix_len;
  for (int word = 0; word < 4; ++word) {
    for (uint64_t left = words[word]; left != 0; left &= left - 1, ++position) {
      if (position >= begin) offsets.push_back(offset_of(prefix_len + word * 64 + std::countr_zero(left)));
    }
  }
}

template <class T, int kHeadDim>
void tree_attention(const simt::NativeLaunch& launch, TreeAttentionParams p) {
  const int num_sequences = static_cast<int>(launch.grid.z) / p.num_kv_heads;
  const int group = p.num_q_heads / p.num_kv_heads;
  const int num_rows = p.seq_start[num_sequences];
  int longest = 1;
  for (int i = 0; i < num_sequences; ++i) longest = std::max(longest, p.prefix_len[i]);
  if (p.window > 0) longest = std::min(longest, p.window);
  const int64_t task_elements =
      static_cast<int64_t>(longest) * group * kHeadDim / 8;  // measured against for_rows' unit
  for_rows(static_cast<uint32_t>(num_rows * p.num_kv_heads), task_elements, [&](int64_t idx) {
    thread_local std::vector<int64_t> offsets;
    thread_local std::vector<float> weights;
    const int row = static_cast<int>(idx) / p.num_kv_heads,
              kv_head_idx = static_cast<int>(idx) % p.num_kv_heads;
    const int* begin = p.seq_start;
    const int seq_idx = static_cast<int>(std::upper_bound(begin, begin + num_sequences, row) - begin) - 1;
    list_keys(p, seq_idx, row, kHeadDim, offsets);
    const int64_t head_offset = static_cast<int64_t>(kv_head_idx) * p.page_size * kHeadDim;
    weights.resize(4 * (offsets.size() + 16));
    Task<T> task;
    task.k_cache = static_cast<const T*>(p.k_cache) + head_offset;
    task.v_cache = static_cast<const T*>(p.v_cache) + head_offset;
    task.key_offsets = offsets.data();
    task.num_keys = static_cast<int>(offsets.size());
    task.scale_log2 = p.scale_log2;
    task.weights = weights.data();
    for (int head = 0; head < group;) {
      const int left = group - head, heads = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      const int64_t at = (static_cast<int64_t>(row) * p.num_q_heads + kv_head_idx * group + head) * kHeadDim;
      task.q = static_cast<const T*>(p.q) + at;
      task.out = static_cast<T*>(p.out) + at;
      if (task.num_keys == 0)
        std::fill_n(task.out, heads * kHeadDim, T{});
      else
        Routines<T, kHeadDim>::run(task, heads);
      head += heads;
    }
  });
}

void nothing_left(const simt::NativeLaunch&, TreeAttentionParams) {}

#define TWINS_OF(D)                                                                   \
  ROUTINES(bf16_hd##D, bf16, D)                                                       \
  ROUTINES(f16_hd##D, f16, D)                                                         \
  ROUTINES(f32_hd##D, float, D)                                                       \
  NATIVE_TWIN(tree_attention_bf16_hd##D##_narrow, (tree_attention<bf16, D>))          \
  NATIVE_TWIN(tree_attention_bf16_hd##D##_wide, (tree_attention<bf16, D>))            \
  NATIVE_TWIN(tree_attention_f16_hd##D##_narrow, (tree_attention<f16, D>))            \
  NATIVE_TWIN(tree_attention_f16_hd##D##_wide, (tree_attention<f16, D>))              \
  NATIVE_TWIN(tree_attention_bf16_hd##D##_narrow_windowed, (tree_attention<bf16, D>)) \
  NATIVE_TWIN(tree_attention_bf16_hd##D##_wide_windowed, (tree_attention<bf16, D>))   \
  NATIVE_TWIN(tree_attention_f16_hd##D##_narrow_windowed, (tree_attention<f16, D>))   \
  NATIVE_TWIN(tree_attention_f16_hd##D##_wide_windowed, (tree_attention<f16, D>))     \
  NATIVE_TWIN(tree_attention_wgmma_bf16_hd##D, (tree_attention<bf16, D>))             \
  NATIVE_TWIN(tree_attention_wgmma_f16_hd##D, (tree_attention<f16, D>))               \
  NATIVE_TWIN(tree_attention_wgmma_bf16_hd##D##_windowed, (tree_attention<bf16, D>))  \
  NATIVE_TWIN(tree_attention_wgmma_f16_hd##D##_windowed, (tree_attention<f16, D>))    \
  NATIVE_TWIN(tree_attention_f32_hd##D, (tree_attention<float, D>))                   \
  NATIVE_TWIN(tree_attention_combine_bf16_hd##D, nothing_left)                        \
  NATIVE_TWIN(tree_attention_combine_f16_hd##D, nothing_left)                         \
  NATIVE_TWIN(tree_attention_combine_f32_hd##D, nothing_left)

TWINS_OF(32)
TWINS_OF(64)
TWINS_OF(96)
TWINS_OF(128)

}  // namespace
