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

/// The draws that rows of scores are to foresee: as [`DraftNoiseArgs`] has them.
pub struct Draws<'a> {
    /// I32 `[rows]`: the row's entry in `params`; -1 for none.
    pub row_sequence: &'a Tensor,
    /// I32 `[rows]`: the row's place in `positions`; none where row r has place r.
    pub rows: Option<&'a Tensor>,
    /// I32.
    pub positions: &'a Tensor,
    /// From a row's position to that of its draw.
    pub ahead: usize,
    /// How sequences sample, U8 `[sequences, 24]`.
    pub params: &'a Tensor,
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

    /// Gives the logits the noise of the `draws` that they are to foresee, once for each pass: the scores that they then are. `d2t` as
    /// [`Drafter::d2t`](super::Drafter::d2t).
    ///
    /// # Errors
    /// A failure of the driver.
    pub fn couple(&self, device: &Device, d2t: Option<&Tensor>, draws: Draws) -> Result<Self> {
        let Draws { row_sequence, rows, positions, ahead, params } = draws;
        draft_noise(
            device,
            DraftNoiseArgs {
                logits: &self.logits,
                digests: &self.digests,
                out_digests: &self.noisy_digests,
                d2t,
                row_sequence,
                rows,
                positions,
                ahead,
                params,
            },
        )?;
        Ok(Self { digests: self.noisy_digests.clone(), ..self.clone() })
    }
}
