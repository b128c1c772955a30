//! [`Scores`]: what a drafter says of the tokens behind each row of a pass.

use std::ops::Range;

use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use crate::kernels::digest::{digest_buffer, draft_digest};
use crate::kernels::draft_noise::{DraftNoiseArgs, draft_noise};

/// Logits, and what top-k is found by.
#[derive(Clone)]
pub struct Scores {
    /// f32 `[rows, draft vocab]`.
    pub logits: Tensor,
    /// Their digests, as [`digest_buffer`] makes them.
    pub digests: Tensor,
    /// Room for those that they have under noise.
    noisy_digests: Tensor,
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
            noisy_digests: digest_buffer(device, rows, vocab_size)?,
        })
    }

    /// Those of some rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let of = |all: &Tensor| all.rows(rows.clone());
        Self { logits: of(&self.logits), digests: of(&self.digests), noisy_digests: of(&self.noisy_digests) }
    }

    /// Makes the digests anew, of logits that have changed.
    ///
    /// # Errors
    /// A failure of the driver.
    pub fn digest(&self, device: &Device) -> Result<()> {
        draft_digest(device, &self.logits, &self.digests)
    }

    /// Gives the logits the noise of the draws that they are to foresee, once for each pass: the scores that they then are. `d2t` as
    /// [`Drafter::d2t`](super::Drafter::d2t), `draws` and `params` as [`DraftNoiseArgs`] has them.
    ///
    /// # Errors
    /// A failure of the driver.
    pub fn couple(
        &self,
        device: &Device,
        d2t: Option<&Tensor>,
        (draws, params): (&Tensor, &Tensor),
    ) -> Result<Self> {
        let Self { logits, digests, noisy_digests: out_digests } = self;
        draft_noise(device, DraftNoiseArgs { logits, digests, out_digests, d2t, draws, params })?;
        Ok(Self { digests: out_digests.clone(), ..self.clone() })
    }
}
