// Entry points: streams, events, capture and graphs.
#include "clock.hpp"
#include "driver.hpp"

using namespace simt;

// CUevent, CUgraph and CUgraphExec are addresses of shared pointers: work under way keeps what it needs.
using EventHandle = EventPtr*;
using GraphHandle = std::shared_ptr<Graph>*;

#define ENTER_WITH_STREAM(handle)              \
  ENTER_DRIVER();                              \
  Stream* stream = stream_from_handle(handle); \
  if (!stream) return CUDA_ERROR_INVALID_HANDLE

// ---- streams ----------------------------------------------------------------------------------------------

DRIVER_API cuStreamCreate(void** stream, unsigned flags) {
  ENTER_DRIVER();
  *stream = create_stream(flags & 1 /* NON_BLOCKING */);
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamCreateWithPriority(void** stream, unsigned flags, int) {
  return cuStreamCreate(stream, flags);
}

DRIVER_API cuStreamDestroy_v2(void* handle) {
  ENTER_WITH_STREAM(handle);
  return destroy_stream(stream);
}

DRIVER_API cuStreamSynchronize(void* handle) {
  ENTER_WITH_STREAM(handle);
  if (stream->capture) {
    stream->capture->invalidated = true;
    stream->capture->cause = "cuStreamSynchronize";
    return error(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuStreamSynchronize on a capturing stream");
  }
  RETURN_IF_ERROR(refuse_during_capture("cuStreamSynchronize"));
  return synchronize(stream);
}

DRIVER_API cuStreamQuery(void* handle) {
  ENTER_WITH_STREAM(handle);
  if (stream->capture)
    return error(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuStreamQuery on a capturing stream");
  return query(stream);
}

DRIVER_API cuStreamWaitEvent(void* handle, EventHandle event, unsigned flags) {
  ENTER_WITH_STREAM(handle);
  return wait_on(stream, *event, flags & 1 /* EXTERNAL */);
}

struct HostFunction : Operation {
  void (*function)(void*);
  void* argument;
  HostFunction(void (*f)(void*), void* a) : function(f), argument(a) {}
  Result run(uint64_t&) override {
    function(argument);
    return CUDA_SUCCESS;
  }
};

DRIVER_API cuLaunchHostFunc(void* handle, void (*function)(void*), void* argument) {
  ENTER_WITH_STREAM(handle);
  return submit(stream, std::make_shared<HostFunction>(function, argument));
}

// ---- events -----------------------------------------------------------------------------------------------

DRIVER_API cuEventCreate(EventHandle* event, unsigned flags) {
  ENTER_DRIVER();
  *event = new EventPtr(std::make_shared<Event>());
  (**event)->timed = !(flags & 2 /* DISABLE_TIMING */);
  return CUDA_SUCCESS;
}

DRIVER_API cuEventDestroy_v2(EventHandle event) {
  std::lock_guard driver_lock(driver_mutex);
  delete event;
  return CUDA_SUCCESS;
}

DRIVER_API cuEventRecordWithFlags(EventHandle event, void* handle, unsigned flags) {
  ENTER_WITH_STREAM(handle);
  return record(*event, stream, flags & 1 /* EXTERNAL */);
}
DRIVER_API cuEventRecord(EventHandle event, void* stream) {
  return cuEventRecordWithFlags(event, stream, 0);
}

DRIVER_API cuEventSynchronize(EventHandle event) {
  ENTER_DRIVER();
  RETURN_IF_ERROR(refuse_during_capture("cuEventSynchronize"));
  return wait_for(**event);
}

DRIVER_API cuEventQuery(EventHandle event) {
  ENTER_DRIVER();
  return query(**event);
}

DRIVER_API cuEventElapsedTime(float* ms, EventHandle start, EventHandle end) {
  ENTER_DRIVER();
  return elapsed_ms(ms, **start, **end);
}
DRIVER_API cuEventElapsedTime_v2(float* ms, EventHandle start, EventHandle end) {
  return cuEventElapsedTime(ms, start, end);
}

// ---- capture and graphs -----------------------------------------------------------------------------------

DRIVER_API cuStreamBeginCapture_v2(void* handle, int mode) {
  ENTER_WITH_STREAM(handle);
  return begin_capture(stream, CaptureMode(mode));
}

DRIVER_API cuStreamEndCapture(void* handle, GraphHandle* graph) {
  ENTER_WITH_STREAM(handle);
  *graph = nullptr;
  std::shared_ptr<Graph> captured;
  RETURN_IF_ERROR(end_capture(stream, &captured));
  *graph = new std::shared_ptr<Graph>(std::move(captured));
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamIsCapturing(void* handle, int* status) {
  ENTER_WITH_STREAM(handle);
  *status = !stream->capture ? 0 : stream->capture->invalidated ? 2 : 1;
  return CUDA_SUCCESS;
}

DRIVER_API cuThreadExchangeStreamCaptureMode(int* mode) {
  ENTER_DRIVER();
  if (*mode < 0 || *mode > int(CaptureMode::relaxed))
    return error(CUDA_ERROR_INVALID_VALUE, "cuThreadExchangeStreamCaptureMode: no such mode");
  *mode = int(exchange_capture_mode(CaptureMode(*mode)));
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphInstantiateWithFlags(GraphHandle* executable, GraphHandle graph, unsigned long long flags) {
  ENTER_DRIVER();
  *executable = nullptr;
  constexpr unsigned long long auto_free = 1, upload = 2, device_launch = 4, priority = 8;
  if (flags & ~(auto_free | upload | device_launch | priority) ||
      (flags & auto_free && flags & device_launch))
    return error(CUDA_ERROR_INVALID_VALUE, "cuGraphInstantiate: impossible flags");
  *executable = new std::shared_ptr<Graph>(std::make_shared<Graph>(**graph));
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphUpload(GraphHandle, void*) {
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphLaunch(GraphHandle executable, void* handle) {
  ENTER_WITH_STREAM(handle);
  return launch_graph(*executable, stream);
}

DRIVER_API cuGraphDestroy(GraphHandle graph) {
  std::lock_guard driver_lock(driver_mutex);
  delete graph;
  return CUDA_SUCCESS;
}
DRIVER_API cuGraphExecDestroy(GraphHandle executable) {
  return cuGraphDestroy(executable);
}

// Number of nodes only: the nodes themselves have no handles here.
DRIVER_API cuGraphGetNodes(GraphHandle graph, void** nodes, size_t* count) {
  ENTER_DRIVER();
  if (nodes) return error(CUDA_ERROR_NOT_SUPPORTED, "cuGraphGetNodes: only the number of nodes is available");
  *count = (*graph)->nodes.size();
  return CUDA_SUCCESS;
}

// ---- time -------------------------------------------------------------------------------------------------

// What the host's clock would show: modelled time under SIMT_CLOCK, else the machine's.
SIMT_EXPORT uint64_t simt_virtual_now_ns() {
  std::lock_guard driver_lock(driver_mutex);
  return clock_is_virtual() ? host_now_ns() : wall_ns();
}
