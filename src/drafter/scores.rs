//! [`Scores`]: what a drafter says of the tokens behind each row of a pass.

use std::ops::Range;

use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use crate::kernels::digest::{digest_buffer, draft_digest};

/// Logits, and what top-k is found by.
#[derive(Clone)]
pub struct Scores {
    /// f32 `[rows, draft vocab]`.
    pub logits: Tensor,
    /// Their digests, as [`digest_buffer`] makes them.
    pub digests: Tensor,
}

impl Scores {
    /// Room for so many rows.
    ///
    /// # Errors
    /// A lack of memory.
    pub fn new(device: &Device, rows: usize, vocab_size: usize) -> Result<Self> {
        Ok(Self {
            logits: Tensor::uninit(device, DType::F32, &[rows, vocab_size])?,
            digests: digest_buffer(device, rows, vocab_size)?,
        })
    }

    /// Those of some rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        Self { logits: self.logits.rows(rows.clone()), digests: self.digests.rows(rows) }
    }

    /// Makes the digests anew, of logits that have changed.
    ///
    /// # Errors
    /// A failure of the driver.
    pub fn digest(&self, device: &Device) -> Result<()> {
        draft_digest(device, &self.logits, &self.digests)
    }
}
