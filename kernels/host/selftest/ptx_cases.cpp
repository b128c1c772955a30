// A kernel that runs as the PTX of the folder that SIMT_PTX names.
#include "harness.hpp"

// One block of 128 threads with 2 KB of shared memory; a word of each, in hexadecimal.
CASE(ptx) {
  Pointer out = device(128 * 4);
  if (int result = launch("ptx_words", 1, 128, 2048, nullptr, out)) return observe("launch", result);
  printf("words:");
  for (unsigned word : host<unsigned>(out, 128)) printf(" %x", word);
  puts("");
}
