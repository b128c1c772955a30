//! The bytes of one checkpoint file: mapped from disk, or static.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// Read-only bytes that live as long as the checkpoint.
#[derive(Debug)]
pub(super) enum Storage {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl Storage {
    /// Maps `path`. **Contract**: the file must not be changed or truncated while the checkpoint is in use; a reader of
    /// pages that are gone is killed by the operating system.
    pub fn map(path: &Path) -> Result<Self> {
        let io = |error| Error::io(path, error);
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(Error::format(path, "this is not a file"));
        }
        // SAFETY: the mapping is read-only and private. That nobody truncates or rewrites the file meanwhile is this
        // function's contract with the user (see above); weights are plain bytes, so any content is a valid value.
        unsafe { Mmap::map(&file) }.map(Storage::Mapped).map_err(io)
    }
}

impl Deref for Storage {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Storage::Mapped(mapping) => mapping,
            Storage::Static(bytes) => bytes,
        }
    }
}
