//! [`Policy`]: how trees are grown, as named on the command line, and the [`Plan`] that each policy is.
//!
//! A [`Plan`] is plain data. One executor interprets it, in Rust ([`DraftRound`](super::DraftRound)) and, bit for bit the
//! same, in CUDA; no policy has code of its own in the round.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use super::cost::CostModel;
use crate::error::Error;

/// Widest top-k of the draft kernel.
pub const MAX_TOP_K: usize = 32;
/// Most draft tokens verified per sequence: a tree of [`MAX_NODES`](crate::tree::MAX_NODES) less its root.
pub const MAX_DRAFT_TOKENS: usize = crate::tree::MAX_NODES - 1;
/// `eagle2`'s levels and beam behind `auto-n`: the EAGLE authors' evaluation setting.
const AUTO_N: (usize, usize) = (10, 5);

/// A rule for growing draft trees, written as on the command line (`Display` and `FromStr` round-trip).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `plain`: no speculation.
    Plain,
    /// `chain:K`: the drafter's likeliest token, K times.
    Chain(usize),
    /// `eagle1`: EAGLE-1's static tree of 25 drafted nodes (SafeAILab/EAGLE, `choices.py`, `mc_sim_7b_63`).
    Eagle1,
    /// `eagle2:K,D,N`: the dynamic tree of EAGLE-2 and EAGLE-3 (`topK_genrate`): a beam of the K best nodes by cumulative
    /// log-probability over D + 1 drafter passes, then the N - 1 best of all nodes.
    Eagle2 {
        /// Children a node and width of the beam.
        top_k: usize,
        /// Drafter passes after the first.
        depth: usize,
        /// Nodes verified, root included.
        total: usize,
    },
    /// `auto-n`: `eagle2:10,5,N` with the N of {40, 48, 50, 56, 60} that EAGLE's start-up probe would choose.
    AutoN,
    /// `smart-paper`: the per-node rule of SMART as reconstructed from its abstract; see [`SelectionRule::PerNode`].
    SmartPaper,
    /// `smart`: the SMART rule over runs of nodes and the union of all sequences.
    Smart,
}

/// How a round is drafted and what of it is verified: plain data, made from past rounds only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Children drafted for each node that is run.
    pub top_k: usize,
    /// Most drafter passes of a round; 0 = never drafts.
    pub max_levels: usize,
    /// Which nodes are run through the drafter.
    pub width: WidthRule,
    /// Which drafted nodes are verified.
    pub selection: SelectionRule,
    /// Draft tokens kept for verification per sequence, at most.
    pub max_draft_tokens: usize,
}

/// Which nodes the next drafter pass runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WidthRule {
    /// Per sequence the best so many nodes of the newest level, by cumulative log-probability, ties to the older node.
    Beam(usize),
    /// The inner nodes of a fixed tree.
    Static(&'static [StaticNode]),
    /// The nodes that the per-node rule has admitted.
    Admitted,
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

/// A node of a static tree, listed level by level, parents first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticNode {
    /// Index of the parent among the *pool* nodes: 0 is the root, `i + 1` the table's entry `i`.
    pub parent: u32,
    /// Which of the parent's top-k children.
    pub rank: u32,
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

impl Policy {
    /// The plan of this policy. `top_k`, `max_levels` and `max_draft_tokens` bound the policies that choose for themselves;
    /// `cost` is read by `auto-n` alone.
    pub fn plan(self, top_k: usize, max_levels: usize, max_draft_tokens: usize, cost: &CostModel) -> Plan {
        let eagle2 = |top_k, depth, total: usize| Plan {
            top_k,
            max_levels: depth + 1,
            width: WidthRule::Beam(top_k),
            selection: SelectionRule::TopN(total - 1),
            max_draft_tokens: total - 1,
        };
        let own = |width, selection| Plan { top_k, max_levels, width, selection, max_draft_tokens };
        match self {
            Policy::Plain => Plan { max_levels: 0, ..own(WidthRule::Scan, SelectionRule::All) },
            Policy::Chain(length) => Plan {
                top_k: 1,
                max_levels: length,
                width: WidthRule::Beam(1),
                selection: SelectionRule::All,
                max_draft_tokens: length,
            },
            Policy::Eagle1 => Plan {
                top_k: 4,
                max_levels: 5,
                width: WidthRule::Static(&EAGLE1_TREE),
                selection: SelectionRule::All,
                max_draft_tokens: EAGLE1_TREE.len(),
            },
            Policy::Eagle2 { top_k, depth, total } => eagle2(top_k, depth, total),
            Policy::AutoN => eagle2(AUTO_N.0, AUTO_N.1, auto_total(cost)),
            Policy::SmartPaper => own(WidthRule::Admitted, SelectionRule::PerNode),
            Policy::Smart => own(WidthRule::Scan, SelectionRule::Scan),
        }
    }
}

/// EAGLE's built-in size (`ea_model.py`): the cheapest of five totals for one sequence without a prefix, each time divided by
/// the gain that its authors expect of the size.
pub fn auto_total(cost: &CostModel) -> usize {
    const SIZES: [(usize, f64); 5] = [(40, 1.0), (48, 1.05), (50, 1.07), (56, 1.1), (60, 1.13)];
    let score = |&(total, gain): &(usize, f64)| cost.verify_us(total, [(total, 0)]) / gain;
    SIZES.iter().min_by(|a, b| score(a).total_cmp(&score(b))).map_or(60, |best| best.0)
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Plain => f.write_str("plain"),
            Policy::Chain(length) => write!(f, "chain:{length}"),
            Policy::Eagle1 => f.write_str("eagle1"),
            Policy::Eagle2 { top_k, depth, total } => write!(f, "eagle2:{top_k},{depth},{total}"),
            Policy::AutoN => f.write_str("auto-n"),
            Policy::SmartPaper => f.write_str("smart-paper"),
            Policy::Smart => f.write_str("smart"),
        }
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, arguments) = match text.split_once(':') {
            Some((name, arguments)) => (name, Some(arguments)),
            None => (text, None),
        };
        match (name, arguments) {
            ("plain", None) => Ok(Policy::Plain),
            ("eagle1", None) => Ok(Policy::Eagle1),
            ("auto-n", None) => Ok(Policy::AutoN),
            ("smart-paper", None) => Ok(Policy::SmartPaper),
            ("smart", None) => Ok(Policy::Smart),
            ("chain", Some(arguments)) => {
                let [length] = numbers(text, arguments, "chain:K")?;
                within(text, "K", length, 1, MAX_DRAFT_TOKENS)?;
                Ok(Policy::Chain(length))
            }
            ("eagle2", Some(arguments)) => {
                let [top_k, depth, total] = numbers(text, arguments, "eagle2:K,D,N")?;
                within(text, "K", top_k, 1, MAX_TOP_K)?;
                within(text, "D", depth, 0, MAX_DRAFT_TOKENS / top_k)?;
                within(text, "N", total, 2, MAX_DRAFT_TOKENS + 1)?;
                Ok(Policy::Eagle2 { top_k, depth, total })
            }
            ("chain", None) => Err(Error::Input("policy \"chain\" needs a length, as in chain:4".into())),
            ("eagle2", None) => {
                Err(Error::Input("policy \"eagle2\" needs K,D,N, as in eagle2:10,5,60".into()))
            }
            ("plain" | "eagle1" | "auto-n" | "smart-paper" | "smart", Some(_)) => {
                Err(Error::Input(format!("policy {text:?}: {name} takes no parameters")))
            }
            _ => Err(Error::Input(format!(
                "unknown policy {text:?}; choose one of smart, smart-paper, plain, chain:K, eagle1, eagle2:K,D,N, auto-n"
            ))),
        }
    }
}

fn numbers<const COUNT: usize>(text: &str, arguments: &str, form: &str) -> Result<[usize; COUNT], Error> {
    let parsed: Option<Vec<usize>> = arguments.split(',').map(|part| part.parse().ok()).collect();
    parsed
        .and_then(|values| values.try_into().ok())
        .ok_or_else(|| Error::Input(format!("policy {text:?} must be written {form} with whole numbers")))
}

fn within(text: &str, name: &str, value: usize, low: usize, high: usize) -> Result<(), Error> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(Error::Input(format!("policy {text:?}: {name} must be between {low} and {high}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_reads_what_it_prints() {
        for text in [
            "plain",
            "chain:1",
            "chain:255",
            "eagle1",
            "eagle2:10,5,60",
            "eagle2:32,7,256",
            "auto-n",
            "smart-paper",
            "smart",
        ] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_policies_are_named_in_one_sentence() {
        for (text, says) in [
            ("smrt", "unknown policy \"smrt\"; choose one of smart"),
            ("", "unknown policy \"\""),
            ("chain", "as in chain:4"),
            ("chain:0", "K must be between 1 and 255"),
            ("chain:-1", "must be written chain:K"),
            ("chain:99999999999999999999", "must be written chain:K"),
            ("eagle2:10,5", "must be written eagle2:K,D,N"),
            ("eagle2:10,5,60,1", "must be written eagle2:K,D,N"),
            ("eagle2:0,5,60", "K must be between 1 and 32"),
            ("eagle2:10,26,60", "D must be between 0 and 25"),
            ("eagle2:10,5,1", "N must be between 2 and 256"),
            ("eagle2:10,5,257", "N must be between 2 and 256"),
            ("smart:3", "smart takes no parameters"),
        ] {
            let error = text.parse::<Policy>().unwrap_err();
            assert!(error.is_input());
            let message = error.to_string();
            assert!(message.contains(says), "{text}: {message}");
            assert!(!message.contains('\n'));
        }
    }

    #[test]
    fn eagle1_lists_parents_first_and_level_by_level() {
        let mut depth = vec![0];
        for (i, entry) in EAGLE1_TREE.iter().enumerate() {
            assert!((entry.parent as usize) <= i);
            depth.push(depth[entry.parent as usize] + 1);
        }
        assert!(depth.is_sorted());
        let widths: Vec<_> = (1..=5).map(|level| depth.iter().filter(|&&d| d == level).count()).collect();
        assert_eq!(widths, [4, 8, 8, 3, 2]);
    }
}
