// The meeting of a warp's lanes, under every shuffle, vote, ldmatrix and mma.
#include "block.hpp"
#include "sanitizer.hpp"

namespace simt {

static const char* name_of(WarpOp op) {
  switch (op) {
    case WarpOp::syncwarp:
      return "__syncwarp";
    case WarpOp::shuffle:
      return "shuffle";
    case WarpOp::vote:
      return "vote";
    case WarpOp::match:
      return "match";
    case WarpOp::mma:
      return "mma";
    case WarpOp::ldmatrix:
      return "ldmatrix";
    case WarpOp::wgmma:
      return "wgmma";
    case WarpOp::wgmma_fence:
      return "wgmma_fence";
    case WarpOp::wgmma_commit:
      return "wgmma_commit";
    case WarpOp::wgmma_wait:
      return "wgmma_wait";
    case WarpOp::none:
      break;
  }
  return "?";
}

static Rendezvous& meeting_of(Warp& warp, uint32_t mask) {
  if (mask == ~0u) return warp.whole;
  for (Rendezvous* r : warp.partial)
    if (r->mask == mask) return *r;
  warp.partial.push_back(new Rendezvous{.mask = mask});
  return *warp.partial.back();
}

static void disperse(Warp& warp, Rendezvous& meeting) {
  warp.ready |= meeting.mask & warp.alive;
  meeting.arrived = 0;
  meeting.generation++;
}

Slot* rendezvous(uint32_t mask, WarpOp op, const void* operand, int bytes, void (*combine)(Slot*)) {
  tsan::Ignore ignore;
  Fiber* self = current_fiber();
  Block* block = current_block();
  Warp& warp = block->warps[self->warp];
  uint32_t bit = 1u << self->lane;
  if (!(mask & bit)) fail("warp operation by a lane that is not in its mask");
  if (op != WarpOp::syncwarp && (mask & warp.exists & ~warp.alive))
    block->die(std::string(name_of(op)) + " with a mask that names an exited lane");

  Rendezvous& meeting = meeting_of(warp, mask);
  if (!meeting.arrived)
    meeting.op = op, meeting.place = self->place;
  else if (meeting.op != op)
    block->die(std::string("lanes of one warp meet in different operations: ") + name_of(meeting.op) +
               " and " + name_of(op));
  else if (meeting.place != self->place)
    block->die(std::string("lanes of one warp meet in two instructions that are not the same: ") +
               name_of(op) + " of lines " + std::to_string(meeting.place) + " and " +
               std::to_string(self->place));

  Slot* slots = meeting.slots[meeting.generation & 1];
  if (bytes) memcpy(slots[self->lane], operand, size_t(bytes));
  meeting.arrived |= bit;
  tsan::release(slots);
  if ((meeting.arrived & warp.alive) == (mask & warp.alive)) {
    if (combine) combine(slots);
    disperse(warp, meeting);
    block->maybe_preempt();
  } else {
    warp.ready &= ~bit;
    self->waiting_for = name_of(op);
    block->yield();
    self->waiting_for = nullptr;
  }
  tsan::acquire(slots);
  return slots;
}

// A lane has exited: meetings that waited only for it take place, if that is harmless.
void Block::exit_warp(Warp& warp) {
  auto settle = [&](Rendezvous& meeting) {
    if (!meeting.arrived) return;
    if (meeting.op != WarpOp::syncwarp && (meeting.mask & warp.exists & ~warp.alive))
      die(std::string("a lane exits while its warp waits for it in ") + name_of(meeting.op));
    if ((meeting.arrived & warp.alive) == (meeting.mask & warp.alive)) disperse(warp, meeting);
  };
  settle(warp.whole);
  for (Rendezvous* r : warp.partial) settle(*r);
}

}  // namespace simt
