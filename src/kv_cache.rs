//! Key/value memory of one network (target or drafter), in pages. Which page holds what is the business of [`PagePool`](crate::pages::PagePool).
#![forbid(unsafe_code)]

use crate::config::Geometry;
use crate::device::{DType, Device, Tensor};
use crate::error::Result;

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

/// Keys and values of all layers, and the page tables that they are found by.
pub struct KvCache {
    /// All layers in one allocation `[layers, 2, pages, kv_heads, PAGE_SIZE, head_dim]`, so that one launch can compact all of them.
    pages: Tensor,
    /// `[max_sequences, max_pages]`, shared by all caches of an engine.
    page_table: Tensor,
}

impl KvCache {
    /// A cache of `num_pages` pages that are found by `page_table`.
    pub fn new(device: &Device, shape: KvShape, num_pages: usize, page_table: Tensor) -> Result<Self> {
        let dims = [shape.num_layers, 2, num_pages, shape.num_kv_heads, PAGE_SIZE, shape.head_dim];
        // Zeroed: a masked key contributes 0 * value, which only vanishes for finite values.
        Ok(Self { pages: Tensor::zeros(device, shape.dtype, &dims)?, page_table })
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
