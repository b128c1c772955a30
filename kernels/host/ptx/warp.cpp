// What the threads of a warp or block do together: votes, shuffles, barriers, products of fragments.
#include "../tensor_core.hpp"
#include "frame.hpp"

namespace simt::ptx {

namespace {

// ---- shuffles: which lane is read, by the text of PTX ISA, "shfl.sync" ------------------------------------------------

enum class Shuffle { up, down, butterfly, index };

template <Shuffle mode>
void shuffle_sync(Frame& f, const Instruction& i) {
  const int lane = int(current->lane);
  const uint32_t b = get<uint32_t>(f, i[i.group + 1]), c = get<uint32_t>(f, i[i.group + 2]);
  const int distance = int(b & 31), clamp = int(c & 31), segment = int(c >> 8 & 31);
  const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
  int source;
  bool inside;
  switch (mode) {
    case Shuffle::up:
      source = lane - distance, inside = source >= last;
      break;
    case Shuffle::down:
      source = lane + distance, inside = source <= last;
      break;
    case Shuffle::butterfly:
      source = lane ^ distance, inside = source <= last;
      break;
    case Shuffle::index:
      source = first | (distance & ~segment), inside = source <= last;
      break;
  }
  if (!inside) source = lane;
  const uint32_t value = get<uint32_t>(f, i[i.group]);
  set(f, i[0], shuffle(get<uint32_t>(f, i[i.group + 3]), value, source));
  if (i.group > 1) set<uint8_t>(f, i[1], inside);
}

// ---- votes and reductions ------------------------------------------------------------------------------------------

void vote_ballot(Frame& f, const Instruction& i) {
  set(f, i[0], ballot(get<uint32_t>(f, i[2]), get<uint8_t>(f, i[1]) & 1));
}
void vote_any(Frame& f, const Instruction& i) {
  set<uint8_t>(f, i[0], ballot(get<uint32_t>(f, i[2]), get<uint8_t>(f, i[1]) & 1) != 0);
}
void vote_all(Frame& f, const Instruction& i) {
  set<uint8_t>(f, i[0], ballot(get<uint32_t>(f, i[2]), !(get<uint8_t>(f, i[1]) & 1)) == 0);
}
void match_any(Frame& f, const Instruction& i) {
  set(f, i[0], __match_any_sync(get<uint32_t>(f, i[2]), get<uint32_t>(f, i[1])));
}
template <auto reduce>
void reduce_sync(Frame& f, const Instruction& i) {
  set(f, i[0], reduce(get<uint32_t>(f, i[2]), get<uint32_t>(f, i[1])));
}

// ---- barriers ------------------------------------------------------------------------------------------------------

void bar_warp_sync(Frame& f, const Instruction& i) {
  __syncwarp(get<uint32_t>(f, i[0]));
}
void bar_sync(Frame& f, const Instruction& i) {
  const uint32_t id = get<uint32_t>(f, i[0]), threads = i.num_operands > 1 ? get<uint32_t>(f, i[1]) : 0;
  if (id > 15 || threads % 32) f.fail(i, "bar.sync: no such barrier, or threads that are no whole warps");
  {
    const Aligned aligned(i);
    __syncwarp();
  }
  barrier(int(id), int(threads), 0);
}

// ---- fragments -------------------------------------------------------------------------------------------------------

template <class T>
void mma_sync(Frame& f, const Instruction& i) {
  float c[4];
  uint32_t a[4], b[2];
  for (unsigned k = 0; k < 4; k++) a[k] = get<uint32_t>(f, i[4 + k]), c[k] = get<float>(f, i[10 + k]);
  for (unsigned k = 0; k < 2; k++) b[k] = get<uint32_t>(f, i[8 + k]);
  const Aligned aligned(i);
  mma_m16n8k16<T>(c, a, b);
  for (unsigned k = 0; k < 4; k++) set(f, i[k], c[k]);
}

template <bool transposes>
void load_matrices(Frame& f, const Instruction& i) {
  uint32_t r[4];
  const Aligned aligned(i);
  ldmatrix<transposes>(r, locate(f, i, Space::shared, i[4], 16, 16));
  for (unsigned k = 0; k < 4; k++) set(f, i[k], r[k]);
}

}  // namespace

void add_warp(Actions& to) {
  to["shfl.sync.up.b32"] = shuffle_sync<Shuffle::up>;
  to["shfl.sync.down.b32"] = shuffle_sync<Shuffle::down>;
  to["shfl.sync.bfly.b32"] = shuffle_sync<Shuffle::butterfly>;
  to["shfl.sync.idx.b32"] = shuffle_sync<Shuffle::index>;
  to["vote.sync.ballot.b32"] = vote_ballot;
  to["vote.sync.any.pred"] = vote_any;
  to["vote.sync.all.pred"] = vote_all;
  to["match.any.sync.b32"] = match_any;
  to["redux.sync.add.u32"] = reduce_sync<__reduce_add_sync>;
  to["redux.sync.or.b32"] = reduce_sync<__reduce_or_sync>;
  to["redux.sync.and.b32"] = reduce_sync<__reduce_and_sync>;
  to["redux.sync.min.u32"] = reduce_sync<__reduce_min_sync>;
  to["redux.sync.max.u32"] = reduce_sync<__reduce_max_sync>;
  to["bar.warp.sync"] = bar_warp_sync;
  to["bar.sync"] = bar_sync;
  to["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] = mma_sync<__nv_bfloat16>;
  to["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = mma_sync<__half>;
  to["ldmatrix.sync.aligned.m8n8.x4.shared.b16"] = load_matrices<false>;
  to["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"] = load_matrices<true>;
}

}  // namespace simt::ptx
