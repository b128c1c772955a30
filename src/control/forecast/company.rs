//! [`Company`]: sequences that draft in one round, and what is expected of that; [`Habits`]: what such rounds were like before.
#![forbid(unsafe_code)]

use crate::control::cost::{CostTables, Hull};
use crate::control::fading::unless_gone;
use crate::control::round::LevelRecord;

/// What is left of expected tokens where only a share of the nodes that they came with fits: the share to this power. The likeliest nodes
/// come first.
const SQUEEZE: f64 = 0.2;
/// Least weight of the newest round.
const RATE: f64 = 0.25;
/// Classes of batch sizes: 1, up to 3, 7, 15, ...
const NUM_CLASSES: usize = 12;
/// Drafted rounds, at least, that share the cost of what a sequence has to catch up on: it is paid once, and what follows rests on it.
const CATCH_UP_ROUNDS: f64 = 32.0;

/// What is known of a level of the tree.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    /// Share of the drafted rounds that ran it, fading.
    share: f64,
    /// Its rows per drafting sequence where it was run, fading.
    rows: f64,
}

/// What drafted rounds of batches of about one size were like. In a larger one places in the target pass are dearer and trees smaller.
#[derive(Clone, Debug, Default)]
struct Habit {
    rounds: u64,
    /// Sequences of the latest.
    batch: usize,
    /// Draft tokens verified, fading: few sequences take the places that others leave.
    verified: f64,
    /// The levels after the first.
    levels: Vec<Level>,
}

/// What drafted rounds were like, by the size of the batch.
#[derive(Clone, Debug, Default)]
pub(super) struct Habits([Habit; NUM_CLASSES]);

/// What a round of a batch is expected to be like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    /// The closest that was seen.
    habit: &'a Habit,
    /// What is left of its levels: a batch larger than any that was seen has to make do with as many places, until it is seen.
    scale: f64,
}

impl Habits {
    /// What is expected of a batch.
    pub fn expected(&self, batch: usize) -> Expected<'_> {
        let own = class(batch);
        let distance = |&class: &usize| (class.abs_diff(own), class > own);
        let seen = (0..NUM_CLASSES).filter(|&class| self.0[class].rounds > 0).min_by_key(distance);
        let habit = &self.0[seen.unwrap_or(own)];
        let scale = if class(habit.batch) < own { habit.batch.max(1) as f64 / batch as f64 } else { 1.0 };
        Expected { habit, scale }
    }

    /// Learns from a round in which `drafting` of a batch drafted and kept `verified` nodes.
    pub fn observe(&mut self, batch: usize, drafting: usize, verified: f64, levels: &[LevelRecord]) {
        let habit = &mut self.0[class(batch)];
        let each = |sum: f64| sum / drafting as f64;
        let rate = (1.0 / (habit.rounds as f64 + 1.0)).max(RATE);
        habit.rounds += 1;
        habit.batch = batch;
        // A round in which one looks again does not tell how many places there are.
        let share = if habit.rounds > 1 { drafting as f64 / batch as f64 } else { 1.0 };
        habit.verified = unless_gone(habit.verified + rate * share * (verified - habit.verified));
        let num_levels = levels.len().saturating_sub(1).max(habit.levels.len());
        habit.levels.resize(num_levels, Level::default());
        for (i, level) in habit.levels.iter_mut().enumerate() {
            let run = levels.get(i + 1);
            let was_run = f64::from(u8::from(run.is_some()));
            level.share = unless_gone(level.share + rate * (was_run - level.share));
            if let Some(run) = run {
                let rows = each(run.rows as f64);
                level.rows += if level.rows == 0.0 { rows } else { rate * (rows - level.rows) };
            }
        }
    }
}

impl Expected<'_> {
    /// Rows per drafting sequence of the widest level.
    pub fn widest(self) -> f64 {
        self.scale * self.habit.levels.iter().fold(0.0, |widest: f64, level| widest.max(level.rows))
    }
}

fn class(batch: usize) -> usize {
    (batch.max(1).ilog2() as usize).min(NUM_CLASSES - 1)
}

/// A sequence that may join.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// Its place in the batch.
    pub sequence: usize,
    /// Expected accepted tokens, weighted.
    pub mass: f64,
    /// Draft tokens that it would have verified, in whatever company it was.
    pub nodes: f64,
    /// Its rows of the catch-up pass, and how many of them it is charged with.
    pub rows: usize,
    pub charged_rows: f64,
}

/// What expected rounds cost: passes of which only a mean width is known.
#[derive(Clone, Debug, Default)]
pub(super) struct MeanCosts {
    verify: Hull,
    draft: Hull,
}

impl MeanCosts {
    /// Becomes those of `tables`.
    pub fn refit(&mut self, tables: &CostTables) {
        self.verify.refit(tables.tread, &tables.verify_ns);
        self.draft.refit(tables.draft_tread, &tables.draft_ns);
    }
}

/// Sequences that draft in one round.
pub(super) struct Company<'a> {
    tables: &'a CostTables,
    costs: &'a MeanCosts,
    expected: Expected<'a>,
    size: usize,
    mass: f64,
    nodes: f64,
    rows: usize,
    charged_rows: f64,
    draft_attention_ns: u64,
    verify_attention_ns: u64,
}

impl<'a> Company<'a> {
    /// Nobody yet; `costs` are those of `tables`.
    pub fn new(tables: &'a CostTables, costs: &'a MeanCosts, expected: Expected<'a>) -> Self {
        Self {
            tables,
            costs,
            expected,
            size: 0,
            mass: 0.0,
            nodes: 0.0,
            rows: 0,
            charged_rows: 0.0,
            draft_attention_ns: 0,
            verify_attention_ns: 0,
        }
    }

    /// One more.
    pub fn join(&mut self, member: &Member) {
        self.size += 1;
        self.mass += member.mass;
        self.nodes += member.nodes;
        self.rows += member.rows;
        self.charged_rows += member.charged_rows;
        self.draft_attention_ns += self.tables.draft_attention_ns[member.sequence];
        let nodes = member.nodes.round() as usize;
        self.verify_attention_ns += self.tables.attention_beyond_root_ns(member.sequence, nodes);
    }

    /// What is spent before anything is known: all but later levels and nodes.
    pub fn sunk_ns(&self) -> u64 {
        self.tables.overhead_ns + self.tables.draft_linear_ns(self.rows) + self.draft_attention_ns
    }

    /// The part of it that nobody is charged with.
    pub fn deferred_ns(&self) -> f64 {
        let charged_rows = self.charged_rows.round() as usize;
        (self.tables.draft_linear_ns(self.rows) - self.tables.draft_linear_ns(charged_rows)) as f64
    }

    /// Expected tokens per nanosecond of the round, those of sequences that do not draft included.
    pub fn rate(&self) -> f64 {
        let Expected { habit, scale } = self.expected;
        let size = self.size as f64;
        let level_ns = |level: &Level| level.share * self.costs.draft.at(scale * level.rows * size);
        let charged_ns = self.sunk_ns() as f64 - self.deferred_ns();
        let drafter_ns = charged_ns + habit.levels.iter().map(level_ns).sum::<f64>();
        let batch = self.tables.batch() as f64;
        let rate = |share: f64| {
            let attention_ns = (self.tables.attention_ns + self.verify_attention_ns) as f64;
            let ns = drafter_ns + self.costs.verify.at(batch + share * self.nodes) + attention_ns;
            (batch + self.mass * share.powf(SQUEEZE)) / ns
        };
        // Each had its nodes in other company, perhaps alone. The scan will not take more than pays now.
        let fitting = habit.verified / self.nodes;
        if fitting < 1.0 { rate(fitting).max(rate(1.0)) } else { rate(1.0) }
    }
}

/// What a row costs of a catch-up pass in which all of them draft.
pub(super) fn row_ns(tables: &CostTables, members: &[Member]) -> f64 {
    let rows = members.iter().map(|member| member.charged_rows).sum::<f64>().round() as usize;
    let beyond = rows.saturating_sub(members.len());
    if beyond == 0 {
        return 0.0;
    }
    (tables.draft_linear_ns(rows) - tables.draft_linear_ns(members.len())) as f64 / beyond as f64
}

/// Rows of a catch-up pass that the decision to draft is charged with: that of the sequence's own token, and a share of what is waiting besides. That
/// is due whenever it drafts next, and not to draft now does not save it; only a text that never drafts again does not pay. To charge all of it to one
/// round would make a sequence that was left out look dearer with every round that it waits, until nothing could bring it back. A text
/// that has gone on for so long may be expected to go on for as long again, at `1 + mass` tokens a round, unless at most `left` tokens are, and all
/// of that rests on it.
pub(super) fn charged_rows(catch_up_rows: usize, mass: f64, left: usize) -> f64 {
    let rows = catch_up_rows.max(1) as f64;
    let rounds = rows.max(CATCH_UP_ROUNDS * (1.0 + mass)).min(left as f64 + 1.0) / (1.0 + mass);
    1.0 + (rows - 1.0) / rounds.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fading::is_fast;

    #[test]
    fn levels_that_are_not_run_again_are_gone_at_last() {
        let mut habits = Habits::default();
        let level = LevelRecord { first_row: 0, rows: 4, price: 0.1, ns: 1000 };
        habits.observe(1, 1, 9.0, &[level; 5]);
        (0..10_000).for_each(|_| habits.observe(1, 1, 0.0, &[level]));
        let habit = &habits.0[0];
        assert!(habit.levels.len() == 4 && habit.levels.iter().all(|level| is_fast(level.share)));
        assert!(is_fast(habit.verified));
    }
}
