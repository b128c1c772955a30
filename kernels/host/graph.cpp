// Stream capture and graph launches.
#include <algorithm>
#include <utility>

#include "options.hpp"
#include "stream.hpp"

namespace simt {

namespace {

std::vector<std::shared_ptr<Capture>> captures;  // under way

// The nodes in submission order or, under a seed, in a random order that respects their dependencies.
std::vector<uint32_t> order_of(const std::vector<Node>& nodes) {
  std::vector<uint32_t> order(nodes.size());
  for (uint32_t i = 0; i < order.size(); i++) order[i] = i;
  uint64_t random = options().seed.load();
  if (!random) return order;
  std::vector<bool> done(nodes.size());
  std::vector<uint32_t> left = std::move(order);
  order = {};
  while (!left.empty()) {
    std::vector<size_t> ready;
    for (size_t i = 0; i < left.size(); i++) {
      const auto& after = nodes[left[i]].after;
      if (std::all_of(after.begin(), after.end(), [&](uint32_t b) { return done[b]; })) ready.push_back(i);
    }
    random = random * 6364136223846793005u + 1442695040888963407u;
    size_t pick = ready[(random >> 33) % ready.size()];
    order.push_back(left[pick]);
    done[left[pick]] = true;
    left.erase(left.begin() + long(pick));
  }
  return order;
}

// A launched graph runs as one operation of its stream.
struct GraphOperation : Operation {
  std::shared_ptr<Graph> graph;
  explicit GraphOperation(std::shared_ptr<Graph> g) : graph(std::move(g)) {}

  void submitted(Stream* stream) override {
    for (Node& node : graph->nodes) node.operation->submitted(stream);
  }

  Result run(uint64_t& now) override {
    for (Node& node : graph->nodes) node.operation->graph_begins();
    return run_nodes(*graph, now);
  }
};

// The capture is joined when everything recorded leads to the origin's last work.
bool joined(const Graph& graph, const std::vector<uint32_t>& tail) {
  std::vector<bool> reached(graph.nodes.size());
  std::vector<uint32_t> open = tail;
  while (!open.empty()) {
    uint32_t node = open.back();
    open.pop_back();
    if (reached[node]) continue;
    reached[node] = true;
    open.insert(open.end(), graph.nodes[node].after.begin(), graph.nodes[node].after.end());
  }
  return std::all_of(reached.begin(), reached.end(), [](bool r) { return r; });
}

}  // namespace

Result begin_capture(Stream* stream, CaptureMode mode) {
  if (stream == stream_from_handle(nullptr))
    return error(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy default stream cannot be captured");
  if (stream->capture)
    return error(CUDA_ERROR_INVALID_VALUE, "cuStreamBeginCapture: the stream is capturing already");
  stream->capture = std::make_shared<Capture>(Capture{stream, mode, std::this_thread::get_id()});
  stream->captured_after.clear();
  captures.push_back(stream->capture);
  return CUDA_SUCCESS;
}

Result end_capture(Stream* stream, std::shared_ptr<Graph>* graph) {
  auto capture = stream->capture;
  if (!capture) return error(CUDA_ERROR_INVALID_VALUE, "cuStreamEndCapture: the stream is not capturing");
  if (capture->origin != stream)
    return error(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
                 "cuStreamEndCapture: the capture began on another stream");
  bool complete = joined(*capture->graph, stream->captured_after);
  release_capture(capture);
  std::erase(captures, capture);
  if (capture->invalidated)
    return error(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture was invalidated by: " + capture->cause);
  if (!complete)
    return error(CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                 "a stream that joined the capture was not waited for at its end");
  *graph = capture->graph;
  return CUDA_SUCCESS;
}

void abandon_capture(std::shared_ptr<Capture> capture) {
  release_capture(capture);
  std::erase(captures, capture);
}

Result run_nodes(const Graph& graph, uint64_t& now) {
  std::vector<uint64_t> ends(graph.nodes.size());
  uint64_t last = now;
  for (uint32_t i : order_of(graph.nodes)) {
    const Node& node = graph.nodes[i];
    ends[i] = now;
    for (uint32_t before : node.after) ends[i] = std::max(ends[i], ends[before]);
    if (Result r = node.operation->run(ends[i])) return r;
    last = std::max(last, ends[i]);
  }
  now = last;
  return CUDA_SUCCESS;
}

Result launch_graph(std::shared_ptr<Graph> graph, Stream* stream) {
  return submit(stream, std::make_shared<GraphOperation>(std::move(graph)));
}

static thread_local CaptureMode mode_of_thread = CaptureMode::global;

CaptureMode exchange_capture_mode(CaptureMode mode) {
  return std::exchange(mode_of_thread, mode);
}

Result refuse_during_capture(const char* call) {
  if (mode_of_thread == CaptureMode::relaxed) return CUDA_SUCCESS;
  for (auto& capture : captures) {
    bool applies = capture->mode == CaptureMode::global || (capture->mode == CaptureMode::thread_local_ &&
                                                            capture->thread == std::this_thread::get_id());
    if (!applies) continue;
    capture->invalidated = true;
    capture->cause = call;
    return error(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, std::string(call) + " while a stream is capturing");
  }
  return CUDA_SUCCESS;
}

}  // namespace simt
