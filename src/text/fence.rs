//! The fence around the crate `tokenizers`: its errors and its panics become sentences about the file.
//!
//! The panics are real, and fuzzing finds them in seconds (`tests/fuzz_parsers.rs`): a template that names a token it does
//! not define, a decoder that is no decoder, a strip longer than its text. The crate unwraps where it should report.

use std::path::Path;

use crate::{Error, Result, fence};

/// Runs a call of the crate `tokenizers` on behalf of the file `path`.
///
/// Unwind safety: a tokenizer that panics while it is built is dropped; later calls take it by shared reference, and the
/// crate's only interior state, a cache, is behind a lock that notices the panic.
pub(super) fn fenced<T>(path: &Path, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match fence::fenced(call) {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(Error::format(path, format!("this tokenizer is not usable: {error}"))),
        None => Err(Error::format(path, "this tokenizer is not usable: its parts contradict each other")),
    }
}
