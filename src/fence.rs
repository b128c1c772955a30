//! The fence around crates that unwrap where they should report: a panic inside them becomes an error of ours.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};

thread_local! {
    /// Whether this thread is inside [`fenced`].
    static FENCED: Cell<bool> = const { Cell::new(false) };
}

/// What `call` returns; `None` if it panicked.
///
/// Unwind safety is the caller's: after a panic it uses nothing that `call` could have left half done.
pub(crate) fn fenced<T>(call: impl FnOnce() -> T) -> Option<T> {
    let outer = FENCED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(call));
    FENCED.set(outer);
    outcome.ok()
}

/// Keeps the process's panic hook quiet about panics that the library turns into errors, so that a bad `tokenizer.json` or
/// picture is one sentence. For programs: the hook is the process's, so the library does not touch it by itself.
pub fn silence_fenced_panics() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !FENCED.get() {
            report(info);
        }
    }));
}
