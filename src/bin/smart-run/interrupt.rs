//! Ctrl-C: the first asks the running command to stop at the next round, the second ends the process. While nothing runs that could
//! stop (a chat that waits for its next message), the first ends it.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static IDLE: AtomicBool = AtomicBool::new(false);

/// Starts listening. Without a handler (a platform that refuses one) Ctrl-C keeps its default: the process ends.
pub fn listen() {
    let installed = ctrlc::set_handler(|| {
        if IDLE.load(Ordering::Relaxed) || REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    if let Err(error) = installed {
        tracing::debug!("no Ctrl-C handler: {error}");
    }
}

/// Whether Ctrl-C was pressed.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Says whether nothing is running, and forgets what was pressed before.
pub fn set_idle(idle: bool) {
    REQUESTED.store(false, Ordering::Relaxed);
    IDLE.store(idle, Ordering::Relaxed);
}
