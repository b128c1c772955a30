//! The start-up sweep: measured passes in, a [`CostModel`] out.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::pace::Pace;
use super::{CostModel, PredictionErrors, Staircase, Treads};
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

impl CostModel {
    /// A model from the passes of a start-up sweep. Needs at least one `Verify` point; `Plain` points are as good, as the kernels are the
    /// same. Without `Draft` points a drafter pass is taken to cost a tenth of a target pass of its size.
    /// Passes that differ in context alone tell attention from the rest. What disturbs a pass only lengthens it: none is taken to cost more
    /// than one that is larger in every way. Times that are not positive and finite are refused.
    pub fn from_sweep(points: &[SweepPoint], treads: Treads) -> Result<Self> {
        for point in points {
            if !(point.us.is_finite() && point.us > 0.0) || point.tokens == 0 || point.sequences == 0 {
                let reason = "times must be positive and finite, counts at least 1";
                return Err(Error::Input(format!("cost sweep: unusable point {point:?}; {reason}")));
            }
        }
        let treads = Treads { tokens: treads.tokens.max(1), nodes: treads.nodes.max(1) };
        let points = undisturbed(points);
        let verify = of_kind(&points, SweepKind::Verify);
        if verify.is_empty() {
            return Err(Error::Input("cost sweep: no verification pass was measured".into()));
        }
        let plain: Vec<SweepPoint> = of_kind(&points, SweepKind::Plain)
            .into_iter()
            .map(|point| SweepPoint { sequences: point.tokens, ..point })
            .collect();
        let draft = of_kind(&points, SweepKind::Draft);

        let rates: Vec<(usize, f64)> =
            attention_rates(&verify).into_iter().chain(attention_rates(&plain)).collect();
        let attention = (!rates.is_empty()).then(|| Staircase::new(treads.nodes, &rates));
        let rate = |nodes| attention.as_ref().map_or(0.0, |rates| rates.at(nodes));
        let verify_points = without_attention(&verify, rate);

        let draft_attention = attention_rates(&draft).iter().map(|slope| slope.1).fold(0.0, f64::max);
        let mut draft_points = without_attention(&draft, |_| draft_attention);
        if draft.is_empty() {
            draft_points.extend(verify_points.iter().map(|&(tokens, us)| (tokens, 0.1 * us)));
        }
        let tread = observed_tread(treads.tokens, &verify_points);
        let target_points = [verify_points, without_attention(&plain, rate)].concat();
        Ok(Self {
            treads,
            pace: Pace::default(),
            verify: Staircase::new(tread, &target_points),
            draft: Staircase::new(observed_tread(treads.tokens, &draft_points), &draft_points),
            attention,
            draft_attention,
            overhead_us: 0.0,
            plain_overhead_us: 0.0,
            errors: PredictionErrors::default(),
        })
    }
}

/// `points`, each with the least time of those of its kind that are no smaller in rows, sequences and context.
fn undisturbed(points: &[SweepPoint]) -> Vec<SweepPoint> {
    let is_no_smaller = |a: &SweepPoint, b: &SweepPoint| {
        a.kind == b.kind && a.tokens >= b.tokens && a.sequences >= b.sequences && a.context >= b.context
    };
    let least = |point: &SweepPoint| {
        points.iter().filter(|other| is_no_smaller(other, point)).fold(point.us, |us, other| us.min(other.us))
    };
    points.iter().map(|point| SweepPoint { us: least(point), ..*point }).collect()
}

fn of_kind(points: &[SweepPoint], kind: SweepKind) -> Vec<SweepPoint> {
    points.iter().filter(|point| point.kind == kind).copied().collect()
}

/// Rows and time of the passes, less attention at `rate` (by nodes of a sequence, per cached token).
fn without_attention(points: &[SweepPoint], rate: impl Fn(usize) -> f64) -> Vec<(usize, f64)> {
    points
        .iter()
        .map(|point| {
            let attention =
                (point.sequences * point.context) as f64 * rate(point.tokens.div_ceil(point.sequences));
            // Whatever the fit says, something is left for the weights.
            (point.tokens, (point.us - attention).max(0.05 * point.us))
        })
        .collect()
}

/// `tread`, unless passes of one tread clearly differ in time: then these kernels have none, and every row counts.
fn observed_tread(tread: usize, points: &[(usize, f64)]) -> usize {
    const CLEARLY: f64 = 1.25;
    let flat = |a: &(usize, f64), b: &(usize, f64)| {
        a.0.div_ceil(tread) != b.0.div_ceil(tread) || a.0 >= b.0 || b.1 <= CLEARLY * a.1
    };
    if points.iter().all(|a| points.iter().all(|b| flat(a, b))) { tread } else { 1 }
}

/// (nodes of a sequence, microseconds per cached token and sequence) for each size of pass that `points`, all of one kind, hold at
/// several contexts.
pub fn attention_rates(points: &[SweepPoint]) -> Vec<(usize, f64)> {
    let mut points = points.to_vec();
    points.sort_by_key(|point| (point.tokens, point.sequences, point.context));
    points
        .chunk_by(|a, b| (a.tokens, a.sequences) == (b.tokens, b.sequences))
        .filter_map(|group| {
            let (first, last) = (group.first()?, group.last()?);
            let distance = (last.context - first.context) * first.sequences;
            let slope = (last.us - first.us) / distance as f64;
            (slope.is_finite() && slope > 0.0).then(|| (first.tokens.div_ceil(first.sequences), slope))
        })
        .collect()
}
