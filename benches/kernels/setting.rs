//! The sizes a table is made for, and random data large enough to rotate through.

use half::bf16;
use smart_run::Result;
use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::ceilings::PIECE;

use super::measure::{Timing, span};
use super::shapes::{self, AttentionGrid, LinearShape};

/// Sizes of a target and its drafter, and the widths worth a row.
pub struct Model {
    pub name: &'static str,
    pub hidden: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub layers: usize,
    pub vocab: usize,
    /// Of logits that are sampled from, the model's own first.
    pub vocabularies: &'static [usize],
    /// Of a drafter's logits, the model's own first.
    pub draft_vocabularies: &'static [usize],
    /// Nodes of all trees of a pass, for what runs node by node.
    pub tree_rows: &'static [usize],
    /// Token rows of a pass that every kernel gets.
    pub widths: &'static [usize],
    /// What share of a picture's patches a tower gets.
    pub picture_divisor: usize,
    /// Sequences of a round of the controller.
    pub batches: &'static [usize],
    /// Token rows that linear layers get.
    pub steps: &'static [usize],
    pub linears: &'static [LinearShape],
    /// What attention is measured at, see `shapes.rs`.
    pub attention: &'static AttentionGrid,
    /// Elements of the random pool: several times the largest cache, and no less than the largest weight.
    pool: usize,
    /// Elements of random data that the pool repeats.
    block: usize,
}

pub const LLAMA_8B: Model = Model {
    name: "Llama-3.1-8B",
    hidden: 4096,
    q_heads: 32,
    kv_heads: 8,
    head_dim: 128,
    layers: 32,
    vocab: 128_256,
    vocabularies: &[128_256, 32_000, 152_064],
    draft_vocabularies: &[32_000, 128_256, 152_064],
    tree_rows: &[1, 4, 8, 16, 32, 60, 64],
    widths: &[1, 8, 16, 32, 64, 128, 256],
    picture_divisor: 1,
    batches: &[1, 4, 16, 64],
    steps: shapes::STEPS,
    linears: shapes::LINEARS,
    attention: &shapes::ATTENTION,
    pool: 800 << 20,
    block: (4 << 20) - 3,
};

pub const DEMO: Model = Model {
    name: "the demo pair",
    hidden: 256,
    q_heads: 4,
    kv_heads: 1,
    head_dim: 128,
    layers: 8,
    vocab: 4096,
    vocabularies: &[4096],
    draft_vocabularies: &[1024],
    tree_rows: &[1, 8, 60],
    widths: &[1, 8, 60],
    picture_divisor: 16,
    batches: &[1, 4],
    steps: &[1, 8, 60],
    linears: shapes::DEMO_LINEARS,
    attention: &shapes::DEMO_ATTENTION,
    pool: 4 << 20,
    block: (1 << 18) - 3,
};

/// A device, a model's sizes and random data.
pub struct Setting {
    pub device: Device,
    pub model: &'static Model,
    pool: Tensor,
    block: Vec<f32>,
}

impl Setting {
    pub fn new(device: &Device, model: &'static Model) -> Result<Self> {
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        // The sum of four uniforms is close enough to a normal variable.
        let mut normal = || bf16::from_f32(((0..4).map(|_| uniform()).sum::<f32>() - 2.0) * 3f32.sqrt());
        let block: Vec<bf16> = (0..model.block).map(|_| normal()).collect();
        let pool = Tensor::uninit(device, DType::Bf16, &[model.pool])?;
        let source = Tensor::from_slice(device, &block, &[block.len()])?;
        for start in (0..model.pool).step_by(block.len()) {
            let len = block.len().min(model.pool - start);
            pool.rows(start..start + len).copy_from(&source.rows(0..len))?;
        }
        let block = block.into_iter().map(bf16::to_f32).collect();
        Ok(Self { device: device.clone(), model, pool, block })
    }

    /// The i-th random bf16 tensor of `shape`: different memory for each i until the pool is used up.
    pub fn random(&self, i: usize, shape: &[usize]) -> Tensor {
        let start = self.start(i, shape.iter().product());
        self.pool.rows(start..start + shape.iter().product::<usize>()).reshape(shape)
    }

    /// Elements `first..first + len` of the pool, where the 0th random tensor begins.
    pub fn values(&self, first: usize, len: usize) -> Vec<f32> {
        (first..first + len).map(|i| self.block[i % self.block.len()]).collect()
    }

    /// Where in the pool the i-th random tensor of `len` elements begins.
    pub fn start(&self, i: usize, len: usize) -> usize {
        i % (self.model.pool / len) * len
    }

    /// Random f32 values on the device and here.
    pub fn random_f32(&self, shape: &[usize]) -> Result<(Tensor, Vec<f32>)> {
        let values = self.values(0, shape.iter().product());
        Ok((Tensor::from_slice(&self.device, &values, shape)?, values))
    }

    pub fn uninit(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        Tensor::uninit(&self.device, dtype, shape)
    }

    pub fn ints(&self, values: &[i32]) -> Result<Tensor> {
        Tensor::from_slice(&self.device, values, &[values.len()])
    }

    /// As many random 32-bit words as the pool is large.
    pub fn words(&self) -> Result<Tensor> {
        let words = self.uninit(DType::I32, &[self.model.pool / 2 / PIECE * PIECE])?;
        let block: Vec<i32> =
            self.block.iter().map(|x| x.to_bits().wrapping_mul(0x9e37_79b9) as i32).collect();
        let source = self.ints(&block)?;
        for start in (0..words.shape()[0]).step_by(block.len()) {
            let len = block.len().min(words.shape()[0] - start);
            words.rows(start..start + len).copy_from(&source.rows(0..len))?;
        }
        Ok(words)
    }

    /// The driver's own copy of half the pool, and the bytes that it reads and writes; after two seconds of it on a GPU: clocks
    /// settle meanwhile.
    pub fn copy(&self) -> Result<(Timing, f64)> {
        let half = self.model.pool / 2;
        let (to, from) = (self.uninit(DType::Bf16, &[half])?, self.pool.rows(0..half));
        let warm_up = std::time::Instant::now();
        let mut times = Vec::new();
        while times.len() < 9 || (!self.device.is_host() && warm_up.elapsed().as_secs() < 2) {
            times.push(span(&self.device, || to.copy_from(&from))?);
        }
        Ok((Timing::of(times, 1), 2.0 * from.num_bytes() as f64))
    }
}
