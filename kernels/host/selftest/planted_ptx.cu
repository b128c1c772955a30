// A kernel of which the self-test gives the PTX: this body must not be what runs.
#include "../../prims.cuh"

extern "C" __global__ void ptx_words(unsigned* out) {
  out[threadIdx.x] = 0xbad;
}
EXPORT_KERNEL(ptx_words)
