// Entry points: graphs made and changed node by node. A node's handle is its number in its graph, counted from 1.
#include "condition.hpp"

#include <deque>

#include "block.hpp"
#include "driver.hpp"

using namespace simt;
using GraphHandle = std::shared_ptr<Graph>*;

namespace {

// The handle of a condition is its number, counted from 1. They are never reused.
struct Condition {
  unsigned value, at_launch;
};
std::deque<Condition> conditions;

uint32_t index_of(void* node) {
  return uint32_t(reinterpret_cast<uintptr_t>(node) - 1);
}
void* handle_of(size_t index) {
  return reinterpret_cast<void*>(index + 1);
}

enum class Choice : int { if_ = 0, while_ = 1, switch_ = 2 };

struct Conditional : Operation {
  Condition& condition;
  Choice choice;
  std::vector<std::shared_ptr<Graph>> bodies;
  std::vector<GraphHandle> handles{};  // given out; they live as long as the node

  Conditional(Condition& c, Choice kind, size_t count) : condition(c), choice(kind) {
    for (size_t i = 0; i < count; i++) {
      bodies.push_back(std::make_shared<Graph>());
      handles.push_back(new std::shared_ptr<Graph>(bodies.back()));
    }
  }
  ~Conditional() override {
    for (GraphHandle handle : handles) delete handle;
  }

  void graph_begins() override {
    condition.value = condition.at_launch;
    for (auto& body : bodies)
      for (Node& node : body->nodes) node.operation->graph_begins();
  }

  Result run(uint64_t& now) override {
    if (choice == Choice::switch_)
      return condition.value < bodies.size() ? run_nodes(*bodies[condition.value], now) : CUDA_SUCCESS;
    if (choice == Choice::if_) {
      if (condition.value) return run_nodes(*bodies[0], now);
      return bodies.size() > 1 ? run_nodes(*bodies[1], now) : CUDA_SUCCESS;
    }
    while (condition.value) RETURN_IF_ERROR(run_nodes(*bodies[0], now));
    return CUDA_SUCCESS;
  }
};

// CUgraphNodeParams as far as it is read here.
struct ConditionalNodeParams {
  int type, reserved[3];
  uint64_t condition;
  int choice;
  unsigned size;
  GraphHandle* bodies;
  void* context;
};
constexpr int conditional_node = 13;

}  // namespace

void simt::set_condition(uint64_t handle, unsigned value) {
  // A launch that is replayed from a file brings a handle of another process, and there is no graph to tell.
  if (conditions.empty()) return;
  if (handle == 0 || handle > conditions.size()) current_block()->die("set_condition: no such handle");
  conditions[handle - 1].value = value;
}

DRIVER_API cuGraphCreate(GraphHandle* graph, unsigned) {
  ENTER_DRIVER();
  *graph = new std::shared_ptr<Graph>(std::make_shared<Graph>());
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphConditionalHandleCreate(uint64_t* handle, GraphHandle, void*, unsigned at_launch,
                                          unsigned flags) {
  ENTER_DRIVER();
  if (flags != 1)
    return error(CUDA_ERROR_NOT_SUPPORTED,
                 "cuGraphConditionalHandleCreate: only with CU_GRAPH_COND_ASSIGN_DEFAULT");
  conditions.push_back({at_launch, at_launch});
  *handle = conditions.size();
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphAddNode_v2(void** node, GraphHandle graph, void* const* after, const void*, size_t count,
                             ConditionalNodeParams* params) {
  ENTER_DRIVER();
  if (params->type != conditional_node)
    return error(CUDA_ERROR_NOT_SUPPORTED, "cuGraphAddNode: only conditional nodes; capture the others");
  if (params->condition == 0 || params->condition > conditions.size())
    return error(CUDA_ERROR_INVALID_VALUE, "cuGraphAddNode: the condition has no such handle");
  const auto choice = Choice(params->choice);
  const unsigned most = choice == Choice::if_ ? 2 : choice == Choice::while_ ? 1 : 64;
  if (params->choice < 0 || params->choice > 2 || params->size == 0 || params->size > most)
    return error(CUDA_ERROR_INVALID_VALUE,
                 "cuGraphAddNode: a conditional node of an impossible kind or size");
  std::vector<uint32_t> before;
  for (size_t i = 0; i < count; i++) {
    if (index_of(after[i]) >= (*graph)->nodes.size())
      return error(CUDA_ERROR_INVALID_VALUE, "cuGraphAddNode: a dependency is no node of the graph");
    before.push_back(index_of(after[i]));
  }
  auto operation = std::make_shared<Conditional>(conditions[params->condition - 1], choice, params->size);
  params->bodies = operation->handles.data();
  (*graph)->nodes.push_back({std::move(operation), std::move(before)});
  *node = handle_of((*graph)->nodes.size() - 1);
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamBeginCaptureToGraph(void* handle, GraphHandle graph, void* const*, const void*,
                                       size_t count, int mode) {
  ENTER_DRIVER();
  Stream* stream = stream_from_handle(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (count || !(*graph)->nodes.empty())
    return error(CUDA_ERROR_NOT_SUPPORTED, "cuStreamBeginCaptureToGraph: only into an empty graph");
  RETURN_IF_ERROR(begin_capture(stream, CaptureMode(mode)));
  stream->capture->graph = *graph;
  return CUDA_SUCCESS;
}
