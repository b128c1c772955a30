// Streams and events.
#include "stream.hpp"

#include <algorithm>

#include "clock.hpp"
#include "memory.hpp"
#include "options.hpp"

namespace simt {

std::recursive_mutex driver_mutex;

namespace {

Stream default_stream, per_thread_stream;
std::vector<Stream*> streams = {&default_stream, &per_thread_stream};
uint64_t host_ns = 0;
uint64_t interleaving = 0;  // random state of the lazy mode

bool lazy() {
  return options().lazy.load(std::memory_order_relaxed) != 0;
}

uint64_t next_random() {
  if (!interleaving) interleaving = options().lazy.load() * 0x9E3779B97F4A7C15u | 1;
  interleaving ^= interleaving << 13;
  interleaving ^= interleaving >> 7;
  interleaving ^= interleaving << 17;
  return interleaving;
}

// What keeps the head of the queue from running: null if nothing does.
Stream* blocker(const Stream& stream) {
  const Pending& head = stream.queue.front();
  for (auto [other, count] : head.after)
    if (other->completed < count) return other;
  return head.operation->blocked_by();
}

Result run_head(Stream& stream) {
  Pending head = std::move(stream.queue.front());
  stream.queue.pop_front();
  stream.completed++;
  if (sticky_state()) return sticky_state();
  stream.now_ns = std::max(stream.now_ns, head.submit_ns);
  for (auto [other, count] : head.after) stream.now_ns = std::max(stream.now_ns, other->now_ns);
  return head.operation->run(stream.now_ns);
}

// The next stream to run so that `target` gets on: target itself, or what it is blocked by.
Stream* most_needed(Stream* target) {
  while (Stream* other = blocker(*target)) target = other;
  return target;
}

Stream* any_runnable() {
  std::vector<Stream*> candidates;
  for (Stream* s : streams)
    if (!s->queue.empty() && !blocker(*s)) candidates.push_back(s);
  return candidates.empty() ? nullptr : candidates[next_random() % candidates.size()];
}

Result run_once_towards(Stream* target) {
  return run_head(options().lazy.load() > 1 ? *any_runnable() : *most_needed(target));
}

Result drain(Stream* target) {
  Result result = CUDA_SUCCESS;
  while (!target->queue.empty())
    if (Result r = run_once_towards(target)) result = r;
  return result;
}

bool uses_default_order(const Stream* s) {
  return s == &default_stream || !s->non_blocking;
}

// One step of progress, for pollers: a query must not spin for ever on a machine that works only on demand.
void make_progress(Stream* wanted) {
  if (!wanted->queue.empty()) (void)run_once_towards(wanted);
}

}  // namespace

Stream* stream_from_handle(void* handle) {
  auto number = reinterpret_cast<uintptr_t>(handle);
  if (number <= 1) return &default_stream;
  if (number == 2) return &per_thread_stream;
  auto found = std::find(streams.begin(), streams.end(), handle);
  if (found == streams.end()) error(CUDA_ERROR_INVALID_HANDLE, "the stream was destroyed, or is none");
  return found == streams.end() ? nullptr : *found;
}

Stream* create_stream(bool non_blocking) {
  auto* stream = new Stream;
  stream->non_blocking = non_blocking;
  stream->now_ns = host_ns;
  streams.push_back(stream);
  return stream;
}

Result destroy_stream(Stream* stream) {
  if (stream->capture) abandon_capture(stream->capture);
  Result result = drain(stream);  // the real driver lets pending work finish, too
  std::erase(streams, stream);
  delete stream;
  return result;
}

Result submit(Stream* stream, OperationPtr operation) {
  if (stream->capture) {
    auto& graph = *stream->capture->graph;
    graph.nodes.push_back({std::move(operation), std::move(stream->captured_after)});
    stream->captured_after = {uint32_t(graph.nodes.size() - 1)};
    return CUDA_SUCCESS;
  }
  operation->submitted(stream);
  if (!lazy() && stream->queue.empty()) {
    stream->submitted++, stream->completed++;
    stream->now_ns = std::max(stream->now_ns, host_ns);
    if (stream == &default_stream)
      for (Stream* s : streams)
        if (!s->non_blocking) stream->now_ns = std::max(stream->now_ns, s->now_ns);
    if (stream != &default_stream && !stream->non_blocking)
      stream->now_ns = std::max(stream->now_ns, default_stream.now_ns);
    return operation->run(stream->now_ns);
  }
  Pending pending{std::move(operation), host_ns, {}};
  if (stream == &default_stream) {
    for (Stream* s : streams)
      if (s != stream && uses_default_order(s)) pending.after.emplace_back(s, s->submitted);
  } else if (uses_default_order(stream)) {
    pending.after.emplace_back(&default_stream, default_stream.submitted);
  }
  stream->queue.push_back(std::move(pending));
  stream->submitted++;
  return lazy() ? CUDA_SUCCESS : drain(stream);
}

Result synchronize(Stream* stream) {
  Result result = CUDA_SUCCESS;
  for (Stream* s : stream ? std::vector<Stream*>{stream} : streams) {
    if (Result r = drain(s)) result = r;
    host_ns = std::max(host_ns, s->now_ns);
  }
  if (!result) result = check_red_zones();
  return result;
}

Result query(Stream* stream) {
  if (stream->queue.empty()) {
    host_ns = std::max(host_ns, stream->now_ns);
    return check_red_zones();
  }
  make_progress(stream);
  return CUDA_ERROR_NOT_READY;
}

void release_capture(std::shared_ptr<Capture> capture) {
  for (Stream* s : streams)
    if (s->capture == capture) s->capture = nullptr;
}

uint64_t host_now_ns() {
  return host_ns;
}

// ---- events -----------------------------------------------------------------------------------------------

namespace {

struct RecordOperation : Operation {
  EventPtr event;
  std::deque<uint64_t> tickets;
  explicit RecordOperation(EventPtr e) : event(std::move(e)) {}
  void submitted(Stream* stream) override {
    tickets.push_back(++event->recorded);
    event->stream = stream;
    event->is_captured = false;
  }
  Result run(uint64_t& now) override {
    event->completed = std::max(event->completed, tickets.front());
    event->time_ns = clock_is_virtual() ? now : wall_ns();
    tickets.pop_front();
    return CUDA_SUCCESS;
  }
};

struct WaitOperation : Operation {
  EventPtr event;
  uint64_t ticket;
  Stream* recorder;
  explicit WaitOperation(EventPtr e)
      : event(std::move(e)), ticket(event->recorded), recorder(event->stream) {}
  Stream* blocked_by() override { return event->completed < ticket ? recorder : nullptr; }
  Result run(uint64_t& now) override {
    if (clock_is_virtual()) now = std::max(now, event->time_ns);
    return CUDA_SUCCESS;
  }
};

Result captured_event(const char* call) {
  return error(CUDA_ERROR_CAPTURED_EVENT,
               std::string(call) +
                   ": the event was recorded inside a capture; record it with "
                   "cuEventRecordWithFlags(EXTERNAL) to read it after the graph has run");
}

}  // namespace

Result record(const EventPtr& event, Stream* stream, bool external) {
  if (!stream->capture || external) return submit(stream, std::make_shared<RecordOperation>(event));
  event->is_captured = true;
  event->capture = stream->capture;
  event->captured_after = stream->captured_after;
  return CUDA_SUCCESS;
}

Result wait_on(Stream* stream, const EventPtr& event, bool external) {
  if (event->is_captured) {
    auto capture = event->capture.lock();
    if (!capture) return captured_event("cuStreamWaitEvent");
    if (stream->capture && stream->capture != capture)
      return error(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "cuStreamWaitEvent would merge two captures");
    stream->capture = capture;  // the stream joins
    auto& after = stream->captured_after;
    after.insert(after.end(), event->captured_after.begin(), event->captured_after.end());
    return CUDA_SUCCESS;
  }
  if (stream->capture) {
    if (external)
      return error(CUDA_ERROR_NOT_SUPPORTED, "external event waits in a capture are not supported");
    stream->capture->invalidated = true;
    stream->capture->cause = "cuStreamWaitEvent on an event from outside";
    return error(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                 "cuStreamWaitEvent in a capture on an event that was recorded outside of it");
  }
  return submit(stream, std::make_shared<WaitOperation>(event));
}

Result wait_for(Event& event) {
  if (event.is_captured) return captured_event("cuEventSynchronize");
  Result result = CUDA_SUCCESS;
  while (event.completed < event.recorded)
    if (Result r = run_once_towards(event.stream)) result = r;
  host_ns = std::max(host_ns, event.time_ns);
  if (!result) result = check_red_zones();
  return result;
}

Result query(Event& event) {
  if (event.is_captured) return captured_event("cuEventQuery");
  if (event.completed >= event.recorded) return CUDA_SUCCESS;
  make_progress(event.stream);
  return CUDA_ERROR_NOT_READY;
}

Result elapsed_ms(float* ms, const Event& start, const Event& end) {
  for (const Event* e : {&start, &end}) {
    if (e->is_captured) return captured_event("cuEventElapsedTime");
    if (!e->timed)
      return error(CUDA_ERROR_INVALID_HANDLE, "cuEventElapsedTime: the event was created without timing");
    if (!e->recorded)
      return error(CUDA_ERROR_INVALID_HANDLE, "cuEventElapsedTime: the event was never recorded");
    if (e->completed < e->recorded) return CUDA_ERROR_NOT_READY;
  }
  *ms = float(double(int64_t(end.time_ns - start.time_ns)) * 1e-6);
  return CUDA_SUCCESS;
}

}  // namespace simt
