#include "error.hpp"

#include <string.h>

#include <atomic>
#include <mutex>
#include <set>

#include "export.hpp"

namespace simt {

namespace {

std::mutex mutex;
int last_code = 0;
const char* last_text = "";
std::atomic<Result> sticky{CUDA_SUCCESS};

// Texts are handed out as bare pointers, so each is kept for ever; there are few.
const char* keep(const std::string& text) {
  static auto* texts = new std::set<std::string>;
  return texts->insert(text).first->c_str();
}

struct Named {
  Result code;
  const char *name, *text;
};
constexpr Named table[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
     "too many resources requested for launch"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
     "operation would result in a merge of separate capture sequences"},
    {CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capture has unjoined work"},
    {CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {CUDA_ERROR_CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
};

const Named* find(int code) {
  for (const Named& row : table)
    if (row.code == code) return &row;
  return nullptr;
}

}  // namespace

Result error(Result code, const std::string& what) {
  std::lock_guard lock(mutex);
  last_code = code;
  last_text = keep("simt: " + what);
  return code;
}

Result sticky_error(Result code, const std::string& what) {
  sticky = code;
  return error(code, what);
}

Result sticky_state() {
  return sticky.load(std::memory_order_relaxed);
}

}  // namespace simt

using namespace simt;

SIMT_EXPORT const char* simt_last_error() {
  std::lock_guard lock(mutex);
  return last_text;
}

// Forgets an error, the sticky state included: for tests that provoke one. Memory and streams are as they
// were.
SIMT_EXPORT void simt_reset() {
  std::lock_guard lock(mutex);
  last_code = 0;
  last_text = "";
  sticky = CUDA_SUCCESS;
}

SIMT_EXPORT int cuGetErrorName(int code, const char** name) {
  const Named* known = find(code);
  *name = known ? known->name : nullptr;
  return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// For the code of the last error this is the long text, which names call, kernel, block and thread.
SIMT_EXPORT int cuGetErrorString(int code, const char** text) {
  std::lock_guard lock(mutex);
  const Named* known = find(code);
  *text = code && code == last_code ? last_text : known ? known->text : nullptr;
  return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
