// The driver's worker threads: `parallel_for` for emulated blocks and native twins alike.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace simt {

// Calls body(context, begin, end) over disjoint ranges that cover [0, count), on this thread and the workers;
// returns when all are done. From inside a body it runs serially.
void parallel_ranges(uint32_t count, uint32_t grain, void (*body)(void*, uint32_t, uint32_t), void* context);

// body(i) for every i in [0, count). Which thread runs which i is not fixed; results must not depend on it.
template <class Body>
void parallel_for(uint32_t count, Body&& body) {
  auto range = [](void* context, uint32_t begin, uint32_t end) {
    for (uint32_t i = begin; i < end; i++) (*static_cast<Body*>(context))(i);
  };
  parallel_ranges(count, 0, range, const_cast<void*>(static_cast<const void*>(&body)));
}

// Threads that take part, this one included (SIMT_THREADS, all cores by default).
unsigned num_threads();

}  // namespace simt
