//! Timed events. Times are read without blocking: an event that has not happened yet has no time.

use cudarc::driver::sys;

use super::{Device, check};
use crate::error::Result;

/// A timed event of a device's stream.
pub struct Event {
    device: Device,
    handle: sys::CUevent,
}

// SAFETY: an event handle may be used from any thread that has the context bound; `device.bind()` does so.
unsafe impl Send for Event {}

impl Event {
    /// A new event, not recorded yet.
    pub fn new(device: &Device) -> Result<Self> {
        device.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` receives the event; flag 0 keeps timing on.
        check("cuEventCreate", unsafe {
            sys::cuEventCreate(&mut handle, sys::CUevent_flags::CU_EVENT_DEFAULT as u32)
        })?;
        Ok(Self { device: device.clone(), handle })
    }

    /// Marks this point of the stream.
    pub fn record(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: event and stream are live and of one context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.handle, self.device.stream()) })
    }

    /// Waits until the event has happened.
    pub fn wait(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the event is live.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.handle) })
    }

    /// Whether the event has happened; never blocks.
    pub fn is_done(&self) -> Result<bool> {
        self.device.bind()?;
        // SAFETY: the event is live.
        match unsafe { sys::cuEventQuery(self.handle) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            status => check("cuEventQuery", status).map(|()| true),
        }
    }

    /// Microseconds from `earlier` to this event, or `None` while either has not happened.
    pub fn micros_since(&self, earlier: &Event) -> Result<Option<f64>> {
        if !self.is_done()? || !earlier.is_done()? {
            return Ok(None);
        }
        let mut millis = 0f32;
        // SAFETY: both events are live, recorded on one stream, and done.
        check("cuEventElapsedTime", unsafe {
            sys::cuEventElapsedTime_v2(&mut millis, earlier.handle, self.handle)
        })?;
        Ok(Some(f64::from(millis) * 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: created by us, destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}

/// A row of events that split a piece of stream work into consecutive phases.
pub struct Timeline {
    events: Vec<Event>,
    recorded: usize,
    device: Device,
}

impl Timeline {
    /// An empty timeline; events are created on first use and reused after [`Timeline::restart`].
    pub fn new(device: &Device) -> Self {
        Self { events: Vec::new(), recorded: 0, device: device.clone() }
    }

    /// Forgets the marks, keeping the events.
    pub fn restart(&mut self) {
        self.recorded = 0;
    }

    /// Marks the end of a phase (the first mark starts the first phase).
    pub fn mark(&mut self) -> Result<()> {
        if self.recorded == self.events.len() {
            self.events.push(Event::new(&self.device)?);
        }
        self.events[self.recorded].record()?;
        self.recorded += 1;
        Ok(())
    }

    /// Waits until the last mark has happened.
    pub fn wait(&self) -> Result<()> {
        self.events[..self.recorded].last().map_or(Ok(()), Event::wait)
    }

    /// Microseconds of each phase, or `None` while the last mark has not happened.
    pub fn phases(&self) -> Result<Option<Vec<f64>>> {
        let marks = &self.events[..self.recorded];
        if marks.last().is_none_or(|last| !matches!(last.is_done(), Ok(true))) {
            return Ok(None);
        }
        marks.windows(2).map(|pair| pair[1].micros_since(&pair[0])).collect()
    }
}
