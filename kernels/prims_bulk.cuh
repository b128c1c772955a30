// The primitives of Hopper's bulk tensor copies and of the barriers they arrive at: a part of prims.cuh, which
// includes it.
#pragma once

#if HAS_WGMMA

// One thread asks for a box of a matrix; the copy engine brings it and tells an mbarrier, which counts a phase as
// over when all arrivals and all bytes of it have come:
//   mbarrier_init, mbarrier_init_fence, a barrier of the block
//   mbarrier_arrive_expect, bulk_load ...   the producer: how many bytes this phase brings, and the boxes
//   mbarrier_wait                           the consumers: by the phase's parity, 0 for the first
// Who has waited sees the box, tensor cores too: no fence_async_proxy. A slot is filled anew only after a wait for
// another mbarrier at which every reader has arrived. A wait for the parity of the phase before the first returns at
// once, which is how a producer finds slots empty at first.

// ---- mbarriers: 8 bytes of shared memory ------------------------------------------------------------------

// A phase takes `arrivals` of them. One thread calls it, before any use.
PRIMITIVE void mbarrier_init(uint64_t* barrier, int arrivals) {
  PTX_OR_HOST(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                           "r"(arrivals) : "memory"),
              simt::mbarrier_init(barrier, arrivals));
}

// What this thread has initialised is there for the copy engine and for other blocks of the cluster; threads need a
// barrier behind it, too.
PRIMITIVE void mbarrier_init_fence() {
  PTX_OR_HOST(asm volatile("fence.mbarrier_init.release.cluster;" :: : "memory"),
              simt::mbarrier_init_fence());
}

PRIMITIVE void mbarrier_arrive(uint64_t* barrier) {
  PTX_OR_HOST(
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory"),
      simt::mbarrier_arrive(barrier, 0));
}

// The same, and the phase takes so many bytes more, of copies that may have been issued before or are after.
PRIMITIVE void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
  PTX_OR_HOST(
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                   "r"(bytes) : "memory"),
      simt::mbarrier_arrive(barrier, bytes));
}

// Says to the block of that rank of the cluster, this one included, that this thread has done with what it read: an
// arrival at the mbarrier that it has where this one has `barrier`. That block has not ended, and its mbarriers were made
// known, by mbarrier_init_fence and a barrier of the cluster. It releases at the scope of this block, as mbarrier_arrive:
// for a release at that of the cluster ptxas has the thread wait until all that it ever wrote has reached L2
// (MEMBAR.ALL.GPU), and what was read is in registers or sums by now. So other blocks do not see what it has written.
PRIMITIVE void mbarrier_arrive_at(uint64_t* barrier, int rank) {
  PTX_OR_HOST(asm volatile("{\n"
                           ".reg .b32 peer;\n"
                           "mapa.shared::cluster.u32 peer, %0, %1;\n"
                           "mbarrier.arrive.shared::cluster.b64 _, [peer];\n"
                           "}" ::"r"(shared_address(barrier)),
                           "r"(rank) : "memory"),
              simt::mbarrier_arrive_at(barrier, unsigned(rank)));
}

// Returns once the phase of this parity has ended, and sees what threads of this block had written when they arrived,
// and what bulk copies have brought, whoever asked for them. The default of PTX, acquire at the scope of the block, is
// enough: arrivals of other blocks release nothing to this one, and a wait at the scope of the cluster empties L1 (CCTL.IVALL).
PRIMITIVE void mbarrier_wait(uint64_t* barrier, int parity) {
#ifdef __CUDACC__
  uint32_t is_over;
  do {
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n"
        "}"
        : "=r"(is_over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!is_over);
#else
  simt::mbarrier_wait(barrier, parity);
#endif
}

// ---- bulk copies ------------------------------------------------------------------------------------------

// A matrix in device memory and the box that a copy takes of it, as cuTensorMapEncodeTiled describes them
// (src/device/tensor_map.rs). A kernel takes it as `const __grid_constant__ TensorMap`.
#ifdef __CUDACC__
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};
#else
using TensorMap = simt::TensorMap;
#endif

// Brings the map itself nearer, before its first use.
PRIMITIVE void prefetch_tensor_map(const TensorMap& map) {
  PTX_OR_HOST(asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"), (void)map);
}

// Copies the box whose first element is in `row` and `column`, which may be negative, to `tile`, a multiple of 128
// bytes. Elements outside of the matrix arrive as zeros, and count. Rows of the tile follow each other without gaps;
// their chunks are swizzled by address: as tile_chunk has it where the tile starts at a multiple of 1024, while
// boxes of four rows may fill such a tile one after the other.
PRIMITIVE void bulk_load(void* tile, const TensorMap& map, int column, int row, uint64_t* barrier) {
  PTX_OR_HOST(asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                           " [%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(tile)),
                           "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier)) : "memory"),
              simt::issue_bulk_copy(tile, map, column, row, barrier));
}

// The same to every block of the cluster whose rank is a bit of `blocks`: each gets the box where this one has `tile`,
// and is told at the mbarrier that it has where this one has `barrier`. Each expects the bytes of all boxes that it
// gets, whoever asks for them.
PRIMITIVE void bulk_load_multicast(void* tile, const TensorMap& map, int column, int row, uint64_t* barrier,
                                   uint16_t blocks) {
  PTX_OR_HOST(
      asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                   ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(tile)),
                   "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(blocks) : "memory"),
      simt::issue_bulk_copy(tile, map, column, row, barrier, blocks));
}

#endif  // HAS_WGMMA
