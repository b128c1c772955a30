// What kernels tell conditional nodes of graphs: a value a handle. The nodes are in graph_nodes.cpp.
#pragma once
#include <stdint.h>

namespace simt {

// Called by one thread of a kernel. A handle that no graph of this process made ends the launch.
void set_condition(uint64_t handle, unsigned value);

}  // namespace simt
