// Blocks that run in clusters.
#include "harness.hpp"

constexpr int non_portable_cluster_size_allowed = 14;

// Launches `blocks` of 64 threads in clusters of `size`.
static int launch_cluster(const char* name, unsigned blocks, unsigned size, Pointer out) {
  constexpr int cluster_dimension = 4;
  LaunchAttribute attribute{cluster_dimension, 0, int(size), {1, 1}};
  const LaunchConfig config{{blocks, 1, 1}, {64, 1, 1}, 64 * 16, nullptr, &attribute, 1};
  void* parameters[] = {&out};
  return cuLaunchKernelEx(&config, kernel(name), parameters, nullptr);
}

static const char* sums_are(const char* name, unsigned blocks, unsigned size) {
  Pointer out = device(blocks * 64 * 4);
  MUST(launch_cluster(name, blocks, size, out));
  std::vector<float> got = host<float>(out, blocks * 64);
  for (unsigned i = 0; i < blocks * 64; i++) {
    float expected = 0;
    for (unsigned rank = 0; rank < size; rank++)
      expected += float((i / 64 / size * size + rank) * 64 + 63 - i % 64);
    if (got[i] != expected) return "wrong";
  }
  return "right";
}

CASE(cluster) {
  MUST(cuFuncSetAttribute(kernel("healthy_cluster"), non_portable_cluster_size_allowed, 1));
  for (unsigned seed = 0; seed <= 20; seed++) {
    simt_set_option("seed", seed);
    for (unsigned size : {1, 2, 4, 8, 16})
      printf("seed %u, %u: %s\n", seed, size, sums_are("healthy_cluster", 16, size));
  }
}

CASE(cluster_misuse) {
  for (const char* name : {"bug_cluster_no_first_sync", "bug_cluster_no_last_sync", "bug_cluster_wrong_rank",
                           "bug_cluster_wrong_place", "bug_cluster_half_syncs"}) {
    observe("launch", launch_cluster(name, 4, 2, device(4 * 64 * 4)));
    simt_reset();
  }
  Pointer out = device(16 * 64 * 4);
  observe("grid", launch_cluster("healthy_cluster", 6, 4, out));
  observe("cluster", launch_cluster("healthy_cluster", 16, 16, out));
  MUST(cuFuncSetAttribute(kernel("healthy_cluster"), non_portable_cluster_size_allowed, 1));
  observe("large cluster", launch_cluster("healthy_cluster", 32, 32, device(32 * 64 * 4)));
  observe("nothing", launch_cluster("healthy_cluster", 4, 0, out));
  printf("afterwards: %s\n", sums_are("healthy_cluster", 4, 2));
}

// For the sanitizers: in time, but nothing says that what was written is there.
CASE(cluster_only_meets) {
  (void)sums_are("bug_cluster_only_meets", 4, 4);
}

// Without a barrier between writing and reading: what a block finds is poison, or from before.
CASE(cluster_no_sync) {
  printf("in order: %s\n", sums_are("bug_cluster_no_sync", 4, 4));
}
