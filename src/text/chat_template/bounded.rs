//! Work of a stranger's template, bounded where the crate `minijinja` is not.
//!
//! Its fuel counts instructions and bytes. Not counted: constant folding, which is quadratic in the length of some expressions;
//! slices of slices, quadratic in their nesting; and the stack, on which values that a template nests level by level are compared,
//! printed and dropped. So templates run on a thread of their own, with a stack for the deepest value that their fuel pays for
//! (mapped, but not touched by others), and are waited for no longer than a moment.

use std::io::{self, Write};
use std::time::Duration;

use crate::Result;
use crate::text::bounded;

/// Stack for each unit of fuel, and for each byte of a template that is compiled. A nested list costs 1.7 units and less than 640
/// bytes of stack; a level of an expression, 2 characters and less than 2 KiB.
pub const STACK_PER_FUEL: usize = 512;
pub const STACK_PER_SOURCE_BYTE: usize = 1024;
/// A rendering takes some milliseconds at most.
const PATIENCE: Duration = Duration::from_millis(900);
const PATIENCE_PER_BYTE: Duration = Duration::from_micros(1);

/// What `work` returns, or `None` if it takes too long for `bytes` of input. Its thread is left behind then, to end in its own time.
///
/// # Errors
/// No thread can be started.
pub fn run<T: Send + 'static>(
    stack: usize,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let patience = PATIENCE + PATIENCE_PER_BYTE.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
    bounded::run("chat template", stack, patience, work)
}

/// Text up to a length.
pub struct BoundedText {
    text: Vec<u8>,
    left: usize,
}

impl BoundedText {
    /// Room for `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self { text: Vec::new(), left: bytes }
    }

    /// What has been written; templates write nothing but UTF-8.
    pub fn into_text(self) -> String {
        String::from_utf8(self.text)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

impl Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.left.checked_sub(bytes.len()) {
            Some(left) => self.left = left,
            None => return Err(io::ErrorKind::FileTooLarge.into()),
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
