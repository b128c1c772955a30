// Host body of mbarriers: phases that end when their arrivals and their bytes have come. The bodies are in
// mbarrier.cpp.
#pragma once
#include "thread.hpp"

namespace simt {

void mbarrier_init(uint64_t* barrier, int arrivals);
void mbarrier_init_fence();

// One arrival, which adds `bytes` to what copies have to bring in this phase.
void mbarrier_arrive(uint64_t* barrier, int bytes);

// One arrival at the mbarrier that the block of that rank has there.
void mbarrier_arrive_at(uint64_t* barrier, unsigned rank);

void mbarrier_wait(uint64_t* barrier, int parity);

}  // namespace simt
