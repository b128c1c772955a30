//! Stream capture: a sequence of launches recorded once and replayed with one call.

use cudarc::driver::sys;

use super::{Device, check};
use crate::error::Result;

/// An instantiated graph. The memory its launches touch must outlive it.
pub struct Graph {
    pub(super) device: Device,
    pub(super) graph: sys::CUgraph,
    pub(super) executable: sys::CUgraphExec,
}

// SAFETY: graph handles may be used from any thread that has the context bound; `device.bind()` does so.
unsafe impl Send for Graph {}

impl Device {
    /// Records what `work` issues on this device's stream, without running it.
    ///
    /// # Errors
    /// `work` failed, or did something that cannot be captured (allocation, synchronisation).
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live and not capturing: captures do not nest because `work` has no way to end one.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.stream(), mode) })?;
        let outcome = work();
        let mut graph = std::ptr::null_mut();
        // SAFETY: ends the capture begun above; `graph` receives the graph (null when the capture was invalidated).
        let ended =
            check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.stream(), &mut graph) });
        let mut captured = Graph { device: self.clone(), graph, executable: std::ptr::null_mut() };
        outcome?;
        ended?;
        captured.instantiate()?;
        Ok(captured)
    }
}

impl Graph {
    /// Makes it fit to be launched.
    pub(super) fn instantiate(&mut self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the graph is live; the executable graph that may be there is not replaced: it is null until now.
        let status = unsafe { sys::cuGraphInstantiateWithFlags(&mut self.executable, self.graph, 0) };
        check("cuGraphInstantiateWithFlags", status)
    }

    /// Replays the recorded work on the device's stream.
    pub fn launch(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the executable graph is live; memory it touches is kept by its owner (type-level contract above).
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.executable, self.device.stream()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.bind().is_err() {
            return;
        }
        // SAFETY: each handle was made by us and is destroyed once; null handles are skipped.
        unsafe {
            if !self.executable.is_null() {
                let _ = sys::cuGraphExecDestroy(self.executable);
            }
            if !self.graph.is_null() {
                let _ = sys::cuGraphDestroy(self.graph);
            }
        }
    }
}
