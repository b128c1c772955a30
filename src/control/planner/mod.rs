//! Planners: `plan(&Stats) -> Plan`. What a [`Policy`] wants of the coming round, from past rounds and the present batch alone.
//!
//! Most policies have one plan for good. The others keep what they learn here, one file each.
#![forbid(unsafe_code)]

pub mod disco;
pub mod goodput;
pub mod sequoia;
pub mod tapout;

use super::controller::{ControllerConfig, RoundReport, SequenceOutcome};
use super::cost::{CostModel, CostTables};
use super::plan::{EAGLE1_TREE, MEDUSA_TREE, Plan, SelectionRule, StaticNode, StopRule, WidthRule};
use super::policy::Policy;
use super::round::{DraftRound, SelectedTree};

/// `eagle2`'s levels and beam behind `auto-n`: the EAGLE authors' evaluation setting.
const AUTO_N: (usize, usize) = (10, 5);
/// Beam and nodes of `ddd`: those of `eagle2` in the EAGLE authors' setting.
const DDD: (usize, usize) = (10, 60);

/// What a planner knows of the coming round.
#[derive(Clone, Copy, Debug)]
pub struct Stats<'a> {
    /// Costs at the present batch.
    pub tables: &'a CostTables,
    /// Sequences that may draft, ascending.
    pub drafting: &'a [usize],
    /// Rows of the drafter's first pass: those that these sequences have to catch up on, their roots included.
    pub catch_up_rows: usize,
}

impl Stats<'_> {
    /// A drafter pass of `rows` rows in all, ns.
    pub fn draft_ns(&self, rows: usize) -> u64 {
        let attention = self.drafting.iter().map(|&sequence| self.tables.draft_attention_ns[sequence]);
        self.tables.draft_linear_ns(rows) + attention.sum::<u64>()
    }

    /// Attention that one more node costs each drafting sequence that has `nodes` already, ns.
    pub fn attention_step_ns(&self, nodes: usize) -> u64 {
        self.drafting.iter().map(|&sequence| self.tables.attention_step_ns(sequence, nodes)).sum()
    }

    /// The target pass with `draft_tokens` for each drafting sequence, whose attention beyond the roots takes `attention_ns`, ns.
    pub fn verify_ns(&self, draft_tokens: usize, attention_ns: u64) -> u64 {
        let tokens = self.tables.batch() + draft_tokens * self.drafting.len();
        self.tables.verify_linear_ns(tokens) + self.tables.attention_ns + attention_ns
    }

    /// Tokens per nanosecond of a round of `ns`, if each drafting sequence can expect `accepted` draft tokens.
    pub fn rate(&self, accepted: f64, ns: u64) -> f64 {
        (self.tables.batch() as f64 + self.drafting.len() as f64 * accepted) / ns.max(1) as f64
    }
}

/// Makes the plans of one policy.
#[derive(Debug)]
pub(super) struct Planner {
    /// No plan asks for more levels or draft tokens.
    widest: Plan,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    Fixed,
    Goodput(goodput::Goodput),
    Sequoia(sequoia::Sequoia),
    Disco(disco::Disco),
    TapOut(Box<tapout::TapOut>),
}

impl Planner {
    /// The planner of `policy`. `config` bounds the policies that choose for themselves; `cost` is read by `auto-n` alone.
    pub fn new(policy: Policy, config: &ControllerConfig, cost: &CostModel) -> Self {
        let heads = config.heads.unwrap_or(usize::MAX);
        let mut widest = widest(policy, config, cost);
        widest.max_levels = widest.max_levels.min(heads);
        let rule = match policy {
            Policy::Goodput { max_length } => Rule::Goodput(goodput::Goodput::new(max_length.min(heads))),
            Policy::Sequoia { .. } => {
                Rule::Sequoia(sequoia::Sequoia::new(widest.top_k, widest.max_draft_tokens, widest.max_levels))
            }
            Policy::Disco(threshold) => Rule::Disco(disco::Disco::new(threshold)),
            Policy::TapOut(kind) => Rule::TapOut(Box::new(tapout::TapOut::new(kind))),
            _ => Rule::Fixed,
        };
        Self { widest, rule }
    }

    /// Bounds of every plan.
    pub fn widest(&self) -> &Plan {
        &self.widest
    }

    /// The plan of the coming round.
    pub fn plan(&mut self, stats: &Stats<'_>) -> Plan {
        let mut plan = self.widest.clone();
        match &mut self.rule {
            Rule::Fixed => {}
            Rule::Goodput(goodput) => {
                plan.max_levels = goodput.choose(stats);
                plan.max_draft_tokens = plan.max_levels;
            }
            Rule::Sequoia(sequoia) => {
                let tree = sequoia.tree(stats);
                plan.width = WidthRule::Static(tree);
            }
            Rule::Disco(disco) => plan.stop = disco.stop_rule(),
            Rule::TapOut(tapout) => plan.stop = tapout.choose(),
        }
        plan
    }

    /// Whether the latest plan drafts only to see whether that pays again.
    pub fn is_probing(&self) -> bool {
        matches!(&self.rule, Rule::Goodput(goodput) if goodput.is_probing())
    }

    /// Learns from a drafted round.
    pub fn observe(&mut self, round: &DraftRound, report: &RoundReport<'_>) {
        match &mut self.rule {
            Rule::Fixed => {}
            Rule::Goodput(goodput) => outcomes(round, report).for_each(|(_, tree, outcome)| {
                goodput.observe(tree.tree.num_draft_tokens(), outcome.accepted.len())
            }),
            Rule::Sequoia(sequoia) => sequoia.observe(round, outcomes(round, report)),
            Rule::Disco(disco) => disco.observe(round, outcomes(round, report)),
            Rule::TapOut(tapout) => tapout.observe(round, outcomes(round, report), self.widest.max_levels),
        }
    }
}

/// Sequences that drafted, with their trees and what came of them.
pub(super) fn outcomes<'a>(
    round: &'a DraftRound,
    report: &'a RoundReport<'a>,
) -> impl Iterator<Item = (usize, &'a SelectedTree, &'a SequenceOutcome<'a>)> + Clone {
    let pairs = round.selected().iter().zip(report.sequences).enumerate();
    pairs
        .filter(|(_, (tree, _))| tree.tree.num_draft_tokens() > 0)
        .map(|(sequence, (tree, outcome))| (sequence, tree, outcome))
}

/// The plan of `policy` where it has one for good; else a plan that bounds all of its plans.
fn widest(policy: Policy, config: &ControllerConfig, cost: &CostModel) -> Plan {
    let own = |width, selection| Plan {
        top_k: config.top_k,
        max_levels: config.max_depth,
        width,
        stop: StopRule::Never,
        selection,
        max_draft_tokens: config.max_draft_tokens,
        floor: config.floor.min(config.max_draft_tokens),
    };
    let beam = |top_k, max_levels, total: usize| Plan {
        top_k,
        max_levels,
        max_draft_tokens: total - 1,
        ..own(WidthRule::Beam(top_k), SelectionRule::TopN(total - 1))
    };
    let fixed = |top_k, max_levels, tree: &[StaticNode]| Plan {
        top_k,
        max_levels,
        max_draft_tokens: tree.len(),
        ..own(WidthRule::Static(tree.into()), SelectionRule::All)
    };
    let stopped_chain = |stop| {
        let length = config.max_depth.min(config.max_draft_tokens);
        Plan { top_k: config.top_k, stop, selection: SelectionRule::Chain, ..Plan::chain(length) }
    };
    match policy {
        Policy::Plain => Plan { max_levels: 0, ..own(WidthRule::Scan, SelectionRule::All) },
        Policy::Chain(length) => Plan::chain(length),
        Policy::Eagle1 => fixed(4, 5, &EAGLE1_TREE),
        Policy::Medusa => fixed(10, 4, &MEDUSA_TREE),
        Policy::Eagle2 { top_k, depth, total } => beam(top_k, depth + 1, total),
        Policy::AutoN => beam(AUTO_N.0, AUTO_N.1 + 1, auto_total(cost)),
        Policy::SmartPaper => own(WidthRule::Admitted, SelectionRule::PerNode),
        Policy::Smart => own(WidthRule::Scan, SelectionRule::Scan),
        Policy::OptTree { total, least_gain } => Plan {
            max_draft_tokens: total - 1,
            ..own(WidthRule::BestTree { nodes: total - 1, least_gain }, SelectionRule::Best(total - 1))
        },
        Policy::Sequoia { total } => Plan {
            max_draft_tokens: total - 1,
            max_levels: config.max_depth.min(total - 1),
            ..own(WidthRule::Static([].into()), SelectionRule::All)
        },
        Policy::Goodput { max_length } => Plan::chain(max_length),
        Policy::Ddd(threshold) => {
            Plan { stop: StopRule::BeamBelow(threshold), ..beam(DDD.0, config.max_depth, DDD.1) }
        }
        Policy::Svip(threshold) => stopped_chain(StopRule::EntropyAbove(threshold)),
        Policy::SpecDecPlusPlus(threshold) => stopped_chain(StopRule::RejectionAbove(threshold)),
        Policy::Disco(_) | Policy::TapOut(_) => stopped_chain(StopRule::Never),
    }
}

/// EAGLE's built-in size (`ea_model.py`): the cheapest of five totals for one sequence without a prefix, each time divided by
/// the gain that its authors expect of the size.
pub fn auto_total(cost: &CostModel) -> usize {
    const SIZES: [(usize, f64); 5] = [(40, 1.0), (48, 1.05), (50, 1.07), (56, 1.1), (60, 1.13)];
    let score = |&(total, gain): &(usize, f64)| cost.verify_us(total, [(total, 0)]) / gain;
    SIZES.iter().min_by(|a, b| score(a).total_cmp(&score(b))).map_or(60, |best| best.0)
}
