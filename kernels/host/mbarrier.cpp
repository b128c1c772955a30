// mbarriers: what has to come before a phase ends, and who waits for it.
#include "mbarrier.hpp"

#include <string.h>

#include "cluster.hpp"
#include "sanitizer.hpp"

namespace simt {

constexpr int most_arrivals = (1 << 20) - 1, most_bytes = (1 << 20) - 1;

static void store_word(Block& block, const Mbarrier& barrier) {
  const uint64_t word = barrier.word();
  memcpy(block.shared_begin() + barrier.offset, &word, sizeof word);
}

static std::string place(const Block& block, const Mbarrier& barrier) {
  const bool is_own = &block == current_block();
  return "the mbarrier at " + block.describe_shared(barrier.offset) +
         (is_own ? "" : " of block " + std::to_string(block.rank) + " of the cluster");
}

// A failure that the running thread brings about, whichever block the mbarrier is in.
[[noreturn]] static void die(std::string text) {
  current_block()->die(std::move(text));
}

static uint32_t checked_offset(Block& block, const uint64_t* barrier, const char* call) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8)
    die(std::string(call) + ": the mbarrier's address is no multiple of 8 bytes");
  const uint32_t offset = block.shared_offset(barrier);
  if (!block.holds_shared(offset, 8))
    die(std::string(call) + ": the mbarrier is not inside of a shared variable");
  return offset;
}

Mbarrier& find_mbarrier(Block& block, const uint64_t* barrier, const char* call) {
  const uint32_t offset = checked_offset(block, barrier, call);
  // Threads that have not met the one that initialises it are a race.
  tsan::reads(barrier, 8);
  for (Mbarrier& found : block.mbarriers) {
    if (found.offset != offset) continue;
    const uint64_t word = found.word();
    if (memcmp(barrier, &word, sizeof word))
      die(std::string(call) + ": " + place(block, found) + " was overwritten");
    return found;
  }
  die(std::string(call) + ": no mbarrier_init of the mbarrier at " + block.describe_shared(offset));
}

// Each parity has its own, as with barriers: who waits late does not see arrivals of the next phase.
void* phase_of(Block& block, const Mbarrier& barrier, uint32_t parity) {
  return block.shared_begin() + barrier.offset + (parity & 1);
}

void settle(Block& block, Mbarrier& barrier) {
  if (barrier.missing || barrier.expected != barrier.brought) return store_word(block, barrier);
  if (barrier.issued != barrier.brought)
    die(place(block, barrier) + " ends a phase that expects " + std::to_string(barrier.expected) +
        " bytes, but its copies bring " + std::to_string(barrier.issued));
  barrier.phase++;
  barrier.missing = barrier.arrivals;
  barrier.expected = barrier.issued = barrier.brought = 0;
  store_word(block, barrier);
  for (unsigned t = 0; t < block.num_threads; t++)
    if (block.fibers[t].waits_for == barrier.offset) block.warps[t >> 5].ready |= 1u << (t & 31);
}

std::string describe_awaited(const Block& block) {
  std::string text;
  for (const Mbarrier& barrier : block.mbarriers) {
    bool is_awaited = false;
    for (unsigned t = 0; t < block.num_threads; t++)
      is_awaited |= block.fibers[t].waits_for == barrier.offset;
    if (!is_awaited) continue;
    text += "; " + place(block, barrier) + " in its phase " + std::to_string(barrier.phase) + ": " +
            std::to_string(barrier.missing) + " of " + std::to_string(barrier.arrivals) +
            " arrivals are missing, " + std::to_string(barrier.expected) + " bytes are expected, " +
            std::to_string(barrier.brought) + " were brought";
  }
  return text;
}

// ---- what threads call -------------------------------------------------------------------------------------

void mbarrier_init(uint64_t* barrier, int arrivals) {
  Block& block = *current_block();
  const uint32_t offset = checked_offset(block, barrier, "mbarrier_init");
  if (arrivals < 1 || arrivals > most_arrivals)
    block.die("mbarrier_init with " + std::to_string(arrivals) + " arrivals");
  tsan::writes(barrier, 8);
  tsan::Ignore ignore;
  const Fiber& self = *current_fiber();
  const Mbarrier fresh{
      .offset = offset, .arrivals = arrivals, .missing = arrivals, .initialiser = self.number()};
  for (const BulkCopy& copy : block.bulk_copies)
    if (copy.barrier == offset) fail("mbarrier_init of an mbarrier to which copies are under way");
  bool is_known = false;
  for (Mbarrier& known : block.mbarriers)
    if (known.offset == offset) known = fresh, is_known = true;
  if (!is_known) block.mbarriers.push_back(fresh);
  store_word(block, fresh);
}

void mbarrier_init_fence() {
  Block& block = *current_block();
  const unsigned self = current_fiber()->number();
  for (Mbarrier& barrier : block.mbarriers) barrier.is_fenced |= barrier.initialiser == self;
  block.cluster->publish();
}

static void arrive(Block& block, const uint64_t* address, int bytes) {
  const bool is_own = &block == current_block();
  Mbarrier& barrier = find_mbarrier(block, address, "mbarrier_arrive");
  if (bytes < 0 || bytes > most_bytes) die("mbarrier_arrive_expect of " + std::to_string(bytes) + " bytes");
  if (!is_own && !barrier.is_fenced)
    die("mbarrier_arrive_at: " + place(block, barrier) + " was initialised without mbarrier_init_fence");
  if (!barrier.missing)
    die("mbarrier_arrive: " + place(block, barrier) + " has had all " + std::to_string(barrier.arrivals) +
        " arrivals of its phase, which has not ended: " + std::to_string(barrier.expected) +
        " bytes are expected, " + std::to_string(barrier.brought) + " were brought");
  // The race detector takes an arrival of another block, too, for one that releases what was written: it knows nothing
  // that orders reads alone.
  tsan::release(phase_of(block, barrier, barrier.phase));
  tsan::Ignore ignore;
  barrier.missing--;
  barrier.expected += bytes;
  if (!is_own) barrier.unheard = barrier.phase + 1;
  settle(block, barrier);
  current_block()->maybe_preempt();
}

void mbarrier_arrive(uint64_t* barrier, int bytes) {
  arrive(*current_block(), barrier, bytes);
}

void mbarrier_arrive_at(uint64_t* barrier, unsigned rank) {
  const unsigned char* theirs = peer_shared(barrier, sizeof *barrier, rank);
  arrive(current_block()->cluster->block(rank), reinterpret_cast<const uint64_t*>(theirs), 0);
}

void mbarrier_wait(uint64_t* address, int parity) {
  Block& block = *current_block();
  Fiber& self = *current_fiber();
  // Asked again after every pause: who sleeps through two phases waits on, as on a GPU.
  for (;;) {
    Mbarrier& barrier = find_mbarrier(block, address, "mbarrier_wait");
    if ((barrier.phase & 1) != (uint32_t(parity) & 1)) {
      barrier.awaited = barrier.phase;
      tsan::acquire(phase_of(block, barrier, uint32_t(parity)));
      break;
    }
    block.sleep("mbarrier_wait");
    self.waits_for = barrier.offset;
    block.yield();
    self.waiting_for = nullptr;
    self.waits_for = 0;
  }
  block.maybe_preempt();
}

}  // namespace simt
