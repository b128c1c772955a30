// One block being executed: its fibers, warps, barriers and shared memory. Internal to the runtime.
#pragma once
#include <stdint.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "fiber.hpp"
#include "kernel_registry.hpp"
#include "thread.hpp"
#include "transfers.hpp"

namespace simt {

struct Geometry {
  dim3 grid, block;
  uint32_t shared_bytes = 0;
  bool overlaps = false;  // may start before its predecessor has ended
  dim3 cluster{};         // blocks that run together
  uint64_t num_blocks() const { return uint64_t(grid.x) * grid.y * grid.z; }
  uint32_t cluster_size() const { return cluster.x * cluster.y * cluster.z; }
  uint32_t num_threads() const { return block.x * block.y * block.z; }
};

struct AsyncCopy {
  void* shared;
  const void* global;
  int bytes, valid_bytes;
};

// What the warps of a warpgroup have in common of a product: descriptors (of A, or 0 where it is in
// registers) and form.
struct WgmmaCall {
  uint64_t a, b;
  uint32_t width, is_across;
};

// A lane's part of a wgmma that was issued.
struct Product {
  float* home;  // of its sums in the kernel
  bool is_bf16;
  WgmmaCall call;
  const uint32_t* registers;  // of A in the kernel, or null
  uint32_t given[4];          // what was in them
  uint16_t a_rows[2][16];     // and, with its neighbours', the lane's two rows of A
  bool is_done;
};

// Sums that the kernel may not touch: they are here until the wait that covers the last of their products.
struct AccumulatorsInFlight {
  float* home;
  uint32_t num_products;
  float values[128];
};

// What the lanes of a warp ask memory for by one instruction, at one time (ptx/counts.hpp).
struct Request {
  uint32_t bytes = 0, lanes = 0;
  uint64_t address[32];
};

struct Fiber : Thread {
  FiberStack stack;
  const char* waiting_for = nullptr;  // null: running or ready
  bool exited = false;
  bool has_waited = false;            // for the launches before
  std::vector<AsyncCopy> copies;      // issued, oldest first
  std::vector<uint32_t> group_ends;   // committed groups, as ends into `copies`
  uint32_t proxy_fences = 0;          // fence_async_proxy, so often
  bool has_fenced_registers = false;  // wgmma_fence, since this thread may last have written some
  std::vector<Product> products;      // issued, oldest first
  std::vector<uint32_t> product_ends;
  std::vector<AccumulatorsInFlight> in_flight;
  uint32_t waits_for = 0;           // the mbarrier there, if not 0: shared memory begins behind a fence
  std::vector<uint64_t> registers;  // of a kernel that runs as PTX
  const ptx::Program* registers_of = nullptr;  // that one
  std::vector<uint32_t> times;                 // that each instruction asked memory
  uint32_t place = 0;  // of the instruction that all lanes of the warp have to run together, if it is one
  unsigned number() const { return warp * 32 + lane; }
  explicit Fiber(unsigned number);
};

// Where the lanes of one mask meet. Two sets of slots, used in turn: a lane may still read the last meeting's
// while the next one fills, and it cannot lag two meetings behind.
struct Rendezvous {
  uint32_t mask = ~0u, arrived = 0, generation = 0, place = 0;
  WarpOp op = WarpOp::none;
  alignas(16) Slot slots[2][32];
};

struct Warp {
  uint32_t ready = 0;   // lanes that can run
  uint32_t alive = 0;   // lanes that have not exited
  uint32_t exists = 0;  // fewer than 32 in the last warp of an odd block
  uint32_t num_wgmma = 0;
  Rendezvous whole;
  std::vector<Rendezvous*> partial;  // by mask, created on demand
};

struct Barrier {
  const char* name = nullptr;
  int arrived = 0, needed = 0;
  uint32_t generation = 0;
  BarrierResult gathering{}, result{};
};

// 16 bytes of shared memory as cp.async, fill_tile or a bulk copy left them: by which thread, and how often it had
// fenced by then.
struct ProxyWrite {
  enum : uint32_t { nobody = ~0u };
  uint32_t thread = nobody, fences = 0;
  bool has_arrived = false, is_bulk = false;
};

struct SharedVariable {
  const SharedKey* key;
  uint32_t offset, bytes;
};

class Cluster;

class Block : public BlockView {
 public:
  const Kernel* kernel = nullptr;
  Cluster* cluster = nullptr;  // of which it is a part
  unsigned rank = 0;           // in it
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Barrier> barriers;
  std::vector<Mbarrier> mbarriers;
  std::vector<BulkCopy> bulk_copies;               // under way, oldest first
  std::unordered_map<uint64_t, Request> requests;  // by warp, instruction and time
  unsigned num_threads = 0, num_warps = 0, alive = 0;
  std::string error;           // set by the fiber that fails
  std::string failing_thread;  // ", thread t", where one can be named

  ~Block();

  // Before the blocks of a launch; then per block, before and after its fibers run.
  // `launch_end`: what the race detector takes for the end of the launch.
  void prepare(const Kernel& kernel, const Geometry& geometry, uint64_t seed, void* launch_end);
  void start(dim3 block_index, void** parameters);
  bool is_sound();  // what only shows at the end
  void abandon();   // fibers stay where they stand, for good

  Fiber* pick();                         // a ready fiber; null: none
  std::string describe_threads() const;  // where each of them stands
  void sleep(const char* name);          // the running thread waits for that
  void wake(const char* name);           // all that do
  void yield();                          // to any ready fiber of the cluster, perhaps this one
  void maybe_preempt();                  // in a random schedule
  [[noreturn]] void die(std::string text, bool name_thread = true);
  bool random() const { return seed_ != 0; }

  void exit_barriers();  // a thread has exited: barriers that waited only for it open
  void exit_warp(Warp& warp);

  void* shared_variable(const SharedKey* key, size_t bytes, size_t alignment);

  unsigned char* shared_begin() const { return arena_; }
  bool is_shared(const void* p) const;                       // of this block
  uint32_t shared_offset(const void* p) const;               // fails outside of shared memory
  bool holds_shared(uint32_t offset, uint32_t bytes) const;  // whether one variable does
  std::string describe_shared(uint32_t offset) const;        // by its variable
  void check_tile(uint32_t offset, uint32_t bytes);          // fails unless one variable holds it
  void note_write(const void* chunk, bool has_arrived);
  void note_bulk_copy(uint32_t offset);         // of 16 bytes, under way
  void note_arrival(uint32_t offset);           // of it: there for tensor cores
  bool is_being_filled(uint32_t offset) const;  // by a bulk copy
  void check_proxy(uint32_t offset);            // fails where tensor cores might not see what threads wrote
  void note_wgmma(const WgmmaCall& call);
  bool toss();  // in a random schedule
  uint64_t next_random();
  // Where here is what lies at `place` there; null where that is not inside of one variable that both have.
  unsigned char* same_place(const Block& other, const void* place, size_t size) const;

 private:
  friend void fiber_main();
  void make_barriers();
  void open(Barrier& barrier);
  friend BarrierResult barrier(int, int, int);

  void forget_history();  // ThreadSanitizer: memory of a new block
  void lay_out_shared();
  void fence(uint32_t offset);  // a red zone
  bool fence_broken(uint32_t offset, bool behind, uint32_t* distance) const;
  void start_shared();          // poison and fences of a new block
  std::string broken_fences();  // empty: none
  std::string incomplete_wgmma() const;

  unsigned running_warp_ = 0;
  void* launch_end_ = nullptr;
  uint64_t seed_ = 0, random_state_ = 1;
  void** parameters_ = nullptr;

  unsigned char* arena_ = nullptr;  // [fence][dynamic][fence][variable][fence]...
  uint32_t arena_used_ = 0, shared_bytes_ = 0, static_bytes_ = 0;
  bool overlaps_ = false;
  std::vector<SharedVariable> variables_;
  std::vector<ProxyWrite> proxy_writes_;  // empty, or one for each 16 bytes of the arena
  std::vector<std::vector<WgmmaCall>> warpgroup_calls_;
};

inline Fiber* current_fiber() {
  return static_cast<Fiber*>(current);
}
inline Block* current_block() {
  return static_cast<Block*>(current->block);
}

}  // namespace simt
