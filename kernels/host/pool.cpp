// A pool made for many short jobs: a decode step is a hundred launches of 10 to 50 us, so workers spin a
// little before they sleep, and an idle pool costs nothing.
#include "pool.hpp"

#include <pthread.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "options.hpp"

namespace simt {

namespace {

// 0.1 to 0.5 ms, longer than the host is busy between two decoding rounds: to wake a sleeper costs 20 to 50 us.
constexpr int spins_before_sleep = 10000;

inline void relax() {
  __builtin_ia32_pause();
}

// Work is claimed from one word: the job's number above, the next unclaimed item below. A claim by
// compare-and-swap therefore fails once the job is another one, so a late worker can neither run a finished
// job nor mix two.
class Pool {
 public:
  void run(uint32_t count, uint32_t grain, void (*body)(void*, uint32_t, uint32_t), void* context,
           unsigned threads) {
    std::lock_guard lock(one_job_);
    start(threads - 1);
    uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(job << 32 | closed);
    count_.store(count, std::memory_order_relaxed);
    grain_.store(grain, std::memory_order_relaxed);
    body_.store(body, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    limit_.store(threads - 1, std::memory_order_relaxed);
    ticket_.store(job << 32);
    wakeups_.fetch_add(1);
    if (sleepers_.load()) wakeups_.notify_all();
    work();
    for (int spin = 0; finished_.load(std::memory_order_acquire) != count; spin++)
      spin < 20000 ? relax() : std::this_thread::yield();
  }

 private:
  static constexpr uint64_t closed = 0xffffffff;

  void start(unsigned workers) {
    for (; num_workers_ < workers; num_workers_++)
      std::thread([this, id = num_workers_] { serve(id); }).detach();
  }

  void serve(unsigned id) {
    pthread_setname_np(pthread_self(), "simt-worker");
    for (uint32_t seen = 0;;) {
      uint32_t now = wakeups_.load();
      for (int spin = 0; now == seen && spin < spins_before_sleep; spin++, now = wakeups_.load()) relax();
      if (now == seen) {
        sleepers_.fetch_add(1);
        wakeups_.wait(seen);
        sleepers_.fetch_sub(1);
        continue;
      }
      seen = now;
      if (id < limit_.load(std::memory_order_relaxed)) work();
    }
  }

  void work() {
    inside = true;
    for (;;) {
      uint64_t ticket = ticket_.load();
      uint32_t begin = uint32_t(ticket);
      uint32_t count = count_.load(std::memory_order_relaxed), grain = grain_.load(std::memory_order_relaxed);
      auto body = body_.load(std::memory_order_relaxed);
      auto context = context_.load(std::memory_order_relaxed);
      if (begin >= count) break;
      uint32_t end = count - begin > grain ? begin + grain : count;
      if (!ticket_.compare_exchange_weak(ticket, (ticket & ~closed) | end)) continue;
      body(context, begin, end);
      finished_.fetch_add(end - begin, std::memory_order_release);
    }
    inside = false;
  }

  std::mutex one_job_;
  unsigned num_workers_ = 0;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> finished_{0};
  alignas(64) std::atomic<uint32_t> wakeups_{0};
  std::atomic<uint32_t> sleepers_{0}, count_{0}, grain_{1}, limit_{0};
  std::atomic<void (*)(void*, uint32_t, uint32_t)> body_{nullptr};
  std::atomic<void*> context_{nullptr};

 public:
  static thread_local bool inside;
};

thread_local bool Pool::inside = false;

// Never destroyed: workers outlive main's static destructors.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

unsigned num_threads() {
  static const unsigned cores = std::thread::hardware_concurrency();
  unsigned wanted = unsigned(options().threads.load(std::memory_order_relaxed));
  unsigned n = wanted ? wanted : cores;
  return n ? n : 1;
}

void parallel_ranges(uint32_t count, uint32_t grain, void (*body)(void*, uint32_t, uint32_t), void* context) {
  unsigned threads = num_threads();
  if (threads > count) threads = count;
  if (threads <= 1 || Pool::inside) {
    if (count) body(context, 0, count);
    return;
  }
  if (!grain) grain = count / (threads * 4);
  pool().run(count, grain ? grain : 1, body, context, threads);
}

}  // namespace simt
