// Scheduling the fibers of a block, and its barriers.
#include "cluster.hpp"

#include <stdlib.h>

#include <bit>

#include "ptx/run.hpp"
#include "sanitizer.hpp"

namespace simt {

__thread Thread* current __attribute__((tls_model("initial-exec"))) = nullptr;

void fiber_main();

Fiber::Fiber(unsigned number) : stack(number, fiber_main) {}

Block::~Block() {
  for (Warp& warp : warps)
    for (Rendezvous* r : warp.partial) delete r;
  free(arena_);
}

void Block::prepare(const Kernel& k, const Geometry& geometry, uint64_t seed, void* launch_end) {
  launch_end_ = launch_end;
  kernel = &k;
  grid = geometry.grid;
  dim = geometry.block;
  num_threads = geometry.num_threads();
  num_warps = (num_threads + 31) / 32;
  shared_bytes_ = geometry.shared_bytes;
  overlaps_ = geometry.overlaps;
  seed_ = seed;
  if (fibers.capacity() < num_threads) fibers.reserve(num_threads);
  while (fibers.size() < num_threads) fibers.emplace_back(unsigned(fibers.size()));
  if (warps.size() < num_warps) warps.resize(num_warps);
  if (barriers.empty()) make_barriers();
  for (unsigned t = 0; t < num_threads; t++) {
    Fiber& fiber = fibers[t];
    fiber.index = {t % dim.x, t / dim.x % dim.y, t / (dim.x * dim.y)};
    fiber.lane = t & 31;
    fiber.warp = t >> 5;
    fiber.block = this;
  }
  lay_out_shared();
}

void Block::start(dim3 block_index, void** parameters) {
  index = {block_index.x, block_index.y, block_index.z};
  const uint64_t number = index.x + uint64_t(grid.x) * (index.y + uint64_t(grid.y) * index.z);
  parameters_ = parameters;
  random_state_ = (seed_ * 0x9E3779B97F4A7C15u) ^ (number * 0xD1B54A32D192ED03u) ^ 0x2545F4914F6CDD1Du;
  alive = num_threads;
  running_warp_ = 0;
  error.clear();
  failing_thread.clear();
  variables_.clear();
  warpgroup_calls_.clear();
  mbarriers.clear();
  bulk_copies.clear();
  requests.clear();
  if (tsan::enabled) forget_history();
  start_shared();
  for (unsigned w = 0; w < num_warps; w++) {
    Warp& warp = warps[w];
    unsigned lanes = num_threads - w * 32;
    warp.ready = warp.alive = warp.exists = lanes >= 32 ? ~0u : (1u << lanes) - 1;
    warp.whole.arrived = warp.num_wgmma = 0;
    for (Rendezvous* r : warp.partial) delete r;
    warp.partial.clear();
  }
  for (Barrier& b : barriers) b.arrived = 0, b.gathering = {0, 1, 0};
  for (unsigned t = 0; t < num_threads; t++) {
    fibers[t].exited = fibers[t].has_waited = fibers[t].has_fenced_registers = false;
    fibers[t].waiting_for = nullptr;
    fibers[t].waits_for = fibers[t].place = 0;
    fibers[t].copies.clear();
    fibers[t].group_ends.clear();
    fibers[t].products.clear();
    fibers[t].product_ends.clear();
    fibers[t].in_flight.clear();
    if (tsan::enabled || asan::enabled) fibers[t].stack.rewind(fiber_main);
  }
  tsan::release(this);
}

void Block::abandon() {
  for (unsigned t = 0; t < num_threads; t++) fibers[t].stack.rewind(fiber_main);
}

bool Block::is_sound() {
  if (!bulk_copies.empty()) {
    const BulkCopy& copy = bulk_copies[0];
    error = "the block ended while a bulk copy to " + describe_shared(copy.tile) + " was under way";
    if (copy.issuer != rank)
      error += ", which another block of the cluster asked for";
    else
      failing_thread = ", thread " + std::to_string(copy.thread);
    return false;
  }
  error = broken_fences();
  if (error.empty()) error = incomplete_wgmma();
  return error.empty();
}

// Blocks of a launch have no order among them, so nothing may connect them: not the memory that the runtime
// reuses, nor the synchronisation objects in it. Freed and allocated again under Ignore, it has no history.
void Block::forget_history() {
  tsan::Ignore ignore;
  for (Warp& warp : warps)
    for (Rendezvous* r : warp.partial) delete r;
  warps = {};
  warps.resize(num_warps);
  barriers = {};
  make_barriers();
  free(arena_);
  arena_ = nullptr;
  lay_out_shared();
}

// A fiber runs one thread of one block after another.
void fiber_main() {
  FiberStack::entered();
  for (;;) {
    Fiber* self = current_fiber();
    Block* block = current_block();
    tsan::acquire(block);
    const Kernel& kernel = *block->kernel;
    if (kernel.program)
      ptx::run(*kernel.program, block->parameters_);
    else
      kernel.invoke(block->parameters_);
    if (block->overlaps_ && !self->has_waited)
      fail("a thread ended without wait_for_predecessors in a launch that overlaps those before");
    if (!self->products.empty()) fail("a thread ended without wgmma_wait for all of its wgmma");
    tsan::release(block->launch_end_);

    self->exited = true;
    Warp& warp = block->warps[self->warp];
    warp.ready &= ~(1u << self->lane);
    warp.alive &= ~(1u << self->lane);
    block->alive--;
    block->exit_warp(warp);
    block->exit_barriers();
    if (!block->alive && block->cluster->awaits_copies_of(block->rank))
      fail("a block ended while its bulk copies to others of the cluster were under way");
    if (!block->alive && block->cluster->has_unheard_arrivals(block->rank))
      fail(
          "a block ended while arrivals of others at its mbarriers may have been under way: their phase was "
          "not waited for");
    block->cluster->thread_exited();
    if (!block->cluster->has_ended())
      block->yield();
    else
      self->stack.suspend(block->cluster->home, false);
  }
}

uint64_t Block::next_random() {
  random_state_ ^= random_state_ << 13;
  random_state_ ^= random_state_ >> 7;
  random_state_ ^= random_state_ << 17;
  return random_state_;
}

// In order: the lowest ready lane of the warp that ran last, then of the following warps. Random: any lane of
// that warp, and now and then any warp.
Fiber* Block::pick() {
  unsigned start = running_warp_;
  if (random() && next_random() % 8 == 0) start = unsigned(next_random() % num_warps);
  for (unsigned i = 0; i < num_warps; i++) {
    unsigned w = start + i < num_warps ? start + i : start + i - num_warps;
    uint32_t ready = warps[w].ready;
    if (!ready) continue;
    running_warp_ = w;
    unsigned turn = random() ? unsigned(next_random() % 32) : 0;
    unsigned lane = (unsigned(__builtin_ctz(std::rotr(ready, int(turn)))) + turn) % 32;
    return &fibers[w * 32 + lane];
  }
  return nullptr;
}

void Block::yield() {
  Fiber* self = current_fiber();
  deliver_by_chance(*this);
  Fiber* next = cluster->pick(*this);
  while (!next && cluster->deliver_awaited()) next = cluster->pick(*this);
  if (next == self) return;
  if (!next) die(cluster->describe_deadlock(), false);
  current = next;
  self->stack.hand_over(next->stack);
}

void Block::maybe_preempt() {
  if (random() && (next_random() & 1)) yield();
}

void Block::die(std::string text, bool name_thread) {
  error = std::move(text);
  Fiber* self = current_fiber();
  if (name_thread) failing_thread = ", thread " + std::to_string(self->warp * 32 + self->lane);
  self->stack.suspend(cluster->home, true);
  __builtin_unreachable();
}

std::string Block::describe_threads() const {
  auto state = [&](unsigned t) -> const char* {
    return fibers[t].exited ? "exited" : fibers[t].waiting_for ? fibers[t].waiting_for : "ready";
  };
  std::string text;
  for (unsigned from = 0, t = 1; t <= num_threads; t++) {
    if (t < num_threads && state(t) == state(from)) continue;
    text += (from ? ", t" : " t") + std::to_string(from);
    if (t - 1 != from) text += ".." + std::to_string(t - 1);
    text += std::string(fibers[from].exited ? " " : " in ") + state(from);
    from = t;
  }
  return text + describe_awaited(*this);
}

void fail(const char* what) {
  current_block()->die(what);
}

void wait_for_predecessors() {
  current_fiber()->has_waited = true;
}

// ---- barriers ---------------------------------------------------------------------------------------------

static const char* const barrier_names[16] = {
    "__syncthreads",    "named barrier 1",  "named barrier 2",  "named barrier 3",
    "named barrier 4",  "named barrier 5",  "named barrier 6",  "named barrier 7",
    "named barrier 8",  "named barrier 9",  "named barrier 10", "named barrier 11",
    "named barrier 12", "named barrier 13", "named barrier 14", "named barrier 15"};

void Block::make_barriers() {
  barriers.assign(16, {});
  for (int i = 0; i < 16; i++) barriers[size_t(i)].name = barrier_names[i];
}

void Block::open(Barrier& b) {
  b.result = b.gathering;
  b.gathering = {0, 1, 0};
  b.arrived = 0;
  b.generation++;
  wake(b.name);
}

void Block::sleep(const char* name) {
  Fiber* self = current_fiber();
  warps[self->warp].ready &= ~(1u << self->lane);
  self->waiting_for = name;
}

void Block::wake(const char* name) {
  for (unsigned t = 0; t < num_threads; t++)
    if (fibers[t].waiting_for == name && !fibers[t].exited) warps[t >> 5].ready |= 1u << (t & 31);
}

void Block::exit_barriers() {
  if (barriers[0].arrived && barriers[0].arrived == int(alive)) open(barriers[0]);
}

BarrierResult barrier(int id, int threads, int predicate) {
  tsan::Ignore ignore;
  Fiber* self = current_fiber();
  Block* block = current_block();
  Barrier& b = block->barriers[size_t(id)];
  if (b.arrived && threads != b.needed)
    fail("threads meet at one named barrier with different thread counts");
  b.needed = threads;
  b.arrived++;
  b.gathering.any |= predicate != 0;
  b.gathering.all &= predicate != 0;
  b.gathering.count += predicate != 0;
  // One synchronisation object per parity: with a single one a late waker would acquire the next round too,
  // and write-after-read races would be missed.
  void* round = reinterpret_cast<char*>(&b) + (b.generation & 1);
  tsan::release(round);
  block->sleep(b.name);
  if (b.arrived >= (threads ? threads : int(block->alive))) block->open(b);
  block->yield();
  self->waiting_for = nullptr;
  tsan::acquire(round);
  return b.result;
}

}  // namespace simt
