//! Graphs that decide on the device: conditional nodes, one behind the other, whose conditions kernels set
//! (`set_condition` of `kernels/prims.cuh`) or the launch itself.

use cudarc::driver::sys;

use super::graph::Capture;
use super::{Device, Graph, check};
use crate::error::Result;

/// What a conditional node does with the value of its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// Runs its body unless the value is 0.
    If,
    /// Runs its body again and again until the value is 0.
    While,
    /// Runs the body of that number, of so many; none if the value is larger.
    Switch(u32),
}

/// A graph under construction: conditional nodes in a row.
pub struct ConditionalGraph {
    graph: Graph,
    last: Option<sys::CUgraphNode>,
}

impl ConditionalGraph {
    /// No nodes yet.
    pub fn new(device: &Device) -> Result<Self> {
        device.bind()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: `graph` receives the handle; flags must be 0.
        check("cuGraphCreate", unsafe { sys::cuGraphCreate(&mut graph, 0) })?;
        let graph = Graph { device: device.clone(), graph, executable: std::ptr::null_mut() };
        Ok(Self { graph, last: None })
    }

    /// Adds a node behind those before it. Its condition has the value `at_launch` at every launch of the graph; `body(i, condition)`
    /// issues what body `i` does, once, and may launch kernels that set the condition.
    ///
    /// # Errors
    /// The driver has no such nodes (before CUDA 12.8), or `body` failed or did what cannot be captured.
    pub fn branch(
        &mut self,
        branch: Branch,
        at_launch: u32,
        mut body: impl FnMut(u32, u64) -> Result<()>,
    ) -> Result<()> {
        use sys::CUgraphConditionalNodeType_enum as Kind;
        let (type_, size) = match branch {
            Branch::If => (Kind::CU_GRAPH_COND_TYPE_IF, 1),
            Branch::While => (Kind::CU_GRAPH_COND_TYPE_WHILE, 1),
            Branch::Switch(size) => (Kind::CU_GRAPH_COND_TYPE_SWITCH, size),
        };
        let device = self.graph.device.clone();
        device.bind()?;
        let context = device.inner.context.cu_ctx();
        let mut condition = 0;
        // SAFETY: graph and context are live; `condition` receives the handle.
        let status = unsafe {
            sys::cuGraphConditionalHandleCreate(
                &mut condition,
                self.graph.graph,
                context,
                at_launch,
                sys::CU_GRAPH_COND_ASSIGN_DEFAULT,
            )
        };
        check("cuGraphConditionalHandleCreate", status)?;
        // SAFETY: all-zero bytes are a valid value of this plain C struct, and the driver requires zeros where nothing is said.
        let mut params: sys::CUgraphNodeParams = unsafe { std::mem::zeroed() };
        params.type_ = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_CONDITIONAL;
        params.__bindgen_anon_1.conditional = sys::CUDA_CONDITIONAL_NODE_PARAMS {
            handle: condition,
            type_,
            size,
            phGraph_out: std::ptr::null_mut(),
            ctx: context,
        };
        let mut node = std::ptr::null_mut();
        let before: Vec<sys::CUgraphNode> = self.last.into_iter().collect();
        // SAFETY: `before` holds as many nodes of this graph as said; without edge data all edges are full dependencies.
        let status = unsafe {
            sys::cuGraphAddNode_v2(
                &mut node,
                self.graph.graph,
                before.as_ptr(),
                std::ptr::null(),
                before.len(),
                &mut params,
            )
        };
        check("cuGraphAddNode", status)?;
        self.last = Some(node);
        for index in 0..size {
            // SAFETY: the driver has set `phGraph_out` to an array of `size` graphs that live as long as this one.
            let inner = unsafe { *params.__bindgen_anon_1.conditional.phGraph_out.add(index as usize) };
            capture_into(&device, inner, || body(index, condition))?;
        }
        Ok(())
    }

    /// The graph, ready to be launched.
    pub fn finish(mut self) -> Result<Graph> {
        self.graph.instantiate()?;
        Ok(self.graph)
    }
}

fn capture_into(device: &Device, graph: sys::CUgraph, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let null = std::ptr::null();
    // SAFETY: stream and graph are live; nothing is depended on.
    let status =
        unsafe { sys::cuStreamBeginCaptureToGraph(device.stream(), graph, null, std::ptr::null(), 0, mode) };
    check("cuStreamBeginCaptureToGraph", status)?;
    let capture = Capture { device };
    let outcome = work();
    // The graph that comes back is `graph`, which its parent owns.
    let (_, ended) = capture.end();
    outcome.and(ended)
}
