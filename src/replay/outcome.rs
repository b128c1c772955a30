//! [`Outcome`]: what a policy's replay came to.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Bins of the reliability diagram, equally wide over [0, 1].
pub const RELIABILITY_BINS: usize = 20;

/// Children whose estimated probability fell into one bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// Children.
    pub count: u64,
    /// Sum of their estimates.
    pub predicted: f64,
    /// How many were drawn.
    pub accepted: u64,
}

/// A policy's rounds over a record, summed up. Times are modelled, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Tokens emitted.
    pub tokens: u64,
    /// Rounds, plain ones included.
    pub rounds: u64,
    /// Rounds without a draft.
    pub plain_rounds: u64,
    /// Rounds times their sequences.
    pub sequence_rounds: u64,
    /// Accepted draft tokens; bonus tokens are not among them.
    pub accepted: u64,
    /// Nodes verified, roots included.
    pub nodes: u64,
    /// Nodes drafted, verified or not.
    pub drafted_nodes: u64,
    /// Drafter passes.
    pub levels: u64,
    /// Rows of all drafter passes.
    pub drafter_rows: u64,
    /// All rounds.
    pub us: f64,
    /// Of which in drafter passes.
    pub draft_us: f64,
    /// Of which in target passes.
    pub verify_us: f64,
    /// What the same tokens would have taken in plain rounds, at the batches and contexts at which they were emitted.
    pub plain_us: f64,
    /// By depth - 1: accepted paths that could have gone on to a verified node of that depth, and those that did.
    pub accepted_by_depth: Vec<(u64, u64)>,
    /// Estimates of acceptance against draws, over the children of the root and of accepted nodes.
    pub reliability: Vec<ReliabilityBin>,
    /// 95th percentile of the relative error of the latest predicted rounds.
    pub prediction_error_p95: Option<f64>,
    /// Drafter rows that the policy would have run and the record does not hold; where there are none the replay is exact.
    pub rows_refused: u64,
    /// Levels after which a stop rule had to wait for the host.
    pub host_syncs: u64,
    /// Tokens that were to be expected of the verified trees by the target's own probabilities, where these were recorded: `tokens`
    /// without the luck of the draws.
    pub expected_tokens: Option<f64>,
    /// Share of time spent on probes.
    pub probe_share: f64,
}

impl Outcome {
    /// Tokens per second over all sequences.
    pub fn tokens_per_second(&self) -> f64 {
        ratio(self.tokens as f64 * 1e6, self.us)
    }

    /// Speed relative to plain decoding of the same tokens.
    pub fn speedup(&self) -> f64 {
        ratio(self.plain_us, self.us)
    }

    /// [`speedup`](Self::speedup) by expected tokens: far less noisy; `None` where the target's probabilities were not recorded.
    pub fn expected_speedup(&self) -> Option<f64> {
        self.expected_tokens.map(|expected| self.speedup() * ratio(expected, self.tokens as f64))
    }

    /// Accepted draft tokens per sequence and round.
    pub fn mean_accepted_len(&self) -> f64 {
        ratio(self.accepted as f64, self.sequence_rounds as f64)
    }

    /// Verified nodes per sequence and round, root included.
    pub fn mean_nodes(&self) -> f64 {
        ratio(self.nodes as f64, self.sequence_rounds as f64)
    }

    /// Mean distance between estimated and observed acceptance, weighted by children: the expected calibration error.
    pub fn calibration_error(&self) -> f64 {
        let gap: f64 = self.reliability.iter().map(|bin| (bin.predicted - bin.accepted as f64).abs()).sum();
        let count: u64 = self.reliability.iter().map(|bin| bin.count).sum();
        ratio(gap, count as f64)
    }

    pub(super) fn count_estimate(&mut self, q: f32, accepted: bool) {
        self.reliability.resize(RELIABILITY_BINS, ReliabilityBin::default());
        let bin = ((q.clamp(0.0, 1.0) * RELIABILITY_BINS as f32) as usize).min(RELIABILITY_BINS - 1);
        let bin = &mut self.reliability[bin];
        bin.count += 1;
        bin.predicted += f64::from(q);
        bin.accepted += u64::from(accepted);
    }

    pub(super) fn count_depth(&mut self, depth: usize, accepted: bool) {
        if self.accepted_by_depth.len() < depth {
            self.accepted_by_depth.resize(depth, (0, 0));
        }
        let counts = &mut self.accepted_by_depth[depth - 1];
        counts.0 += 1;
        counts.1 += u64::from(accepted);
    }
}

/// `part / whole`, 0 where there is nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
