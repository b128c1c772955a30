// How well the lanes of a warp share what memory moves: sectors of global memory, wavefronts of shared memory, for each
// instruction (SIMT_PTX_COUNTS).
#pragma once
#include <stdint.h>

#include <memory>

#include "frame.hpp"

namespace simt::ptx {

bool is_counting();

// The running thread's access, one of those that the lanes of its warp make by this instruction the same time.
void note_access(Frame& frame, const Instruction& instruction, Space space, uint64_t address, uint32_t bytes);

// A thread begins; the last thread of a block ends.
void begin_counting(const Program& program);
void count_accesses(Block& block);

}  // namespace simt::ptx
