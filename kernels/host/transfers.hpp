// A block's mbarriers, and the bulk copies that are under way to them. Internal to the runtime.
#pragma once
#include <stdint.h>

#include <string>
#include <vector>

#include "bulk_copy.hpp"

namespace simt {

class Block;

struct Mbarrier {
  uint32_t offset;        // in the block's shared memory
  int arrivals, missing;  // of a phase; of this one
  uint32_t phase = 0;
  int64_t expected = 0, issued = 0,
          brought = 0;  // bytes of this phase; of its copies, of those that are done
  unsigned initialiser;
  bool is_fenced = false;  // after its initialisation, for who is not a thread of the block
  uint32_t awaited = 0;    // phases that a thread has seen the end of
  uint32_t unheard = 0;  // one more than the phase of the latest arrival from another block; 0: all are known

  // What is in shared memory while nobody but the functions of mbarriers writes there.
  uint64_t word() const {
    return uint64_t(phase) << 40 ^ uint64_t(missing) << 20 ^ uint64_t(arrivals) ^ 0x6d00000000000000;
  }
};

struct BulkCopy {
  TensorMap map;
  int column, row;
  uint32_t tile, barrier;   // in the block's shared memory
  unsigned thread, issuer;  // that issued it; its block in the cluster
};

// The mbarrier at an address, or an error that begins with `call`.
Mbarrier& find_mbarrier(Block& block, const uint64_t* barrier, const char* call);

// Ends the phase if everything has come: lets its waiters go on.
void settle(Block& block, Mbarrier& barrier);

// What the race detector takes for the phase of this parity.
void* phase_of(Block& block, const Mbarrier& barrier, uint32_t parity);

// Does a copy that is under way.
void deliver(Block& block, size_t index);

// In a random schedule: does one that is under way, now and then.
void deliver_by_chance(Block& block);

// Does the first copy that someone waits for; false if there is none.
bool deliver_awaited(Block& block);

// For error texts: mbarriers that threads wait for, and what they miss.
std::string describe_awaited(const Block& block);

}  // namespace simt
