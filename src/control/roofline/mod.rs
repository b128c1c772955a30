//! Roofline costs of a model on a card: what a perfect implementation would take, for simulation and for the virtual clock.
//!
//! A pass takes the longer of streaming its weights and multiplying them by its rows, rows counted in treads of 8; attention
//! takes the longer of streaming each sequence's K/V once and multiplying it by the sequence's nodes, nodes counted in tiles of 16
//! query rows. No bubbles, no launch gaps but the fixed ones stated here.
#![forbid(unsafe_code)]

mod card;
mod catalogue;
mod shape;

use super::cost::{CostModel, SweepKind, SweepPoint};
pub use card::Card;
pub use catalogue::{Named, grammar, named, names};
pub use shape::{Head, Shape, TargetDims};
use shape::{ROWS_PER_TILE, TOKENS_PER_TREAD};

/// Launches and top-k of a drafter pass.
const DRAFT_FIXED_US: f64 = 20.0;
/// Select, accept and compact of a drafted round, without the drafter's feature projection; draws of a plain one.
const OVERHEAD_US: f64 = 26.6;
const PLAIN_OVERHEAD_US: f64 = 5.0;

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

    /// A drafted round outside its passes, in microseconds.
    pub fn overhead_us(&self) -> f64 {
        OVERHEAD_US + 1e6 * 2.0 * self.shape.projection_params / self.card.bandwidth
    }

    /// A plain round outside its pass, in microseconds.
    pub fn plain_overhead_us(&self) -> f64 {
        PLAIN_OVERHEAD_US
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
        cost.set_overheads(self.overhead_us(), self.plain_overhead_us());
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
        assert!((roofline.overhead_us() - 50.0).abs() < 0.1);
    }

    /// The other models' rows of the same notes: plain time in ms, then ratios at 8, 16 and 60 nodes.
    #[test]
    fn reproduces_the_published_rows_of_other_models_and_contexts() {
        for (name, context, rows) in [
            (
                "h200/llama-3.1-8b/eagle3",
                4096,
                [
                    (1, 3.62, [1.00, 1.00, 1.07]),
                    (4, 3.99, [1.00, 1.00, 1.54]),
                    (16, 5.49, [1.00, 1.25, 4.47]),
                    (64, 11.49, [1.55, 2.40, 8.54]),
                ],
            ),
            (
                "h200/llava-1.5-7b/msd",
                700,
                [
                    (1, 3.16, [1.00, 1.00, 1.00]),
                    (8, 3.76, [1.00, 1.01, 2.35]),
                    (32, 5.81, [1.22, 1.96, 6.08]),
                    (64, 8.55, [1.65, 2.67, 8.26]),
                ],
            ),
            (
                "h200/qwen2-vl-7b/msd",
                1500,
                [
                    (1, 3.31, [1.00, 1.00, 1.03]),
                    (8, 3.45, [1.00, 1.03, 2.75]),
                    (32, 3.93, [1.33, 2.59, 9.64]),
                    (64, 4.57, [2.29, 4.45, 16.6]),
                ],
            ),
        ] {
            let roofline = named(name).unwrap().roofline;
            for (batch, plain_ms, ratios) in rows {
                let verify = |nodes| roofline.verify_us(std::iter::repeat_n((nodes, context), batch));
                let plain = verify(1);
                assert!((plain / (1e3 * plain_ms) - 1.0).abs() < 0.01, "{name} x {batch}: {plain:.0} us");
                for (nodes, ratio) in [8, 16, 60].into_iter().zip(ratios) {
                    let got = verify(nodes) / plain;
                    assert!(
                        (got / ratio - 1.0).abs() < 0.03,
                        "{name} x {batch}, {nodes} nodes: {got:.3} against {ratio}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_model_built_from_its_sweep_predicts_it() {
        for name in names() {
            let roofline = named(&name).unwrap().roofline;
            let cost = roofline.cost_model(2048);
            for (batch, nodes, context) in
                [(1, 1, 1024), (1, 60, 1024), (8, 20, 512), (64, 3, 1500), (32, 30, 700)]
            {
                let trees = std::iter::repeat_n((nodes, context), batch);
                let (got, want) = (cost.verify_us(batch * nodes, trees.clone()), roofline.verify_us(trees));
                assert!(
                    (got / want - 1.0).abs() < 0.05,
                    "{name}, {batch} x {nodes} at {context}: {got:.0} against {want:.0} us"
                );
            }
        }
    }
}
