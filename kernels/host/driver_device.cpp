// Entry points: initialisation, the one device, contexts.
#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

#include "clock.hpp"
#include "driver.hpp"
#include "launch.hpp"
#include "options.hpp"
#include "pool.hpp"

using namespace simt;

static int the_context;  // its address is the CUcontext
static thread_local void* thread_context = nullptr;

// Reads the cost table once; a bad one makes every cuInit fail, with a text that says where.
DRIVER_API cuInit(unsigned) {
  std::lock_guard driver_lock(driver_mutex);
  static const Result clock = load_clock(options().clock_file);
  return clock;
}

DRIVER_API cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetCount(int* count) {
  *count = 1;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGet(int* device, int ordinal) {
  if (ordinal) return error(CUDA_ERROR_INVALID_DEVICE, "the host driver has one device, number 0");
  *device = 0;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetName(char* name, int length, int) {
  if (length <= 0) return CUDA_ERROR_INVALID_VALUE;
  strncpy(name, "smart-run host driver", size_t(length) - 1);
  name[length - 1] = 0;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetUuid_v2(unsigned char* uuid, int) {
  memcpy(uuid, "smart-run-host-0", 16);
  return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetUuid(unsigned char* uuid, int device) {
  return cuDeviceGetUuid_v2(uuid, device);
}

DRIVER_API cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = memory_use().total;
  return CUDA_SUCCESS;
}

// The generic kernels' device: compute capability 8.0 (nothing newer is emulated), with the least shared
// memory of the GPUs those kernels must run on. Attributes not listed are 0.
DRIVER_API cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 1:
      *value = 1024;
      break;  // MAX_THREADS_PER_BLOCK
    case 2:
    case 3:
      *value = 1024;
      break;  // MAX_BLOCK_DIM_X, Y
    case 4:
      *value = 64;
      break;  // MAX_BLOCK_DIM_Z
    case 5:
      *value = 0x7fffffff;
      break;  // MAX_GRID_DIM_X
    case 6:
    case 7:
      *value = 65535;
      break;  // MAX_GRID_DIM_Y, Z
    case 8:
      *value = 48 << 10;
      break;  // MAX_SHARED_MEMORY_PER_BLOCK
    case 9:
      *value = 64 << 10;
      break;  // TOTAL_CONSTANT_MEMORY
    case 10:
      *value = 32;
      break;  // WARP_SIZE
    case 12:
      *value = 65536;
      break;  // MAX_REGISTERS_PER_BLOCK
    case 13:
      *value = 1000000;
      break;  // CLOCK_RATE, kHz
    case 16:
      *value = int(num_threads());
      break;  // MULTIPROCESSOR_COUNT
    case 31:
      *value = 1;
      break;  // CONCURRENT_KERNELS
    case 36:
      *value = 1000000;
      break;  // MEMORY_CLOCK_RATE, kHz
    case 37:
      *value = 64;
      break;  // GLOBAL_MEMORY_BUS_WIDTH
    case 38:
      *value = 32 << 20;
      break;  // L2_CACHE_SIZE
    case 39:
      *value = 2048;
      break;  // MAX_THREADS_PER_MULTIPROCESSOR
    case 40:
      *value = 1;
      break;  // ASYNC_ENGINE_COUNT
    case 41:
      *value = 1;
      break;  // UNIFIED_ADDRESSING
    case 75:
      *value = 8;
      break;  // COMPUTE_CAPABILITY_MAJOR
    case 76:
      *value = 0;
      break;  // COMPUTE_CAPABILITY_MINOR
    case 81:
      *value = int(max_shared_per_block) + 1024;
      break;  // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    case 82:
      *value = 65536;
      break;  // MAX_REGISTERS_PER_MULTIPROCESSOR
    case 97:
      *value = int(max_shared_per_block);
      break;  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    case 106:
      *value = 16;
      break;  // MAX_BLOCKS_PER_MULTIPROCESSOR
    case 115:
      *value = 1;
      break;  // MEMORY_POOLS_SUPPORTED
    case 120:
      *value = is_hopper();
      break;  // CLUSTER_LAUNCH
    default:
      *value = 0;
  }
  return CUDA_SUCCESS;
}

// ---- contexts ---------------------------------------------------------------------------------------------

DRIVER_API cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &the_context;
  return CUDA_SUCCESS;
}
DRIVER_API cuDevicePrimaryCtxRelease_v2(int) {
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxGetCurrent(void** context) {
  *context = thread_context;
  return CUDA_SUCCESS;
}
DRIVER_API cuCtxSetCurrent(void* context) {
  if (context && context != &the_context)
    return error(CUDA_ERROR_INVALID_CONTEXT, "cuCtxSetCurrent: unknown context");
  thread_context = context;
  return CUDA_SUCCESS;
}
DRIVER_API cuCtxGetDevice(int* device) {
  if (!thread_context)
    return error(CUDA_ERROR_INVALID_CONTEXT, "cuCtxGetDevice: no context is current on this thread");
  *device = 0;
  return CUDA_SUCCESS;
}
DRIVER_API cuCtxSetFlags(unsigned) {
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = 0;
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxSynchronize() {
  ENTER_DRIVER();
  RETURN_IF_ERROR(refuse_during_capture("cuCtxSynchronize"));
  return synchronize(nullptr);
}

// ---- symbols ----------------------------------------------------------------------------------------------

DRIVER_API cuGetProcAddress_v2(const char* symbol, void** address, int, uint64_t, int* status) {
  Dl_info own;
  dladdr(reinterpret_cast<void*>(&cuInit), &own);
  void* library = dlopen(own.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (!library) library = dlopen(nullptr, RTLD_LAZY);  // linked into the program
  std::string name = symbol;
  *address = nullptr;
  // Names are given without their version suffix; the newest one is meant.
  for (const char* suffix : {"_v3", "_v2", ""})
    if (library && !*address) *address = dlsym(library, (name + suffix).c_str());
  if (library) dlclose(library);
  if (status) *status = *address ? 0 : 1;  // FOUND, SYMBOL_NOT_FOUND
  return *address ? CUDA_SUCCESS
                  : error(CUDA_ERROR_NOT_FOUND, "cuGetProcAddress: the host driver has no " + name);
}
