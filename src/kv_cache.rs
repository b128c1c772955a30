//! Paged key/value memory of one network (target or drafter): which page holds which position of which sequence.
//!
//! All layers live in one allocation `[layers, 2, pages, kv_heads, PAGE_SIZE, head_dim]`, so that one launch can compact
//! all of them. The cache counts pages; lengths, and what the pages hold, are the engine's business.
#![forbid(unsafe_code)]

use crate::config::Geometry;
use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};

/// Positions of a page.
pub const PAGE_SIZE: usize = 16;

/// Geometry of a cache.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    /// Number of layers.
    pub num_layers: usize,
    /// Key/value heads of a layer.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Element type.
    pub dtype: DType,
}

impl KvShape {
    /// The cache of a network of these layers.
    pub fn of(geometry: &Geometry, dtype: DType) -> Self {
        let Geometry { num_layers, num_kv_heads, head_dim, .. } = *geometry;
        Self { num_layers, num_kv_heads, head_dim, dtype }
    }

    /// Bytes of one page over all layers.
    pub fn page_bytes(&self) -> usize {
        self.num_layers * 2 * self.num_kv_heads * PAGE_SIZE * self.head_dim * self.dtype.size_in_bytes()
    }
}

/// Pages and page tables.
pub struct KvCache {
    pages: Tensor,
    /// `[max_sequences, max_pages]` on the device; rows as in `owned`.
    page_table: Tensor,
    owned: Vec<Vec<i32>>,
    free: Vec<i32>,
}

impl KvCache {
    /// A cache of `num_pages` pages for `max_sequences` sequences of at most `max_positions` each.
    pub fn new(
        device: &Device,
        shape: KvShape,
        num_pages: usize,
        max_sequences: usize,
        max_positions: usize,
    ) -> Result<Self> {
        let dims = [shape.num_layers, 2, num_pages, shape.num_kv_heads, PAGE_SIZE, shape.head_dim];
        let max_pages = max_positions.div_ceil(PAGE_SIZE);
        Ok(Self {
            // Zeroed: a masked key contributes 0 * value, which only vanishes for finite values.
            pages: Tensor::zeros(device, shape.dtype, &dims)?,
            page_table: Tensor::zeros(device, DType::I32, &[max_sequences, max_pages])?,
            owned: vec![Vec::new(); max_sequences],
            free: (0..num_pages as i32).rev().collect(),
        })
    }

    /// Makes positions `0..len` of `sequence` usable.
    ///
    /// # Errors
    /// Not enough pages are free, or `len` exceeds the page table; nothing changes then.
    pub fn reserve(&mut self, sequence: usize, len: usize) -> Result<()> {
        let wanted = len.div_ceil(PAGE_SIZE);
        let have = self.owned[sequence].len();
        if wanted <= have {
            return Ok(());
        }
        let max_pages = self.page_table.dim(1);
        if wanted > max_pages || wanted - have > self.free.len() {
            return Err(Error::Input(format!(
                "{len} positions need {wanted} key/value pages of {PAGE_SIZE}, but only {} are left; shorten the prompt or raise the key/value budget",
                max_pages.min(have + self.free.len())
            )));
        }
        let taken = self.free.split_off(self.free.len() - (wanted - have));
        self.owned[sequence].extend(taken.into_iter().rev());
        let mut row = self.owned[sequence].clone();
        row.resize(max_pages, 0);
        self.page_table.rows(sequence..sequence + 1).write(&row)
    }

    /// Gives all pages of `sequence` back.
    pub fn release(&mut self, sequence: usize) {
        let pages = std::mem::take(&mut self.owned[sequence]);
        self.free.extend(pages.into_iter().rev());
    }

    /// Slot of a reserved position: `page * PAGE_SIZE + offset`.
    pub fn slot(&self, sequence: usize, position: usize) -> i32 {
        self.owned[sequence][position / PAGE_SIZE] * PAGE_SIZE as i32 + (position % PAGE_SIZE) as i32
    }

    /// Keys and values of `layer`, `[pages, kv_heads, PAGE_SIZE, head_dim]` each.
    pub fn layer(&self, layer: usize) -> (Tensor, Tensor) {
        let both = self.pages.index(layer);
        (both.index(0), both.index(1))
    }

    /// The whole allocation.
    pub fn pages(&self) -> &Tensor {
        &self.pages
    }

    /// Page tables of sequences `0..count`, `[count, max_pages]`.
    pub fn page_table(&self, count: usize) -> Tensor {
        self.page_table.rows(0..count)
    }
}
