//! [`CostModel`]: what a pass costs on this machine, in microseconds, as measured.
//!
//! `t_verify = lin(N) + sum over sequences of context * (shared + per_tile * tiles(nodes))`: a staircase in the tokens of the
//! pass plus a staircase in each sequence's nodes, whose K/V is read once and multiplied once per tile of nodes.
//! Filled by a sweep at start ([`CostModel::from_sweep`]), corrected by every timed round, monotone throughout.
#![forbid(unsafe_code)]

mod cache;
mod staircase;
mod tables;

use serde::{Deserialize, Serialize};

pub use staircase::Staircase;
pub use tables::CostTables;

use crate::error::{Error, Result};

/// What a sweep point measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SweepKind {
    /// A target pass over trees: `tokens` rows spread evenly over `sequences`.
    Verify,
    /// A drafter pass of `tokens` rows spread evenly over `sequences`, with its top-k.
    Draft,
    /// A plain decode pass: `tokens` sequences of one row each.
    Plain,
}

/// One measured pass of the start-up sweep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepPoint {
    /// Which pass.
    pub kind: SweepKind,
    /// Rows of the pass.
    pub tokens: usize,
    /// Sequences that share it.
    pub sequences: usize,
    /// Cached tokens of each sequence.
    pub context: usize,
    /// Time.
    pub us: f64,
}

/// Granularity of this machine's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Treads {
    /// Rows of a linear layer that cost the same: 8 on tensor cores, 1 for plain kernels.
    pub tokens: usize,
    /// Nodes of one sequence that share a tile of attention: 16 / (query heads per K/V head) with m16 tiles.
    pub nodes: usize,
}

impl Default for Treads {
    fn default() -> Self {
        Self { tokens: 8, nodes: 4 }
    }
}

/// Measured costs of the passes of a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostModel {
    treads: Treads,
    verify: Staircase,
    draft: Staircase,
    plain: Staircase,
    /// Microseconds per cached token and sequence, whatever the tree.
    attention_shared: f64,
    /// Microseconds per cached token and tile of nodes.
    attention_per_tile: f64,
    /// Microseconds per cached token and sequence of a drafter pass.
    draft_attention: f64,
    /// Time of a drafted round outside its drafter and target passes.
    overhead_us: f64,
    /// Time of a plain round outside its target pass.
    plain_overhead_us: f64,
    errors: PredictionErrors,
}

/// Relative errors of the latest predictions of whole rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct PredictionErrors {
    latest: Vec<f64>,
    next: usize,
}

impl CostModel {
    /// A model from the passes of a start-up sweep. Needs at least one `Verify` point; without `Plain` points a plain pass is
    /// taken to cost what a verification pass of its size costs, without `Draft` points a drafter pass a tenth of that.
    /// Times that are not positive and finite are refused.
    pub fn from_sweep(points: &[SweepPoint], treads: Treads) -> Result<Self> {
        for point in points {
            if !(point.us.is_finite() && point.us > 0.0) || point.tokens == 0 || point.sequences == 0 {
                return Err(Error::Input(format!(
                    "cost sweep: unusable point {point:?}; times must be positive and finite"
                )));
            }
        }
        let verify = of_kind(points, SweepKind::Verify);
        if verify.is_empty() {
            return Err(Error::Input("cost sweep: no verification pass was measured".into()));
        }
        let (attention_shared, attention_per_tile) = fit_attention(&verify, treads.nodes);
        let linear = |points: &[SweepPoint]| -> Vec<(usize, f64)> {
            points
                .iter()
                .map(|point| {
                    let tiles = point.tokens.div_ceil(point.sequences).div_ceil(treads.nodes) as f64;
                    let attention = (point.sequences * point.context) as f64
                        * (attention_shared + attention_per_tile * tiles);
                    (point.tokens, (point.us - attention).max(0.05 * point.us))
                })
                .collect()
        };
        let verify_points = linear(&verify);
        let plain: Vec<SweepPoint> = of_kind(points, SweepKind::Plain)
            .into_iter()
            .map(|point| SweepPoint { sequences: point.tokens, ..point })
            .collect();
        let plain_points = if plain.is_empty() { verify_points.clone() } else { linear(&plain) };
        let draft = of_kind(points, SweepKind::Draft);
        let draft_attention = context_slopes(&draft).iter().map(|slope| slope.1).fold(0.0, f64::max);
        let draft_points: Vec<(usize, f64)> = if draft.is_empty() {
            verify_points.iter().map(|&(tokens, us)| (tokens, 0.1 * us)).collect()
        } else {
            let rest =
                |point: &SweepPoint| point.us - (point.sequences * point.context) as f64 * draft_attention;
            draft.iter().map(|point| (point.tokens, rest(point).max(0.05 * point.us))).collect()
        };
        Ok(Self {
            treads,
            verify: Staircase::new(treads.tokens, &verify_points),
            draft: Staircase::new(treads.tokens, &draft_points),
            plain: Staircase::new(1, &plain_points),
            attention_shared,
            attention_per_tile,
            draft_attention,
            overhead_us: 0.0,
            plain_overhead_us: 0.0,
            errors: PredictionErrors::default(),
        })
    }

    /// A model for policies that read no costs, and the start of one that learns from rounds alone: a pass costs 1 ms whatever
    /// its width, a drafter pass a tenth.
    pub fn unmeasured() -> Self {
        let point = SweepPoint { kind: SweepKind::Verify, tokens: 1, sequences: 1, context: 0, us: 1000.0 };
        Self::from_sweep(&[point], Treads::default()).expect("one sound point is a sweep")
    }

    /// A verification pass over `tokens` rows, for sequences of (nodes, context).
    pub fn verify_us(&self, tokens: usize, sequences: impl IntoIterator<Item = (usize, usize)>) -> f64 {
        let attention: f64 =
            sequences.into_iter().map(|(nodes, context)| self.attention_us(nodes, context)).sum();
        self.verify.at(tokens) + attention
    }

    /// A plain decode pass of `batch` sequences with `context` cached tokens in all.
    pub fn plain_us(&self, batch: usize, context: usize) -> f64 {
        self.plain.at(batch) + context as f64 * (self.attention_shared + self.attention_per_tile)
    }

    /// A drafter pass of `rows` rows over sequences with `context` cached tokens in all.
    pub fn draft_us(&self, rows: usize, context: usize) -> f64 {
        self.draft.at(rows) + context as f64 * self.draft_attention
    }

    /// Time of a drafted round outside its passes.
    pub fn overhead_us(&self) -> f64 {
        self.overhead_us
    }

    /// Time of a plain round outside its pass.
    pub fn plain_overhead_us(&self) -> f64 {
        self.plain_overhead_us
    }

    /// Corrects the target pass by a measured one.
    pub fn observe_verify(
        &mut self,
        tokens: usize,
        sequences: impl Iterator<Item = (usize, usize)>,
        us: f64,
    ) {
        let attention: f64 = sequences.map(|(nodes, context)| self.attention_us(nodes, context)).sum();
        let share = self.correct_attention(self.verify.at(tokens), attention, us);
        self.verify.observe(tokens, us * share);
    }

    /// Corrects the plain pass by a measured one.
    pub fn observe_plain(&mut self, batch: usize, context: usize, us: f64) {
        let attention = context as f64 * (self.attention_shared + self.attention_per_tile);
        let share = self.correct_attention(self.plain.at(batch), attention, us);
        self.plain.observe(batch, us * share);
    }

    /// Corrects the drafter pass by a measured one.
    pub fn observe_draft(&mut self, rows: usize, context: usize, us: f64) {
        let attention = context as f64 * self.draft_attention;
        let linear = self.draft.at(rows);
        self.draft.observe(rows, us * linear / (linear + attention));
    }

    /// Learns the time of a round outside its passes.
    pub fn observe_overhead(&mut self, plain: bool, us: f64) {
        if us.is_finite() {
            let overhead = if plain { &mut self.plain_overhead_us } else { &mut self.overhead_us };
            *overhead += 0.1 * (us.max(0.0) - *overhead);
        }
    }

    /// Notes how far a round's predicted time was off.
    pub fn observe_prediction(&mut self, predicted_us: f64, measured_us: f64) {
        const WINDOW: usize = 128;
        let error = (predicted_us - measured_us).abs() / measured_us;
        if !error.is_finite() {
            return;
        }
        if self.errors.latest.len() < WINDOW {
            self.errors.latest.push(error);
        } else {
            let next = self.errors.next % WINDOW;
            self.errors.latest[next] = error;
        }
        self.errors.next = (self.errors.next + 1) % WINDOW;
    }

    /// 95th percentile of the relative error of the latest predicted rounds; `None` before the first.
    pub fn prediction_error_p95(&self) -> Option<f64> {
        let mut errors = self.errors.latest.clone();
        errors.sort_by(f64::total_cmp);
        errors.get((errors.len() * 95 / 100).min(errors.len().saturating_sub(1))).copied()
    }

    fn attention_us(&self, nodes: usize, context: usize) -> f64 {
        context as f64
            * (self.attention_shared + self.attention_per_tile * nodes.div_ceil(self.treads.nodes) as f64)
    }

    /// Moves the attention rates by their share of the error; returns the linear part's share of the pass.
    fn correct_attention(&mut self, linear: f64, attention: f64, us: f64) -> f64 {
        let predicted = linear + attention;
        if us.is_finite() && us > 0.0 && attention > 0.0 {
            let error = (us / predicted).ln().clamp(-1.0, 1.0);
            let factor = (0.1 * attention / predicted * error).exp();
            self.attention_shared *= factor;
            self.attention_per_tile *= factor;
        }
        linear / predicted
    }

    fn is_sound(&self) -> bool {
        let rates = [
            self.attention_shared,
            self.attention_per_tile,
            self.draft_attention,
            self.overhead_us,
            self.plain_overhead_us,
        ];
        [&self.verify, &self.draft, &self.plain].iter().all(|stairs| stairs.is_sound())
            && rates.iter().all(|rate| rate.is_finite() && *rate >= 0.0)
            && self.treads.tokens >= 1
            && self.treads.nodes >= 1
    }
}

fn of_kind(points: &[SweepPoint], kind: SweepKind) -> Vec<SweepPoint> {
    points.iter().filter(|point| point.kind == kind).copied().collect()
}

/// Microseconds per cached token and sequence, by (tokens, sequences) group with several contexts.
fn context_slopes(points: &[SweepPoint]) -> Vec<(usize, f64)> {
    let mut points = points.to_vec();
    points.sort_by_key(|point| (point.tokens, point.sequences, point.context));
    points
        .chunk_by(|a, b| (a.tokens, a.sequences) == (b.tokens, b.sequences))
        .filter_map(|group| {
            let (first, last) = (group.first()?, group.last()?);
            let distance = (last.context - first.context) * first.sequences;
            (distance > 0).then(|| {
                let slope = ((last.us - first.us) / distance as f64).max(0.0);
                (first.tokens.div_ceil(first.sequences), slope)
            })
        })
        .collect()
}

/// Least squares of `slope = shared + per_tile * tiles`, both kept non-negative.
fn fit_attention(points: &[SweepPoint], nodes_per_tile: usize) -> (f64, f64) {
    let slopes: Vec<(f64, f64)> = context_slopes(points)
        .into_iter()
        .map(|(nodes, slope)| (nodes.div_ceil(nodes_per_tile) as f64, slope))
        .collect();
    if slopes.is_empty() {
        return (0.0, 0.0);
    }
    let count = slopes.len() as f64;
    let mean_tiles = slopes.iter().map(|s| s.0).sum::<f64>() / count;
    let mean_slope = slopes.iter().map(|s| s.1).sum::<f64>() / count;
    let variance: f64 = slopes.iter().map(|s| (s.0 - mean_tiles).powi(2)).sum();
    let covariance: f64 = slopes.iter().map(|s| (s.0 - mean_tiles) * (s.1 - mean_slope)).sum();
    let per_tile =
        if variance > 0.0 { (covariance / variance).max(0.0).min(mean_slope / mean_tiles) } else { 0.0 };
    (mean_slope - per_tile * mean_tiles, per_tile)
}
