// The self-test's view of the driver: the C entry points, and a little comfort around them.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>
#include <string>
#include <vector>

using Pointer = uint64_t;

extern "C" {
int cuInit(unsigned);
int cuMemAlloc_v2(Pointer*, size_t);
int cuMemAllocAsync(Pointer*, size_t, void*);
int cuMemFree_v2(Pointer);
int cuMemFreeAsync(Pointer, void*);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemcpyHtoD_v2(Pointer, const void*, size_t);
int cuMemcpyDtoH_v2(void*, Pointer, size_t);
int cuMemcpyHtoDAsync_v2(Pointer, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, Pointer, size_t, void*);
int cuMemsetD8Async(Pointer, unsigned char, size_t, void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncGetParamInfo(void*, size_t, size_t*, size_t*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                   void**);
int cuLaunchKernelEx(const struct LaunchConfig*, void*, void**, void**);
int cuStreamCreate(void**, unsigned);
int cuStreamDestroy_v2(void*);
int cuStreamSynchronize(void*);
int cuStreamQuery(void*);
int cuGetProcAddress_v2(const char*, void**, int, uint64_t, int*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuCtxSynchronize();
int cuEventCreate(void**, unsigned);
int cuEventRecord(void*, void*);
int cuEventRecordWithFlags(void*, void*, unsigned);
int cuEventQuery(void*);
int cuEventSynchronize(void*);
int cuEventElapsedTime_v2(float*, void*, void*);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuGraphInstantiateWithFlags(void**, void*, unsigned long long);
int cuGraphLaunch(void*, void*);
int cuGraphDestroy(void*);
int cuModuleLoadData(void**, const void*);
int cuThreadExchangeStreamCaptureMode(int*);
int cuGraphExecDestroy(void*);
int cuGetErrorString(int, const char**);
const char* simt_last_error();
void simt_reset();
void simt_set_option(const char*, uint64_t);
void simt_fail(const char*, uint64_t, uint64_t);
int simt_set_clock(const char*);
uint64_t simt_virtual_now_ns();
}

// One observation, a line of the case's output: "what: 719 simt: ...". What a test asserts.
inline void observe(const char* what, int result) {
  const char* text = nullptr;
  if (result) cuGetErrorString(result, &text);
  printf("%s: %d %s\n", what, result, text ? text : "");
}

// For calls that are not what a case is about.
inline void must(int result, const char* call) {
  if (!result) return;
  printf("unexpected failure: %s: %d %s\n", call, result, simt_last_error());
  exit(1);
}
#define MUST(call) must(call, #call)

inline void* kernel(const char* name) {
  void* function;
  MUST(cuModuleGetFunction(&function, nullptr, name));
  return function;
}

template <class... Args>
int launch(const char* name, unsigned grid, unsigned block, unsigned shared, void* stream, Args... args) {
  void* parameters[] = {&args..., nullptr};
  void* function;
  if (int result = cuModuleGetFunction(&function, nullptr, name)) return result;
  return cuLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, stream, parameters, nullptr);
}

// As cuda.h lays them out.
struct LaunchAttribute {
  int id, padding, value, rest[15];
};
struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  LaunchAttribute* attributes;
  unsigned num_attributes;
};

// One block of `threads` with one launch attribute.
inline int launch_with(const char* name, unsigned threads, LaunchAttribute attribute, Pointer argument) {
  const LaunchConfig config{{1, 1, 1}, {threads, 1, 1}, 0, nullptr, &attribute, 1};
  void* parameters[] = {&argument};
  return cuLaunchKernelEx(&config, kernel(name), parameters, nullptr);
}

inline Pointer device(size_t bytes) {
  Pointer p;
  MUST(cuMemAlloc_v2(&p, bytes));
  return p;
}

template <class T>
Pointer device(const std::vector<T>& values) {
  Pointer p = device(values.size() * sizeof(T));
  MUST(cuMemcpyHtoD_v2(p, values.data(), values.size() * sizeof(T)));
  return p;
}

template <class T>
std::vector<T> host(Pointer p, size_t count) {
  std::vector<T> values(count);
  MUST(cuMemcpyDtoH_v2(values.data(), p, count * sizeof(T)));
  return values;
}

template <class T>
T* pinned(size_t count) {
  void* p;
  MUST(cuMemHostAlloc(&p, count * sizeof(T), 0));
  return static_cast<T*>(p);
}

inline void* stream() {
  void* s;
  MUST(cuStreamCreate(&s, 1));
  return s;
}

inline void* event(unsigned flags = 0) {
  void* e;
  MUST(cuEventCreate(&e, flags));
  return e;
}

// A case registers itself under its name.
struct Case {
  const char* name;
  void (*run)();
  Case* next;
  static inline Case* first = nullptr;
  Case(const char* n, void (*r)()) : name(n), run(r), next(first) { first = this; }
};
#define CASE(name)                      \
  static void name();                   \
  static Case name##_case(#name, name); \
  static void name()
