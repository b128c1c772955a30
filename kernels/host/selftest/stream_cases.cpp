// Bugs around a kernel: memory, order, capture.
#include "harness.hpp"

// ---- pointers and memory ----------------------------------------------------------------------------------

CASE(foreign_pointer) {
  static int own[64];
  observe("launch", launch("fill", 1, 32, 0, nullptr, reinterpret_cast<Pointer>(own), 1, 32));
}

CASE(freed_pointer) {
  Pointer in = device(400), out = device(400);
  MUST(cuMemFree_v2(in));
  observe("launch", launch("copy_to", 1, 32, 0, nullptr, in, out, 32));
  simt_reset();
  observe("free", cuMemFree_v2(in));
}

CASE(pointer_in_struct) {
  struct {
    Pointer in, out;
    int n;
  } pair{device(400), device(400), 8};
  observe("live", launch("copy_pair", 1, 32, 0, nullptr, pair, 1.f));
  MUST(cuMemFree_v2(pair.out));
  observe("freed", launch("copy_pair", 1, 32, 0, nullptr, pair, 1.f));
}

CASE(red_zones) {
  Pointer p = device(100 * 4);
  MUST(launch("store_at", 1, 1, 0, nullptr, p, 99, 7));
  observe("in bounds", cuCtxSynchronize());
  MUST(launch("store_at", 1, 1, 0, nullptr, p, 100, 7));
  observe("past the end, at synchronise", cuCtxSynchronize());
  simt_reset();
  MUST(launch("store_at", 1, 1, 0, nullptr, p, -2, 7));
  observe("before the start, at free", cuMemFreeAsync(p, nullptr));
}

CASE(copy_range) {
  Pointer p = device(64);
  char buffer[128] = {};
  observe("too long", cuMemcpyHtoD_v2(p, buffer, 65));
  observe("set too long", cuMemsetD8Async(p, 0, 65, nullptr));
  MUST(cuMemFree_v2(p));
  observe("freed", cuMemcpyDtoH_v2(buffer, p, 64));
}

CASE(poisoned_memory) {
  Pointer p = device(8);
  printf("fresh: %d\n", host<int>(p, 2)[1]);
}

CASE(failure_on_purpose) {
  Pointer p = device(400);
  auto fill = [&] { return launch("fill", 1, 32, 0, nullptr, p, 1, 32); };
  printf("from the environment: %d %d %d %d\n", fill(), fill(), fill(), fill());
  simt_fail("fil", 2, 1);
  printf("by a call: %d %d %d\n", fill(), fill(), fill());
  simt_fail("copy", 1, 1);
  observe("another kernel", fill());
  simt_fail("alloc", 1, 1);
  Pointer q;
  observe("launch", fill());
  observe("allocation", cuMemAlloc_v2(&q, 400));
  observe("the next", cuMemAlloc_v2(&q, 400));
}

// ---- lazy mode --------------------------------------------------------------------------------------------

CASE(early_read) {
  void* s = stream();
  Pointer p = device(std::vector<int>(1, 1));
  int* result = pinned<int>(1);
  *result = 0;
  MUST(launch("fill", 1, 32, 0, s, p, 42, 1));
  MUST(cuMemcpyDtoHAsync_v2(result, p, 4, s));
  printf("early: %d\n", *result);
  MUST(cuStreamSynchronize(s));
  printf("waited: %d\n", *result);
}

// A pinned source belongs to the device until the copy has run; a pageable one is read when the call is made.
CASE(source_reused) {
  void* s = stream();
  Pointer a = device(4), b = device(4);
  int *source = pinned<int>(1), pageable = 1;
  *source = 1;
  MUST(cuMemcpyHtoDAsync_v2(a, source, 4, s));
  MUST(cuMemcpyHtoDAsync_v2(b, &pageable, 4, s));
  *source = pageable = 2;
  MUST(cuStreamSynchronize(s));
  printf("pinned: %d, pageable: %d\n", host<int>(a, 1)[0], host<int>(b, 1)[0]);
}

// Stream B reads what stream A writes.
static int across_streams(bool wait) {
  void *a = stream(), *b = stream(), *written = event();
  Pointer p = device(std::vector<int>(1, 1)), q = device(4);
  MUST(launch("fill", 1, 32, 0, a, p, 42, 1));
  MUST(cuEventRecord(written, a));
  if (wait) MUST(cuStreamWaitEvent(b, written, 0));
  MUST(launch("copy_to", 1, 32, 0, b, p, q, 1));
  MUST(cuStreamSynchronize(b));
  int result;
  MUST(cuMemcpyDtoH_v2(&result, q, 4));
  MUST(cuStreamDestroy_v2(a));
  MUST(cuStreamDestroy_v2(b));
  return result;
}

CASE(missing_wait) {
  int caught = 0, false_alarms = 0;
  for (unsigned seed = 1; seed <= 20; seed++) {
    simt_set_option("lazy", seed);
    caught += across_streams(false) != 42;
    false_alarms += across_streams(true) != 42;
    if (seed == 1) printf("lazy 1: %d without the wait\n", caught);
  }
  printf("caught: %d of 20, false alarms: %d\n", caught, false_alarms);
}

CASE(default_stream_order) {
  for (unsigned seed = 1; seed <= 5; seed++) {
    simt_set_option("lazy", seed);
    void* blocking;
    MUST(cuStreamCreate(&blocking, 0));
    Pointer p = device(std::vector<int>(1, 1)), q = device(4);
    MUST(launch("fill", 1, 32, 0, blocking, p, 42, 1));
    MUST(launch("copy_to", 1, 32, 0, nullptr, p, q, 1));  // the default stream waits for blocking streams
    MUST(launch("fill", 1, 32, 0, blocking, p, 7, 1));    // and they for it
    printf("%d\n", host<int>(q, 1)[0]);
    MUST(cuStreamDestroy_v2(blocking));
  }
}

CASE(polling) {
  void *s = stream(), *done = event();
  Pointer p = device(4);
  MUST(launch("fill", 1, 32, 0, s, p, 1, 1));
  MUST(cuEventRecord(done, s));
  int polls = 0;
  while (cuEventQuery(done) == 600) polls++;
  printf("polls: %d, stream: %d\n", polls, cuStreamQuery(s));
}

CASE(freed_while_queued) {
  void *a = stream(), *b = stream();
  Pointer p = device(400);
  MUST(launch("fill", 1, 32, 0, a, p, 1, 32));
  MUST(cuMemFreeAsync(p, b));
  MUST(cuStreamSynchronize(b));
  observe("sync", cuStreamSynchronize(a));
}

CASE(entry_points) {
  void* address = nullptr;
  int status = -1;
  observe("known", cuGetProcAddress_v2("cuMemAlloc", &address, 13000, 0, &status));
  printf("same: %d\n", address == reinterpret_cast<void*>(&cuMemAlloc_v2));
  observe("unknown", cuGetProcAddress_v2("cuNoSuchCall", &address, 13000, 0, &status));
}

// ---- capture and graphs -----------------------------------------------------------------------------------

static void* executable(void* s) {
  void *graph, *exec;
  MUST(cuStreamEndCapture(s, &graph));
  MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
  MUST(cuGraphDestroy(graph));
  return exec;
}

CASE(capture_refusals) {
  void *s = stream(), *graph;
  for (int mode : {0, 1}) {
    MUST(cuStreamBeginCapture_v2(s, mode));
    Pointer p;
    observe("alloc", cuMemAlloc_v2(&p, 4));
    observe("end", cuStreamEndCapture(s, &graph));
    MUST(cuStreamBeginCapture_v2(s, mode));
    observe("stream sync", cuStreamSynchronize(s));
    observe("end", cuStreamEndCapture(s, &graph));
    void* module;
    MUST(cuStreamBeginCapture_v2(s, mode));
    observe("module", cuModuleLoadData(&module, nullptr));
    observe("end", cuStreamEndCapture(s, &graph));
    // A thread may say that what it does next is no part of the capture.
    int said = 2;
    MUST(cuStreamBeginCapture_v2(s, mode));
    MUST(cuThreadExchangeStreamCaptureMode(&said));
    printf("said before: %d\n", said);
    observe("relaxed module", cuModuleLoadData(&module, nullptr));
    MUST(cuThreadExchangeStreamCaptureMode(&said));
    observe("whole end", cuStreamEndCapture(s, &graph));
    MUST(cuGraphDestroy(graph));
  }
  MUST(cuStreamBeginCapture_v2(s, 2));
  Pointer p;
  observe("relaxed alloc", cuMemAlloc_v2(&p, 4));
  observe("async alloc", cuMemAllocAsync(&p, 4, s));
  observe("end", cuStreamEndCapture(s, &graph));
}

// A stream dropped in the middle of its capture leaves nothing behind.
CASE(abandoned_capture) {
  void* s = stream();
  MUST(cuStreamBeginCapture_v2(s, 0));
  MUST(cuStreamDestroy_v2(s));
  Pointer p;
  observe("alloc", cuMemAlloc_v2(&p, 4));
}

CASE(captured_event) {
  void *s = stream(), *inside = event(), *outside = event();
  Pointer p = device(4);
  float ms = -1;
  MUST(cuStreamBeginCapture_v2(s, 1));
  MUST(cuEventRecord(inside, s));
  MUST(cuEventRecordWithFlags(outside, s, 1));
  MUST(launch("fill", 1, 32, 0, s, p, 1, 1));
  void* exec = executable(s);
  MUST(cuGraphLaunch(exec, s));
  MUST(cuStreamSynchronize(s));
  observe("query", cuEventQuery(inside));
  observe("elapsed", cuEventElapsedTime_v2(&ms, inside, outside));
  observe("external query", cuEventQuery(outside));
  observe("external elapsed", cuEventElapsedTime_v2(&ms, outside, outside));
  MUST(cuGraphExecDestroy(exec));
}

CASE(capture_isolation) {
  void *s = stream(), *other = stream(), *e = event(), *fork = event(), *graph;
  MUST(cuEventRecord(e, other));
  MUST(cuStreamBeginCapture_v2(s, 1));
  observe("outside event", cuStreamWaitEvent(s, e, 0));
  observe("end", cuStreamEndCapture(s, &graph));
  Pointer p = device(4);
  MUST(cuStreamBeginCapture_v2(s, 1));
  MUST(cuEventRecord(fork, s));
  MUST(cuStreamWaitEvent(other, fork, 0));
  MUST(launch("fill", 1, 32, 0, other, p, 1, 1));
  observe("unjoined", cuStreamEndCapture(s, &graph));
}

// Fork and join inside a graph; arguments are those of the time of capture; replayed in random orders.
CASE(graph_replay) {
  void *s = stream(), *side = stream(), *fork = event(), *join = event();
  Pointer p = device(std::vector<int>(1, 0)), q = device(std::vector<int>(1, 0)), r = device(4);
  MUST(cuStreamBeginCapture_v2(s, 1));
  int value = 5;
  MUST(launch("fill", 1, 32, 0, s, p, value, 1));
  value = 6;
  MUST(cuEventRecord(fork, s));
  MUST(cuStreamWaitEvent(side, fork, 0));
  MUST(launch("copy_to", 1, 32, 0, side, p, q, 1));
  MUST(cuEventRecord(join, side));
  MUST(cuStreamWaitEvent(s, join, 0));
  MUST(launch("copy_to", 1, 32, 0, s, q, r, 1));
  void* exec = executable(s);
  printf("captured only: %d\n", host<int>(p, 1)[0]);
  int right = 0;
  for (unsigned seed = 1; seed <= 20; seed++) {
    simt_set_option("seed", seed);
    MUST(cuMemsetD8Async(p, 0, 4, s));
    MUST(cuMemsetD8Async(q, 0, 4, s));
    MUST(cuGraphLaunch(exec, s));
    MUST(cuStreamSynchronize(s));
    right += host<int>(r, 1)[0] == 5;
  }
  printf("right: %d of 20\n", right);
}

// ---- virtual clock ----------------------------------------------------------------------------------------

CASE(clock_times) {
  void *a = stream(), *b = stream();
  void *start = event(), *middle = event(), *end = event();
  Pointer p = device(4096), q = device(4096);
  uint64_t began = simt_virtual_now_ns();
  auto us = [](void* from, void* to) {
    float ms;
    MUST(cuEventElapsedTime_v2(&ms, from, to));
    return double(ms) * 1000;
  };
  auto timed = [&](int n) {  // fill(out, value, n): priced by n
    MUST(cuEventRecord(start, a));
    MUST(launch("fill", 1, 32, 0, a, p, 7, n));
    MUST(cuEventRecord(end, a));
    MUST(cuEventSynchronize(end));
    return us(start, end);
  };
  printf("step: %.3f %.3f %.3f %.3f\n", timed(1), timed(8), timed(9), timed(100));
  MUST(cuEventRecord(start, a));
  MUST(launch("fill", 1, 32, 0, a, p, 8, 4));  // another value: the linear rule
  MUST(cuEventRecord(middle, a));
  MUST(launch("copy_to", 1, 32, 0, a, p, q, 1));  // no rule: default
  MUST(cuEventRecord(end, a));
  MUST(cuStreamSynchronize(a));
  printf("linear: %.3f, default: %.3f\n", us(start, middle), us(middle, end));
  // Two streams side by side, then one waits for the other.
  MUST(cuEventRecord(start, a));
  MUST(cuStreamWaitEvent(b, start, 0));
  MUST(launch("fill", 1, 32, 0, a, p, 7, 8));
  MUST(launch("fill", 1, 32, 0, b, q, 7, 9));
  MUST(cuEventRecord(middle, b));
  MUST(cuStreamWaitEvent(a, middle, 0));
  MUST(cuEventRecord(end, a));
  MUST(cuEventSynchronize(end));
  printf("joined: %.3f\n", us(start, end));
  printf("host: %.3f\n", double(simt_virtual_now_ns() - began) * 1e-3);
}

CASE(clock_tables) {
  for (const char* path : {getenv("TABLE_1"), getenv("TABLE_2"), getenv("TABLE_3"), getenv("TABLE_4")})
    if (path) observe("table", simt_set_clock(path));
}
