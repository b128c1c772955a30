//! [`AcceptanceModel`]: how likely the target accepts a drafted node, given that it accepted the node's parent.
//!
//! The drafter's own log-probability is the prior. Outcomes correct it online, in two steps:
//! - a *calibration* curve by depth and confidence, shared by all sequences, forgetting, monotone in confidence;
//! - a *per-sequence* shift of the log-odds, quick to follow a sequence that turned easy or hopeless.
//!
//! Labels come from every drafted child of an accepted node, verified or not: the target's drawn token tells which child, if
//! any, it would have taken. Learning from verified children alone would never see what pruning leaves out.
//! Greedy and sampled decoding are different events and are kept apart.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::fading::unless_gone;

/// Confidence knots: the calibration curve is linear in log-probability between them. No transcendental function is needed to
/// read it, so every executor reads the same bits.
const KNOTS: [f32; 20] = [
    -16.0, -12.0, -9.5, -8.0, -7.0, -6.0, -5.0, -4.2, -3.5, -2.9, -2.4, -1.9, -1.5, -1.1, -0.8, -0.55, -0.35,
    -0.2, -0.08, 0.0,
];
const NUM_KNOTS: usize = KNOTS.len();
/// Depths 1, 2, 3, 4, 5-6, 7 and more.
const NUM_DEPTHS: usize = 6;
/// Labels that the drafter's own probability is worth, and those that the curve of all depths is worth to one depth.
const PRIOR_LABELS: f64 = 4.0;
const POOLED_LABELS: f64 = 12.0;
/// Labels of one depth and knot that are remembered, and what a round leaves of older ones: depths that are no longer reached must
/// not speak for those that are.
const MEMORY_LABELS: f64 = 200.0;
const ROUND_MEMORY: f64 = 0.98;
/// Per-sequence shift: prior precision, what a round leaves of older evidence, its pull to zero, and its bound.
const SHIFT_PRECISION: f64 = 3.0;
const SHIFT_MEMORY: f64 = 0.85;
const SHIFT_PULL: f64 = 0.02;
const MAX_SHIFT: f64 = 5.0;
/// Weight of the newest round in the measure of surprise, and the measure from which on older evidence is dropped faster.
const SURPRISE_RATE: f64 = 0.3;
const SURPRISE_LIMIT: f64 = 1.3;
/// Sequences remembered; beyond it the stalest half is dropped.
const MAX_SEQUENCES: usize = 4096;

/// Curves of acceptance over confidence, one per depth bin: what an executor reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    curves: [[f32; NUM_KNOTS]; NUM_DEPTHS],
}

/// One labelled child: was the target's drawn token its token?
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Label {
    /// Depth of the child, 1 = child of the root.
    pub depth: usize,
    /// The drafter's log-probability.
    pub logp: f32,
    /// The estimate that was used.
    pub q: f32,
    /// Whether the target drew it.
    pub accepted: bool,
}

/// Online calibration of drafter confidence.
#[derive(Clone, Debug)]
pub struct AcceptanceModel {
    /// Greedy, sampled.
    modes: [Evidence; 2],
    sequences: HashMap<u64, Shift>,
    clock: u64,
}

/// Fading label counts of one mode, and the curves that they give.
#[derive(Clone, Debug)]
struct Evidence {
    /// (labels, accepted) by depth and knot.
    counts: [[(f64, f64); NUM_KNOTS]; NUM_DEPTHS],
    calibration: Calibration,
    /// Whether there are labels since the last refit.
    fresh: bool,
}

/// Per-sequence log-odds shift, a decayed Newton estimate.
#[derive(Clone, Copy, Debug)]
struct Shift {
    log_odds: f64,
    information: f64,
    /// Recent squared surprise over its variance.
    surprise: f64,
    last_used: u64,
}

impl Calibration {
    /// The drafter's own probability.
    pub fn prior() -> Self {
        Self { curves: [KNOTS.map(f32::exp); NUM_DEPTHS] }
    }

    /// Probability that a child at `depth` with log-probability `logp` is accepted, its log-odds shifted by ln(`odds`). What the drafter
    /// rules out, as it does what a grammar bans, is not accepted.
    pub fn q(&self, depth: usize, logp: f32, odds: f32) -> f32 {
        let [q] = self.q_lanes(depth, [logp], odds);
        q
    }

    /// As [`Calibration::q`] for every child of a node, appended to `estimates`.
    pub(super) fn q_all(&self, depth: usize, logps: &[f32], odds: f32, estimates: &mut Vec<f32>) {
        /// Children that are looked up together: the compiler makes vectors of them.
        const LANES: usize = 4;
        let (lanes, rest) = logps.as_chunks::<LANES>();
        for lanes in lanes {
            estimates.extend(self.q_lanes(depth, *lanes, odds));
        }
        estimates.extend(rest.iter().map(|&logp| self.q(depth, logp, odds)));
    }

    #[inline]
    fn q_lanes<const N: usize>(&self, depth: usize, logps: [f32; N], odds: f32) -> [f32; N] {
        let curve = &self.curves[depth_bin(depth)];
        let positions = positions(logps);
        std::array::from_fn(|i| {
            let (low, share) = positions[i];
            let q = curve[low] + share * (curve[low + 1] - curve[low]);
            let raised = q * odds;
            let shifted = (raised / (1.0 - q + raised)).clamp(0.0, 1.0);
            if logps[i] == f32::NEG_INFINITY { 0.0 } else { shifted }
        })
    }
}

/// The same for an executor that reads the curves itself.
#[cfg(feature = "engine")]
impl Calibration {
    /// Log-probabilities between which curves are linear.
    pub(crate) const KNOTS: &[f32; NUM_KNOTS] = &KNOTS;

    /// Values at the knots, by depth bin.
    pub(crate) fn curves(&self) -> &[[f32; NUM_KNOTS]; NUM_DEPTHS] {
        &self.curves
    }
}

impl Default for AcceptanceModel {
    fn default() -> Self {
        Self::new()
    }
}

impl AcceptanceModel {
    /// A model that believes the drafter.
    pub fn new() -> Self {
        let evidence = Evidence {
            counts: [[(0.0, 0.0); NUM_KNOTS]; NUM_DEPTHS],
            calibration: Calibration::prior(),
            fresh: false,
        };
        Self { modes: [evidence.clone(), evidence], sequences: HashMap::new(), clock: 0 }
    }

    /// The curves in force for greedy or sampled decoding.
    pub fn calibration(&self, sampled: bool) -> &Calibration {
        &self.modes[usize::from(sampled)].calibration
    }

    /// Odds factor of a sequence; 1 for one never seen.
    pub fn odds(&self, sequence: u64) -> f32 {
        self.sequences.get(&sequence).map_or(1.0, |shift| shift.log_odds.exp() as f32)
    }

    /// Learns from one sequence's labels of one round.
    pub fn observe(&mut self, sequence: u64, sampled: bool, labels: &[Label]) {
        self.clock += 1;
        let evidence = &mut self.modes[usize::from(sampled)];
        evidence.fresh = true;
        let (mut surprise, mut information) = (0.0, 0.0);
        for label in labels {
            let accepted = f64::from(u8::from(label.accepted));
            evidence.add(label.depth, label.logp, accepted);
            let q = f64::from(label.q);
            surprise += accepted - q;
            information += q * (1.0 - q);
        }
        let shift = self.sequences.entry(sequence).or_insert(Shift {
            log_odds: 0.0,
            information: 0.0,
            surprise: 1.0,
            last_used: 0,
        });
        shift.last_used = self.clock;
        // Squared surprise over its variance is 1 on average while the estimates hold.
        let measure = (surprise * surprise / (information + 0.05)).min(10.0);
        shift.surprise += SURPRISE_RATE * (measure - shift.surprise);
        let trust = (SURPRISE_LIMIT / shift.surprise.max(SURPRISE_LIMIT)).powi(2);
        shift.information = SHIFT_MEMORY * trust * shift.information + information;
        let step = (surprise - SHIFT_PULL * shift.log_odds) / (SHIFT_PRECISION * trust + shift.information);
        shift.log_odds = (shift.log_odds + step.clamp(-1.0, 1.0)).clamp(-MAX_SHIFT, MAX_SHIFT);
        self.forget_stale_sequences();
    }

    /// Recomputes the curves; call once per round, after the labels.
    pub fn refit(&mut self) {
        for evidence in &mut self.modes {
            evidence.refit();
        }
    }

    fn forget_stale_sequences(&mut self) {
        if self.sequences.len() > MAX_SEQUENCES {
            let horizon = self.clock.saturating_sub(MAX_SEQUENCES as u64 / 2);
            self.sequences.retain(|_, shift| shift.last_used >= horizon);
        }
    }
}

impl Evidence {
    /// Adds a label to the two knots around its confidence; older labels of those knots fade in its favour.
    fn add(&mut self, depth: usize, logp: f32, accepted: f64) {
        let row = &mut self.counts[depth_bin(depth)];
        let [(low, share)] = positions([logp]);
        for (knot, weight) in [(low, 1.0 - f64::from(share)), (low + 1, f64::from(share))] {
            let (labels, successes) = &mut row[knot];
            let keep = 1.0 - weight / MEMORY_LABELS;
            *labels = *labels * keep + weight;
            *successes = *successes * keep + weight * accepted;
        }
    }

    fn refit(&mut self) {
        if !std::mem::take(&mut self.fresh) {
            return;
        }
        for (labels, accepted) in self.counts.as_flattened_mut() {
            *labels = unless_gone(*labels * ROUND_MEMORY);
            *accepted = unless_gone(*accepted * ROUND_MEMORY);
        }
        let mut pooled = [(0.0, 0.0); NUM_KNOTS];
        for row in &self.counts {
            for (sum, count) in pooled.iter_mut().zip(row) {
                *sum = (sum.0 + count.0, sum.1 + count.1);
            }
        }
        let prior = KNOTS.map(|logp| f64::from(logp).exp());
        let shared = shrink(&pooled, &prior, PRIOR_LABELS);
        for (curve, row) in self.calibration.curves.iter_mut().zip(&self.counts) {
            let mut values = shrink(row, &shared, POOLED_LABELS);
            let weights: [f64; NUM_KNOTS] = std::array::from_fn(|knot| row[knot].0 + POOLED_LABELS);
            make_monotone(&mut values, &weights);
            *curve = values.map(|value| value.clamp(0.0, 1.0) as f32);
        }
    }
}

/// Success rates pulled towards `prior`, which counts as `strength` labels.
fn shrink(counts: &[(f64, f64); NUM_KNOTS], prior: &[f64; NUM_KNOTS], strength: f64) -> [f64; NUM_KNOTS] {
    std::array::from_fn(|knot| (counts[knot].1 + strength * prior[knot]) / (counts[knot].0 + strength))
}

/// Isotonic regression in place (pool adjacent violators).
fn make_monotone(values: &mut [f64; NUM_KNOTS], weights: &[f64; NUM_KNOTS]) {
    // Blocks of (mean, weight, length), on a stack within the array's size.
    let mut blocks = [(0.0, 0.0, 0usize); NUM_KNOTS];
    let mut num_blocks = 0;
    for knot in 0..NUM_KNOTS {
        let mut block = (values[knot], weights[knot], 1);
        while num_blocks > 0 && blocks[num_blocks - 1].0 > block.0 {
            let last = blocks[num_blocks - 1];
            let weight = last.1 + block.1;
            block = ((last.0 * last.1 + block.0 * block.1) / weight, weight, last.2 + block.2);
            num_blocks -= 1;
        }
        blocks[num_blocks] = block;
        num_blocks += 1;
    }
    let mut knot = 0;
    for &(mean, _, length) in &blocks[..num_blocks] {
        values[knot..knot + length].fill(mean);
        knot += length;
    }
}

fn depth_bin(depth: usize) -> usize {
    match depth {
        0..=4 => depth.saturating_sub(1),
        5 | 6 => 4,
        _ => 5,
    }
}

/// Knot at or below each log-probability and the share of the next one. NaN counts as no confidence.
#[inline]
fn positions<const N: usize>(logps: [f32; N]) -> [(usize, f32); N] {
    // All compared, none branched on: every candidate of a round comes here.
    let mut lows = [0; N];
    for knot in &KNOTS[1..NUM_KNOTS - 1] {
        for (low, logp) in lows.iter_mut().zip(&logps) {
            *low += u32::from(knot <= logp);
        }
    }
    std::array::from_fn(|i| {
        let low = (lows[i] as usize).min(NUM_KNOTS - 2);
        let share = (logps[i] - KNOTS[low]) / (KNOTS[low + 1] - KNOTS[low]);
        // Written so that NaN becomes 0.
        (low, if share > 0.0 { share.min(1.0) } else { 0.0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fading::is_fast;

    #[test]
    fn what_is_not_seen_again_is_gone_at_last() {
        let mut model = AcceptanceModel::new();
        let label = |depth, logp| Label { depth, logp, q: 0.5, accepted: depth == 1 };
        model.observe(0, false, &[label(4, -7.5), label(3, -2.0)]);
        for _ in 0..40_000 {
            model.observe(0, false, &[label(1, -0.5)]);
            model.refit();
        }
        let counts = model.modes[0].counts.as_flattened();
        assert!(counts.iter().all(|&(labels, accepted)| is_fast(labels) && is_fast(accepted)));
        assert!(model.modes[0].counts[0].iter().any(|&(labels, _)| labels > 10.0));
    }
}
