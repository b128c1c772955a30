//! The records of `--trace`: JSON Lines, first a [`TraceHeader`], then for every round one [`SequenceTrace`] per sequence and
//! one [`RoundTrace`]. [`TraceReader`] reads them back.
#![forbid(unsafe_code)]

mod read;

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::controller::{Controller, PredictedTimes, SequenceOutcome};
use super::pool::{NONE, PoolNode};

pub use read::{MAX_LINE_BYTES, MAX_TREE_NODES, TraceReader, TraceRecord};

/// Changes whenever a record's meaning does.
pub const TRACE_VERSION: u32 = 1;

/// First line of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceHeader {
    /// [`TRACE_VERSION`].
    pub version: u32,
    /// Target model.
    pub model: String,
    /// Drafter, if any.
    pub drafter: Option<String>,
    /// Device, in words.
    pub device: String,
    /// Policy, as on the command line.
    pub policy: String,
    /// Seed of the draws.
    pub seed: u64,
    /// Temperature of the draws.
    pub temperature: f32,
}

/// One sequence in one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SequenceTrace {
    /// Round, from 0.
    pub round: u64,
    /// Sequences in the round.
    pub batch: usize,
    /// Which sequence.
    pub sequence: u64,
    /// Position of the root token.
    pub position: usize,
    /// Every node drafted, root first.
    pub tree: TreeTrace,
    /// Accepted nodes (indices into `tree`), root excluded.
    pub accepted: Vec<u32>,
    /// The target's token after the last accepted node.
    pub bonus_token: i32,
    /// Predicted tree-level speedup `S` of the round.
    pub speedup: f32,
}

/// All drafted nodes of a sequence, column by column.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TreeTrace {
    /// Tokens.
    pub tokens: Vec<i32>,
    /// Parents; -1 for the root.
    pub parents: Vec<i32>,
    /// The drafter's log-probability given the parent; null where it is not finite.
    pub logprob: Vec<Option<f32>>,
    /// Calibrated probability of acceptance given the parent's.
    pub q: Vec<f32>,
    /// Product of `q` along the path.
    pub path_prob: Vec<f32>,
    /// Marginal benefit-cost ratio, to compare with the speedup; null where the node was free.
    pub ratio: Vec<Option<f32>>,
    /// Run through the drafter.
    pub expanded: Vec<bool>,
    /// Verified by the target.
    pub verified: Vec<bool>,
}

/// Times of one round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundTrace {
    /// Round, from 0.
    pub round: u64,
    /// As the cost model foresaw them.
    pub predicted_us: PhaseTrace,
    /// As measured.
    pub measured_us: PhaseTrace,
}

/// Microseconds by phase; null where unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseTrace {
    /// All drafter passes.
    pub draft: Option<f32>,
    /// The target pass.
    pub verify: Option<f32>,
    /// The whole round.
    pub total: Option<f32>,
}

impl From<PredictedTimes> for PhaseTrace {
    fn from(times: PredictedTimes) -> Self {
        Self { draft: Some(times.draft), verify: Some(times.verify), total: Some(times.total) }
    }
}

impl TreeTrace {
    /// The pool's nodes as columns.
    pub fn new(nodes: &[PoolNode]) -> Self {
        let finite = |value: f32| value.is_finite().then_some(value);
        Self {
            tokens: nodes.iter().map(|node| node.token).collect(),
            parents: nodes
                .iter()
                .map(|node| if node.parent == NONE { -1 } else { node.parent as i32 })
                .collect(),
            logprob: nodes.iter().map(|node| finite(node.logp)).collect(),
            q: nodes.iter().map(|node| node.q).collect(),
            path_prob: nodes.iter().map(|node| node.path_prob).collect(),
            ratio: nodes.iter().map(|node| finite(node.ratio)).collect(),
            expanded: nodes.iter().map(PoolNode::is_expanded).collect(),
            verified: nodes.iter().map(|node| node.verified).collect(),
        }
    }
}

impl SequenceTrace {
    /// The record of sequence number `index` of the controller's present round, once selected and verified, and after
    /// [`compute_ratios`](super::DraftRound::compute_ratios). A plain round has a tree of the root alone.
    pub fn new(controller: &Controller, round: u64, index: usize, outcome: &SequenceOutcome<'_>) -> Self {
        let view = &controller.views()[index];
        let drafted = controller.round();
        let selected = drafted.selected().get(index);
        let pool_node = |packed: u32| selected.and_then(|tree| tree.pool_nodes.get(packed as usize)).copied();
        let last = outcome.accepted.last().map_or(0, |&node| node as usize);
        Self {
            round,
            batch: drafted.batch(),
            sequence: view.id,
            position: view.context_len,
            tree: TreeTrace::new(drafted.pool(index).nodes()),
            accepted: outcome.accepted.iter().filter_map(|&node| pool_node(node)).collect(),
            bonus_token: outcome.drawn.get(last).copied().unwrap_or(-1),
            speedup: drafted.speedup(),
        }
    }
}

/// Writes `record` as one line.
pub fn write_line(out: &mut impl Write, record: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, record)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_the_documented_fields() {
        let header = TraceHeader {
            version: TRACE_VERSION,
            model: "m".into(),
            drafter: None,
            device: "host".into(),
            policy: "smart".into(),
            seed: 7,
            temperature: 0.5,
        };
        let mut line = Vec::new();
        write_line(&mut line, &header).unwrap();
        let text = String::from_utf8(line).unwrap();
        let expected = r#"{"version":1,"model":"m","drafter":null,"device":"host","policy":"smart","seed":7,"temperature":0.5}"#;
        assert_eq!(text.trim_end(), expected);
        assert_eq!(serde_json::from_str::<TraceHeader>(&text).unwrap(), header);
    }

    #[test]
    fn a_free_node_has_no_ratio() {
        let mut pool = crate::control::CandidatePool::default();
        pool.reset(5, 1.0);
        let tree = TreeTrace::new(pool.nodes());
        assert_eq!((tree.parents[0], tree.ratio[0]), (-1, None));
        let text = serde_json::to_string(&tree).unwrap();
        assert_eq!(serde_json::from_str::<TreeTrace>(&text).unwrap(), tree);
    }
}
