//! Work of a stranger's making on a thread of its own: with a stack for the deepest value that its input can ask for, and waited
//! for no longer than a moment.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use crate::{Error, Result};

const LEAST_STACK: usize = 1 << 21;

/// What `work` returns, or `None` if it takes longer than `patience`. Its thread, called `name`, is left behind then, to end in
/// its own time. The stack is mapped, but only as much of it is touched as is used.
///
/// # Errors
/// No thread can be started.
pub(super) fn run<T: Send + 'static>(
    name: &str,
    stack: usize,
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (done, result) = sync_channel(1);
    let work = move || {
        // Nobody may be waiting any more.
        let _ = done.send(work());
    };
    thread::Builder::new()
        .name(name.into())
        .stack_size(stack.max(LEAST_STACK))
        .spawn(work)
        .map_err(|error| Error::Device(format!("no thread can be started for the {name}: {error}")))?;
    match result.recv_timeout(patience) {
        Ok(value) => Ok(Some(value)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => {
            Err(Error::Defect(format!("the thread of the {name} has died")))
        }
    }
}
