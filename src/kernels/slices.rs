//! Rows of logits over several blocks: how many slices they have, and the scratch in which blocks leave what they found to the last one.

use super::shape::Dims;
use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use crate::sampling::SLICE_LEN;

/// Slices of a row, each the work of a block.
pub(super) fn num_slices(vocab_size: usize) -> usize {
    vocab_size.div_ceil(SLICE_LEN)
}

/// Scratch of kernels that give a row of logits several blocks. Launches on one stream share it; rows of one slice need none.
pub struct SliceWorkspace {
    /// u64; its content does not matter between launches.
    found: Tensor,
    /// i32, one a row; zeros between launches.
    tickets: Tensor,
}

impl SliceWorkspace {
    /// For launches of up to `max_rows` rows over `vocab_size` logits whose blocks leave `words` u64 each.
    pub(super) fn new(device: &Device, max_rows: usize, vocab_size: usize, words: usize) -> Result<Self> {
        let rows = if num_slices(vocab_size) > 1 { max_rows } else { 0 };
        Ok(Self {
            found: Tensor::uninit(device, DType::U64, &[rows * num_slices(vocab_size) * words])?,
            tickets: Tensor::zeros(device, DType::I32, &[rows])?,
        })
    }

    /// What a launch of `rows` rows gets: scratch and tickets, none for rows of one slice.
    pub(super) fn of_launch(
        &self,
        dims: &Dims,
        rows: usize,
        vocab_size: usize,
        words: usize,
    ) -> Result<Option<(&Tensor, &Tensor)>> {
        let slices = num_slices(vocab_size);
        if slices == 1 {
            return Ok(None);
        }
        let Self { found, tickets } = self;
        let needed = rows * slices * words;
        dims.require(found.num_elements() >= needed && tickets.num_elements() >= rows, "workspace", || {
            (format!("at least {needed} words and {rows} tickets"), format!("{found:?}, {tickets:?}"))
        })?;
        Ok(Some((found, tickets)))
    }
}
