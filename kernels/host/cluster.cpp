// Running the blocks of a cluster side by side; its barrier; shared memory of its other blocks.
#include "cluster.hpp"

#include "sanitizer.hpp"

namespace simt {

static const char cluster_barrier_name[] = "cluster_sync";

void Cluster::prepare(const Kernel& kernel, const Geometry& geometry, uint64_t seed, void* launch_end) {
  dim_ = geometry.cluster;
  grid_ = {geometry.grid.x / dim_.x, geometry.grid.y / dim_.y, geometry.grid.z / dim_.z};
  size_ = geometry.cluster_size();
  while (blocks_.size() < size_) blocks_.emplace_back();
  for (unsigned rank = 0; rank < size_; rank++) {
    blocks_[rank].cluster = this;
    blocks_[rank].rank = rank;
    blocks_[rank].prepare(kernel, geometry, seed, launch_end);
  }
}

bool Cluster::run(uint64_t number, void** parameters) {
  const dim3 first(unsigned(number % grid_.x) * dim_.x, unsigned(number / grid_.x % grid_.y) * dim_.y,
                   unsigned(number / (uint64_t(grid_.x) * grid_.y)) * dim_.z);
  if (tsan::enabled) {  // without a history, as the memory of its blocks
    tsan::Ignore ignore;
    barrier_ = nullptr;
    barrier_ = std::make_unique<Barrier>();
  }
  *barrier_ = {};
  failed_ = nullptr;
  for (unsigned rank = 0; rank < size_; rank++)
    blocks_[rank].start(
        {first.x + rank % dim_.x, first.y + rank / dim_.x % dim_.y, first.z + rank / (dim_.x * dim_.y)},
        parameters);

  Fiber* fiber = pick(blocks_[0]);
  current = fiber;
  fiber->stack.resume(home);
  current = nullptr;

  for (unsigned rank = 0; rank < size_ && !failed_; rank++)
    if (!blocks_[rank].error.empty()) failed_ = &blocks_[rank];
  if (failed_) {
    for (unsigned rank = 0; rank < size_; rank++) blocks_[rank].abandon();
    return false;
  }
  for (unsigned rank = 0; rank < size_ && !failed_; rank++)
    if (!blocks_[rank].is_sound()) failed_ = &blocks_[rank];
  return !failed_;
}

Fiber* Cluster::pick(Block& from) {
  unsigned start = from.rank;
  if (size_ > 1 && from.random() && from.next_random() % 8 == 0) start = unsigned(from.next_random() % size_);
  for (unsigned i = 0; i < size_; i++)
    if (Fiber* fiber = blocks_[(start + i) % size_].pick()) return fiber;
  return nullptr;
}

bool Cluster::awaits_copies_of(unsigned issuer) const {
  for (unsigned rank = 0; rank < size_; rank++)
    for (const BulkCopy& copy : blocks_[rank].bulk_copies)
      if (copy.issuer == issuer && rank != issuer) return true;
  return false;
}

bool Cluster::deliver_awaited() {
  for (unsigned rank = 0; rank < size_; rank++)
    if (simt::deliver_awaited(blocks_[rank])) return true;
  return false;
}

unsigned Cluster::alive() const {
  unsigned threads = 0;
  for (unsigned rank = 0; rank < size_; rank++) threads += blocks_[rank].alive;
  return threads;
}

bool Cluster::has_ended() const {
  return alive() == 0;
}

std::string Cluster::describe_deadlock() const {
  std::string text = "divergent synchronisation, no thread can go on:";
  for (unsigned rank = 0; rank < size_; rank++) {
    if (size_ > 1) text += (rank ? "; block " : " block ") + std::to_string(rank) + " of the cluster:";
    text += blocks_[rank].describe_threads();
  }
  return text;
}

// ---- the barrier of a cluster -------------------------------------------------------------------------------

void Cluster::open() {
  for (unsigned rank = 0; rank < size_; rank++) {
    if (barrier_->releases)
      for (Mbarrier& known : blocks_[rank].mbarriers) known.unheard = 0;
    blocks_[rank].wake(cluster_barrier_name);
  }
  barrier_->arrived = 0;
  barrier_->releases = true;
  barrier_->generation++;
}

bool Cluster::has_unheard_arrivals(unsigned rank) const {
  for (const Mbarrier& barrier : blocks_[rank].mbarriers)
    if (barrier.unheard > barrier.awaited) return true;
  return false;
}

void Cluster::thread_exited() {
  if (barrier_->arrived && barrier_->arrived == alive()) open();
}

// One synchronisation object per parity, as of a block's barriers.
void* Cluster::round() const {
  return reinterpret_cast<char*>(barrier_.get()) + (barrier_->generation & 1);
}

void Cluster::publish() {
  tsan::release(round());
}

void Cluster::meet(bool sees_writes) {
  void* met = round();
  Block* block = current_block();
  if (sees_writes) publish();
  barrier_->releases &= sees_writes;
  block->sleep(cluster_barrier_name);
  if (++barrier_->arrived == alive()) open();
  block->yield();
  current_fiber()->waiting_for = nullptr;
  tsan::acquire(met);
}

void cluster_sync() {
  tsan::Ignore ignore;
  current_block()->cluster->meet(true);
}
void cluster_meet() {
  tsan::Ignore ignore;
  current_block()->cluster->meet(false);
}

unsigned cluster_rank() {
  return current_block()->rank;
}
unsigned cluster_size() {
  return current_block()->cluster->size();
}

// ---- shared memory of other blocks --------------------------------------------------------------------------

unsigned char* peer_shared(const void* own, size_t bytes, unsigned rank) {
  Block* self = current_block();
  Cluster& cluster = *self->cluster;
  if (rank >= cluster.size()) fail("a block of the cluster is named that does not exist");
  if (!cluster.has_met())
    fail("shared memory of another block before the first cluster_sync: it may not have started");
  Block& peer = cluster.block(rank);
  if (peer.alive == 0) fail("shared memory of a block of the cluster that has ended");
  unsigned char* address = peer.same_place(*self, own, bytes);
  if (!address) fail("shared memory of another block: not inside of one variable that it has, too");
  return address;
}

template <typename T>
static T load_aligned_peer(const T* own, unsigned rank) {
  if (reinterpret_cast<uintptr_t>(own) % sizeof(T))
    fail("load_peer: the address is no multiple of what is loaded");
  const unsigned char* address = peer_shared(own, sizeof(T), rank);
  tsan::reads(address, sizeof(T));
  tsan::Ignore ignore;
  T value;
  memcpy(&value, address, sizeof value);
  return value;
}
float4 load_peer(const float4* own, unsigned rank) {
  return load_aligned_peer(own, rank);
}
unsigned long long load_peer(const unsigned long long* own, unsigned rank) {
  return load_aligned_peer(own, rank);
}

}  // namespace simt
