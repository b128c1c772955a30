//! [`Outcome`]: what a policy's rounds came to, replayed or run.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::control::{Controller, SequenceOutcome};

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

/// Most pairs of predicted and measured times that are kept.
const MAX_PREDICTIONS: usize = 256;

/// A round to be counted: what its controller does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RoundCount {
    /// Tokens emitted.
    pub tokens: usize,
    /// Drafter passes, us.
    pub draft_us: f64,
    /// Target pass, us.
    pub verify_us: f64,
    /// Host time of the controller, us.
    pub control_us: f64,
    /// The whole round, us.
    pub us: f64,
    /// What a plain round would have taken for as many tokens, us; 0 where it is not known.
    pub plain_us: f64,
}

/// A policy's rounds, summed up: replayed over a record in modelled time, or run by an engine. Times are in microseconds.
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
    /// Of which the host's for the controller; 0 in a replay.
    pub control_us: f64,
    /// What the same tokens would have taken in plain rounds, at the batches and contexts at which they were emitted.
    pub plain_us: f64,
    /// By depth - 1: accepted paths that could have gone on to a verified node of that depth, and those that did.
    pub accepted_by_depth: Vec<(u64, u64)>,
    /// Estimates of acceptance against draws, over the children of the root and of accepted nodes.
    pub reliability: Vec<ReliabilityBin>,
    /// 95th percentile of the relative error of the latest predicted rounds.
    pub prediction_error_p95: Option<f64>,
    /// Rounds as (predicted, actual) times: all of them, or every 2nd, 4th, ... so that they stay few.
    pub predictions: Vec<(f32, f32)>,
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

    /// Adds the round that `controller` has just been through; `sequences` in its order.
    pub fn count_round(
        &mut self,
        controller: &Controller,
        sequences: &[SequenceOutcome<'_>],
        count: &RoundCount,
    ) {
        let batch = sequences.len() as u64;
        self.keep_prediction(controller.predicted().total, count.us as f32);
        self.rounds += 1;
        self.sequence_rounds += batch;
        self.accepted += sequences.iter().map(|sequence| sequence.accepted.len() as u64).sum::<u64>();
        self.tokens += count.tokens as u64;
        self.us += count.us;
        self.draft_us += count.draft_us;
        self.verify_us += count.verify_us;
        self.control_us += count.control_us;
        self.plain_us += count.plain_us;
        let round = controller.round();
        if round.selected().is_empty() {
            self.plain_rounds += 1;
            self.nodes += batch;
            return;
        }
        self.rows_refused += round.rows_refused() as u64;
        self.host_syncs += round.host_syncs() as u64;
        self.levels += round.levels().len() as u64;
        self.drafter_rows += round.levels().iter().map(|level| level.rows as u64).sum::<u64>();
        for (index, (sequence, selected)) in sequences.iter().zip(round.selected()).enumerate() {
            let pool = round.pool(index);
            self.nodes += selected.tree.num_nodes() as u64;
            self.drafted_nodes += pool.nodes().len() as u64 - 1;
            for (depth, &node) in std::iter::once(&0).chain(sequence.accepted).enumerate() {
                let node = node as usize;
                if selected.tree.children(node).next().is_some() {
                    self.count_depth(depth + 1, depth < sequence.accepted.len());
                }
                for label in pool.labels(selected.pool_nodes[node] as usize, sequence.drawn[node]) {
                    self.count_estimate(label.q, label.accepted);
                }
            }
        }
    }

    /// Adds what only the end tells.
    pub fn conclude(&mut self, controller: &Controller) {
        self.prediction_error_p95 = controller.cost().prediction_error_p95();
        self.probe_share = controller.probe_share();
    }

    /// Keeps the pair if its turn has come; where there are too many, every other one goes.
    fn keep_prediction(&mut self, predicted_us: f32, us: f32) {
        let mut stride = 1;
        while self.rounds >= stride * MAX_PREDICTIONS as u64 {
            stride *= 2;
        }
        if !self.rounds.is_multiple_of(stride) {
            return;
        }
        if self.predictions.len() == MAX_PREDICTIONS {
            let mut index = 0;
            self.predictions.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        self.predictions.push((predicted_us, us));
    }

    fn count_estimate(&mut self, q: f32, accepted: bool) {
        self.reliability.resize(RELIABILITY_BINS, ReliabilityBin::default());
        let bin = ((q.clamp(0.0, 1.0) * RELIABILITY_BINS as f32) as usize).min(RELIABILITY_BINS - 1);
        let bin = &mut self.reliability[bin];
        bin.count += 1;
        bin.predicted += f64::from(q);
        bin.accepted += u64::from(accepted);
    }

    fn count_depth(&mut self, depth: usize, accepted: bool) {
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
