// Native twins of kernels/host_words.cu.
#include "rows.hpp"

namespace {

void fetch_words(const simt::NativeLaunch&, const uint32_t* src, uint32_t* out, int n) {
  std::copy_n(src, n, out);
}

void post_words(const simt::NativeLaunch&, const uint32_t* src, uint32_t* out, int* flag, int ticket, int n) {
  std::copy_n(src, n, out);
  __atomic_store_n(flag, ticket, __ATOMIC_RELEASE);
}

NATIVE_TWIN(fetch_words, fetch_words)
NATIVE_TWIN(post_words, post_words)

}  // namespace
