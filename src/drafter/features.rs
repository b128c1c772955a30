//! [`FeatureStore`]: the outputs of a round's drafter passes, which later passes of the round read as features.

use crate::device::{DType, Device, Tensor};
use crate::error::Result;

/// Rows of drafter outputs, in the order in which passes bring them.
pub struct FeatureStore {
    /// `[rows, hidden]`.
    rows: Tensor,
    /// First free row; 0 before a round has begun.
    used: usize,
}

impl FeatureStore {
    /// Room for `max_rows` rows in a round.
    pub fn new(device: &Device, dtype: DType, max_rows: usize, hidden: usize) -> Result<Self> {
        Ok(Self { rows: Tensor::uninit(device, dtype, &[max_rows, hidden])?, used: 0 })
    }

    /// Begins a round with the `count` rows that its first pass writes.
    pub fn begin(&mut self, count: usize) -> Tensor {
        self.used = 0;
        self.push(count)
    }

    /// The `count` rows that the next pass writes.
    pub fn push(&mut self, count: usize) -> Tensor {
        let start = self.used;
        self.used += count;
        self.rows.rows(start..self.used)
    }

    /// All rows, to read from.
    pub fn all(&self) -> &Tensor {
        &self.rows
    }

    /// Row that the next pass writes first.
    pub fn next_row(&self) -> usize {
        self.used
    }

    /// Rows that the round can still take; 0 before a round has begun.
    pub fn free_rows(&self) -> usize {
        if self.used > 0 { self.rows.dim(0) - self.used } else { 0 }
    }
}
