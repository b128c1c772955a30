//! The fence around the crate `tokenizers`: its errors and its panics become sentences about the file.
//!
//! The panics are real, and fuzzing finds them in seconds (`tests/fuzz_parsers.rs`): a template that names a token it does
//! not define, a decoder that is no decoder, a strip longer than its text. The crate unwraps where it should report.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use crate::{Error, Result};

thread_local! {
    /// Whether this thread is inside [`caught`].
    static FENCED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a call of the crate `tokenizers` on behalf of the file `path`.
///
/// Unwind safety: a tokenizer that panics while it is built is dropped; later calls take it by shared reference, and the
/// crate's only interior state, a cache, is behind a lock that notices the panic.
pub(super) fn fenced<T>(path: &Path, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match caught(call) {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(Error::format(path, format!("this tokenizer is not usable: {error}"))),
        None => Err(Error::format(path, "this tokenizer is not usable: its parts contradict each other")),
    }
}

/// What `call` returns; `None` if it panics. What it leaves half done must not matter to anyone.
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    let outer = FENCED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(call));
    FENCED.set(outer);
    outcome.ok()
}

/// Keeps the process's panic hook quiet about panics that this module turns into errors, so that a bad `tokenizer.json` is
/// one sentence. For programs: the hook is the process's, so the library does not touch it by itself.
pub fn silence_fenced_panics() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !FENCED.get() {
            report(info);
        }
    }));
}
