// Blocks that run at the same time, on one OS thread, and see each other's shared memory: a thread block
// cluster. A launch without clusters is one of clusters of a single block.
#pragma once
#include <deque>
#include <memory>

#include "block.hpp"

namespace simt {

class Cluster {
 public:
  FiberStack::Home home;

  // As those of Block, for all blocks of a cluster.
  void prepare(const Kernel& kernel, const Geometry& geometry, uint64_t seed, void* launch_end);
  bool run(uint64_t cluster_number, void** parameters);

  unsigned size() const { return size_; }
  Block& block(unsigned rank) { return blocks_[rank]; }
  const Block& failed() const { return *failed_; }  // after a run that failed

  Fiber* pick(Block& from);  // a ready fiber, of that block rather than of another; null: none
  bool has_ended() const;
  bool awaits_copies_of(unsigned rank) const;  // in other blocks
  // Of others at its mbarriers: no phase that they are in has been waited for, nor has a cluster_sync come behind.
  bool has_unheard_arrivals(unsigned rank) const;
  bool deliver_awaited();  // does the first bulk copy that a thread waits for; false: none
  std::string describe_deadlock() const;

  void publish();               // what the running thread has written, to who meets it next
  void meet(bool sees_writes);  // the running thread waits for all others of the cluster
  void thread_exited();         // the barrier opens, if it waited only for that one
  bool has_met() const { return barrier_->generation > 0; }

 private:
  struct Barrier {
    unsigned arrived = 0;
    bool releases = true;  // what all who have arrived did before
    uint32_t generation = 0;
  };
  unsigned alive() const;
  void* round() const;  // what the race detector takes for the next meeting
  void open();

  std::deque<Block> blocks_;  // made on demand, kept for the next launch
  unsigned size_ = 1;
  dim3 dim_, grid_;  // blocks of a cluster; clusters of the grid
  Block* failed_ = nullptr;
  std::unique_ptr<Barrier> barrier_ = std::make_unique<Barrier>();
};

}  // namespace simt
