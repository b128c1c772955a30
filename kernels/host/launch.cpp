#include "launch.hpp"

#include <atomic>
#include <mutex>
#include <numeric>

#include "fault.hpp"
#include "native.hpp"
#include "options.hpp"
#include "pool.hpp"
#include "sanitizer.hpp"

namespace simt {

// ---- registry: filled by static constructors of the kernel and twin files ---------------------------------

static Kernel* first_kernel = nullptr;
static NativeTwin* first_twin = nullptr;

Kernel::Kernel(const char* name_, void (*invoke_)(void**), std::span<const Parameter> parameters_,
               std::span<const PointerField> pointers_, const char* source_, bool is_for_hopper_)
    : name(name_),
      invoke(invoke_),
      parameters(parameters_),
      pointers(pointers_),
      source(source_),
      is_for_hopper(is_for_hopper_),
      next(first_kernel) {
  first_kernel = this;
}

NativeTwin::NativeTwin(const char* name, void (*invoke_)(const NativeLaunch&, void**),
                       std::span<const Parameter> parameters_)
    : kernel_name(name), invoke(invoke_), parameters(parameters_), next(first_twin) {
  first_twin = this;
}

static bool same_parameters(const Kernel& kernel, const NativeTwin& twin) {
  if (kernel.parameters.size() != twin.parameters.size()) return false;
  for (size_t i = 0; i < twin.parameters.size(); i++)
    if (kernel.parameters[i].size != twin.parameters[i].size ||
        kernel.parameters[i].is_integer != twin.parameters[i].is_integer)
      return false;
  return true;
}

Kernel* find_kernel(const char* name) {
  Kernel* kernel = first_kernel;
  while (kernel && strcmp(kernel->name, name)) kernel = const_cast<Kernel*>(kernel->next);
  if (!kernel) {
    error(CUDA_ERROR_NOT_FOUND, std::string("no kernel is named ") + name);
    return nullptr;
  }
  if (kernel->twin) return kernel;
  for (const NativeTwin* twin = first_twin; twin; twin = twin->next) {
    if (strcmp(twin->kernel_name, name)) continue;
    if (!same_parameters(*kernel, *twin)) {
      error(CUDA_ERROR_NOT_FOUND,
            std::string("the native twin's parameters differ from those of kernel ") + name);
      return nullptr;
    }
    kernel->twin = twin;
  }
  return kernel;
}

// ---- checks -----------------------------------------------------------------------------------------------

Result check_geometry(const Kernel& kernel, const Geometry& g) {
  auto refuse = [&](const std::string& what) {
    return error(CUDA_ERROR_INVALID_VALUE, what + " (kernel " + kernel.name + ")");
  };
  if (!g.num_blocks()) return refuse("the grid has no blocks");
  if (g.grid.y > 65535 || g.grid.z > 65535) return refuse("grid.y and grid.z are limited to 65535");
  if (!g.num_threads()) return refuse("the block has no threads");
  uint64_t threads = uint64_t(g.block.x) * g.block.y * g.block.z;
  if (threads > 1024 || g.block.z > 64)
    return refuse("a block of " + std::to_string(threads) + " threads; at most 1024 are possible");
  if (!g.cluster_size()) return refuse("the cluster has no blocks");
  if (g.grid.x % g.cluster.x || g.grid.y % g.cluster.y || g.grid.z % g.cluster.z)
    return refuse("the grid is not made of whole clusters");
  if (g.cluster_size() > max_cluster)
    return refuse("a cluster of " + std::to_string(g.cluster_size()) + " blocks; at most " +
                  std::to_string(max_cluster) + " can be");
  if (g.cluster_size() > portable_cluster && !kernel.allows_large_clusters)
    return error(CUDA_ERROR_INVALID_CLUSTER_SIZE,
                 "a cluster of " + std::to_string(g.cluster_size()) + " blocks; at most " +
                     std::to_string(portable_cluster) +
                     " run everywhere: set NON_PORTABLE_CLUSTER_SIZE_ALLOWED on the function (kernel " +
                     kernel.name + ")");
  if (g.shared_bytes > kernel.max_dynamic_shared)
    return refuse(std::to_string(g.shared_bytes) + " bytes of dynamic shared memory, but only " +
                  std::to_string(kernel.max_dynamic_shared) +
                  " are allowed: set MAX_DYNAMIC_SHARED_SIZE_BYTES on the function");
  return CUDA_SUCCESS;
}

// ---- emulation --------------------------------------------------------------------------------------------

namespace {

uint64_t num_emulations = 0;

struct Emulation {
  const Kernel& kernel;
  const Geometry& geometry;
  void** parameters;
  uint64_t seed;
  uint64_t number;  // of the launch in this process
  uint64_t num_clusters = geometry.num_blocks() / geometry.cluster_size();
  // Clusters run in order or, under a seed, as a walk through all of them goes: a stride without a common factor.
  uint64_t stride = 1, start = 0;
  std::atomic<bool> failed{false};
  std::mutex mutex{};
  std::string what{};
  char finish = 0;  // its address stands for the end of the launch

  void shuffle_clusters() {
    if (seed == 0) return;
    const uint64_t mixed = seed * 0x9e3779b97f4a7c15ull;
    start = (mixed >> 32) % num_clusters;
    stride = mixed % num_clusters;
    while (std::gcd(stride, num_clusters) != 1) stride++;
  }

  void run_clusters(uint32_t begin, uint32_t end) {
    // One executor per OS thread, kept with its fibers and stacks for the next launch.
    static thread_local Cluster executor;
    static thread_local uint64_t prepared_for = 0;
    if (prepared_for != number) {
      catch_faults_on_this_thread();
      tsan::acquire(this);
      executor.prepare(kernel, geometry, seed, &finish);
      prepared_for = number;
    }
    for (uint32_t i = begin; i < end && !failed.load(std::memory_order_relaxed); i++) {
      if (!executor.run((i * stride + start) % num_clusters, parameters)) report(executor.failed());
    }
  }

  void report(const Block& block) {
    std::lock_guard lock(mutex);
    if (failed.exchange(true)) return;
    auto triple = [](auto v) {
      return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
    };
    what = block.error + " (kernel " + kernel.name + ", block " + triple(block.index) + block.failing_thread +
           ")";
  }
};

}  // namespace

Result execute(const Kernel& kernel, const Geometry& geometry, void** parameters) {
  if (kernel.twin && !kernel.program && options().native.load(std::memory_order_relaxed)) {
    kernel.twin->invoke({geometry.grid, geometry.block, geometry.shared_bytes}, parameters);
    return CUDA_SUCCESS;
  }
  uint64_t num_blocks = geometry.num_blocks();
  if (num_blocks > UINT32_MAX) return error(CUDA_ERROR_NOT_SUPPORTED, "more than 2^32 blocks");
  Emulation emulation{kernel, geometry, parameters, options().seed.load(std::memory_order_relaxed),
                      ++num_emulations};
  emulation.shuffle_clusters();
  tsan::release(&emulation);
  // Waking workers for a launch this small would take longer than the launch.
  if (num_blocks * geometry.num_threads() <= 256) {
    emulation.run_clusters(0, uint32_t(emulation.num_clusters));
  } else {
    auto range = [](void* context, uint32_t begin, uint32_t end) {
      static_cast<Emulation*>(context)->run_clusters(begin, end);
    };
    parallel_ranges(uint32_t(emulation.num_clusters), 1, range, &emulation);
  }
  tsan::acquire(&emulation.finish);
  if (emulation.failed) return sticky_error(CUDA_ERROR_LAUNCH_FAILED, emulation.what);
  return CUDA_SUCCESS;
}

}  // namespace simt
