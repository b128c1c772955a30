// What Hopper brought: products of warpgroups, mbarriers, bulk copies, clusters, launches that overlap.
#include <algorithm>

#include "../bulk_copy.hpp"
#include "../cluster.hpp"
#include "../mbarrier.hpp"
#include "../warp.hpp"
#include "../warpgroup.hpp"
#include "frame.hpp"

namespace simt::ptx {

namespace {

// ---- wgmma: sums are registers wherever they are; between the issue and the wait the runtime has them -------------------

Sums& sums_of(Frame& f, const Instruction& i, uint32_t count) {
  const Operand* registers = i.operands;
  for (auto& sums : f.sums) {
    if (sums->registers[0].slot != registers[0].slot) continue;
    for (uint32_t k = 0; k < count; k++)
      if (sums->count != count || sums->registers[k].slot != registers[k].slot)
        f.fail(i, "wgmma: sums that share registers with others under way");
    return *sums;
  }
  auto& sums = *f.sums.emplace_back(std::make_unique<Sums>(Sums{registers, count, {}}));
  for (uint32_t k = 0; k < count; k++) {
    sums.values[k] = get<float>(f, registers[k]);
    set<uint32_t>(f, registers[k], ~0u);
  }
  return sums;
}

// N / 2 sums; then descriptors of A and B, or four registers of A and the descriptor of B; whether the sums count, signs of
// A and B, and whether tiles lie across.
template <class T, uint32_t width>
void wgmma_mma(Frame& f, const Instruction& i) {
  constexpr uint32_t count = width / 2;
  const uint32_t rest = i.num_operands - count;
  const bool is_tile = rest == 7;
  if (i.group != count || (!is_tile && rest != 9)) f.fail(i, "wgmma with other operands than are known");
  const uint32_t behind_b = count + (is_tile ? 2 : 5);
  for (uint32_t k = 0; k < 3; k++)
    if (get<int32_t>(f, i[behind_b + k]) != 1) f.fail(i, "wgmma that does not add A times B to its sums");
  if (is_tile && get<int32_t>(f, i[behind_b + 3])) f.fail(i, "wgmma with a tile of A that lies across");
  const bool is_across = get<int32_t>(f, i[i.num_operands - 1u]) != 0;
  FragmentOfA& fragment = *f.fragments.emplace_back(std::make_unique<FragmentOfA>());
  fragment.registers = is_tile ? nullptr : &i[count];
  if (!is_tile)
    for (uint32_t k = 0; k < 4; k++) fragment.values[k] = get<uint32_t>(f, i[count + k]);
  const uint64_t a = is_tile ? get<uint64_t>(f, i[count]) : 0, b = get<uint64_t>(f, i[behind_b - 1]);
  const Aligned aligned(i);
  if (is_tile && is_across) f.fail(i, "wgmma of two tiles with B across is not known");
  wgmma_issue(sums_of(f, i, count).values.data(), int(width), std::is_same_v<T, __nv_bfloat16>,
              {is_tile ? nullptr : fragment.values.data(), a, b, is_across});
}

void wgmma_wait_group(Frame& f, const Instruction& i) {
  {
    const Aligned aligned(i);
    wgmma_wait(get<int32_t>(f, i[0]));
  }
  const Fiber& self = *current_fiber();
  const auto under_way = f.fragments.end() - long(self.products.size());
  for (auto done = f.fragments.begin(); done != under_way; ++done) {
    const FragmentOfA& a = **done;
    for (uint32_t k = 0; a.registers && k < 4; k++)
      if (get<uint32_t>(f, a.registers[k]) != a.values[k])
        f.fail(i, "wgmma: registers of A were written before the wait for it");
  }
  f.fragments.erase(f.fragments.begin(), under_way);
  std::erase_if(f.sums, [&](const std::unique_ptr<Sums>& sums) {
    for (const AccumulatorsInFlight& other : self.in_flight)
      if (other.home == sums->values.data()) return false;
    for (uint32_t k = 0; k < sums->count; k++) {
      if (get<uint32_t>(f, sums->registers[k]) != ~0u)
        f.fail(i, "wgmma: sums were written before the wait for them");
      set(f, sums->registers[k], sums->values[k]);
    }
    return true;
  });
}

void wgmma_fence_registers(Frame&, const Instruction& i) {
  const Aligned aligned(i);
  wgmma_fence();
}
void wgmma_commit_group(Frame&, const Instruction& i) {
  const Aligned aligned(i);
  wgmma_commit();
}
void fence_proxy(Frame&, const Instruction&) {
  fence_async_proxy();
}

template <class T, uint32_t... width>
void add_products(Actions& to, const std::string& type) {
  ((to["wgmma.mma_async.sync.aligned.m64n" + std::to_string(width) + "k16.f32." + type + "." + type] =
        wgmma_mma<T, width>),
   ...);
}

// ---- mbarriers -------------------------------------------------------------------------------------------------------

uint64_t* mbarrier_at(Frame& f, const Instruction& i, const Operand& address) {
  return reinterpret_cast<uint64_t*>(locate(f, i, Space::shared, address, 8, 8));
}
void init(Frame& f, const Instruction& i) {
  mbarrier_init(mbarrier_at(f, i, i[0]), get<int32_t>(f, i[1]));
}
void fence_init(Frame&, const Instruction&) {
  mbarrier_init_fence();
}
// _, [address] and, where bytes are to be expected, these
void arrive(Frame& f, const Instruction& i) {
  mbarrier_arrive(mbarrier_at(f, i, i[1]), i.num_operands > 2 ? get<int32_t>(f, i[2]) : 0);
}
void arrive_in_cluster(Frame& f, const Instruction& i) {
  const uint32_t address = get<uint32_t>(f, i[1]), rank = address >> rank_shift;
  if (rank == 0) f.fail(i, "mbarrier.arrive: not an address of mapa");
  unsigned char* own = f.block->shared_begin() + (address & ((1u << rank_shift) - 1));
  mbarrier_arrive_at(reinterpret_cast<uint64_t*>(own), rank - 1);
}
// p, [address], parity. It may come back empty-handed; under a seed it does.
void try_wait(Frame& f, const Instruction& i) {
  uint64_t* barrier = mbarrier_at(f, i, i[1]);
  const bool gives_up = f.block->toss();
  if (gives_up)
    f.block->yield();
  else
    mbarrier_wait(barrier, get<int32_t>(f, i[2]));
  set<uint8_t>(f, i[0], !gives_up);
}

// ---- bulk copies -----------------------------------------------------------------------------------------------------

// [tile], [map, {column, row}], [mbarrier] and the blocks that get it
void bulk_copy(Frame& f, const Instruction& i) {
  unsigned char* tile = locate(f, i, Space::shared, i[0], 1, 1);
  const auto& map =
      *reinterpret_cast<const TensorMap*>(locate(f, i, Space::generic, i[1], sizeof(TensorMap), 64));
  const int column = get<int32_t>(f, i[2]), row = get<int32_t>(f, i[3]);
  if (i.num_operands > 5)
    issue_bulk_copy(tile, map, column, row, mbarrier_at(f, i, i[4]), get<uint16_t>(f, i[5]));
  else
    issue_bulk_copy(tile, map, column, row, mbarrier_at(f, i, i[4]));
}

// ---- clusters ----------------------------------------------------------------------------------------------------------

// Where shared memory of another block lies: d, own address, rank
void map_address(Frame& f, const Instruction& i) {
  const uint32_t own = get<uint32_t>(f, i[1]), rank = get<uint32_t>(f, i[2]);
  if (own >> rank_shift) f.fail(i, "mapa of an address that is not this block's");
  if (rank >= cluster_size()) f.fail(i, "mapa: a block of the cluster that does not exist");
  set(f, i[0], own | (rank + 1) << rank_shift);
}

// Between arrival and wait our kernels do nothing, so the wait does both.
template <bool sees>
void cluster_arrive(Frame& f, const Instruction&) {
  f.sees_cluster = sees;
}
void cluster_wait(Frame& f, const Instruction& i) {
  {
    const Aligned aligned(i);
    __syncwarp();
  }
  if (f.sees_cluster)
    cluster_sync();
  else
    cluster_meet();
}

void wait_for_turn(Frame&, const Instruction&) {
  wait_for_predecessors();
}
void nothing(Frame&, const Instruction&) {}

}  // namespace

void add_hopper(Actions& to) {
  add_products<__nv_bfloat16, 8, 16, 32, 64, 96, 128, 256>(to, "bf16");
  add_products<__half, 8, 16, 32, 64, 96, 128, 256>(to, "f16");
  to["wgmma.fence.sync.aligned"] = wgmma_fence_registers;
  to["wgmma.commit_group.sync.aligned"] = wgmma_commit_group;
  to["wgmma.wait_group.sync.aligned"] = wgmma_wait_group;
  to["fence.proxy.async.shared::cta"] = fence_proxy;
  to["mbarrier.init.shared::cta.b64"] = init;
  to["fence.mbarrier_init.release.cluster"] = fence_init;
  to["mbarrier.arrive.shared::cta.b64"] = to["mbarrier.arrive.expect_tx.shared::cta.b64"] = arrive;
  to["mbarrier.arrive.shared::cluster.b64"] = arrive_in_cluster;
  to["mbarrier.try_wait.parity.shared::cta.b64"] = try_wait;
  const std::string bulk = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes";
  to[bulk] = to[bulk + ".multicast::cluster"] = bulk_copy;
  to["mapa.shared::cluster.u32"] = map_address;
  to["barrier.cluster.arrive.release.aligned"] = cluster_arrive<true>;
  to["barrier.cluster.arrive.relaxed.aligned"] = cluster_arrive<false>;
  to["barrier.cluster.wait.acquire.aligned"] = cluster_wait;
  to["griddepcontrol.wait"] = wait_for_turn;
  to["griddepcontrol.launch_dependents"] = nothing;
}

}  // namespace simt::ptx
