//! [`CandidatePool`]: every node drafted for one sequence in one round, kept or not.
#![forbid(unsafe_code)]

use super::acceptance::Label;
use crate::tree::AncestorWords;

/// "No such row" and "no such parent".
pub const NONE: u32 = u32::MAX;

/// A drafted node. Node 0 of a pool is the root; parents come before children.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoolNode {
    /// Parent; [`NONE`] for the root.
    pub parent: u32,
    /// Edges from the root.
    pub depth: u16,
    /// Token, in the target's vocabulary.
    pub token: i32,
    /// The drafter's log-probability given the parent.
    pub logp: f32,
    /// Sum of `logp` along the path.
    pub path_logp: f32,
    /// Estimated probability of acceptance given that the parent is accepted.
    pub q: f32,
    /// Product of `q` along the path.
    pub path_prob: f32,
    /// Marginal benefit-cost ratio of the run that the node fell into, to compare with the speedup; infinite where free.
    pub ratio: f32,
    /// Index among all candidates that the drafter has brought in this round, rows in order, `top_k` a row: where draft
    /// kernels keep the node; [`NONE`] for the root.
    pub candidate: u32,
    /// Round-wide row of the drafter pass that ran the node; [`NONE`] if none did.
    pub row: u32,
    /// The node's place among this sequence's drafter rows, root excluded; [`NONE`] if none.
    pub slot: u32,
    /// First of its drafted children, which lie side by side.
    pub first_child: u32,
    /// Drafted children.
    pub num_children: u16,
    /// Not to be run through the drafter, whatever the policy; see [`DraftRound::seal_newest`](super::DraftRound::seal_newest).
    pub sealed: bool,
    /// Let in by the per-node rule.
    pub admitted: bool,
    /// Chosen for verification.
    pub verified: bool,
}

/// A child that the drafter has brought.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    /// As [`PoolNode::candidate`], [`PoolNode::token`] and so on.
    pub candidate: u32,
    pub token: i32,
    /// Made sound: see [`sound_logp`].
    pub logp: f32,
    pub q: f32,
}

/// A log-probability is at most 0; rounding may say otherwise, and NaN means a broken drafter: no confidence.
pub(super) fn sound_logp(logp: f32) -> f32 {
    if logp.is_nan() { f32::NEG_INFINITY } else { logp.min(0.0) }
}

impl PoolNode {
    /// Whether the node was run through the drafter.
    pub fn is_expanded(&self) -> bool {
        self.row != NONE
    }
}

/// All nodes drafted for one sequence.
#[derive(Clone, Debug, Default)]
pub struct CandidatePool {
    nodes: Vec<PoolNode>,
    /// Drafter-row ancestors of each node that has a slot, by slot.
    slots: Vec<AncestorWords>,
    /// First node of the newest level.
    newest: usize,
    /// What the sequence's tokens count in the scans.
    weight: f32,
}

impl CandidatePool {
    /// Empties the pool down to a root that carries `token`; `weight` is what the sequence's tokens count in the scans.
    pub fn reset(&mut self, token: i32, weight: f32) {
        self.weight = weight;
        self.nodes.clear();
        self.slots.clear();
        self.newest = 0;
        self.nodes.push(PoolNode {
            parent: NONE,
            depth: 0,
            token,
            logp: 0.0,
            path_logp: 0.0,
            q: 1.0,
            path_prob: 1.0,
            ratio: f32::INFINITY,
            candidate: NONE,
            row: NONE,
            slot: NONE,
            first_child: 0,
            num_children: 0,
            sealed: false,
            admitted: true,
            verified: true,
        });
    }

    /// All nodes, root first.
    pub fn nodes(&self) -> &[PoolNode] {
        &self.nodes
    }

    /// Path probability of `node` times the weight of its sequence: what it counts in the scans.
    pub fn worth(&self, node: usize) -> f32 {
        self.weight * self.nodes[node].path_prob
    }

    pub(super) fn nodes_mut(&mut self) -> &mut [PoolNode] {
        &mut self.nodes
    }

    /// Nodes drafted by the newest pass.
    pub fn newest(&self) -> std::ops::Range<usize> {
        self.newest.max(1)..self.nodes.len()
    }

    /// Drafter rows so far, root excluded.
    pub fn num_slots(&self) -> usize {
        self.slots.len()
    }

    /// Ancestors of `node` among this sequence's drafter rows, itself included if it has a slot.
    pub fn slot_ancestors(&self, node: usize) -> AncestorWords {
        match self.nodes[node].slot {
            NONE => [0; 4],
            slot => self.slots[slot as usize],
        }
    }

    /// Starts a new level: what is added from here on is the newest.
    pub(super) fn begin_level(&mut self) {
        self.newest = self.nodes.len();
    }

    /// Marks `node` as run by drafter row `row` and gives it the next slot; the root has a row but no slot.
    pub(super) fn expand(&mut self, node: usize, row: u32) {
        self.nodes[node].row = row;
        if node > 0 {
            let slot = self.slots.len();
            let parent = self.nodes[node].parent as usize;
            self.slots.push(crate::tree::with_bit(self.slot_ancestors(parent), slot));
            self.nodes[node].slot = slot as u32;
        }
    }

    /// Adds the children of `parent`, which has none yet.
    pub(super) fn push_children(&mut self, parent: usize, children: impl Iterator<Item = Child>) {
        let (above, first) = (self.nodes[parent], self.nodes.len());
        self.nodes.extend(children.map(|child| PoolNode {
            parent: parent as u32,
            depth: above.depth + 1,
            token: child.token,
            logp: child.logp,
            path_logp: above.path_logp + child.logp,
            q: child.q,
            path_prob: above.path_prob * child.q,
            ratio: 0.0,
            candidate: child.candidate,
            row: NONE,
            slot: NONE,
            first_child: 0,
            num_children: 0,
            sealed: false,
            admitted: false,
            verified: false,
        }));
        let count = self.nodes.len() - first;
        if count > 0 {
            let above = &mut self.nodes[parent];
            (above.first_child, above.num_children) = (first as u32, count as u16);
        }
    }

    /// Children of `node`, in drafted order.
    pub fn children(&self, node: usize) -> std::ops::Range<usize> {
        let first = self.nodes[node].first_child as usize;
        first..first + usize::from(self.nodes[node].num_children)
    }

    /// Which drafter pass of the round ran `node`; `None` if none did.
    pub(super) fn level_of_children(
        &self,
        node: usize,
        levels: &[super::round::LevelRecord],
    ) -> Option<usize> {
        let row = self.nodes[node].row;
        (row != NONE).then(|| levels.partition_point(|level| level.first_row <= row as usize) - 1)
    }

    /// Labels of the children of `node`, after which the target drew `drawn`. Children that were ruled out teach nothing.
    pub(crate) fn labels(&self, node: usize, drawn: i32) -> impl Iterator<Item = Label> + '_ {
        let children = self.children(node).map(|child| &self.nodes[child]);
        children.filter(|child| child.logp > f32::NEG_INFINITY).map(move |child| Label {
            depth: usize::from(child.depth),
            logp: child.logp,
            q: child.q,
            accepted: child.token == drawn,
        })
    }
}
