//! Programmatic dependencies between the kernels of a graph: a kernel may start before the one before it is done, and waits
//! itself for what it needs (`let_successor_start` and `wait_for_predecessors` of `kernels/prims.cuh`).

use std::ptr::null_mut;

use cudarc::driver::sys;

use super::{Device, Graph, check};
use crate::error::Result;

/// How a node depends on the one before it.
const PROGRAMMATIC: sys::CUgraphEdgeData = sys::CUgraphEdgeData {
    from_port: sys::CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC as u8,
    to_port: 0,
    type_: sys::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8,
    reserved: [0; 5],
};
/// Edges as the driver reports them, field by field.
type Edges = (Vec<sys::CUgraphNode>, Vec<sys::CUgraphNode>, Vec<sys::CUgraphEdgeData>);

impl Device {
    /// Records what `work` launches, as [`Device::capture`], and lets every kernel start before the one before it is done. Kernels
    /// that read what an earlier one of `work` has written, or write where it reads or writes, must wait for it themselves.
    ///
    /// # Errors
    /// As [`Device::capture`]; `work` issues anything but kernels; the GPU has no programmatic dependencies (before sm_90).
    pub fn capture_programmatic(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mut graph = self.record(work)?;
        let (from, to, kinds) = edges(&graph)?;
        let wanted = vec![PROGRAMMATIC; from.len()];
        // SAFETY: the graph is live and not instantiated; the arrays hold as many elements as said, and name its own edges.
        unsafe {
            let status = sys::cuGraphRemoveDependencies_v2(
                graph.graph,
                from.as_ptr(),
                to.as_ptr(),
                kinds.as_ptr(),
                from.len(),
            );
            check("cuGraphRemoveDependencies", status)?;
            let status = sys::cuGraphAddDependencies_v2(
                graph.graph,
                from.as_ptr(),
                to.as_ptr(),
                wanted.as_ptr(),
                from.len(),
            );
            check("cuGraphAddDependencies", status)?;
        }
        graph.instantiate()?;
        Ok(graph)
    }
}

fn edges(graph: &Graph) -> Result<Edges> {
    let mut count = 0;
    // SAFETY: the graph is live; without arrays the call only counts.
    let status =
        unsafe { sys::cuGraphGetEdges_v2(graph.graph, null_mut(), null_mut(), null_mut(), &mut count) };
    check("cuGraphGetEdges", status)?;
    let plain = sys::CUgraphEdgeData { from_port: 0, to_port: 0, type_: 0, reserved: [0; 5] };
    let (mut from, mut to, mut kinds) =
        (vec![null_mut(); count], vec![null_mut(); count], vec![plain; count]);
    // SAFETY: the arrays hold `count` elements each, as said.
    let status = unsafe {
        sys::cuGraphGetEdges_v2(
            graph.graph,
            from.as_mut_ptr(),
            to.as_mut_ptr(),
            kinds.as_mut_ptr(),
            &mut count,
        )
    };
    check("cuGraphGetEdges", status)?;
    Ok((from, to, kinds))
}
