// Kernels of the host driver's self-test whose blocks run in clusters: a healthy one, and ones with a planted
// bug each.
#include "../../prims.cuh"

enum class Flaw {
  none,
  no_first_sync,
  no_sync,
  only_meets,
  no_last_sync,
  wrong_rank,
  wrong_place,
  half_syncs
};

// out[block][thread] = sum over the cluster's blocks of (number of the block * 64 + mirrored thread).
template <Flaw kFlaw>
__device__ __forceinline__ void cluster_sum(float* out) {
  DYN_SMEM(float4, own);
  const int t = threadIdx.x, block = blockIdx.x;
  if (kFlaw == Flaw::no_sync || kFlaw == Flaw::only_meets) cluster_meet();
  own[t] = make_float4(float(block * 64 + t), 0, 0, 0);
  if (kFlaw == Flaw::half_syncs && t >= 32 && cluster_rank() == 1) return;
  if (kFlaw == Flaw::half_syncs && t >= 32) __syncthreads();
  if (kFlaw == Flaw::only_meets) cluster_meet();
  if (kFlaw != Flaw::no_first_sync && kFlaw != Flaw::no_sync && kFlaw != Flaw::only_meets) cluster_sync();
  float sum = 0;
  for (int rank = 0; rank < cluster_size() + (kFlaw == Flaw::wrong_rank); ++rank)
    sum += load_peer(own + (kFlaw == Flaw::wrong_place ? 64 : 63 - t), rank).x;
  out[block * 64 + t] = sum;
  if (kFlaw != Flaw::no_last_sync) cluster_meet();
}

#define CLUSTER_SUM(name, flaw)                 \
  extern "C" __global__ void name(float* out) { \
    cluster_sum<Flaw::flaw>(out);               \
  }                                             \
  EXPORT_KERNEL(name)

CLUSTER_SUM(healthy_cluster, none)
CLUSTER_SUM(bug_cluster_no_first_sync, no_first_sync)
CLUSTER_SUM(bug_cluster_no_sync, no_sync)
CLUSTER_SUM(bug_cluster_only_meets, only_meets)
CLUSTER_SUM(bug_cluster_no_last_sync, no_last_sync)
CLUSTER_SUM(bug_cluster_wrong_rank, wrong_rank)
CLUSTER_SUM(bug_cluster_wrong_place, wrong_place)
CLUSTER_SUM(bug_cluster_half_syncs, half_syncs)
