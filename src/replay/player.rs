//! [`replay`]: the rounds that a policy would run over recorded texts.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::lanes::{Lane, Texts};
use super::outcome::{Outcome, RoundCount};
use super::random::Random;
use super::record::{Record, RecordedTree};
use crate::control::{
    CandidatePool, Controller, ControllerConfig, CostModel, FrontierRow, NONE, PhaseTimes, Policy,
    RoundReport, SelectedTree, SequenceOutcome, SequenceView,
};
use crate::error::{Error, Result};

/// What the policy is told that it would have to learn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Knowledge {
    /// Acceptance: the target's own probabilities in place of calibrated ones.
    pub probabilities: bool,
    /// Costs: the table that prices the replay, whatever `Settings::belief` says, untouched by measured times.
    pub costs: bool,
}

/// How to replay.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Sequences at once. A text that ends makes room for the next; the record is played round and round.
    pub batch: usize,
    /// Tokens to emit, at least.
    pub tokens: usize,
    /// Cached tokens of a sequence at its first position; the prompt's own length if `None`.
    pub context: Option<usize>,
    /// Order of the texts, and noise.
    pub seed: u64,
    /// What the policy believes about costs at the start; the truth if `None`.
    pub belief: Option<CostModel>,
    /// Spread of measured times around the truth: uniform within this share, one time in fifty ten times too long as well.
    pub noise: f64,
    /// What it is told.
    pub knowledge: Knowledge,
    /// Bounds of the controller.
    pub config: ControllerConfig,
}

impl Settings {
    /// `batch` sequences over `tokens` tokens, everything else as it comes.
    pub fn new(batch: usize, tokens: usize) -> Self {
        Self {
            batch,
            tokens,
            context: None,
            seed: 0,
            belief: None,
            noise: 0.0,
            knowledge: Knowledge::default(),
            config: ControllerConfig::default(),
        }
    }
}

/// Plays `policy` over `record` with rounds that take the time `costs` says.
///
/// # Errors
/// [`Error::Input`]: an empty batch, a policy that drafts more children a node than were recorded, true probabilities that
/// were not recorded.
pub fn replay(record: &Record, costs: &CostModel, policy: Policy, settings: &Settings) -> Result<Outcome> {
    let mut player = Player::new(record, costs, policy, settings)?;
    while player.outcome.tokens < settings.tokens as u64 {
        player.round();
    }
    Ok(player.finish())
}

/// Rounds of a policy over a record, one after another: what [`replay`] plays to its end.
pub struct Player<'a> {
    costs: &'a CostModel,
    settings: &'a Settings,
    texts: Texts<'a>,
    lanes: Vec<Lane<'a>>,
    controller: Controller,
    /// For each candidate of the round its child in the recorded tree.
    children: Vec<u32>,
    random: Random,
    outcome: Outcome,
}

impl<'a> Player<'a> {
    /// Before the first round.
    ///
    /// # Errors
    /// As [`replay`].
    pub fn new(
        record: &'a Record,
        costs: &'a CostModel,
        policy: Policy,
        settings: &'a Settings,
    ) -> Result<Self> {
        if settings.batch == 0 {
            return Err(Error::Input("a replay needs a batch of at least 1".into()));
        }
        if settings.knowledge.probabilities && !record.has_probs() {
            return Err(Error::Input(
                "the record does not hold the target's probabilities; record at a temperature above 0 with --uncoupled".into(),
            ));
        }
        let top_k = record.shape().top_k;
        let config = ControllerConfig {
            top_k: settings.config.top_k.min(top_k),
            max_depth: settings.config.max_depth.min(record.shape().levels),
            ..settings.config
        };
        let believed = match &settings.belief {
            Some(belief) if !settings.knowledge.costs => belief.clone(),
            _ => costs.clone(),
        };
        let controller = Controller::new(policy, config, believed);
        if controller.round().top_k() > top_k {
            return Err(Error::Input(format!(
                "policy {policy} drafts {} children a node, the record holds {top_k}",
                controller.round().top_k()
            )));
        }
        let (texts, lanes) = Texts::start(record, settings);
        Ok(Self {
            costs,
            settings,
            texts,
            lanes,
            controller,
            children: Vec::new(),
            random: Random(!settings.seed),
            outcome: Outcome { expected_tokens: record.has_probs().then_some(0.0), ..Outcome::default() },
        })
    }

    /// Plays one round.
    pub fn round(&mut self) {
        let views: Vec<SequenceView> = self.lanes.iter().map(Lane::view).collect();
        let total_context: usize = views.iter().map(|view| view.context_len).sum();
        let plain_us = self.costs.plain_us(views.len(), total_context) + self.costs.plain_overhead_us();
        let plan = self.controller.begin_round(&views);
        let draft_us = if plan.drafts() { self.draft(plan.top_k) } else { Vec::new() };
        let (verify_us, overhead_us) = if plan.drafts() {
            let trees = self.controller.round_mut().select();
            let nodes = trees.iter().map(|selected| selected.tree.num_nodes());
            let tokens = nodes.clone().sum();
            let contexts = views.iter().map(|view| view.context_len);
            (self.costs.verify_us(tokens, nodes.zip(contexts)), self.costs.overhead_us())
        } else {
            (plain_us - self.costs.plain_overhead_us(), self.costs.plain_overhead_us())
        };
        let walks: Vec<(Vec<u32>, Vec<i32>)> =
            (0..self.lanes.len()).map(|sequence| self.walk(sequence)).collect();
        self.count(&walks, plain_us, &draft_us, verify_us, overhead_us);
        self.learn(&walks, &draft_us, verify_us, overhead_us);
        self.advance(&walks);
    }

    /// Sums so far, without what [`finish`](Self::finish) adds.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// The policy's controller.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// The outcome, with what only the end tells.
    pub fn finish(mut self) -> Outcome {
        self.outcome.conclude(&self.controller);
        self.outcome
    }

    /// Answers for the drafter until the policy has drafted enough; the true time of each pass.
    fn draft(&mut self, top_k: usize) -> Vec<f64> {
        let mut level_us = Vec::new();
        let (mut tokens, mut logps, mut probs) = (Vec::new(), Vec::new(), Vec::new());
        self.children.clear();
        while let Some(rows) = self.controller.round_mut().next_level() {
            let mut us_rows = rows.len();
            let mut context = 0;
            let (mut last, first_new) = (NONE, self.children.len());
            tokens.clear();
            logps.clear();
            probs.clear();
            for row in rows {
                let lane = &self.lanes[row.sequence as usize];
                if row.sequence != last {
                    context += lane.context_len();
                    last = row.sequence;
                }
                if row.node == 0 {
                    us_rows += lane.backlog;
                }
                let tree = lane.tree();
                let first = recorded_row(row, tree, &self.children) * tree.top_k();
                let children = first..first + top_k;
                tokens.extend_from_slice(&tree.tokens()[children.clone()]);
                logps.extend_from_slice(&tree.logps()[children.clone()]);
                if self.settings.knowledge.probabilities {
                    probs.extend_from_slice(&tree.probs().unwrap_or_default()[children.clone()]);
                }
                self.children.extend(children.map(|child| child as u32));
            }
            level_us.push(self.costs.draft_us(us_rows, context));
            let round = self.controller.round_mut();
            round.add_known_level(&tokens, &logps, (!probs.is_empty()).then_some(&probs));
            let (lanes, children) = (&self.lanes, &self.children);
            round.seal_newest(|sequence, candidate| {
                debug_assert!(candidate >= first_new);
                lanes[sequence].tree().row_of(children[candidate] as usize).is_none()
            });
        }
        level_us
    }

    /// The accepted nodes of a sequence's tree, and the draws that are known: those after the root and after them.
    fn walk(&self, sequence: usize) -> (Vec<u32>, Vec<i32>) {
        let lane = &self.lanes[sequence];
        let Some(SelectedTree { tree, .. }) = self.controller.round().selected().get(sequence) else {
            return (Vec::new(), vec![lane.tree().drawn]);
        };
        let mut drawn = vec![-1; tree.num_nodes()];
        let (mut accepted, mut node) = (Vec::new(), 0);
        loop {
            drawn[node] = lane.text.trees[lane.at + accepted.len()].drawn;
            match tree.child_with_token(node, drawn[node]) {
                Some(child) => {
                    accepted.push(child as u32);
                    node = child;
                }
                None => return (accepted, drawn),
            }
        }
    }

    fn count(
        &mut self,
        walks: &[(Vec<u32>, Vec<i32>)],
        plain_us: f64,
        draft_us: &[f64],
        verify_us: f64,
        overhead_us: f64,
    ) {
        let batch = walks.len();
        let draft_us: f64 = draft_us.iter().sum();
        let tokens = batch + walks.iter().map(|(accepted, _)| accepted.len()).sum::<usize>();
        let count = RoundCount {
            tokens,
            draft_us,
            verify_us,
            control_us: 0.0,
            us: draft_us + verify_us + overhead_us,
            plain_us: plain_us * tokens as f64 / batch as f64,
        };
        self.outcome.count_round(&self.controller, &outcomes(walks), &count);
        if let Some(expected) = &mut self.outcome.expected_tokens {
            *expected += batch as f64;
            let round = self.controller.round();
            for (sequence, selected) in round.selected().iter().enumerate() {
                let (pool, tree) = (round.pool(sequence), self.lanes[sequence].tree());
                *expected += expected_len(selected, pool, tree, &self.children);
            }
        }
    }

    fn learn(&mut self, walks: &[(Vec<u32>, Vec<i32>)], draft_us: &[f64], verify_us: f64, overhead_us: f64) {
        let mut shown = |us: f64| measured(&mut self.random, us, self.settings.noise);
        let levels: Vec<f32> = draft_us.iter().map(|&us| shown(us)).collect();
        let (verify, overhead) = (shown(verify_us), shown(overhead_us));
        let times = if self.settings.knowledge.costs {
            PhaseTimes::default()
        } else {
            let total = levels.iter().sum::<f32>() + verify + overhead;
            PhaseTimes { draft_levels: &levels, verify: Some(verify), total: Some(total) }
        };
        self.controller.observe(&RoundReport { sequences: &outcomes(walks), times });
    }

    fn advance(&mut self, walks: &[(Vec<u32>, Vec<i32>)]) {
        let round = self.controller.round();
        for (sequence, (accepted, _)) in walks.iter().enumerate() {
            let drafted = !round.selected().is_empty() && round.pool(sequence).nodes()[0].is_expanded();
            self.lanes[sequence].advance(accepted.len(), drafted, &mut self.texts);
        }
    }
}

/// Walks as the controller is told of them.
fn outcomes(walks: &[(Vec<u32>, Vec<i32>)]) -> Vec<SequenceOutcome<'_>> {
    walks.iter().map(|(accepted, drawn)| SequenceOutcome { accepted, drawn }).collect()
}

/// The recorded row of the node that `row` runs.
fn recorded_row(row: &FrontierRow, tree: &RecordedTree, children: &[u32]) -> usize {
    if row.node == 0 {
        return 0;
    }
    tree.row_of(children[row.candidate as usize] as usize).expect("nodes that were not recorded are sealed")
}

/// Accepted tokens to be expected of a tree by the target's own probabilities; `children` as in [`Player`].
fn expected_len(selected: &SelectedTree, pool: &CandidatePool, tree: &RecordedTree, children: &[u32]) -> f64 {
    let probs = tree.probs().unwrap_or_default();
    let mut path_probs = vec![1.0; selected.tree.num_nodes()];
    for node in 1..path_probs.len() {
        let candidate = pool.nodes()[selected.pool_nodes[node] as usize].candidate;
        let prob = f64::from(probs[children[candidate as usize] as usize]);
        path_probs[node] = path_probs[selected.tree.parent(node).unwrap_or(0)] * prob;
    }
    path_probs[1..].iter().sum()
}

/// `us` as a clock with this spread shows it.
fn measured(random: &mut Random, us: f64, spread: f64) -> f32 {
    if spread == 0.0 {
        return us as f32;
    }
    let stall = if random.below(50) == 0 { 10.0 } else { 1.0 };
    (us * stall * (1.0 + spread * (2.0 * random.unit() - 1.0))) as f32
}
