//! [`CostModel`]: what a pass costs on this machine, in microseconds, as measured.
//!
//! `t_verify = lin(N) + sum over sequences of context * rate(nodes)`: a staircase in the tokens of the pass plus, per sequence,
//! a staircase in its nodes, as its K/V is read once but multiplied once per tile of nodes.
//! All of it times the machine's present pace. Filled by a sweep at start ([`CostModel::from_sweep`]), corrected by every timed round,
//! monotone throughout.
#![forbid(unsafe_code)]

mod cache;
mod hull;
mod pace;
mod staircase;
mod sweep;
mod table;
mod tables;

use serde::{Deserialize, Serialize};

pub use cache::KeptSweep;
pub(super) use hull::Hull;
use pace::{Pace, log_error};
pub use staircase::Staircase;
pub use sweep::{SweepKind, SweepPoint, attention_rates};
pub use table::{COST_TABLE_VERSION, CostSource, CostTable};
pub use tables::CostTables;

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

/// Share of an error, weighted by attention's part of the pass, by which attention rates move.
const ATTENTION_RATE: f64 = 0.1;

/// Measured costs of the passes of a round.
#[derive(Clone, Debug, PartialEq)]
pub struct CostModel {
    treads: Treads,
    pace: Pace,
    /// Of plain passes, too: they are the same kernels over one row a sequence.
    verify: Staircase,
    draft: Staircase,
    /// Microseconds per cached token of a sequence, by its nodes; absent if time was not seen to depend on context.
    attention: Option<Staircase>,
    /// Microseconds per cached token and sequence of a drafter pass.
    draft_attention: f64,
    /// Time of a drafted round outside its drafter and target passes.
    overhead_us: f64,
    /// Time of a plain round outside its target pass.
    plain_overhead_us: f64,
    errors: PredictionErrors,
}

/// Relative errors of the latest predictions of whole rounds.
#[derive(Clone, Debug, Default, PartialEq)]
struct PredictionErrors {
    latest: Vec<f64>,
    next: usize,
}

impl CostModel {
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
        self.pace.factor() * self.verify.at(tokens) + attention
    }

    /// A plain decode pass of `batch` sequences with `context` cached tokens in all.
    pub fn plain_us(&self, batch: usize, context: usize) -> f64 {
        self.pace.factor() * self.verify.at(batch) + self.attention_us(1, context)
    }

    /// A drafter pass of `rows` rows over sequences with `context` cached tokens in all.
    pub fn draft_us(&self, rows: usize, context: usize) -> f64 {
        self.pace.factor() * self.draft.at(rows) + context as f64 * self.draft_attention_us_per_token()
    }

    /// How slow the machine is at present, as a factor of the times that the tables were made of.
    pub(super) fn slowness(&self) -> f64 {
        self.pace.factor()
    }

    /// Time of a drafted round outside its passes.
    pub fn overhead_us(&self) -> f64 {
        self.overhead_us
    }

    /// Time of a plain round outside its pass.
    pub fn plain_overhead_us(&self) -> f64 {
        self.plain_overhead_us
    }

    /// Rows that a target pass was seen to take in the same time: the declared tread, or 1 where passes of one tread differ.
    pub fn observed_tread(&self) -> usize {
        self.verify.tread()
    }

    /// The same of a drafter pass.
    pub fn observed_draft_tread(&self) -> usize {
        self.draft.tread()
    }

    /// Microseconds per cached token that a sequence of `nodes` adds to a target pass.
    pub fn attention_us_per_token(&self, nodes: usize) -> f64 {
        self.attention_us(nodes, 1)
    }

    /// Microseconds per cached token that a sequence adds to a drafter pass.
    pub fn draft_attention_us_per_token(&self) -> f64 {
        self.pace.factor() * self.draft_attention
    }

    /// Sets the times of drafted and of plain rounds outside their passes, where they are known beforehand.
    pub fn set_overheads(&mut self, drafted_us: f64, plain_us: f64) {
        self.overhead_us = drafted_us;
        self.plain_overhead_us = plain_us;
    }

    /// Corrects the target pass by a measured one.
    pub fn observe_verify(
        &mut self,
        tokens: usize,
        sequences: impl Iterator<Item = (usize, usize)>,
        us: f64,
    ) {
        let attention = sequences.map(|(nodes, context)| self.attention_us(nodes, context)).sum();
        self.observe_target(tokens, attention, us);
    }

    /// Corrects the plain pass by a measured one, and with it the verification pass.
    pub fn observe_plain(&mut self, batch: usize, context: usize, us: f64) {
        self.observe_target(batch, self.attention_us(1, context), us);
    }

    /// Corrects the target pass by one in which prompts were read, too: `tokens` and `sequences` with their rows. It may be wider than what
    /// the tables were made for: how far off they are there says nothing of the pace.
    pub fn observe_shared(
        &mut self,
        tokens: usize,
        sequences: impl Iterator<Item = (usize, usize)>,
        us: f64,
    ) {
        let predicted = self.verify_us(tokens, sequences);
        if us.is_finite() && us > 0.0 {
            self.verify.correct(tokens, log_error(us, predicted));
        }
    }

    /// Corrects the target pass of `tokens` rows, of which attention was thought to take `attention_us`.
    fn observe_target(&mut self, tokens: usize, attention_us: f64, us: f64) {
        let predicted = self.pace.factor() * self.verify.at(tokens) + attention_us;
        if !(us.is_finite() && us > 0.0) {
            return;
        }
        let error = self.pace.follow(log_error(us, predicted));
        if let Some(rate) = &mut self.attention {
            rate.scale((ATTENTION_RATE * attention_us / predicted * error).exp());
        }
        // Pace and table could rise and fall against each other for ever, and what else goes by the pace with them.
        let rise = self.verify.correct(tokens, error);
        self.verify.scale((-rise).exp());
        self.pace.shift(rise);
    }

    /// Corrects the drafter pass by a measured one.
    pub fn observe_draft(&mut self, rows: usize, context: usize, us: f64) {
        if us.is_finite() && us > 0.0 {
            self.draft.correct(rows, log_error(us, self.draft_us(rows, context)));
        }
    }

    /// Learns the time of a round outside its passes; `round_us` is how long a round is thought to take. Stalls end up in what is
    /// left over, so no single round says much.
    pub fn observe_overhead(&mut self, plain: bool, us: f64, round_us: f64) {
        let overhead = if plain { &mut self.plain_overhead_us } else { &mut self.overhead_us };
        if us.is_finite() && round_us.is_finite() {
            let believed = us.clamp(0.0, 2.0 * *overhead + 0.05 * round_us);
            *overhead += 0.1 * (believed - *overhead);
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

    pub(super) fn attention_us(&self, nodes: usize, context: usize) -> f64 {
        let rate = self.attention.as_ref().map_or(0.0, |rate| rate.at(nodes));
        self.pace.factor() * context as f64 * rate
    }

    fn is_sound(&self) -> bool {
        let rates = [self.draft_attention, self.overhead_us, self.plain_overhead_us];
        let stairs = [&self.verify, &self.draft];
        stairs.into_iter().chain(&self.attention).all(Staircase::is_sound)
            && rates.iter().all(|rate| rate.is_finite() && *rate >= 0.0)
            && self.pace.is_sound()
            && self.treads.tokens >= 1
            && self.treads.nodes >= 1
    }
}
