// Bugs inside a kernel.
#include <math.h>

#include <chrono>

#include "../native.hpp"
#include "harness.hpp"

// ---- native twins of planted.cu ---------------------------------------------------------------------------

static void scale_twin(const simt::NativeLaunch&, const float* in, float* out, int n, float factor) {
  simt::parallel_for(uint32_t(n),
                     [&](uint32_t i) { out[i] = in[i] * factor + 1000; });  // told apart by the 1000
}
NATIVE_TWIN(scale, scale_twin)

static void empty_twin(const simt::NativeLaunch&, float* out) {
  out[0] = 0;
}
NATIVE_TWIN(empty, empty_twin)

static void mismatched_twin(const simt::NativeLaunch&, float* out, float n) {
  out[0] = n;
}
NATIVE_TWIN(mismatched, mismatched_twin)

std::string bulk_sum(const char* name);  // of bulk_cases.cpp

// ---- healthy kernels --------------------------------------------------------------------------------------

static bool sum_is_right(const char* name) {
  constexpr int blocks = 3, n = 1000;
  std::vector<float> values(blocks * n);
  for (size_t i = 0; i < values.size(); i++) values[i] = float(i % 17) - 3;
  Pointer in = device(values), out = device(blocks * 4);
  MUST(launch(name, blocks, 256, 0, nullptr, in, out, n));
  std::vector<float> got = host<float>(out, blocks);
  bool right = true;
  for (int b = 0; b < blocks; b++) {
    float expected = 0;
    for (int i = 0; i < n; i++) expected += values[size_t(b * n + i)];
    right &= got[size_t(b)] == expected;
  }
  MUST(cuMemFree_v2(in));
  MUST(cuMemFree_v2(out));
  return right;
}

static bool pipeline_is_right(const char* name) {
  constexpr int threads = 64, tiles = 5;
  std::vector<float> values(threads * 4 * tiles);
  for (size_t i = 0; i < values.size(); i++) values[i] = float(i % 23);
  Pointer in = device(values), out = device(threads * 4);
  MUST(launch(name, 1, threads, 2 * threads * 16, nullptr, in, out, tiles));
  std::vector<float> got = host<float>(out, threads);
  bool right = true;
  for (size_t t = 0; t < threads; t++) {
    float expected = 0;
    for (size_t tile = 0; tile < tiles; tile++)
      for (size_t i = 0; i < 4; i++) expected += values[tile * threads * 4 + t * 4 + i];
    right &= got[t] == expected;
  }
  MUST(cuMemFree_v2(in));
  MUST(cuMemFree_v2(out));
  return right;
}

// Small integers: exact in both formats and in any order of summation.
template <class T, class Round>
static bool mma_is_right(const char* name, Round round) {
  std::vector<T> a(256), b(128);
  auto value_a = [](int i) { return float(i * 7 % 11 - 5); };
  auto value_b = [](int i) { return float(i * 5 % 13 - 6); };
  for (int i = 0; i < 256; i++) a[size_t(i)] = round(value_a(i));
  for (int i = 0; i < 128; i++) b[size_t(i)] = round(value_b(i));
  Pointer in_a = device(a), in_b = device(b), out = device(128 * 4);
  MUST(launch(name, 1, 32, 0, nullptr, in_a, in_b, out));
  std::vector<float> got = host<float>(out, 128);
  bool right = true;
  for (int row = 0; row < 16; row++)
    for (int column = 0; column < 8; column++) {
      float expected = 0;
      for (int k = 0; k < 16; k++) expected += value_a(row * 16 + k) * value_b(column * 16 + k);
      right &= got[size_t(row * 8 + column)] == expected;
    }
  return right;
}

static bf16 to_bf16(float v) {
  return __float2bfloat16(v);
}
static f16 to_f16(float v) {
  return __float2half(v);
}

// Small integers, exact in any order. An empty text: right; else what is not.
static std::string wgmma_sum(const char* name) {
  constexpr int tiles = 4;
  std::vector<bf16> values(tiles * 72 * 64);
  auto value = [](int i) { return float(i * 7 % 11 - 5); };
  for (size_t i = 0; i < values.size(); i++) values[i] = __float2bfloat16(value(int(i)));
  Pointer in = device(values), out = device(64 * 8 * 4);
  if (int status = launch(name, 1, 128, 3 * 72 * 128, nullptr, in, out, tiles)) return std::to_string(status);
  std::vector<float> got = host<float>(out, 64 * 8);
  for (int row = 0; row < 64; row++)
    for (int column = 0; column < 8; column++) {
      float expected = 0;
      for (int tile = 0; tile < tiles; tile++)
        for (int k = 0; k < 64; k++)
          expected += value((tile * 72 + row) * 64 + k) * value((tile * 72 + 64 + column) * 64 + k);
      if (!(got[size_t(row * 8 + column)] == expected)) return "wrong";
    }
  return {};
}

static bool transpose_is_right() {
  std::vector<uint16_t> tile(256);
  for (size_t i = 0; i < 256; i++) tile[i] = uint16_t(i);
  Pointer in = device(tile), out = device(512);
  MUST(launch("healthy_transpose", 1, 32, 0, nullptr, in, out));
  std::vector<uint16_t> got = host<uint16_t>(out, 256);
  bool right = true;
  for (size_t i = 0; i < 256; i++) right &= got[i] == i % 16 * 16 + i / 16;
  return right;
}

static bool counts_are_right() {
  Pointer out = device(std::vector<int>(3));
  MUST(launch("healthy_counts", 6, 128, 0, nullptr, out));
  std::vector<int> got = host<int>(out, 3);
  return got[0] == 6 * 128 && got[1] == 6 * 64 && got[2] == 6;
}

static bool last_block_is_right() {
  Pointer parts = device(20 * 4), tickets = device(std::vector<unsigned>(1)), out = device(4);
  MUST(launch("healthy_last_block", 20, 32, 0, nullptr, parts, tickets, out));
  return host<float>(out, 1)[0] == 210;
}

CASE(healthy) {
  for (unsigned seed = 0; seed <= 20; seed++) {
    simt_set_option("seed", seed);
    bool right = sum_is_right("healthy_sum") && pipeline_is_right("healthy_pipeline") &&
                 mma_is_right<bf16>("healthy_mma_bf16", to_bf16) &&
                 mma_is_right<f16>("healthy_mma_f16", to_f16) && transpose_is_right() && counts_are_right() &&
                 last_block_is_right() && wgmma_sum("healthy_wgmma").empty() &&
                 bulk_sum("healthy_bulk").empty();
    printf("seed %u: %s\n", seed, right ? "right" : "WRONG");
  }
}

// Conversions against the compiler's own, over every half and many floats.
CASE(conversions) {
  unsigned wrong = 0;
  for (unsigned bits = 0; bits < 65536; bits++) {
    _Float16 expected;
    uint16_t half = uint16_t(bits);
    memcpy(&expected, &half, 2);
    float got = __half2float({half});
    if (got == got || expected == expected) wrong += got != float(expected);
    if (got == got) wrong += __float2half(got).x != half;
  }
  for (uint64_t i = 0; i < 1 << 20; i++) {
    uint32_t bits = uint32_t(i * 4093 + 77);
    float v;
    memcpy(&v, &bits, 4);
    if (v != v) continue;
    _Float16 expected = _Float16(v);
    uint16_t expected_bits;
    memcpy(&expected_bits, &expected, 2);
    wrong += __float2half(v).x != expected_bits;
    float back = __bfloat162float(__float2bfloat16(v));
    wrong += fabsf(v) < 1e38f && fabsf(back - v) > fabsf(v) * (1 / 256.f) + 1e-38f;
  }
  printf("wrong: %u\n", wrong);
}

// ---- planted bugs -----------------------------------------------------------------------------------------

CASE(missing_barrier) {
  int caught = 0;
  for (unsigned seed = 1; seed <= 20; seed++) {
    simt_set_option("seed", seed);
    caught += !sum_is_right("bug_missing_barrier");
  }
  printf("caught: %d of 20\n", caught);
}

CASE(short_wait) {
  printf("pipeline: %s\n", pipeline_is_right("bug_short_wait") ? "right" : "wrong");
}

CASE(wgmma_early_refill) {
  printf("in order: %s\n", wgmma_sum("bug_wgmma_early_refill").c_str());
}
CASE(wgmma_early_read) {
  printf("sums: %s\n", wgmma_sum("bug_wgmma_early_read").c_str());
}
CASE(wgmma_misuse) {
  for (const char* name : {"bug_wgmma_no_proxy_fence", "bug_wgmma_no_register_fence", "bug_wgmma_no_wait",
                           "bug_wgmma_crooked_tile", "bug_wgmma_split_warpgroup", "bug_wgmma_fence_once",
                           "bug_wgmma_early_registers", "bug_wgmma_unfenced_fill"}) {
    observe("launch",
            launch(name, 1, 128, 3 * 72 * 128, nullptr, device(4 * 72 * 64 * 2), device(64 * 8 * 4), 4));
    simt_reset();
  }
}

CASE(uninitialised_shared) {
  Pointer out = device(64 * 4);
  MUST(launch("bug_uninitialised", 1, 64, 0, nullptr, out));
  std::vector<float> got = host<float>(out, 64);
  printf("values: %g %g\n", got[9], fabsf(got[10]));
}

CASE(dynamic_overrun) {
  observe("launch", launch("bug_dynamic_overrun", 2, 64, 64 * 4, nullptr, device(64 * 4)));
}
CASE(static_overrun) {
  observe("launch", launch("bug_static_overrun", 1, 32, 0, nullptr, device(64 * 4)));
}
CASE(divergent_barrier) {
  observe("launch", launch("bug_divergent_barrier", 1, 64, 0, nullptr, device(64 * 4)));
}
CASE(mixed_operations) {
  observe("launch", launch("bug_mixed_operations", 1, 32, 0, nullptr, device(64 * 4)));
}
CASE(exited_lane) {
  observe("launch", launch("bug_exited_lane", 1, 32, 0, nullptr, device(64 * 4)));
}
CASE(misaligned_copy) {
  observe("launch", launch("bug_misaligned", 1, 32, 0, nullptr, device(64 * 4), device(4)));
}
CASE(wild_pointer) {
  observe("launch", launch("bug_wild_pointer", 2, 32, 0, nullptr, uint64_t(16)));
  simt_reset();
  printf("afterwards: %s\n", sum_is_right("healthy_sum") ? "right" : "wrong");
}
CASE(stack_overflow) {
  observe("launch", launch("bug_stack_overflow", 1, 1, 0, nullptr, device(std::vector<int>(1))));
}

// ---- launches ---------------------------------------------------------------------------------------------

CASE(limits) {
  Pointer out = device(4096);
  observe("threads", launch("empty_emulated", 1, 1025, 0, nullptr, out));
  observe("grid", launch("empty_emulated", 0, 32, 0, nullptr, out));
  observe("shared", launch("empty_emulated", 1, 32, 60000, nullptr, out));
  observe("attribute too large", cuFuncSetAttribute(kernel("empty_emulated"), 8, 200000));
  MUST(cuFuncSetAttribute(kernel("empty_emulated"), 8, 60000));
  observe("shared with attribute", launch("empty_emulated", 1, 32, 60000, nullptr, out));
  void* parameters[] = {nullptr};
  observe("missing argument",
          cuLaunchKernel(kernel("empty_emulated"), 1, 1, 1, 32, 1, 1, 0, nullptr, parameters, nullptr));
  void* unknown;
  observe("unknown kernel", cuModuleGetFunction(&unknown, nullptr, "no_such_kernel"));
  observe("mismatched twin", cuModuleGetFunction(&unknown, nullptr, "mismatched"));
  observe("static and dynamic", launch("bug_large_static", 1, 32, 20000, nullptr, out));
}

CASE(overlap) {
  constexpr int programmatic_stream_serialization = 6, cooperative = 2;
  Pointer out = device(64 * 4);
  observe("apart", launch("bug_early_exit", 1, 32, 0, nullptr, out));
  observe("attribute", launch_with("bug_early_exit", 32, {cooperative, 0, 1, {}}, out));
  observe("forbidden", launch_with("bug_early_exit", 32, {programmatic_stream_serialization, 0, 0, {}}, out));
  observe("overlapping",
          launch_with("bug_early_exit", 32, {programmatic_stream_serialization, 0, 1, {}}, out));
}

CASE(parameters) {
  void* function = kernel("many_parameters");
  size_t offset, size, index = 0;
  while (!cuFuncGetParamInfo(function, index, &offset, &size))
    printf("%zu: %zu at %zu\n", index++, size, offset);
  observe("end", cuFuncGetParamInfo(function, index, &offset, &size));
}

CASE(sticky_error) {
  Pointer p = device(64 * 4);
  observe("launch", launch("bug_exited_lane", 1, 32, 0, nullptr, p));
  observe("later launch", launch("empty_emulated", 1, 32, 0, nullptr, p));
  observe("later sync", cuCtxSynchronize());
  simt_reset();
  observe("after reset", launch("empty_emulated", 1, 32, 0, nullptr, p));
}

CASE(native_twin) {
  Pointer in = device(std::vector<float>(100, 2.f)), out = device(400);
  for (uint64_t native : {1, 0}) {
    simt_set_option("native", native);
    MUST(launch("scale", 4, 32, 0, nullptr, in, out, 100, 3.f));
    printf("native %d: %g\n", int(native), host<float>(out, 100)[99]);
  }
}

// Every kernel once, so that SIMT_DUMP has something of each.
CASE(everything) {
  printf("%d\n", sum_is_right("healthy_sum") && pipeline_is_right("healthy_pipeline") &&
                     mma_is_right<bf16>("healthy_mma_bf16", to_bf16) && transpose_is_right() &&
                     counts_are_right() && last_block_is_right() && wgmma_sum("healthy_wgmma").empty() &&
                     bulk_sum("healthy_bulk").empty());
  struct {
    Pointer in, out;
    int n;
  } pair{device(std::vector<int>(8, 5)), device(32), 8};
  MUST(launch("copy_pair", 1, 32, 0, nullptr, pair, 2.f));
  printf("%d\n", host<int>(pair.out, 8)[7]);
}

// For the sanitizers: what they find and the plain driver cannot see.
CASE(block_race) {
  Pointer out = device(std::vector<float>(1));
  MUST(launch("bug_block_race", 2, 32, 0, nullptr, out));
}
CASE(missing_barrier_once) {
  simt_set_option("seed", 0);
  (void)sum_is_right("bug_missing_barrier");
}

static double best_us(const char* name, unsigned grid, unsigned block, int repeat) {
  Pointer out = device(4096);
  double best = 1e9;
  for (int round = 0; round < 5; round++) {
    auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < repeat; i++) MUST(launch(name, grid, block, 0, nullptr, out));
    std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count() / repeat);
  }
  return best;
}
CASE(launch_floor) {
  printf("native twin: %.2f us\n", best_us("empty", 1, 32, 2000));
  printf("1 block of 32 threads: %.2f us\n", best_us("empty_emulated", 1, 32, 1000));
  printf("1 block of 128 threads: %.2f us\n", best_us("empty_emulated", 1, 128, 500));
  printf("1 block of 1024 threads: %.2f us\n", best_us("empty_emulated", 1, 1024, 50));
}
