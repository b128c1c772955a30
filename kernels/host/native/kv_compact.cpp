// Native twin of kernels/kv_compact.cu: whole rows by memcpy, one (layer, K or V, sequence) a task.
#include <algorithm>

#include "../native.hpp"
#include "kv_compact.cuh"

namespace {

void kv_compact(const simt::NativeLaunch& launch, KvCompactParams p) {
  const uint32_t num_planes = launch.grid.y, num_sequences = launch.grid.z;
  const int64_t row_bytes = p.row_pieces * 16;
  simt::parallel_for(num_planes * num_sequences, [&](uint32_t idx) {
    const int seq_idx = static_cast<int>(idx / num_planes);
    const int64_t plane_pages = static_cast<int64_t>(idx % num_planes) * p.num_pages;
    const int* pages = p.page_table + static_cast<int64_t>(seq_idx) * p.max_pages;
    const int* accepted = p.accepted + static_cast<int64_t>(seq_idx) * p.accepted_stride;
    const int num_rows = std::min(p.accepted_len[seq_idx], p.max_accepted);
    auto row_at = [&](int head_idx, int kv_pos) {
      const int64_t page = plane_pages + pages[kv_pos / p.page_size];
      const int64_t row = (page * p.num_kv_heads + head_idx) * p.page_size + kv_pos % p.page_size;
      return static_cast<unsigned char*>(p.kv) + row * row_bytes;
    };
    // In list order every row is read before it is overwritten (see the kernel).
    for (int i = 0; i < num_rows; ++i) {
      if (accepted[i] == i + 1) continue;
      for (int head_idx = 0; head_idx < p.num_kv_heads; ++head_idx) {
        const int root = p.prefix_len[seq_idx];
        memcpy(row_at(head_idx, root + 1 + i), row_at(head_idx, root + accepted[i]), row_bytes);
      }
    }
  });
}

NATIVE_TWIN(kv_compact, kv_compact)

}  // namespace
