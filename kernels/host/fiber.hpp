// A fiber: a stack and the point where it was left. One fiber per CUDA thread of a block, all of one OS
// thread. x86-64 SysV. The sanitizers are told about every switch.
#pragma once
#include <stddef.h>

namespace simt {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t fiber_stack_bytes = 256 << 10;  // red zones around every local
#else
constexpr size_t fiber_stack_bytes = 64 << 10;
#endif

// Callee-saved registers on the old stack, its pointer into *save, then the same in reverse from `to`.
extern "C" void simt_switch_stack(void** save, void* to);

class FiberStack {
 public:
  // The first stacks of a block have a guard page below. Tops are staggered by `index`: equal offsets would put
  // the hot lines of every fiber into the same few L1 sets, which costs a factor of two.
  FiberStack(unsigned index, void (*entry)());
  FiberStack(FiberStack&& other) noexcept;
  FiberStack(const FiberStack&) = delete;
  ~FiberStack();

  void rewind(void (*entry)());  // the next resume starts `entry` afresh

  // From the OS thread's own stack into this fiber, and back out. `resume` returns when the fiber calls
  // `suspend` with the same `home`, possibly after any number of `hand_over`s.
  struct Home {
    void* stack_pointer = nullptr;
    void* tsan = nullptr;
    const void* stack = nullptr;
    size_t stack_bytes = 0;
    Home();
  };
  void resume(Home& home);
  void hand_over(FiberStack& next);
  void suspend(Home& home, bool abandon);

  // Must be called first thing on a fresh fiber.
  static void entered();

  // An ABI-conforming stack pointer for a function that is entered as if called.
  long long fresh_top() const;
  bool contains(const void* address) const;  // the guard page included

 private:
  char* base_;  // lowest usable byte
  unsigned index_;
  void* stack_pointer_ = nullptr;
  void* tsan_ = nullptr;
};

}  // namespace simt
