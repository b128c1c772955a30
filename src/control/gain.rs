//! [`GainTable`]: what running a node through the drafter is worth, learned from past rounds.
//!
//! `g(u)` is the expected sum of path probabilities that the final scan keeps below `u`, over all later levels, per unit of
//! `P(u)`, net of what those levels cost and of what the kept nodes displace. A place in the target pass has a price: the path
//! probability of the last node that got one. Hence a kept node counts `P(v) - price`, and how much is kept below `u` depends on
//! how far `P(u)` stands above the price: the table is binned by depth, by that headroom and by the drafter's confidence in `u`.
#![forbid(unsafe_code)]

use super::fading::unless_gone;
use super::pool::CandidatePool;
use super::round::LevelRecord;
use super::scan::{self, Selection};

/// Depths 1..=7 and more.
const NUM_DEPTHS: usize = 8;
/// `P(u) / price` below 2, 4, 8, 16, 32, and beyond.
const NUM_HEADROOMS: usize = 6;
/// Confidence below 0.3, below 0.7, above.
const CONFIDENCE_EDGES: [f32; 2] = [-1.203_972_8, -0.356_674_94];
const NUM_CONFIDENCES: usize = CONFIDENCE_EDGES.len() + 1;
/// Gains before anything is known, by headroom and confidence: what is below a confident node is likely to be confident, too.
const PRIOR: [[f64; NUM_CONFIDENCES]; NUM_HEADROOMS] = [
    [0.1, 0.15, 0.2],
    [0.2, 0.35, 0.5],
    [0.35, 0.55, 0.8],
    [0.45, 0.75, 1.1],
    [0.55, 0.9, 1.35],
    [0.65, 1.1, 1.65],
];
/// Path probability that the prior, and that all depths together, are worth to a cell. One unlucky level must not end what only running it
/// again could put right.
const PRIOR_WEIGHT: f64 = 6.0;
const POOLED_WEIGHT: f64 = 4.0;
/// Path probability that a cell remembers, and what a drafted round leaves of it: what is not run for long is hoped for again.
const MEMORY: f64 = 30.0;
const ROUND_MEMORY: f64 = 0.98;

type Cells<T> = [[[T; NUM_CONFIDENCES]; NUM_HEADROOMS]; NUM_DEPTHS];

/// Gain per unit of path probability.
#[derive(Clone, Debug, PartialEq)]
pub struct GainTable {
    gains: Cells<f32>,
}

/// The evidence behind a [`GainTable`].
#[derive(Clone, Debug, Default)]
pub struct GainModel {
    /// (sum of P(u), sum of what was kept below u), fading.
    cells: Cells<(f64, f64)>,
    table: GainTable,
    // Scratch.
    /// Net value below each pool node, later levels' time deducted.
    below: Vec<f64>,
    /// Share of what each level kept that is left after its own time.
    yields: Vec<f64>,
}

impl Default for GainTable {
    fn default() -> Self {
        Self { gains: [PRIOR.map(|gains| gains.map(|gain| gain as f32)); NUM_DEPTHS] }
    }
}

impl GainTable {
    /// `g` of a node at `depth` with log-probability `logp` and path probability `path_prob`, at this price of a place.
    pub fn gain(&self, depth: usize, logp: f32, path_prob: f32, price: f32) -> f32 {
        let (depth, headroom, confidence) = cell(depth, logp, path_prob, price);
        self.gains[depth][headroom][confidence]
    }
}

/// The same for an executor that reads the table itself.
#[cfg(feature = "engine")]
impl GainTable {
    /// Log-probabilities from which on a node counts as more confident.
    pub(crate) const CONFIDENCE_EDGES: &[f32; NUM_CONFIDENCES - 1] = &CONFIDENCE_EDGES;

    /// By depth, headroom and confidence.
    pub(crate) fn gains(&self) -> &[[[f32; NUM_CONFIDENCES]; NUM_HEADROOMS]; NUM_DEPTHS] {
        &self.gains
    }
}

impl GainModel {
    /// The table in force.
    pub fn table(&self) -> &GainTable {
        &self.table
    }

    /// Learns from one round: its pools with their verified marks, its levels and its final selection.
    pub fn observe(&mut self, pools: &[CandidatePool], levels: &[LevelRecord], selection: &Selection) {
        if levels.is_empty() {
            return;
        }
        self.measure_yields(pools, levels, selection);
        for (total, gain) in self.cells.as_flattened_mut().as_flattened_mut() {
            *total = unless_gone(*total * ROUND_MEMORY);
            *gain = unless_gone(*gain * ROUND_MEMORY);
        }
        for pool in pools {
            self.observe_pool(pool, levels, selection.price);
        }
        self.refit();
    }

    /// For each level the share of what it kept that is left after its own time: 1 for a free level, negative for a loss.
    fn measure_yields(&mut self, pools: &[CandidatePool], levels: &[LevelRecord], selection: &Selection) {
        self.yields.clear();
        self.yields.resize(levels.len(), 0.0);
        for pool in pools {
            for node in (1..pool.nodes().len()).filter(|&node| pool.nodes()[node].verified) {
                let parent = pool.nodes()[node].parent as usize;
                if let Some(level) = pool.level_of_children(parent, levels) {
                    self.yields[level] += kept_value(pool, node, selection.price);
                }
            }
        }
        let rate = selection.rate() / scan::ONE as f64;
        for (kept, level) in self.yields.iter_mut().zip(levels) {
            *kept = if *kept > 0.0 { (1.0 - rate * level.ns as f64 / *kept).max(-1.0) } else { 0.0 };
        }
    }

    fn observe_pool(&mut self, pool: &CandidatePool, levels: &[LevelRecord], price: f32) {
        let nodes = pool.nodes();
        self.below.clear();
        self.below.resize(nodes.len(), 0.0);
        // Children come after parents: one backward sweep sums each subtree.
        for node in (1..nodes.len()).rev() {
            let state = &nodes[node];
            let level = pool.level_of_children(node, levels);
            let Some(level) = level else { continue };
            let children = pool.children(node);
            let kept: f64 = children.clone().map(|child| kept_value(pool, child, price)).sum();
            let later: f64 = children.map(|child| self.below[child]).sum();
            self.below[node] = self.yields[level] * kept + later;
            let worth = pool.worth(node);
            let weight = f64::from(worth);
            let (depth, headroom, confidence) =
                cell(usize::from(state.depth), state.logp, worth, levels[level].price);
            let (total, gain) = &mut self.cells[depth][headroom][confidence];
            let keep = 1.0 - (weight / MEMORY).min(0.5);
            *total = *total * keep + weight;
            *gain = *gain * keep + (kept + later);
        }
    }

    fn refit(&mut self) {
        for headroom in 0..NUM_HEADROOMS {
            for confidence in 0..NUM_CONFIDENCES {
                let sum = self.cells.iter().map(|depth| depth[headroom][confidence]);
                let prior = (PRIOR_WEIGHT, PRIOR_WEIGHT * PRIOR[headroom][confidence]);
                let pooled = sum.fold(prior, |a, b| (a.0 + b.0, a.1 + b.1));
                // A depth never seen is taken to be as good as the one before it.
                let mut expected = pooled.1 / pooled.0;
                for depth in 0..NUM_DEPTHS {
                    let (total, gain) = self.cells[depth][headroom][confidence];
                    expected = (gain + POOLED_WEIGHT * expected) / (total + POOLED_WEIGHT);
                    self.table.gains[depth][headroom][confidence] = expected.max(0.0) as f32;
                }
            }
        }
    }
}

fn kept_value(pool: &CandidatePool, node: usize, price: f32) -> f64 {
    if pool.nodes()[node].verified { f64::from((pool.worth(node) - price).max(0.0)) } else { 0.0 }
}

fn cell(depth: usize, logp: f32, path_prob: f32, price: f32) -> (usize, usize, usize) {
    // Powers of two: exact in any executor.
    let headroom =
        [2.0, 4.0, 8.0, 16.0, 32.0].iter().take_while(|&&factor| path_prob >= price * factor).count();
    let confidence = CONFIDENCE_EDGES.iter().take_while(|&&edge| logp >= edge).count();
    (depth.clamp(1, NUM_DEPTHS) - 1, headroom, confidence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fading::is_fast;

    #[test]
    fn what_is_not_seen_again_is_gone_at_last() {
        let mut model = GainModel::default();
        model.cells[3][2][1] = (5.0, 1.0);
        let level = LevelRecord { first_row: 0, rows: 1, price: 0.1, ns: 1000 };
        for _ in 0..40_000 {
            model.observe(&[], &[level], &Selection { ns: 1000, ..Selection::default() });
        }
        let cells = model.cells.as_flattened().as_flattened();
        assert!(cells.iter().all(|&(total, gain)| is_fast(total) && is_fast(gain)));
    }
}
