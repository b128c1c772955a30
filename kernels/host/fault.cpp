#include "fault.hpp"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <mutex>

#include "block.hpp"
#include "sanitizer.hpp"

namespace simt {

namespace {

struct sigaction previous_segv, previous_bus;
thread_local const void* fault_address = nullptr;

// Entered as if the faulting instruction had called it, on the faulting fiber's stack, which is abandoned
// anyway.
[[noreturn]] void landing() {
  Fiber* self = current_fiber();
  char text[96];
  bool overflow = self->stack.contains(fault_address);
  snprintf(text, sizeof text,
           overflow ? "stack overflow of a thread at address %p" : "illegal memory access at address %p",
           fault_address);
  current_block()->die(text);
}

void on_fault(int signal, siginfo_t* info, void* context) {
  if (!current) {  // not ours: put the earlier handler back and fault again
    sigaction(signal, signal == SIGSEGV ? &previous_segv : &previous_bus, nullptr);
    return;
  }
  fault_address = info->si_addr;
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  registers[REG_RSP] = static_cast<greg_t>(current_fiber()->stack.fresh_top());
  registers[REG_RIP] = reinterpret_cast<greg_t>(&landing);
}

void install() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous_segv);
  sigaction(SIGBUS, &action, &previous_bus);
}

}  // namespace

void catch_faults_on_this_thread() {
  if (tsan::enabled || asan::enabled) return;
  static std::once_flag once;
  std::call_once(once, install);
  // A handler for a stack overflow cannot run on that stack. Rust's threads have an alternate one already.
  stack_t existing = {};
  sigaltstack(nullptr, &existing);
  if (!(existing.ss_flags & SS_DISABLE)) return;
  stack_t own = {};
  own.ss_size = 64 << 10;
  own.ss_sp = malloc(own.ss_size);  // for the thread's life
  sigaltstack(&own, nullptr);
}

}  // namespace simt
