// The primitives of thread block clusters: a part of prims.cuh, which includes it. A launch without clusters is one
// of clusters of a single block.
#pragma once

// Whether blocks can be told to run together.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define HAS_CLUSTERS 1
#else
#define HAS_CLUSTERS 0
#endif

#if HAS_CLUSTERS

// Place of this block in its cluster: x fastest, then y, then z.
PRIMITIVE int cluster_rank() {
  int rank;
  PTX_OR_HOST(asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)), rank = simt::cluster_rank());
  return rank;
}

// Blocks of the cluster.
PRIMITIVE int cluster_size() {
  int size;
  PTX_OR_HOST(asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size)), size = simt::cluster_size());
  return size;
}

// All threads of all blocks of the cluster meet, and see what the others have written. Before shared memory of
// another block is touched all have met once, as that block may not have started; and once after, before it ends.
PRIMITIVE void cluster_sync() {
  PTX_OR_HOST(asm volatile("barrier.cluster.arrive.release.aligned;\n"
                           "barrier.cluster.wait.acquire.aligned;" :: : "memory"),
              simt::cluster_sync());
}

// The same where nothing that was written is to be seen: whoever is here has done with the shared memory of others, or
// has barriers in it that mbarrier_init_fence made known. What is still on its way to memory is not waited for.
PRIMITIVE void cluster_meet() {
  PTX_OR_HOST(asm volatile("barrier.cluster.arrive.relaxed.aligned;\n"
                           "barrier.cluster.wait.acquire.aligned;" :: : "memory"),
              simt::cluster_meet());
}

// What the block of that rank has where this one has `own`, in shared memory; aligned as its type.
PRIMITIVE float4 load_peer(const float4* own, int rank) {
  float4 v;
  PTX_OR_HOST(asm volatile("{\n"
                           ".reg .u32 peer;\n"
                           "mapa.shared::cluster.u32 peer, %4, %5;\n"
                           "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [peer];\n"
                           "}" : "=f"(v.x),
                           "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(shared_address(own)), "r"(rank) : "memory"),
              v = simt::load_peer(own, unsigned(rank)));
  return v;
}
PRIMITIVE unsigned long long load_peer(const unsigned long long* own, int rank) {
  unsigned long long v;
  PTX_OR_HOST(asm volatile("{\n"
                           ".reg .u32 peer;\n"
                           "mapa.shared::cluster.u32 peer, %1, %2;\n"
                           "ld.shared::cluster.u64 %0, [peer];\n"
                           "}" : "=l"(v) : "r"(shared_address(own)),
                           "r"(rank) : "memory"),
              v = simt::load_peer(own, unsigned(rank)));
  return v;
}

#endif  // HAS_CLUSTERS
