#include "run.hpp"

#include "counts.hpp"
#include "frame.hpp"

namespace simt::ptx {

namespace {

uint64_t value_of(Special special, const Fiber& fiber) {
  const BlockView& block = *fiber.block;
  switch (special) {
    case Special::tid_x:
      return fiber.index.x;
    case Special::tid_y:
      return fiber.index.y;
    case Special::tid_z:
      return fiber.index.z;
    case Special::ntid_x:
      return block.dim.x;
    case Special::ntid_y:
      return block.dim.y;
    case Special::ntid_z:
      return block.dim.z;
    case Special::ctaid_x:
      return block.index.x;
    case Special::ctaid_y:
      return block.index.y;
    case Special::ctaid_z:
      return block.index.z;
    case Special::nctaid_x:
      return block.grid.x;
    case Special::nctaid_y:
      return block.grid.y;
    case Special::nctaid_z:
      return block.grid.z;
    case Special::laneid:
      return fiber.lane;
    case Special::warpid:
      return fiber.warp;
    case Special::cluster_ctarank:
      return cluster_rank();
    case Special::cluster_nctarank:
      return cluster_size();
  }
  return 0;
}

uint64_t address_of(const Variable& variable, Block& block, unsigned char* local, void** parameters) {
  switch (variable.space) {
    case Space::parameter:
      return reinterpret_cast<uint64_t>(parameters[variable.offset]);
    case Space::dynamic_shared:
      return uint32_t(block.dynamic_shared - block.shared_begin());
    case Space::local:
      return reinterpret_cast<uint64_t>(local + variable.offset);
    default: {
      auto* place = block.shared_variable(&variable.key, variable.bytes, variable.alignment);
      return uint32_t(static_cast<unsigned char*>(place) - block.shared_begin());
    }
  }
}

}  // namespace

void Frame::fail(const Instruction& instruction, const std::string& what) const {
  current_block()->die(what + " (" + program->file + ":" + std::to_string(instruction.line) + ")");
}

unsigned char* locate(Frame& frame, const Instruction& instruction, Space space, const Operand& address,
                      uint32_t bytes, uint32_t alignment) {
  const uint64_t base = space == Space::shared || space == Space::cluster ? get<uint32_t>(frame, address)
                                                                          : get<uint64_t>(frame, address);
  uint64_t at = base + uint64_t(int64_t(address.offset));
  if (space == Space::generic && frame.block->is_shared(reinterpret_cast<const void*>(at)))
    space = Space::shared, at -= reinterpret_cast<uint64_t>(frame.block->shared_begin());
  if (at % alignment) frame.fail(instruction, "an address is no multiple of " + std::to_string(alignment));
  if (is_counting()) note_access(frame, instruction, space, at, bytes);
  if (space != Space::shared && space != Space::cluster) return reinterpret_cast<unsigned char*>(at);
  const uint32_t offset = uint32_t(at) & ((1u << rank_shift) - 1), rank = uint32_t(at) >> rank_shift;
  if (!frame.block->holds_shared(offset, bytes))
    frame.fail(instruction, "an address of shared memory is not inside of one variable");
  unsigned char* own = frame.block->shared_begin() + offset;
  if (rank == 0) return own;
  if (space == Space::shared) frame.fail(instruction, "an address of another block's shared memory");
  return peer_shared(own, bytes, rank - 1);
}

void run(const Program& program, void** parameters) {
  Fiber* self = current_fiber();
  const size_t words = program.num_slots + (program.local_bytes + 7 + 16) / 8;
  // Poison where nothing was written, once a program: filling them for every thread of a launch would take as long as it.
  if (self->registers_of != &program) self->registers.assign(words, ~uint64_t(0));
  self->registers_of = &program;
  Frame frame{self->registers.data(), &program, current_block()};
  auto* local = reinterpret_cast<unsigned char*>(frame.slots + program.num_slots);
  local += -reinterpret_cast<uintptr_t>(local) % 16;
  for (const Program::Constant& constant : program.constants) frame.slots[constant.slot] = constant.value;
  for (const Program::Given& given : program.specials)
    frame.slots[given.slot] = value_of(given.special, *self);
  for (const Variable& variable : program.variables)
    frame.slots[variable.slot] = address_of(variable, *frame.block, local, parameters);
  if (is_counting()) begin_counting(program);
  const Instruction* code = program.code.data();
  while (!frame.has_ended) {
    const Instruction& instruction = code[frame.next++];
    if (instruction.guard >= 0 && (frame.slots[instruction.guard] & 1) != instruction.guard_value) continue;
    instruction.action(frame, instruction);
  }
  if (is_counting() && frame.block->alive == 1) count_accesses(*frame.block);
}

}  // namespace simt::ptx
