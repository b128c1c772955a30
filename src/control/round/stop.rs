//! Stop rules: whether a sequence goes on drafting, judged on the host after each level.
#![forbid(unsafe_code)]

use super::DraftRound;
use crate::control::plan::{StopRule, WidthRule};
use crate::control::pool::{CandidatePool, PoolNode};
use crate::control::scan::{Candidate, sort_candidates};

/// The drafter's distribution after a node, as far as its drafted children tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Probability of the likeliest child.
    pub confidence: f32,
    /// By how much it leads the second likeliest.
    pub margin: f32,
    /// Entropy in nats, what the children leave over taken as one more token: never more than the true entropy.
    pub entropy: f32,
}

impl Spread {
    /// From log-probabilities, at most 0, in any order.
    pub fn new(logps: impl Iterator<Item = f32>) -> Self {
        let (mut first, mut second, mut left, mut entropy) = (0.0f32, 0.0f32, 1.0f32, 0.0f32);
        for logp in logps {
            let prob = logp.exp();
            if prob > 0.0 {
                entropy -= prob * logp;
            }
            left -= prob;
            second = second.max(prob.min(first));
            first = first.max(prob);
        }
        if left > 0.0 {
            entropy -= left * left.ln();
        }
        Self { confidence: first, margin: first - second, entropy: entropy.max(0.0) }
    }

    /// Of the children of `parent`.
    pub fn after(pool: &CandidatePool, parent: usize) -> Self {
        Self::new(pool.nodes()[pool.children(parent)].iter().map(|child| child.logp))
    }

    /// What the classifier of DISCO sees of the likeliest child, at this depth: a constant, confidence, entropy in units of 2 nats,
    /// depth in units of 8.
    pub fn features(&self, depth: usize) -> [f32; 4] {
        [1.0, self.confidence, self.entropy / 2.0, depth.min(64) as f32 / 8.0]
    }
}

/// Probability that a logistic regression gives to `features`.
pub fn logistic(weights: &[f32; 4], features: &[f32; 4]) -> f32 {
    let sum: f32 = weights.iter().zip(features).map(|(weight, feature)| weight * feature).sum();
    1.0 / (1.0 + (-sum).exp())
}

/// The node of `range` with the largest cumulative log-probability, the oldest of equals.
pub(super) fn likeliest(pool: &CandidatePool, range: std::ops::Range<usize>) -> Option<usize> {
    range.min_by_key(|&node| Candidate::by_logp(pool.nodes()[node].path_logp, 0, node))
}

impl DraftRound {
    /// Stops the sequences whose newest level says so, and counts the host's turn.
    pub(super) fn apply_stop_rule(&mut self) {
        let rule = self.plan.stop;
        if rule == StopRule::Never || self.levels.is_empty() || self.levels.len() >= self.plan.max_levels {
            return;
        }
        let mut asked = false;
        for sequence in 0..self.sequences.len() {
            let pool = &self.pools[sequence];
            let Some(tip) = likeliest(pool, pool.newest()) else { continue };
            if !self.sequences[sequence].may_deepen(&pool.nodes()[tip]) {
                continue;
            }
            asked = true;
            let child = pool.nodes()[tip];
            let stops = match rule {
                StopRule::BeamBelow(threshold) => self.beam_logsumexp(sequence) < threshold,
                rule => chain_stops(rule, pool, &child),
            };
            self.sequences[sequence].stopped = stops;
        }
        self.host_syncs += usize::from(asked);
    }

    /// Log of the summed probability of the nodes that a beam would run next.
    fn beam_logsumexp(&mut self, sequence: usize) -> f32 {
        let width = if let WidthRule::Beam(width) = self.plan.width { width } else { usize::MAX };
        let pool = &self.pools[sequence];
        self.newest.clear();
        self.newest.extend(
            pool.newest().map(|node| Candidate::by_logp(pool.nodes()[node].path_logp, sequence, node)),
        );
        sort_candidates(&mut self.newest, &mut self.sort_scratch);
        let beam = self.newest.iter().take(width).map(|node| pool.nodes()[node.node()].path_logp);
        let most = beam.clone().next().unwrap_or(f32::NEG_INFINITY);
        if most == f32::NEG_INFINITY {
            return most;
        }
        most + beam.map(|logp| (logp - most).exp()).sum::<f32>().ln()
    }
}

/// Whether `rule` ends the chain of which `child` is the newest token.
fn chain_stops(rule: StopRule, pool: &CandidatePool, child: &PoolNode) -> bool {
    let spread = || Spread::after(pool, child.parent as usize);
    match rule {
        StopRule::Never | StopRule::BeamBelow(_) => false,
        StopRule::EntropyAbove(threshold) => spread().entropy.sqrt() > threshold,
        StopRule::RejectionAbove(threshold) => 1.0 - child.path_prob > threshold,
        StopRule::ConfidenceBelow(threshold) => spread().confidence < threshold,
        StopRule::MarginBelow(threshold) => spread().margin < threshold,
        StopRule::Classifier { weights, threshold } => {
            logistic(&weights, &spread().features(usize::from(child.depth))) < threshold
        }
    }
}
