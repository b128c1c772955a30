// Entry points: modules, functions, launches. The image of a module is ignored: kernels are compiled into the
// driver and looked up by name.
#include <string.h>

#include <algorithm>

#include "clock.hpp"
#include "driver.hpp"
#include "dump.hpp"
#include "launch.hpp"
#include "options.hpp"
#include "planned_failure.hpp"
#include "pool.hpp"
#include "ptx/run.hpp"

using namespace simt;

namespace {

// One launch, with its arguments copied: the caller's are gone when a stream or graph gets to it.
struct Launch : Operation {
  const Kernel& kernel;
  Geometry geometry;
  std::vector<ArgumentLine> lines;
  std::vector<void*> parameters;

  Launch(const Kernel& k, const Geometry& g, void** from) : kernel(k), geometry(g) {
    size_t total = 0;
    for (const Parameter& p : kernel.parameters) total = p.offset + p.size;
    lines.resize((total + sizeof(ArgumentLine) - 1) / sizeof(ArgumentLine));
    unsigned char* const bytes = reinterpret_cast<unsigned char*>(lines.data());
    parameters.reserve(kernel.parameters.size());
    for (size_t i = 0; i < kernel.parameters.size(); i++) {
      const Parameter& p = kernel.parameters[i];
      memcpy(bytes + p.offset, from[i], p.size);
      parameters.push_back(bytes + p.offset);
    }
  }

  Result run(uint64_t& now) override {
    RETURN_IF_ERROR(check_arguments(kernel, parameters.data()));
    if (options().dump_folder) dump_launch(kernel, geometry, parameters.data());
    RETURN_IF_ERROR(execute(kernel, geometry, parameters.data()));
    now += modelled_kernel_ns(kernel, parameters.data());
    return CUDA_SUCCESS;
  }
};

}  // namespace

// ---- modules and functions --------------------------------------------------------------------------------

// Drivers differ in whether a capture of the same thread allows it.
DRIVER_API cuModuleLoadData(void** module, const void*) {
  ENTER_DRIVER();
  RETURN_IF_ERROR(refuse_during_capture("cuModuleLoadData"));
  *module = new char;
  return CUDA_SUCCESS;
}
DRIVER_API cuModuleLoadDataEx(void** module, const void* image, unsigned, void*, void*) {
  return cuModuleLoadData(module, image);
}
DRIVER_API cuModuleLoadFatBinary(void** module, const void* image) {
  return cuModuleLoadData(module, image);
}
DRIVER_API cuModuleLoad(void** module, const char*) {
  return cuModuleLoadData(module, nullptr);
}

DRIVER_API cuModuleUnload(void* module) {
  ENTER_DRIVER();
  RETURN_IF_ERROR(refuse_during_capture("cuModuleUnload"));
  delete static_cast<char*>(module);
  return CUDA_SUCCESS;
}

DRIVER_API cuModuleGetFunction(Kernel** function, void*, const char* name) {
  ENTER_DRIVER();
  *function = find_kernel(name);
  if (*function && (*function)->is_for_hopper && !is_hopper()) {
    *function = nullptr;
    return error(CUDA_ERROR_NOT_FOUND, std::string("only Hopper has kernel ") + name);
  }
  return *function ? ptx::load(**function) : CUDA_ERROR_NOT_FOUND;
}

DRIVER_API cuFuncGetParamInfo(const Kernel* kernel, size_t index, size_t* offset, size_t* size) {
  if (index >= kernel->parameters.size())
    return error(CUDA_ERROR_INVALID_VALUE, std::string("kernel ") + kernel->name + " has " +
                                               std::to_string(kernel->parameters.size()) + " parameters");
  *offset = kernel->parameters[index].offset;
  if (size) *size = kernel->parameters[index].size;
  return CUDA_SUCCESS;
}

DRIVER_API cuFuncGetName(const char** name, const Kernel* kernel) {
  *name = kernel->name;
  return CUDA_SUCCESS;
}

DRIVER_API cuFuncGetAttribute(int* value, int attribute, const Kernel* kernel) {
  switch (attribute) {
    case 0:
      *value = 1024;
      break;  // MAX_THREADS_PER_BLOCK
    case 5:
    case 6:
      *value = int(options().sm);
      break;  // PTX_VERSION, BINARY_VERSION: what Hopper can do is answered, unless SIMT_SM says otherwise
    case 8:
      *value = int(kernel->max_dynamic_shared);
      break;  // MAX_DYNAMIC_SHARED_SIZE_BYTES
    default:
      *value = 0;  // registers, local and static shared memory: unknown
  }
  return CUDA_SUCCESS;
}

static constexpr int non_portable_cluster_size_allowed = 14;

DRIVER_API cuFuncSetAttribute(Kernel* kernel, int attribute, int value) {
  ENTER_DRIVER();
  if (attribute == non_portable_cluster_size_allowed) kernel->allows_large_clusters = value != 0;
  if (attribute != 8) return CUDA_SUCCESS;
  if (value < 0 || unsigned(value) > most_shared(*kernel))
    return error(CUDA_ERROR_INVALID_VALUE,
                 std::to_string(value) + " bytes of dynamic shared memory for kernel " + kernel->name +
                     ", but a block can have at most " + std::to_string(most_shared(*kernel)));
  kernel->max_dynamic_shared = unsigned(value);
  kernel->asks_for_shared = true;
  return CUDA_SUCCESS;
}
DRIVER_API cuFuncSetCacheConfig(Kernel*, int) {
  return CUDA_SUCCESS;
}

DRIVER_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const Kernel* kernel, int threads,
                                                       size_t shared_bytes) {
  if (threads <= 0 || threads > 1024)
    return error(CUDA_ERROR_INVALID_VALUE, "occupancy of an impossible block size");
  int by_threads = 2048 / threads;
  int by_shared = shared_bytes ? int(most_shared(*kernel) / shared_bytes) : 16;
  *blocks = std::min({16, by_threads, by_shared});
  return CUDA_SUCCESS;
}
DRIVER_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const Kernel* kernel,
                                                                int threads, size_t shared_bytes, unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared_bytes);
}

// ---- launches ---------------------------------------------------------------------------------------------

static Result launch(const char* call, const Kernel* kernel, const Geometry& geometry, void* handle,
                     void** parameters, void** extra) {
  Stream* stream = stream_from_handle(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (!kernel) return error(CUDA_ERROR_INVALID_HANDLE, std::string(call) + ": no function");
  if (extra || (!parameters && !kernel->parameters.empty()))
    return error(CUDA_ERROR_INVALID_VALUE, std::string(call) + ": arguments are expected in kernelParams");
  for (size_t i = 0; i < kernel->parameters.size(); i++)
    if (!parameters[i])
      return error(CUDA_ERROR_INVALID_VALUE,
                   "argument " + std::to_string(i) + " is missing (kernel " + kernel->name + ")");
  if (is_planned_to_fail(kernel->name))
    return error(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
                 std::string("a failure on purpose (SIMT_FAIL) of kernel ") + kernel->name);
  if (is_planned_to_be_lost())
    return sticky_error(CUDA_ERROR_ILLEGAL_ADDRESS,
                        std::string("the device is lost on purpose (SIMT_FAIL), at kernel ") + kernel->name);
  RETURN_IF_ERROR(check_geometry(*kernel, geometry));
  return submit(stream, std::make_shared<Launch>(*kernel, geometry, parameters));
}

DRIVER_API cuLaunchKernel(const Kernel* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                          void* handle, void** parameters, void** extra) {
  ENTER_DRIVER();
  const Geometry geometry{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes};
  return launch("cuLaunchKernel", kernel, geometry, handle, parameters, extra);
}

// CUlaunchConfig and CUlaunchAttribute of cuda.h.
struct LaunchAttribute {
  int id;
  char padding[4];
  union {
    char bytes[64];
    int flag;
    unsigned dim[3];
  } value;
};
struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  void* stream;
  const LaunchAttribute* attributes;
  unsigned num_attributes;
};

static constexpr int cluster_dimension = 4, programmatic_stream_serialization = 6;

static Result read_config(const char* call, const LaunchConfig& config, Geometry* geometry) {
  *geometry = {{config.grid_x, config.grid_y, config.grid_z},
               {config.block_x, config.block_y, config.block_z},
               config.shared_bytes};
  if (config.num_attributes && !is_hopper())
    return error(CUDA_ERROR_NOT_SUPPORTED,
                 std::string(call) + ": clusters and launches that overlap came with Hopper");
  for (unsigned i = 0; i < config.num_attributes; i++) {
    const LaunchAttribute& attribute = config.attributes[i];
    if (attribute.id == programmatic_stream_serialization)
      geometry->overlaps = attribute.value.flag != 0;
    else if (attribute.id == cluster_dimension)
      geometry->cluster = dim3(attribute.value.dim[0], attribute.value.dim[1], attribute.value.dim[2]);
    else
      return error(CUDA_ERROR_NOT_SUPPORTED,
                   std::string(call) + ": launch attribute " + std::to_string(attribute.id));
  }
  return CUDA_SUCCESS;
}

// An OS thread stands for a multiprocessor, and runs a whole cluster.
DRIVER_API cuOccupancyMaxActiveClusters(int* clusters, const Kernel* kernel, const LaunchConfig* config) {
  ENTER_DRIVER();
  Geometry geometry;
  RETURN_IF_ERROR(read_config("cuOccupancyMaxActiveClusters", *config, &geometry));
  RETURN_IF_ERROR(check_geometry(*kernel, geometry));
  const int threads = int(geometry.block.x * geometry.block.y * geometry.block.z);
  RETURN_IF_ERROR(
      Result(cuOccupancyMaxActiveBlocksPerMultiprocessor(clusters, kernel, threads, config->shared_bytes)));
  *clusters *= int(num_threads());
  return CUDA_SUCCESS;
}

// Launches run one after the other here, whatever they allow; kernels of launches that may overlap are held to
// the rule that makes that safe, as far as it shows (wait_for_predecessors).
DRIVER_API cuLaunchKernelEx(const LaunchConfig* config, const Kernel* kernel, void** parameters,
                            void** extra) {
  ENTER_DRIVER();
  Geometry geometry;
  RETURN_IF_ERROR(read_config("cuLaunchKernelEx", *config, &geometry));
  return launch("cuLaunchKernelEx", kernel, geometry, config->stream, parameters, extra);
}
