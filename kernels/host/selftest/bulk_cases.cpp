// Bulk copies and mbarriers: tensor maps that are refused, and bugs in kernels that use them.
#include "../bulk_copy.hpp"
#include "harness.hpp"

using simt::TensorMap;

extern "C" int cuTensorMapEncodeTiled(TensorMap*, int, uint32_t, uint64_t, const uint64_t*, const uint64_t*,
                                      const uint32_t*, const uint32_t*, int, int, int, int);

// What a case changes of a map that is right: 64 columns in boxes of 8 rows, bf16.
struct MapArguments {
  int type = 9;
  uint32_t rank = 2;
  uint64_t offset = 0, columns = 64, rows, stride = 128;
  uint32_t box_columns = 64, box_rows = 8, element_stride = 1;
  int interleave = 0, swizzle = 3, fill = 0;
};

static int encode(TensorMap* map, Pointer base, const MapArguments& a) {
  const uint64_t dims[2] = {a.columns, a.rows};
  const uint32_t box[2] = {a.box_columns, a.box_rows}, element_strides[2] = {1, a.element_stride};
  return cuTensorMapEncodeTiled(map, a.type, a.rank, base + a.offset, dims, &a.stride, box, element_strides,
                                a.interleave, a.swizzle, 0, a.fill);
}

constexpr int tiles = 5, rows = tiles * 8;

static float value(int i) {
  return float(i * 7 % 11 - 5);
}

static Pointer matrix() {
  std::vector<uint16_t> values;
  for (int i = 0; i < rows * 64; i++) {
    uint32_t bits;
    const float v = value(i);
    memcpy(&bits, &v, 4);
    values.push_back(uint16_t(bits >> 16));
  }
  return device(values);
}

static TensorMap map_of(Pointer base, uint64_t map_rows = rows) {
  TensorMap map;
  MUST(encode(&map, base, {.rows = map_rows}));
  return map;
}

// Empty when right, else what went wrong.
std::string bulk_sum(const char* name) {
  Pointer out = device(64 * 4);
  if (int status = launch(name, 1, 64, 2 * 1024, nullptr, map_of(matrix()), out, tiles))
    return std::to_string(status);
  std::vector<float> got = host<float>(out, 64);
  for (int column = 0; column < 64; column++) {
    float expected = 0;
    for (int row = 0; row < rows; row++) expected += value(row * 64 + column);
    if (!(got[size_t(column)] == expected)) return "wrong";
  }
  return {};
}

static int launch_multicast(const char* name, unsigned size, Pointer out) {
  constexpr int cluster_dimension = 4;
  LaunchAttribute attribute{cluster_dimension, 0, int(size), {1, 1}};
  const LaunchConfig config{{2 * size, 1, 1}, {64, 1, 1}, 2 * 1024, nullptr, &attribute, 1};
  TensorMap map;
  MUST(encode(&map, matrix(), {.rows = rows, .box_rows = 8 / size}));
  int count = tiles;
  void* parameters[] = {&map, &out, &count};
  return cuLaunchKernelEx(&config, kernel(name), parameters, nullptr);
}

// Of two clusters of `size` blocks; empty when right, else what went wrong.
std::string multicast_sum(const char* name, unsigned size) {
  const unsigned count = 2 * size * 64;
  Pointer out = device(count * 4);
  if (int status = launch_multicast(name, size, out)) return std::to_string(status);
  std::vector<float> got = host<float>(out, count);
  for (unsigned i = 0; i < count; i++) {
    float expected = 0;
    for (int row = 0; row < rows; row++) expected += value(row * 64 + int(i % 64));
    if (!(got[i] == expected)) return "wrong";
  }
  return {};
}

CASE(tensor_maps) {
  TensorMap map;
  Pointer base = device(rows * 128 * 2);
  auto try_map = [&](const char* what, MapArguments a) { observe(what, encode(&map, base, a)); };
  try_map("good", {.rows = 40});
  try_map("strided", {.rows = 20, .stride = 160});
  try_map("f32", {.type = 7, .rows = 40});
  try_map("rank", {.rank = 3, .rows = 40});
  try_map("address", {.offset = 8, .rows = 40});
  try_map("no rows", {.rows = 0});
  try_map("stride", {.rows = 20, .stride = 136});
  try_map("overlap", {.rows = 40, .stride = 112});
  try_map("box", {.rows = 40, .box_rows = 257});
  try_map("wide box", {.rows = 40, .box_columns = 72});
  try_map("odd box", {.rows = 40, .box_columns = 4});
  try_map("element stride", {.rows = 40, .element_stride = 2});
  try_map("interleave", {.rows = 40, .interleave = 1});
  try_map("fill", {.rows = 40, .fill = 1});
  try_map("swizzle", {.rows = 40, .swizzle = 4});
  observe("map", encode(reinterpret_cast<TensorMap*>(reinterpret_cast<char*>(&map) + 8), base, {.rows = 40}));
}

CASE(bulk_misuse) {
  for (const char* name :
       {"bug_bulk_no_init", "bug_bulk_no_init_fence", "bug_bulk_overwritten", "bug_bulk_crooked_barrier",
        "bug_bulk_crooked_tile", "bug_bulk_outside", "bug_bulk_two_fills", "bug_bulk_extra_arrival",
        "bug_bulk_missing_arrival", "bug_bulk_few_bytes", "bug_bulk_many_bytes", "bug_bulk_no_bytes",
        "bug_bulk_early_end"}) {
    observe("launch", launch(name, 1, 64, 2 * 1024, nullptr, map_of(matrix()), device(64 * 4), tiles));
    simt_reset();
  }
  observe("launch",
          launch("bug_bulk_wgmma", 1, 128, 64 * 128, nullptr, map_of(matrix()), device(128 * 4), 0));
}

CASE(bulk_memory) {
  Pointer in = matrix(), out = device(64 * 4);
  auto run = [&](const char* what, TensorMap map) {
    observe(what, launch("healthy_bulk", 1, 64, 2 * 1024, nullptr, map, out, tiles));
    simt_reset();
  };
  run("longer", map_of(in, rows + 1));
  run("no map", TensorMap{});
  TensorMap map = map_of(in);
  MUST(cuMemFree_v2(in));
  run("freed", map);
}

CASE(bulk_early_read) {
  printf("in order: %s\n", bulk_sum("bug_bulk_early_read").c_str());
}

CASE(multicast) {
  for (unsigned seed = 0; seed <= 20; seed++) {
    simt_set_option("seed", seed);
    for (unsigned size : {1, 2, 4})
      printf("seed %u, %u: %s\n", seed, size,
             multicast_sum("healthy_multicast", size).empty() ? "right" : "WRONG");
  }
}

CASE(multicast_misuse) {
  for (const char* name :
       {"bug_multicast_no_fence", "bug_multicast_before_meeting", "bug_multicast_wrong_rank",
        "bug_multicast_early_exit", "bug_multicast_late_arrivals"}) {
    observe("launch", launch_multicast(name, 2, device(4 * 64 * 4)));
    simt_reset();
  }
}

CASE(multicast_schedules) {
  int caught = 0;
  for (unsigned seed = 0; seed < 40; seed++) {
    simt_set_option("seed", seed);
    caught += !multicast_sum("bug_multicast_early_refill", 2).empty();
    simt_reset();
  }
  printf("caught: %d of 40\n", caught);
}

CASE(bulk_schedules) {
  for (const char* name : {"bug_bulk_early_refill", "bug_bulk_no_barrier"}) {
    int caught = 0;
    for (unsigned seed = 0; seed < 40; seed++) {
      simt_set_option("seed", seed);
      caught += !bulk_sum(name).empty();
      simt_reset();
    }
    printf("%s: %d of 40\n", name, caught);
  }
}

// For the sanitizers.
CASE(bulk_early_refill_once) {
  (void)bulk_sum("bug_bulk_early_refill");
}
CASE(multicast_early_refill_often) {
  for (unsigned seed = 1; seed <= 10; seed++) {
    simt_set_option("seed", seed);
    (void)multicast_sum("bug_multicast_early_refill", 2);
    simt_reset();
  }
}
CASE(multicast_once) {
  printf("in order: %s\n", multicast_sum("healthy_multicast", 4).empty() ? "right" : "wrong");
}
CASE(bulk_no_barrier_once) {
  (void)bulk_sum("bug_bulk_no_barrier");
}
