//! [`Plan`]: how a round is drafted and what of it is verified, as plain data made from past rounds only.
//!
//! One executor interprets it ([`DraftRound`](super::DraftRound)); no policy has code of its own in the round. What a device
//! can decide by itself is in [`WidthRule`] and [`SelectionRule`]; a [`StopRule`] needs the host after every level.
#![forbid(unsafe_code)]

use std::sync::Arc;

/// How a round is drafted and what of it is verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Children drafted for each node that is run.
    pub top_k: usize,
    /// Most drafter passes of a round; 0 = never drafts.
    pub max_levels: usize,
    /// Which nodes are run through the drafter.
    pub width: WidthRule,
    /// When a sequence stops drafting before `max_levels`.
    pub stop: StopRule,
    /// Which drafted nodes are verified.
    pub selection: SelectionRule,
    /// Draft tokens kept for verification per sequence, at most.
    pub max_draft_tokens: usize,
    /// Draft tokens that every sequence keeps in verification, as far as it has drafted so many, before
    /// [`SelectionRule::Scan`] spends the rest. No other rule reads it.
    pub floor: usize,
}

/// Which nodes the next drafter pass runs.
#[derive(Clone, Debug, PartialEq)]
pub enum WidthRule {
    /// Per sequence the best so many nodes of the newest level, by cumulative log-probability, ties to the older node.
    Beam(usize),
    /// The inner nodes of a fixed tree; nothing else is kept.
    Static(Arc<[StaticNode]>),
    /// The nodes that the per-node rule has admitted.
    Admitted,
    /// Per sequence the nodes of the newest level that are among its `nodes` best by path probability: none below any other
    /// could be. A sequence stops once a level has raised the sum of its `nodes` best path probabilities by no more than
    /// `least_gain`.
    BestTree {
        /// Size of the tree, root excluded.
        nodes: usize,
        /// Expected tokens that a level must have brought for another to follow.
        least_gain: f32,
    },
    /// Over all sequences the width that maximises the predicted tokens per second.
    Scan,
}

/// Which drafted nodes the target verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectionRule {
    /// All of them.
    All,
    /// Per sequence the so many best by cumulative log-probability, ties to the older node.
    TopN(usize),
    /// Per sequence the so many best by path probability, ties to the older node.
    Best(usize),
    /// The drafter's likeliest child of the root, that node's likeliest child, and so on, ties to the older: a chain out of nodes
    /// that were drafted with more children than one.
    Chain,
    /// Those admitted one by one. A node `v` is admitted iff `R(v) = P(v) / dt(v) * t_plain / B` exceeds the speedup `S` of the
    /// tree so far. Assumptions, as only the abstract is public: candidates come level by level in descending `P`, over the
    /// batch; a node is offered once, when drafted; `dt(v)` is the measured cost of one more token in the verification pass
    /// plus the newest drafter pass's time per row (an admitted node is run in the next pass, depth permitting); `S` is that of
    /// the tree so far, the drafter's time included; the drafter's first pass always runs; drafting ends at a level that admits
    /// nothing.
    PerNode,
    /// The prefix of the union of all sequences' nodes, by path probability, that maximises the predicted tokens per second.
    Scan,
}

/// When a sequence stops drafting: a rule over what its newest level brought, evaluated on the host before the next one. A level that
/// stops drafting is kept: its nodes are paid for, and verified if the selection says so. Each sequence stops by itself.
///
/// Except for [`BeamBelow`](Self::BeamBelow), rules speak of a chain: of the tip, the node that was run last, and of its likeliest child.
/// The distribution after the tip is known by its top-k log-probabilities; what they leave over counts as one more token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StopRule {
    /// Does not stop early, and needs no host.
    Never,
    /// The log of the sum of probabilities of the nodes that would be run next is below the threshold.
    BeamBelow(f32),
    /// The square root of the entropy (nats) of the distribution after the tip is above the threshold.
    EntropyAbove(f32),
    /// The probability that some token of the chain is rejected, `1 - product of q`, is above the threshold.
    RejectionAbove(f32),
    /// The probability of the likeliest child is below the threshold.
    ConfidenceBelow(f32),
    /// The likeliest child leads the second likeliest by less than the threshold, in probability.
    MarginBelow(f32),
    /// A logistic regression on the features of the likeliest child
    /// ([`features`](super::round::stop::Spread::features)) gives it less than the threshold.
    Classifier {
        /// One weight a feature.
        weights: [f32; 4],
        /// Least probability to go on.
        threshold: f32,
    },
}

/// A node of a static tree, listed level by level, parents first, siblings by rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticNode {
    /// Index of the parent among the *pool* nodes: 0 is the root, `i + 1` the table's entry `i`.
    pub parent: u32,
    /// Which of the parent's top-k children.
    pub rank: u32,
}

impl Plan {
    /// The likeliest token, `length` times, without an early stop.
    pub fn chain(length: usize) -> Self {
        Self {
            top_k: 1,
            max_levels: length,
            width: WidthRule::Beam(1),
            stop: StopRule::Never,
            selection: SelectionRule::All,
            max_draft_tokens: length,
            floor: 0,
        }
    }
}

const fn node(parent: u32, rank: u32) -> StaticNode {
    StaticNode { parent, rank }
}

/// EAGLE-1's tree: widths 4, 8, 8, 3, 2.
#[rustfmt::skip]
pub static EAGLE1_TREE: [StaticNode; 25] = [
    node(0, 0), node(0, 1), node(0, 2), node(0, 3),                                          // 1-4: 0 1 2 3
    node(1, 0), node(1, 1), node(1, 2), node(2, 0), node(2, 1), node(3, 0), node(3, 1), node(4, 0), // 5-12: 00 01 02 10 11 20 21 30
    node(5, 0), node(5, 1), node(5, 2), node(6, 0), node(6, 1), node(7, 0), node(7, 1), node(8, 0), // 13-20: 000..002 010 011 020 021 100
    node(13, 0), node(13, 1), node(13, 2),                                                   // 21-23: 0000 0001 0002
    node(21, 0), node(21, 1),                                                                // 24-25: 00000 00001
];

/// Medusa's tree for Vicuna-7B: widths 10, 28, 23, 2.
#[rustfmt::skip]
pub static MEDUSA_TREE: [StaticNode; 63] = [
    node(0, 0), node(0, 1), node(0, 2), node(0, 3), node(0, 4), node(0, 5), node(0, 6), node(0, 7), node(0, 8), node(0, 9), // 1-10: 0 1 2 3 4 5 6 7 8 9
    node(1, 0), node(1, 1), node(1, 2), node(1, 3), node(1, 4), node(1, 5), node(1, 6), node(1, 7), node(1, 8), node(1, 9), // 11-20: 00 01 02 03 04 05 06 07 08 09
    node(2, 0), node(2, 1), node(2, 2), node(2, 3), node(2, 4), node(2, 5), node(2, 6), node(3, 0), node(3, 1), node(3, 2), // 21-30: 10 11 12 13 14 15 16 20 21 22
    node(4, 0), node(4, 1), node(5, 0), node(6, 0), node(7, 0), node(8, 0), node(9, 0), node(10, 0), // 31-38: 30 31 40 50 60 70 80 90
    node(11, 0), node(11, 1), node(11, 2), node(11, 3), node(11, 4), node(11, 5), node(11, 6), node(11, 7), node(11, 8), node(11, 9), // 39-48: 000 001 002 003 004 005 006 007 008 009
    node(12, 0), node(12, 1), node(12, 2), node(13, 0), node(13, 1), node(14, 0), node(15, 0), node(16, 0), node(17, 0), node(18, 0), // 49-58: 010 011 012 020 021 030 040 050 060 070
    node(21, 0), node(21, 1), node(28, 0), // 59-61: 100 101 200
    node(39, 0), node(39, 1), // 62-63: 0000 0001
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_list_parents_first_and_level_by_level() {
        for (tree, widths) in [(&EAGLE1_TREE[..], &[4, 8, 8, 3, 2][..]), (&MEDUSA_TREE, &[10, 28, 23, 2])] {
            let mut depth = vec![0];
            for (i, entry) in tree.iter().enumerate() {
                assert!((entry.parent as usize) <= i);
                depth.push(depth[entry.parent as usize] + 1);
            }
            assert!(depth.is_sorted());
            // The executor fills the table in the order of rows and ranks.
            assert!(tree.is_sorted_by_key(|entry| (entry.parent, entry.rank)));
            let of_level = |level: usize| depth.iter().filter(|&&d| d == level).count();
            assert_eq!((1..=widths.len()).map(of_level).collect::<Vec<_>>(), widths);
        }
    }
}
