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
        let capture = Capture { device: self };
        let outcome = work();
        let (graph, ended) = capture.end();
        let mut captured = Graph { device: self.clone(), graph, executable: std::ptr::null_mut() };
        outcome?;
        ended?;
        captured.instantiate()?;
        Ok(captured)
    }
}

/// A capture under way on a device's stream: it ends also where what is recorded panics, or nothing else would run there any more.
pub(super) struct Capture<'a> {
    pub(super) device: &'a Device,
}

impl Capture<'_> {
    /// The graph, null when the capture was invalidated, and how that went.
    pub(super) fn end(self) -> (sys::CUgraph, Result<()>) {
        std::mem::ManuallyDrop::new(self).end_now()
    }

    fn end_now(&self) -> (sys::CUgraph, Result<()>) {
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is live and capturing, or the driver says that it is not; `graph` receives the graph.
        let status = unsafe { sys::cuStreamEndCapture(self.device.stream(), &mut graph) };
        (graph, check("cuStreamEndCapture", status))
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        let _ = self.end_now();
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

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use crate::device::{Device, DeviceChoice};

    #[test]
    fn a_panic_ends_the_capture() {
        let device = Device::open(DeviceChoice::Host).unwrap();
        let recorded = catch_unwind(AssertUnwindSafe(|| device.capture(|| panic!("on purpose")).map(drop)));
        assert!(recorded.is_err());
        device.synchronize().expect("the stream is no longer captured");
        device.capture(|| Ok(())).unwrap().launch().unwrap();
    }
}
