// Stack switching and the sanitizers' fiber protocol.
#include "fiber.hpp"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <utility>

#include "sanitizer.hpp"

#if !defined(__x86_64__)
#error "the host driver switches stacks on x86-64 only"
#endif

asm(R"(
  .text
  .globl simt_switch_stack
  .hidden simt_switch_stack
  .type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size simt_switch_stack, .-simt_switch_stack
)");

namespace simt {

constexpr size_t page = 4096;

// Every guard page splits a mapping and a process may have 65530, so only the first fibers of a block get one: all
// threads of a kernel overflow alike.
static size_t guard_bytes(unsigned index) {
  return index < 256 ? page : 0;
}

// Under ThreadSanitizer stacks come from its own allocator: freed and allocated again they are memory without
// a history, while those of mmap would show accesses of an earlier block's thread as races.
static char* allocate_stack(unsigned index) {
  if (tsan::enabled) {
    tsan::Ignore ignore;
    return static_cast<char*>(malloc(fiber_stack_bytes));
  }
  void* map = mmap(nullptr, guard_bytes(index) + fiber_stack_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) __builtin_trap();
  if (guard_bytes(index)) mprotect(map, guard_bytes(index), PROT_NONE);
  return static_cast<char*>(map) + guard_bytes(index);
}

static void release_stack(char* base, unsigned index) {
  if (tsan::enabled) {
    tsan::Ignore ignore;
    free(base);
  } else {
    munmap(base - guard_bytes(index), guard_bytes(index) + fiber_stack_bytes);
  }
}

FiberStack::FiberStack(unsigned index, void (*entry)()) : base_(allocate_stack(index)), index_(index) {
  rewind(entry);
}

FiberStack::FiberStack(FiberStack&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      index_(other.index_),
      stack_pointer_(other.stack_pointer_),
      tsan_(std::exchange(other.tsan_, nullptr)) {}

FiberStack::~FiberStack() {
  if (tsan_) tsan::destroy_fiber(tsan_);
  if (base_) release_stack(base_, index_);
}

void FiberStack::rewind(void (*entry)()) {
  if (tsan_) {  // a new identity, so that the race detector sees no order between what ran here and what
                // comes
    tsan::destroy_fiber(tsan_);
    release_stack(base_, index_);
    base_ = allocate_stack(index_);
  }
  tsan_ = tsan::create_fiber();
  asan::unpoison(base_, fiber_stack_bytes);  // of frames that were left without returning
  auto** top = reinterpret_cast<void**>(base_ + fiber_stack_bytes - (index_ * 5 % 61) * 64);
  *--top = nullptr;  // where a caller would be: keeps the alignment the ABI wants at entry
  *--top = reinterpret_cast<void*>(entry);
  for (int callee_saved = 0; callee_saved < 6; callee_saved++) *--top = nullptr;
  stack_pointer_ = top;
}

FiberStack::Home::Home() {
  tsan = tsan::current_fiber();
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  void* address = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &address, &stack_bytes);
  pthread_attr_destroy(&attributes);
  stack = address;
#endif
}

void FiberStack::resume(Home& home) {
  tsan::switch_to(tsan_);
  auto fake = asan::start_switch(base_, fiber_stack_bytes);
  simt_switch_stack(&home.stack_pointer, stack_pointer_);
  asan::finish_switch(fake);
}

void FiberStack::hand_over(FiberStack& next) {
  tsan::switch_to(next.tsan_);
  auto fake = asan::start_switch(next.base_, fiber_stack_bytes);
  simt_switch_stack(&stack_pointer_, next.stack_pointer_);
  asan::finish_switch(fake);
}

void FiberStack::suspend(Home& home, bool abandon) {
  tsan::switch_to(home.tsan);
  auto fake = asan::start_switch(home.stack, home.stack_bytes, abandon);
  simt_switch_stack(&stack_pointer_, home.stack_pointer);
  asan::finish_switch(fake);
}

void FiberStack::entered() {
  asan::finish_switch(nullptr);
}

long long FiberStack::fresh_top() const {
  return reinterpret_cast<long long>(base_ + fiber_stack_bytes - 8);
}

bool FiberStack::contains(const void* address) const {
  auto at = static_cast<const char*>(address);
  return at >= base_ - guard_bytes(index_) && at < base_ + fiber_stack_bytes;
}

}  // namespace simt
