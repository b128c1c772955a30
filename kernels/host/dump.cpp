#include "dump.hpp"

#include <stdio.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <set>
#include <tuple>

#include "memory.hpp"
#include "options.hpp"
#include "ptx/run.hpp"

namespace simt {

namespace {

constexpr char magic[] = "SIMTLNC2";
constexpr size_t most_per_kernel = 8;

struct Closer {
  void operator()(FILE* file) const { fclose(file); }
};
using File = std::unique_ptr<FILE, Closer>;

bool is_new(const Kernel& kernel, const Geometry& g) {
  using Shape = std::tuple<unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, uint32_t, unsigned>;
  static std::map<const Kernel*, std::set<Shape>> seen;
  auto& shapes = seen[&kernel];
  if (shapes.size() >= most_per_kernel) return false;
  return shapes
      .emplace(g.grid.x, g.grid.y, g.grid.z, g.block.x, g.block.y, g.block.z, g.shared_bytes,
               g.cluster_size())
      .second;
}

DevicePointer pointer_at(PointerField field, void** parameters) {
  DevicePointer p;
  memcpy(&p, static_cast<const char*>(parameters[field.parameter]) + field.offset, sizeof p);
  return p;
}

void write_u32(FILE* file, uint32_t value) {
  fwrite(&value, 4, 1, file);
}

struct Reader {
  FILE* file;
  bool ok = true;

  void read(void* to, size_t bytes) { ok = ok && fread(to, 1, bytes, file) == bytes; }
  uint32_t u32() {
    uint32_t value = 0;
    read(&value, 4);
    return ok ? value : 0;
  }
  uint64_t u64() {
    uint64_t value = 0;
    read(&value, 8);
    return ok ? value : 0;
  }
};

}  // namespace

void dump_launch(const Kernel& kernel, const Geometry& g, void** parameters) {
  std::map<DevicePointer, uint64_t> allocations;
  uint64_t total = 0;
  for (PointerField field : kernel.pointers) {
    AllocationRange range;
    if (!find_memory(pointer_at(field, parameters), &range)) continue;
    if (allocations.emplace(range.begin, range.bytes).second) total += range.bytes;
  }
  if (total > options().dump_max.load() || !is_new(kernel, g)) return;

  static unsigned number = 0;
  std::string path = std::string(options().dump_folder) + "/" + kernel.name + "-" + std::to_string(getpid()) +
                     "-" + std::to_string(number++) + ".launch";
  File file(fopen(path.c_str(), "wb"));
  if (!file) {
    fprintf(stderr, "simt: SIMT_DUMP: cannot write %s\n", path.c_str());
    return;
  }
  fwrite(magic, 8, 1, file.get());
  write_u32(file.get(), uint32_t(strlen(kernel.name)));
  fwrite(kernel.name, strlen(kernel.name), 1, file.get());
  for (uint32_t v : {g.grid.x, g.grid.y, g.grid.z, g.block.x, g.block.y, g.block.z, g.shared_bytes,
                     kernel.max_dynamic_shared, g.cluster.x, g.cluster.y, g.cluster.z})
    write_u32(file.get(), v);
  write_u32(file.get(), uint32_t(kernel.parameters.size()));
  for (size_t i = 0; i < kernel.parameters.size(); i++) {
    write_u32(file.get(), kernel.parameters[i].size);
    fwrite(parameters[i], kernel.parameters[i].size, 1, file.get());
  }
  write_u32(file.get(), uint32_t(allocations.size()));
  for (auto [address, bytes] : allocations) {
    fwrite(&address, 8, 1, file.get());
    fwrite(&bytes, 8, 1, file.get());
    fwrite(reinterpret_cast<const void*>(address), bytes, 1, file.get());
  }
}

// Magic, name, geometry: false if the file is something else.
static bool read_header(Reader& in, std::string* name, Geometry* geometry, uint32_t* dynamic_limit) {
  char head[8], text[256] = {};
  in.read(head, 8);
  if (!in.ok || memcmp(head, magic, 8)) return false;
  in.read(text, std::min<size_t>(in.u32(), sizeof text - 1));
  *name = text;
  uint32_t v[11];
  for (uint32_t& value : v) value = in.u32();
  *geometry = {{v[0], v[1], v[2]}, {v[3], v[4], v[5]}, v[6], false, {v[8], v[9], v[10]}};
  *dynamic_limit = v[7];
  return in.ok;
}

static Result refuse(const char* path, const std::string& what) {
  return error(CUDA_ERROR_INVALID_VALUE, std::string(path) + ": " + what);
}

Result read_launch_header(const char* path, std::string* name, Geometry* geometry) {
  File file(fopen(path, "rb"));
  if (!file) return refuse(path, "cannot be read");
  Reader in{file.get()};
  uint32_t dynamic_limit;
  return read_header(in, name, geometry, &dynamic_limit) ? CUDA_SUCCESS : refuse(path, "not a dumped launch");
}

Result replay_launch(const char* path) {
  File file(fopen(path, "rb"));
  if (!file) return refuse(path, "cannot be read");
  Reader in{file.get()};
  std::string name;
  Geometry geometry;
  uint32_t dynamic_limit;
  if (!read_header(in, &name, &geometry, &dynamic_limit)) return refuse(path, "not a dumped launch");
  Kernel* kernel = find_kernel(name.c_str());
  if (!kernel) return refuse(path, "no kernel is named " + name);
  if (Result r = ptx::load(*kernel)) return r;
  kernel->max_dynamic_shared = dynamic_limit;
  kernel->asks_for_shared = true;
  kernel->allows_large_clusters = true;

  if (in.u32() != kernel->parameters.size()) return refuse(path, "the kernel has other parameters now");
  std::vector<std::vector<ArgumentLine>> values;
  std::vector<void*> parameters;
  for (const Parameter& parameter : kernel->parameters) {
    if (in.u32() != parameter.size) return refuse(path, "the kernel has other parameters now");
    values.emplace_back((parameter.size + sizeof(ArgumentLine) - 1) / sizeof(ArgumentLine));
    in.read(values.back().data(), parameter.size);
    parameters.push_back(values.back().data());
  }

  struct Moved {
    uint64_t bytes;
    DevicePointer to;
  };
  std::map<DevicePointer, Moved> moved;
  for (uint32_t left = in.u32(); left && in.ok; left--) {
    DevicePointer from = in.u64(), to = 0;
    uint64_t bytes = in.u64();
    if (Result r = allocate_device(&to, bytes)) return r;
    in.read(reinterpret_cast<void*>(to), bytes);
    moved[from] = {bytes, to};
  }
  if (!in.ok) return refuse(path, "truncated");
  for (PointerField field : kernel->pointers) {
    DevicePointer old = pointer_at(field, parameters.data());
    auto next = moved.upper_bound(old);
    if (!old || next == moved.begin()) continue;
    auto& [from, target] = *std::prev(next);
    if (old > from + target.bytes) continue;
    DevicePointer now = target.to + (old - from);
    memcpy(static_cast<char*>(parameters[field.parameter]) + field.offset, &now, sizeof now);
  }

  Result result = check_geometry(*kernel, geometry);
  if (!result) result = check_arguments(*kernel, parameters.data());
  if (!result) result = execute(*kernel, geometry, parameters.data());
  if (!result) result = check_red_zones();
  for (auto& [from, target] : moved) free_device(target.to, "replay");
  return result;
}

}  // namespace simt
