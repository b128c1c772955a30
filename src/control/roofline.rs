//! Roofline costs of a model on a card: what a perfect implementation would take, for simulation and for the virtual clock.
//!
//! A pass takes the longer of streaming its weights and multiplying them by its rows, rows counted in treads of 8; attention
//! takes the longer of streaming each sequence's K/V once and multiplying it by the sequence's nodes, nodes counted in tiles of 16
//! query rows. No bubbles, no launch gaps but the fixed ones stated here.
#![forbid(unsafe_code)]

use super::cost::{CostModel, SweepKind, SweepPoint, Treads};

/// Rows that a tensor-core tile multiplies at once.
const TOKENS_PER_TREAD: usize = 8;
/// Query rows of an attention tile.
const ROWS_PER_TILE: usize = 16;
/// Launches and top-k of a drafter pass.
const DRAFT_FIXED_US: f64 = 20.0;
/// Select, accept, compact and the drafter's feature projection of a drafted round; draws of a plain one.
const OVERHEAD_US: f64 = 50.0;
const PLAIN_OVERHEAD_US: f64 = 5.0;

/// What a card can do, as achieved by good kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// Bytes per second of memory.
    pub bandwidth: f64,
    /// Floating-point operations per second of bf16 matrix products.
    pub matmul: f64,
    /// The same inside attention.
    pub attention: f64,
}

/// What a pass of a target and its drafter must move and multiply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Target parameters streamed per pass, 2 bytes each (the input embedding is gathered, not streamed).
    pub target_params: f64,
    /// Drafter parameters streamed per pass.
    pub drafter_params: f64,
    /// Target layers.
    pub num_layers: usize,
    /// Query heads of a layer.
    pub num_q_heads: usize,
    /// K/V heads of a layer.
    pub num_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl Card {
    /// One H200: 4.3 TB/s as copied, 790 TFLOP/s as multiplied.
    pub const H200: Card = Card { bandwidth: 4.3e12, matmul: 790e12, attention: 350e12 };
}

impl Shape {
    /// Llama-3.1-8B with its EAGLE-3 head, bf16.
    pub const LLAMA_8B_EAGLE3: Shape = Shape {
        target_params: 7.505e9,
        drafter_params: 374e6,
        num_layers: 32,
        num_q_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
    };

    /// Cached bytes of one token in one layer.
    fn kv_bytes(&self) -> f64 {
        (2 * 2 * self.num_kv_heads * self.head_dim) as f64
    }

    /// Granularity of this shape's kernels.
    pub fn treads(&self) -> Treads {
        let group = self.num_q_heads / self.num_kv_heads;
        Treads { tokens: TOKENS_PER_TREAD, nodes: (ROWS_PER_TILE / group).max(1) }
    }
}

/// A target with its drafter on a card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// The card.
    pub card: Card,
    /// The pair.
    pub shape: Shape,
}

impl Roofline {
    /// Llama-3.1-8B and EAGLE-3 on one H200.
    pub const H200_LLAMA_8B: Roofline = Roofline { card: Card::H200, shape: Shape::LLAMA_8B_EAGLE3 };

    /// A target pass over sequences of (nodes, context), in microseconds.
    pub fn verify_us(&self, sequences: impl Iterator<Item = (usize, usize)> + Clone) -> f64 {
        let tokens: usize = sequences.clone().map(|(nodes, _)| nodes).sum();
        let attention: f64 = sequences.map(|(nodes, context)| self.attention_us(nodes, context)).sum();
        self.linear_us(self.shape.target_params, tokens) + attention * self.shape.num_layers as f64
    }

    /// A drafter pass of `rows` rows over sequences with `context` cached tokens in all, in microseconds.
    pub fn draft_us(&self, rows: usize, context: usize) -> f64 {
        let attention = 1e6 * context as f64 * self.shape.kv_bytes() / self.card.bandwidth;
        self.linear_us(self.shape.drafter_params, rows) + attention + DRAFT_FIXED_US
    }

    /// A plain round, in microseconds.
    pub fn plain_round_us(&self, contexts: impl Iterator<Item = usize> + Clone) -> f64 {
        self.verify_us(contexts.map(|context| (1, context))) + PLAIN_OVERHEAD_US
    }

    /// A drafted round outside its passes, in microseconds.
    pub fn overhead_us(&self) -> f64 {
        OVERHEAD_US
    }

    /// The sweep that a start-up on this card would measure, for target passes of up to `max_tokens` rows.
    pub fn sweep(&self, max_tokens: usize) -> Vec<SweepPoint> {
        const SWEEP_CONTEXTS: [usize; 2] = [128, 2048];
        let mut points = Vec::new();
        let mut add = |kind, tokens, sequences, context, us| {
            points.push(SweepPoint { kind, tokens, sequences, context, us })
        };
        let mut tokens = TOKENS_PER_TREAD;
        while tokens <= max_tokens {
            // At most a tree of 64 nodes a sequence.
            let sequences = tokens.div_ceil(64);
            for context in SWEEP_CONTEXTS {
                let trees = std::iter::repeat_n((tokens / sequences, context), sequences);
                add(SweepKind::Verify, tokens, sequences, context, self.verify_us(trees));
                add(
                    SweepKind::Plain,
                    tokens,
                    tokens,
                    context,
                    self.verify_us(std::iter::repeat_n((1, context), tokens)),
                );
                add(SweepKind::Draft, tokens, sequences, context, self.draft_us(tokens, sequences * context));
            }
            // Every tread at first, then ever coarser.
            tokens = if tokens < 64 {
                tokens + 8
            } else {
                (tokens + tokens / 4).next_multiple_of(TOKENS_PER_TREAD)
            };
        }
        points
    }

    /// The cost model that this sweep gives.
    pub fn cost_model(&self, max_tokens: usize) -> CostModel {
        let points = self.sweep(max_tokens.max(TOKENS_PER_TREAD));
        let mut cost =
            CostModel::from_sweep(&points, self.shape.treads()).expect("a roofline is positive and finite");
        cost.set_overheads(OVERHEAD_US, PLAIN_OVERHEAD_US);
        cost
    }

    fn linear_us(&self, params: f64, rows: usize) -> f64 {
        let rows = rows.next_multiple_of(TOKENS_PER_TREAD) as f64;
        1e6 * (2.0 * params / self.card.bandwidth).max(2.0 * params * rows / self.card.matmul)
    }

    /// Attention of one sequence in one layer.
    fn attention_us(&self, nodes: usize, context: usize) -> f64 {
        let shape = &self.shape;
        let rows = (nodes * shape.num_q_heads / shape.num_kv_heads).next_multiple_of(ROWS_PER_TILE);
        let flops = (4 * rows * shape.num_kv_heads * shape.head_dim * context) as f64;
        1e6 * (context as f64 * shape.kv_bytes() / self.card.bandwidth).max(flops / self.card.attention)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Table of predicted verify time over plain time, context 1024 (design notes on performance).
    #[test]
    fn reproduces_the_published_staircase() {
        let roofline = Roofline::H200_LLAMA_8B;
        let verify = |batch: usize, nodes| roofline.verify_us(std::iter::repeat_n((nodes, 1024), batch));
        for (batch, nodes, ratio) in
            [(1, 60, 1.02), (8, 16, 1.00), (8, 32, 1.41), (16, 60, 4.96), (64, 4, 1.25), (64, 16, 3.92)]
        {
            let got = verify(batch, nodes) / verify(batch, 1);
            assert!(
                (got - ratio).abs() < 0.03 * ratio,
                "batch {batch}, {nodes} nodes: {got:.3} against {ratio}"
            );
        }
        assert!((verify(1, 1) - 3520.0).abs() < 15.0);
        assert!((roofline.draft_us(1, 0) - 194.0).abs() < 1.0);
    }

    #[test]
    fn the_model_built_from_its_sweep_predicts_it() {
        let roofline = Roofline::H200_LLAMA_8B;
        let cost = roofline.cost_model(2048);
        for (batch, nodes, context) in
            [(1, 1, 1024), (1, 60, 1024), (8, 20, 512), (64, 3, 1500), (32, 30, 700)]
        {
            let trees = std::iter::repeat_n((nodes, context), batch);
            let (got, want) = (cost.verify_us(batch * nodes, trees.clone()), roofline.verify_us(trees));
            assert!(
                (got / want - 1.0).abs() < 0.05,
                "{batch} x {nodes} at {context}: {got:.0} against {want:.0} us"
            );
        }
    }
}
