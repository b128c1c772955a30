//! [`Policy`]: how trees are grown, as named on the command line. What a policy does in a round is a [`Plan`](super::Plan), which
//! its [planner](super::planner) makes.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::planner::tapout::BanditKind;
use crate::error::Error;

/// Widest top-k of the draft kernel.
pub const MAX_TOP_K: usize = 32;
/// Most draft tokens verified per sequence: a tree of [`MAX_NODES`](crate::tree::MAX_NODES) less its root.
pub const MAX_DRAFT_TOKENS: usize = crate::tree::MAX_NODES - 1;

/// What `--policy` may be, for messages.
pub const POLICIES: &str = "smart, smart-paper, plain, chain:K, eagle1, medusa, eagle2:K,D,N, auto-n, opt-tree:N[,DELTA], sequoia:N, \
     goodput[:KMAX], ddd[:T], svip[:H], specdec++[:H], disco[:T], tapout[:ucb1|thompson]";

/// A rule for growing draft trees, written as on the command line (`Display` and `FromStr` round-trip).
///
/// Of most papers only the abstract, or code of the authors, was at hand: what was assumed beyond is said with each. Where a published
/// rule reads the drafter's probability as an estimate of acceptance, ours reads the calibrated `q`, so that all policies judge by the
/// same numbers. Defaults of optional parameters are ours unless a source is named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// `plain`: no speculation.
    Plain,
    /// `chain:K`: the drafter's likeliest token, K times.
    Chain(usize),
    /// `eagle1`: EAGLE-1's static tree of 25 drafted nodes (SafeAILab/EAGLE, `choices.py`, `mc_sim_7b_63`).
    Eagle1,
    /// `medusa`: Medusa's static tree of 63 drafted nodes and four levels (FasterDecoding/Medusa, `medusa_choices.py`, `mc_sim_7b_63`).
    Medusa,
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
    /// `smart-paper`: the per-node rule of SMART as reconstructed from its abstract; see
    /// [`SelectionRule::PerNode`](super::plan::SelectionRule::PerNode).
    SmartPaper,
    /// `smart`: the SMART rule over runs of nodes and the union of all sequences.
    Smart,
    /// `opt-tree:N[,DELTA]`: OPT-Tree (arXiv 2406.17276, abstract; Jikai0Wang/OPT-Tree, `tree.py`). Maximises
    /// `E[A] = sum over nodes of the product of p along the path` over trees of N nodes, root included, level by level, and stops
    /// once a level raised `E[A]` of the best tree by no more than DELTA (default 0.5, the authors' evaluation setting). The authors run
    /// the N best nodes of the newest level; we run those of them that are among the N - 1 best of all levels, which gives the
    /// same tree, and judge a level when its own children are known, where their code is a level late.
    OptTree {
        /// Nodes verified, root included.
        total: usize,
        /// Least gain in expected tokens.
        least_gain: f32,
    },
    /// `sequoia:N`: Sequoia (arXiv 2402.12374, abstract). A tree of up to N nodes that is fixed by rank, not by the drafter's numbers:
    /// the best one under positional acceptance rates, of the size n and depth d that maximise `G(n, d) / (t_verify(n) + sum of d
    /// drafter passes)`; see [`planner::sequoia`](super::planner::sequoia).
    Sequoia {
        /// Most nodes verified, root included.
        total: usize,
    },
    /// `goodput[:KMAX]`: TurboSpec/SmartSpec (arXiv 2406.14066, abstract) and dynamic speculation of vLLM (`dynamic/manager.py`): before
    /// each round the chain length K in 0..=KMAX (default 8) that maximises expected tokens per predicted time at the present
    /// batch; see [`planner::goodput`](super::planner::goodput).
    Goodput {
        /// Longest chain.
        max_length: usize,
    },
    /// `ddd[:T]`: Dynamic Depth Decoding (arXiv 2409.00142, abstract): EAGLE-2's beam of 10 and 60 nodes, stopped when
    /// `logsumexp` of the beam's cumulative log-probabilities is below T (default -1). Assumed: checked after every level, where
    /// the paper checks at chosen depths.
    Ddd(f32),
    /// `svip[:H]`: SVIP (arXiv 2411.18462, abstract): a chain that stops when the square root of the entropy of the drafter's distribution is
    /// above H (default 1). Assumed: only the top-k log-probabilities reach the controller, so the entropy is that of these and
    /// of the rest as one lump, which is a lower bound; the token that was drafted from the uncertain distribution is verified.
    Svip(f32),
    /// `specdec++[:H]`: SpecDec++ (arXiv 2405.19715, abstract and the authors' README): a chain that stops when the probability of at
    /// least one rejection, `1 - product of p`, is above H (default 0.7). The paper trains a head for p; ours is the
    /// calibrated q.
    SpecDecPlusPlus(f32),
    /// `disco[:T]`: DISCO (arXiv 2405.04304, abstract): a chain that goes on while a classifier on confidence, entropy and position gives
    /// the newest token at least T (default 0.4) of being accepted. The paper trains its classifier beforehand; ours is a logistic
    /// regression learned online, an assumption; see [`planner::disco`](super::planner::disco).
    Disco(f32),
    /// `tapout[:ucb1|thompson]`: TapOut (arXiv 2511.02017, abstract): a bandit (default UCB1) that picks one of several stop rules a
    /// round; see [`planner::tapout`](super::planner::tapout).
    TapOut(BanditKind),
}

impl Policy {
    /// Whether plans depend on the cost model.
    pub fn reads_costs(self) -> bool {
        matches!(
            self,
            Policy::Smart
                | Policy::SmartPaper
                | Policy::AutoN
                | Policy::Sequoia { .. }
                | Policy::Goodput { .. }
        )
    }

    /// Whether this is a static tree: of the same size and depth in every round, whatever a round costs and brings. What people tune by hand.
    pub fn is_static_tree(self) -> bool {
        matches!(self, Policy::Chain(_) | Policy::Eagle1 | Policy::Medusa | Policy::Eagle2 { .. })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Plain => f.write_str("plain"),
            Policy::Chain(length) => write!(f, "chain:{length}"),
            Policy::Eagle1 => f.write_str("eagle1"),
            Policy::Medusa => f.write_str("medusa"),
            Policy::Eagle2 { top_k, depth, total } => write!(f, "eagle2:{top_k},{depth},{total}"),
            Policy::AutoN => f.write_str("auto-n"),
            Policy::SmartPaper => f.write_str("smart-paper"),
            Policy::Smart => f.write_str("smart"),
            Policy::OptTree { total, least_gain } => write!(f, "opt-tree:{total},{least_gain}"),
            Policy::Sequoia { total } => write!(f, "sequoia:{total}"),
            Policy::Goodput { max_length } => write!(f, "goodput:{max_length}"),
            Policy::Ddd(threshold) => write!(f, "ddd:{threshold}"),
            Policy::Svip(threshold) => write!(f, "svip:{threshold}"),
            Policy::SpecDecPlusPlus(threshold) => write!(f, "specdec++:{threshold}"),
            Policy::Disco(threshold) => write!(f, "disco:{threshold}"),
            Policy::TapOut(kind) => write!(f, "tapout:{kind}"),
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
        let total = |value| within(text, "N", value, 2..=MAX_DRAFT_TOKENS + 1);
        match (name, arguments) {
            ("plain", None) => Ok(Policy::Plain),
            ("eagle1", None) => Ok(Policy::Eagle1),
            ("medusa", None) => Ok(Policy::Medusa),
            ("auto-n", None) => Ok(Policy::AutoN),
            ("smart-paper", None) => Ok(Policy::SmartPaper),
            ("smart", None) => Ok(Policy::Smart),
            ("chain", Some(arguments)) => {
                let [length] = numbers(text, arguments, "chain:K")?;
                Ok(Policy::Chain(within(text, "K", length, 1..=MAX_DRAFT_TOKENS)?))
            }
            ("eagle2", Some(arguments)) => {
                let [top_k, depth, nodes] = numbers(text, arguments, "eagle2:K,D,N")?;
                within(text, "K", top_k, 1..=MAX_TOP_K)?;
                within(text, "D", depth, 0..=MAX_DRAFT_TOKENS / top_k)?;
                Ok(Policy::Eagle2 { top_k, depth, total: total(nodes)? })
            }
            ("opt-tree", Some(arguments)) => {
                let (nodes, least_gain) = match arguments.split_once(',') {
                    Some((nodes, gain)) => (nodes, Some(gain)),
                    None => (arguments, None),
                };
                let [nodes] = numbers(text, nodes, "opt-tree:N or opt-tree:N,DELTA")?;
                let total = total(nodes)?;
                Ok(Policy::OptTree {
                    total,
                    least_gain: threshold(text, "DELTA", least_gain, 0.5, 0.0..=255.0)?,
                })
            }
            ("sequoia", Some(arguments)) => {
                let [nodes] = numbers(text, arguments, "sequoia:N")?;
                Ok(Policy::Sequoia { total: total(nodes)? })
            }
            ("goodput", None) => Ok(Policy::Goodput { max_length: 8 }),
            ("goodput", Some(arguments)) => {
                let [length] = numbers(text, arguments, "goodput or goodput:KMAX")?;
                Ok(Policy::Goodput { max_length: within(text, "KMAX", length, 1..=MAX_DRAFT_TOKENS)? })
            }
            ("ddd", t) => Ok(Policy::Ddd(threshold(text, "T", t, -1.0, -100.0..=0.0)?)),
            ("svip", h) => Ok(Policy::Svip(threshold(text, "H", h, 1.0, 0.0..=10.0)?)),
            ("specdec++", h) => Ok(Policy::SpecDecPlusPlus(threshold(text, "H", h, 0.7, 0.0..=1.0)?)),
            ("disco", t) => Ok(Policy::Disco(threshold(text, "T", t, 0.4, 0.0..=1.0)?)),
            ("tapout", None | Some("ucb1")) => Ok(Policy::TapOut(BanditKind::Ucb1)),
            ("tapout", Some("thompson")) => Ok(Policy::TapOut(BanditKind::Thompson)),
            ("tapout", Some(_)) => Err(Error::Input(format!(
                "policy {text:?} must be written tapout, tapout:ucb1 or tapout:thompson"
            ))),
            ("chain", None) => Err(Error::Input("policy \"chain\" needs a length, as in chain:4".into())),
            ("eagle2", None) => {
                Err(Error::Input("policy \"eagle2\" needs K,D,N, as in eagle2:10,5,60".into()))
            }
            ("opt-tree" | "sequoia", None) => {
                Err(Error::Input(format!("policy {text:?} needs a number of nodes, as in {name}:60")))
            }
            ("plain" | "eagle1" | "medusa" | "auto-n" | "smart-paper" | "smart", Some(_)) => {
                Err(Error::Input(format!("policy {text:?}: {name} takes no parameters")))
            }
            _ => Err(Error::Input(format!("unknown policy {text:?}; choose one of {POLICIES}"))),
        }
    }
}

fn numbers<const COUNT: usize>(text: &str, arguments: &str, form: &str) -> Result<[usize; COUNT], Error> {
    let parsed: Option<Vec<usize>> = arguments.split(',').map(|part| part.parse().ok()).collect();
    parsed
        .and_then(|values| values.try_into().ok())
        .ok_or_else(|| Error::Input(format!("policy {text:?} must be written {form} with whole numbers")))
}

/// The threshold called `name` in `argument`, or the default where there is none.
fn threshold(
    text: &str,
    name: &str,
    argument: Option<&str>,
    default: f32,
    range: RangeInclusive<f32>,
) -> Result<f32, Error> {
    let Some(argument) = argument else { return Ok(default) };
    let value: f32 = argument
        .parse()
        .map_err(|_| Error::Input(format!("policy {text:?}: {name} must be a number, as in 0.5")))?;
    within(text, name, value, range)
}

/// `value`, if it lies in `range`; not a number lies in none.
fn within<T: PartialOrd + fmt::Display>(
    text: &str,
    name: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, Error> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (low, high) = range.into_inner();
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
            "medusa",
            "eagle2:10,5,60",
            "eagle2:32,7,256",
            "auto-n",
            "smart-paper",
            "smart",
            "opt-tree:60,0.5",
            "opt-tree:256,0",
            "sequoia:64",
            "goodput:8",
            "ddd:-1.25",
            "svip:0.1",
            "specdec++:0.7",
            "disco:0.4",
            "tapout:ucb1",
            "tapout:thompson",
        ] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn optional_parameters_have_defaults() {
        for (short, full) in [
            ("opt-tree:60", "opt-tree:60,0.5"),
            ("goodput", "goodput:8"),
            ("ddd", "ddd:-1"),
            ("svip", "svip:1"),
            ("specdec++", "specdec++:0.7"),
            ("disco", "disco:0.4"),
            ("tapout", "tapout:ucb1"),
        ] {
            assert_eq!(short.parse::<Policy>().unwrap(), full.parse().unwrap());
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
            ("opt-tree", "as in opt-tree:60"),
            ("opt-tree:x", "must be written opt-tree:N or opt-tree:N,DELTA"),
            ("opt-tree:1", "N must be between 2 and 256"),
            ("opt-tree:60,nan", "DELTA must be between 0 and 255"),
            ("opt-tree:60,-0.1", "DELTA must be between 0 and 255"),
            ("opt-tree:60,0.5,1", "DELTA must be a number"),
            ("sequoia", "as in sequoia:60"),
            ("sequoia:257", "N must be between 2 and 256"),
            ("sequoia:2,3", "must be written sequoia:N"),
            ("goodput:0", "KMAX must be between 1 and 255"),
            ("goodput:", "must be written goodput or goodput:KMAX"),
            ("ddd:1", "T must be between -100 and 0"),
            ("ddd:", "T must be a number"),
            ("svip:-inf", "H must be between 0 and 10"),
            ("specdec++:1.5", "H must be between 0 and 1"),
            ("disco:many", "T must be a number"),
            ("tapout:greedy", "must be written tapout, tapout:ucb1 or tapout:thompson"),
        ] {
            let error = text.parse::<Policy>().unwrap_err();
            assert!(error.is_input());
            let message = error.to_string();
            assert!(message.contains(says), "{text}: {message}");
            assert!(!message.contains('\n'));
        }
    }
}
