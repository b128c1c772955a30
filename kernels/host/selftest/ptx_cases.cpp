// A kernel that runs as the PTX of the folder that SIMT_PTX names, and a GPU older than what is emulated.
#include "harness.hpp"

// One block of 128 threads with 2 KB of shared memory; a word of each, in hexadecimal.
CASE(ptx) {
  Pointer out = device(128 * 4);
  if (int result = launch("ptx_words", 1, 128, 2048, nullptr, out)) return observe("launch", result);
  printf("words:");
  for (unsigned word : host<unsigned>(out, 128)) printf(" %x", word);
  puts("");
}

// What a GPU before Hopper refuses (SIMT_SM).
CASE(before_hopper) {
  void* function;
  observe("kernel of Hopper's", cuModuleGetFunction(&function, nullptr, "healthy_wgmma"));
  constexpr int cluster_dimension = 4;
  const LaunchAttribute attribute{cluster_dimension, 0, 1, {1, 1}};
  observe("cluster", launch_with("healthy_cluster", 64, attribute, device(64 * 4)));
  observe("plain", launch("healthy_cluster", 1, 64, 64 * 16, nullptr, device(64 * 4)));
}
