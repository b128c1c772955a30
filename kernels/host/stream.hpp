// Streams, events and graphs: when a piece of device work runs.
//
// Eager (default): at once, in the order of submission. Lazy (SIMT_LAZY): not before something waits for it,
// so an engine that forgets to wait sees poison or stale data; other streams' work runs only as far as events
// demand (SIMT_LAZY=1) or interleaved at random (any other value is the seed).
#pragma once
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "error.hpp"

namespace simt {

// One lock around the driver's state and the work it runs.
extern std::recursive_mutex driver_mutex;

struct Stream;

// A piece of device work. Captured into a graph it is submitted and run many times.
struct Operation {
  virtual ~Operation() = default;
  virtual void submitted(Stream*) {}
  virtual Stream* blocked_by() { return nullptr; }  // the stream that has to go on before this can run
  virtual void graph_begins() {}                    // of which this is a node
  virtual Result run(uint64_t& now) = 0;            // `now`: virtual time of the stream, advanced by the work
};
using OperationPtr = std::shared_ptr<Operation>;

struct Node {
  OperationPtr operation;
  std::vector<uint32_t> after;  // indices of earlier nodes
};

struct Graph {
  std::vector<Node> nodes;
};

enum class CaptureMode { global = 0, thread_local_ = 1, relaxed = 2 };

struct Capture {
  Stream* origin;
  CaptureMode mode;
  std::thread::id thread;
  bool invalidated = false;
  std::string cause{};  // the call that spoiled it
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();
};

struct Event {
  bool timed = true;
  uint64_t recorded = 0, completed = 0;  // tickets of the last record submitted and run
  uint64_t time_ns = 0;
  Stream* stream = nullptr;        // of the last record
  std::weak_ptr<Capture> capture;  // recorded inside this capture
  bool is_captured = false;
  std::vector<uint32_t> captured_after;
};
using EventPtr = std::shared_ptr<Event>;

struct Pending {
  OperationPtr operation;
  uint64_t submit_ns;
  // The legacy default stream and the blocking streams wait for each other.
  std::vector<std::pair<Stream*, uint64_t>> after;
};

struct Stream {
  bool non_blocking = false;
  std::deque<Pending> queue;
  uint64_t submitted = 0, completed = 0;
  uint64_t now_ns = 0;  // virtual
  std::shared_ptr<Capture> capture;
  std::vector<uint32_t> captured_after;
};

// CUstream handles: null and 1 are the legacy default stream, 2 the per-thread one. Null if the handle is
// unknown.
Stream* stream_from_handle(void* handle);
Stream* create_stream(bool non_blocking);
Result destroy_stream(Stream* stream);

// Runs the operation, queues it, or adds it to the stream's capture.
Result submit(Stream* stream, OperationPtr operation);

Result synchronize(Stream* stream);  // null: all streams
Result wait_for(Event& event);
Result query(Stream* stream);
Result query(Event& event);

Result record(const EventPtr& event, Stream* stream, bool external);
Result wait_on(Stream* stream, const EventPtr& event, bool external);
Result elapsed_ms(float* ms, const Event& start, const Event& end);

Result begin_capture(Stream* stream, CaptureMode mode);
Result end_capture(Stream* stream, std::shared_ptr<Graph>* graph);
void release_capture(std::shared_ptr<Capture> capture);  // no stream captures into it any more
void abandon_capture(std::shared_ptr<Capture> capture);  // its stream is destroyed before its end
Result launch_graph(std::shared_ptr<Graph> graph, Stream* stream);
Result run_nodes(const Graph& graph, uint64_t& now);
// Refuses a call that is not allowed while this thread captures, and spoils the capture as the real driver
// does; not where the thread's mode is relaxed.
Result refuse_during_capture(const char* call);
CaptureMode exchange_capture_mode(CaptureMode mode);  // of this thread; gives the one from before

uint64_t host_now_ns();  // virtual time of the host

}  // namespace simt
