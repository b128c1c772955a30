//! `sequoia`: the best tree fixed by rank, under measured acceptance and measured time (Sequoia, arXiv 2402.12374, abstract; the form of
//! the objective is from memory of the paper).
//!
//! *Positional acceptance*: a child of rank `r` is accepted with probability `p_r`, given its parent is, wherever it stands. The value of a tree
//! is `G = 1 + sum over nodes of the product of p along the path`. Dynamic programming over depth: the best tree no deeper than `d` is
//! a root whose child of rank `r` carries a best tree no deeper than `d - 1`, worth `p_r` times as much, so its nodes are the best of
//! all these trees' nodes. As a node is worth at most what its parent is, each table is sorted, and the next one is a merge: `O(depth *
//! nodes * ranks)` for all sizes and depths at once.
//!
//! Size and depth maximise `(B + D * (G(n, d) - 1)) / t`, over a batch of B sequences of which D draft. `t` is the measured cost of the whole
//! round: the published `t_verify(n) + d * c`, with a drafter pass priced by the rows that it really has.
//!
//! Assumptions: rates are one vector for all depths, sequences and temperatures, fading; the published method measures it beforehand
//! and always speculates, so ours has no plain round. It is planned anew every 32 rounds, or 4 after the batch has changed.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use super::Stats;
use crate::control::controller::SequenceOutcome;
use crate::control::plan::StaticNode;
use crate::control::round::{DraftRound, SelectedTree};

/// Acceptance by rank before anything is known: of the first rank, and of each rank relative to the one before.
const PRIOR_TOP: f64 = 0.6;
const PRIOR_SECOND: f64 = 0.15;
const PRIOR_DECAY: f64 = 0.5;
/// Labels that the prior is worth, and those of a rank that are remembered.
const PRIOR_LABELS: f64 = 2.0;
const MEMORY: f64 = 500.0;
/// Rounds between plans: with the same batch, and at least.
const LATEST: u64 = 32;
const EARLIEST: u64 = 4;

/// A node in the order in which best trees of growing size take them in.
#[derive(Clone, Copy, Debug)]
struct Added {
    /// Product of rates along its path.
    gain: f64,
    /// Sum of the gains up to this one.
    total: f64,
    /// Rank of the root's child that it is or lies below.
    rank: u32,
    /// Its place in the table of that child's subtree, one level shallower; 0 is the child itself, then come the entries.
    below: u32,
}

/// Best trees of all sizes and depths under one vector of acceptance by rank.
#[derive(Clone, Debug)]
pub struct TreeTable {
    /// By depth limit; entry `i` is the node number `i + 1`, the root not counted.
    added: Vec<Vec<Added>>,
}

impl TreeTable {
    /// Tables for up to `max_nodes` nodes, root excluded, and depths up to `max_depth`. `rates` are clipped to [0, 1]; what is never
    /// accepted is in no tree.
    pub fn new(rates: &[f64], max_nodes: usize, max_depth: usize) -> Self {
        let rates: Vec<f64> =
            rates.iter().map(|&rate| if rate > 0.0 { rate.min(1.0) } else { 0.0 }).collect();
        let mut added: Vec<Vec<Added>> = vec![Vec::new()];
        let mut taken = vec![0u32; rates.len()];
        for depth in 1..=max_depth {
            let above = &added[depth - 1];
            let mut table = Vec::with_capacity(max_nodes);
            let mut total = 0.0;
            taken.fill(0);
            while table.len() < max_nodes {
                let mut best: Option<(f64, usize)> = None;
                for (rank, (&rate, &below)) in rates.iter().zip(&taken).enumerate() {
                    let gain = match below.checked_sub(1).map(|entry| above.get(entry as usize)) {
                        None => rate,
                        Some(entry) => entry.map_or(0.0, |entry| rate * entry.gain),
                    };
                    if gain > best.map_or(0.0, |best| best.0) {
                        best = Some((gain, rank));
                    }
                }
                let Some((gain, rank)) = best else { break };
                total += gain;
                table.push(Added { gain, total, rank: rank as u32, below: taken[rank] });
                taken[rank] += 1;
            }
            added.push(table);
        }
        Self { added }
    }

    /// Most nodes, root excluded, that a tree no deeper than `depth` has.
    pub fn max_nodes(&self, depth: usize) -> usize {
        self.added[depth].len()
    }

    /// `G - 1`: expected accepted tokens of the best tree of `nodes` nodes, root excluded, no deeper than `depth`.
    pub fn accepted(&self, nodes: usize, depth: usize) -> f64 {
        nodes.checked_sub(1).map_or(0.0, |last| self.added[depth][last].total)
    }

    /// That tree, level by level.
    pub fn tree(&self, nodes: usize, depth: usize) -> Vec<StaticNode> {
        let mut tree = Vec::with_capacity(nodes);
        // (node, nodes below it, depth that is left)
        let mut open = VecDeque::from([(0, nodes, depth)]);
        while let Some((parent, below, depth)) = open.pop_front() {
            let entries = &self.added[depth][..below];
            let num_ranks = entries.iter().map(|entry| entry.rank + 1).max().unwrap_or(0);
            for rank in 0..num_ranks {
                let subtree = entries.iter().filter(|entry| entry.rank == rank).count();
                if subtree > 0 {
                    tree.push(StaticNode { parent, rank });
                    open.push_back((tree.len() as u32, subtree - 1, depth - 1));
                }
            }
        }
        tree
    }

    /// Depth of the node that is the first child of its parent if entry `index` of the table of `depth` is that; the root's is 1.
    fn first_child_depth(&self, mut index: usize, mut depth: usize) -> Option<usize> {
        for child_depth in 1.. {
            if index == 0 {
                return Some(child_depth);
            }
            let entry = self.added[depth][index];
            index = (entry.below as usize).checked_sub(1)?;
            depth -= 1;
        }
        None
    }
}

/// The tree planned from measured acceptance.
#[derive(Debug)]
pub struct Sequoia {
    /// (labels, accepted) by rank, fading.
    ranks: Vec<(f64, f64)>,
    max_nodes: usize,
    max_depth: usize,
    tree: Arc<[StaticNode]>,
    /// Rounds since the tree was planned, and for which (batch, drafting) it was.
    age: u64,
    planned_for: (usize, usize),
}

impl Sequoia {
    /// Trees of up to `max_nodes` nodes, root excluded, `max_depth` levels and `top_k` ranks.
    pub fn new(top_k: usize, max_nodes: usize, max_depth: usize) -> Self {
        Self {
            ranks: vec![(0.0, 0.0); top_k],
            max_nodes,
            max_depth,
            tree: [].into(),
            age: 0,
            planned_for: (0, 0),
        }
    }

    /// Acceptance by rank.
    pub fn rates(&self) -> Vec<f64> {
        let second = (0..).map(|rank| PRIOR_SECOND * PRIOR_DECAY.powi(rank));
        let prior = std::iter::once(PRIOR_TOP).chain(second);
        let rate = |(&(labels, accepted), prior): (&(f64, f64), f64)| {
            (accepted + PRIOR_LABELS * prior) / (labels + PRIOR_LABELS)
        };
        self.ranks.iter().zip(prior).map(rate).collect()
    }

    /// The tree for the coming round.
    pub fn tree(&mut self, stats: &Stats<'_>) -> Arc<[StaticNode]> {
        self.age += 1;
        let batch = (stats.tables.batch(), stats.drafting.len());
        let changed = batch != self.planned_for && self.age > EARLIEST;
        if !stats.drafting.is_empty() && (self.tree.is_empty() || changed || self.age > LATEST) {
            self.tree = self.best(stats).into();
            self.age = 0;
            self.planned_for = batch;
        }
        self.tree.clone()
    }

    /// Learns by rank what came after each accepted node that was run.
    pub(in crate::control) fn observe<'a>(
        &mut self,
        round: &DraftRound,
        outcomes: impl Iterator<Item = (usize, &'a SelectedTree, &'a SequenceOutcome<'a>)>,
    ) {
        let keep = 1.0 - 1.0 / MEMORY;
        for (sequence, tree, outcome) in outcomes {
            for &packed in std::iter::once(&0).chain(outcome.accepted) {
                let node = tree.pool_nodes.get(packed as usize);
                let (Some(&node), Some(drawn)) = (node, outcome.drawn.get(packed as usize)) else { break };
                let proposed = round.proposed(sequence, node as usize);
                for ((labels, accepted), token) in self.ranks.iter_mut().zip(proposed) {
                    *labels = *labels * keep + 1.0;
                    *accepted = *accepted * keep + f64::from(u8::from(token == drawn));
                }
            }
        }
    }

    /// The tree that maximises expected tokens per predicted time; never empty, unless no level is allowed.
    fn best(&self, stats: &Stats<'_>) -> Vec<StaticNode> {
        let table = TreeTable::new(&self.rates(), self.max_nodes, self.max_depth);
        let mut best = (0.0, 0, 0);
        let mut widths = vec![0; self.max_depth + 1];
        for depth in 1..=self.max_depth {
            // Rows of each drafter pass after the first, per sequence: nodes at that depth that have children.
            widths.fill(0);
            let mut draft_ns = stats.tables.overhead_ns + stats.draft_ns(stats.catch_up_rows);
            let mut attention_ns = 0;
            for nodes in 1..=table.max_nodes(depth) {
                attention_ns += stats.attention_step_ns(nodes);
                if let Some(child_depth) =
                    table.first_child_depth(nodes - 1, depth).filter(|&depth| depth > 1)
                {
                    let width = &mut widths[child_depth - 1];
                    let before = if *width > 0 { stats.draft_ns(*width * stats.drafting.len()) } else { 0 };
                    *width += 1;
                    draft_ns = draft_ns - before + stats.draft_ns(*width * stats.drafting.len());
                }
                let ns = draft_ns + stats.verify_ns(nodes, attention_ns);
                let rate = stats.rate(table.accepted(nodes, depth), ns);
                if rate > best.0 {
                    best = (rate, nodes, depth);
                }
            }
        }
        if best.1 > 0 { table.tree(best.1, best.2) } else { vec![StaticNode { parent: 0, rank: 0 }] }
    }
}
