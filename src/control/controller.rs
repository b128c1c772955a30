//! [`Controller`]: one round after another. It decides whether to draft, hands out the round to execute, and learns from what
//! came of it.
#![forbid(unsafe_code)]

use super::acceptance::AcceptanceModel;
use super::cost::{CostModel, CostTables};
use super::forecast::{Decision, Forecast};
use super::learner::Learner;
use super::planner::{Planner, Stats};
use super::policy::{MAX_DRAFT_TOKENS, MAX_TOP_K, Policy};
use super::round::{DraftRound, RoundSequence};

/// Of what a pass took more than predicted, so much (as a log) is believed in a round after one that did not draft. The first passes of a drafter
/// that has rested, and the target's first tree, are slow where caches are small; while it rests such rounds are all that is seen of drafting,
/// and must not be what it seems to cost.
const COLD_BELIEF: f64 = 0.25;

/// Children of a node under `smart` while every sequence is greedy, of a drafter that runs once a level: the target's choice is seldom further
/// down, and to look at them all is what the controller's time goes into. With ten rounds were faster by 0.6 % at batch 1, before that time is
/// counted, and no faster at batch 4 to 64 (docs/2026-11-29-host-time.md).
const GREEDY_TOP_K: usize = 6;

/// Bounds on what the controller may ask of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// Children of a node, for policies that do not say; `smart` drafts fewer while every sequence is greedy.
    pub top_k: usize,
    /// Most drafter passes of a round, for the same policies.
    pub max_depth: usize,
    /// Most draft tokens of a sequence verified, at most [`MAX_DRAFT_TOKENS`].
    pub max_draft_tokens: usize,
    /// Most rows of one drafter pass, over the batch.
    pub max_level_rows: usize,
    /// Heads of a drafter that brings all levels of a round in one pass over the roots, a level a head (Medusa): no tree is deeper, and
    /// drafting costs that pass whatever the tree. `None` for a drafter that runs once a level.
    pub heads: Option<usize>,
    /// Under `smart`: draft tokens that every drafting sequence keeps in verification, as far as it has drafted so many, before the rest
    /// of the pass goes to the best nodes of the batch. 0 keeps none.
    pub floor: usize,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            top_k: 10,
            max_depth: 8,
            max_draft_tokens: MAX_DRAFT_TOKENS,
            max_level_rows: usize::MAX,
            heads: None,
            floor: 0,
        }
    }
}

/// A sequence as the next round finds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceView {
    /// Names the sequence from round to round.
    pub id: u64,
    /// The last committed token, root of the tree.
    pub root_token: i32,
    /// Tokens in the target's cache: the position of the root.
    pub context_len: usize,
    /// Drawn at a temperature above 0.
    pub sampled: bool,
    /// Committed tokens that the drafter has not seen yet, beyond the root; its catch-up pass runs them.
    pub backlog: usize,
    /// Draft tokens that could still be emitted in one round (the bonus token comes on top); 0 forbids drafting.
    pub max_depth: usize,
    /// What a token of this sequence is worth in the scans of `smart` relative to those of the others: an urgent one gets more of the shared
    /// pass. Only ratios matter; 1 for all is throughput. Not finite or not above 0 counts as 1.
    pub weight: f32,
}

/// Rows of a prompt that share the target pass of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passenger {
    /// Rows.
    pub rows: usize,
    /// Tokens in the target's cache before them.
    pub context_len: usize,
}

/// How to run the round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundPlan {
    /// Sequences that draft; 0 means a plain round: nothing is drafted and the plain decode pass is run.
    pub drafting: usize,
    /// Of these, those that draft only to see whether it pays again.
    pub probing: usize,
    /// Children per drafted row.
    pub top_k: usize,
    /// Predicted tokens per second relative to a plain round, before drafting.
    pub predicted_speedup: f32,
}

impl RoundPlan {
    /// Whether the drafter runs at all.
    pub fn drafts(&self) -> bool {
        self.drafting > 0
    }
}

/// What the target made of one sequence's tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceOutcome<'a> {
    /// Accepted nodes of the packed tree, root excluded, in path order.
    pub accepted: &'a [u32],
    /// The token that the target drew after each node of the packed tree, root first.
    pub drawn: &'a [i32],
}

/// Measured times of a round, in microseconds; what was not measured is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PhaseTimes<'a> {
    /// Drafter passes, in order.
    pub draft_levels: &'a [f32],
    /// The target pass with its draws.
    pub verify: Option<f32>,
    /// The whole round.
    pub total: Option<f32>,
}

/// What came of a round.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundReport<'a> {
    /// Per sequence, in the order of `begin_round`; may be empty after a plain round.
    pub sequences: &'a [SequenceOutcome<'a>],
    /// Measured times.
    pub times: PhaseTimes<'a>,
}

/// Predicted times of a round, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PredictedTimes {
    /// All drafter passes.
    pub draft: f32,
    /// The target pass.
    pub verify: f32,
    /// The whole round.
    pub total: f32,
}

/// The tree controller of one engine.
#[derive(Debug)]
pub struct Controller {
    policy: Policy,
    config: ControllerConfig,
    cost: CostModel,
    learner: Learner,
    forecast: Forecast,
    round: DraftRound,
    /// The batch of the present round.
    views: Vec<SequenceView>,
    /// What shares its target pass.
    passengers: Vec<Passenger>,
    ids: Vec<u64>,
    /// Sequences of the present round that may draft.
    drafting: Vec<usize>,
    planner: Planner,
    decision: Decision,
    /// Whether the round before the present one drafted, and nothing else came between.
    is_warm: bool,
}

impl Controller {
    /// A controller for `policy`.
    pub fn new(policy: Policy, config: ControllerConfig, cost: CostModel) -> Self {
        let config = ControllerConfig {
            top_k: config.top_k.clamp(1, MAX_TOP_K),
            max_draft_tokens: config.max_draft_tokens.clamp(1, MAX_DRAFT_TOKENS),
            max_depth: config.max_depth.min(config.heads.unwrap_or(usize::MAX)),
            ..config
        };
        let planner = Planner::new(policy, &config, &cost);
        Self {
            policy,
            config,
            cost,
            learner: Learner::new(&planner, policy == Policy::Smart),
            forecast: Forecast::default(),
            round: DraftRound::new(planner.widest().clone()),
            views: Vec::new(),
            passengers: Vec::new(),
            ids: Vec::new(),
            drafting: Vec::new(),
            planner,
            decision: Decision::default(),
            is_warm: false,
        }
    }

    /// Starts a round for `sequences` (at most 65535) and decides, before anything is drafted, which of them draft.
    pub fn begin_round(&mut self, sequences: &[SequenceView]) -> RoundPlan {
        self.begin_shared_round(sequences, &[])
    }

    /// As [`Controller::begin_round`], for a round in whose target pass prompts are read, too. What their rows would add to a plain round is
    /// spent whatever is decided, and the same in every round that could carry them, so it is left out of the speed that trees are held
    /// against; but every node is priced at the width that the pass then has.
    pub fn begin_shared_round(&mut self, sequences: &[SequenceView], passengers: &[Passenger]) -> RoundPlan {
        self.begin(sequences, passengers, true)
    }

    /// Starts a plain round that is run whatever anyone would decide: it was issued while the round before was under way.
    pub fn begin_plain_round(&mut self, sequences: &[SequenceView]) {
        self.forecast.skip();
        self.begin(sequences, &[], false);
    }

    /// Starts a round; without a decision nobody drafts.
    fn begin(&mut self, sequences: &[SequenceView], passengers: &[Passenger], decides: bool) -> RoundPlan {
        self.passengers.clear();
        self.passengers.extend_from_slice(passengers);
        let widest = self.planner.widest();
        self.views.clear();
        self.views.extend_from_slice(sequences);
        self.ids.clear();
        self.ids.extend(sequences.iter().map(|view| view.id));

        let batch = sequences.len();
        let weight_scale = batch as f64 / sequences.iter().map(sound_weight).sum::<f64>();
        self.learner.set_aside(&mut self.round);
        let round = &mut self.round;
        round.sequences.clear();
        round.sequences.extend(sequences.iter().map(|view| RoundSequence {
            root_token: view.root_token,
            drafts: widest.max_levels > 0 && view.max_depth > 0,
            max_depth: view.max_depth.min(widest.max_levels),
            left: view.max_depth,
            sampled: view.sampled,
            // Looked up when the round is equipped.
            odds: 1.0,
            catch_up_rows: view.backlog + 1,
            weight: (sound_weight(view) * weight_scale) as f32,
            stopped: false,
        }));
        let backlog: usize = sequences.iter().map(|view| view.backlog).sum();
        let read = passengers.iter().map(|passenger| passenger.rows).sum();
        let (cost, heads) = (&self.cost, self.config.heads.is_some());
        let freeze = |tables: &mut CostTables, drafted: usize, level_rows: usize| {
            let contexts = sequences.iter().map(|view| view.context_len);
            tables.freeze(cost, contexts, batch + drafted + read, batch + backlog + level_rows);
            tables.share_pass(read);
            if heads {
                tables.draft_at_once();
            }
        };
        let most_drafted = if widest.max_levels == 0 { 0 } else { batch * widest.max_draft_tokens };
        let most_level_rows = most_drafted.min(self.config.max_level_rows);
        // Who will perhaps not draft at all needs no more of the tables than the forecast reads.
        let (drafted, level_rows) = match self.policy {
            _ if !decides => (0, 0),
            Policy::Smart => self.forecast.reach(&self.ids),
            _ => (most_drafted, most_level_rows),
        };
        freeze(&mut round.tables, drafted.min(most_drafted), level_rows.min(most_level_rows));
        self.drafting.clear();
        let drafting = round.sequences.iter().enumerate().filter(|(_, sequence)| sequence.drafts);
        self.drafting.extend(drafting.map(|(sequence, _)| sequence));
        let catch_up = |&sequence: &usize| round.sequences[sequence].catch_up_rows;
        let catch_up_rows = self.drafting.iter().map(catch_up).sum();
        let mut plan =
            self.planner.plan(&Stats { tables: &round.tables, drafting: &self.drafting, catch_up_rows });
        let is_greedy = sequences.iter().all(|view| !view.sampled);
        if self.policy == Policy::Smart && is_greedy && !heads {
            plan.top_k = plan.top_k.min(GREEDY_TOP_K);
        }
        self.decision = if self.policy == Policy::Smart && decides {
            let decision = self.forecast.decide(&self.ids, round, self.cost.slowness());
            if decision.drafting > 0 {
                freeze(&mut round.tables, most_drafted, most_level_rows);
                let bounds = (plan.floor, plan.max_draft_tokens);
                plan.max_draft_tokens = self.forecast.most_drafted(&round.tables, bounds);
            }
            decision
        } else if plan.max_levels == 0 || !decides {
            round.sequences.iter_mut().for_each(|sequence| sequence.drafts = false);
            Decision { drafting: 0, probing: 0, speedup: 1.0 }
        } else {
            let drafting = self.drafting.len();
            let probing = if self.planner.is_probing() { drafting } else { 0 };
            Decision { drafting, probing, speedup: 1.0 }
        };
        // Only drafting reads that; a round without it has other things in the caches.
        round.is_equipped = self.decision.drafting == 0;
        let top_k = plan.top_k;
        round.begin(plan, self.config.max_level_rows);
        RoundPlan {
            drafting: self.decision.drafting,
            probing: self.decision.probing,
            top_k,
            predicted_speedup: self.decision.speedup,
        }
    }

    /// The round to execute: draft it level by level, then select.
    pub fn round_mut(&mut self) -> &mut DraftRound {
        let (round, equip) = self.round_to_equip();
        equip(round);
        round
    }

    /// The round to execute, and what has to be called with it before the children of its first level are added: it learns what is left to be
    /// learned of earlier rounds, for which there is time while that level is run.
    pub(crate) fn round_to_equip(&mut self) -> (&mut DraftRound, impl FnOnce(&mut DraftRound)) {
        let Self { round, learner, views, .. } = self;
        (round, |round: &mut DraftRound| learner.equip(round, views))
    }

    /// The round as it stands, for traces.
    pub fn round(&self) -> &DraftRound {
        &self.round
    }

    /// Learns from the round that `begin_round` started; call it once, before the next round begins.
    pub fn observe(&mut self, report: &RoundReport<'_>) {
        self.observe_first(report);
        self.catch_up();
    }

    /// The part of [`Controller::observe`] that the next round's decision to draft needs. [`Controller::catch_up`] is the rest, and is called by
    /// whatever needs it.
    pub(crate) fn observe_first(&mut self, report: &RoundReport<'_>) {
        let (predicted_us, slowness) = (self.predicted_alone().total, self.cost.slowness());
        self.learn_costs(&report.times);
        if self.decision.drafting > 0 {
            self.learner.note(&self.round, &self.views, report);
            self.planner.observe(&self.round, report);
        }
        if self.policy == Policy::Smart {
            let complete = report.sequences.len() == self.views.len();
            let emitted = report.sequences.iter().map(|outcome| outcome.accepted.len() + 1).sum();
            let time = (f64::from(predicted_us) * 1000.0, slowness);
            self.forecast.observe(&self.ids, &self.round, time, complete.then_some(emitted));
        }
    }

    /// Learns what is left to be learned of earlier rounds.
    pub(crate) fn catch_up(&mut self) {
        self.learner.catch_up(&self.round);
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The bounds that it keeps to.
    pub fn config(&self) -> &ControllerConfig {
        &self.config
    }

    /// The cost model, to save or to show.
    pub fn cost(&self) -> &CostModel {
        &self.cost
    }

    /// The acceptance model, as learned so far.
    pub fn acceptance(&self) -> &AcceptanceModel {
        self.learner.acceptance()
    }

    /// The batch of the present round.
    pub fn views(&self) -> &[SequenceView] {
        &self.views
    }

    /// Share of all time that was spent on probes.
    pub fn probe_share(&self) -> f64 {
        self.forecast.probe_share()
    }

    /// Predicted times of the present round, with what is read beside it.
    pub fn predicted(&self) -> PredictedTimes {
        let own = self.predicted_alone();
        let context = |passenger: &Passenger| self.cost.attention_us(passenger.rows, passenger.context_len);
        let read = self.round.tables.read_ns as f32 / 1000.0
            + self.passengers.iter().map(context).sum::<f64>() as f32;
        PredictedTimes { draft: own.draft, verify: own.verify + read, total: own.total + read }
    }

    /// The present round without what is read beside it.
    fn predicted_alone(&self) -> PredictedTimes {
        let tables = &self.round.tables;
        if self.decision.drafting == 0 {
            let total = tables.plain_ns as f32 / 1000.0;
            return PredictedTimes { draft: 0.0, verify: total, total };
        }
        let total = self.round.selection().ns;
        let draft = tables.draft_once_ns + self.round.levels().iter().map(|level| level.ns).sum::<u64>();
        let verify = total.saturating_sub(draft + tables.overhead_ns - tables.draft_once_ns);
        PredictedTimes {
            draft: draft as f32 / 1000.0,
            verify: verify as f32 / 1000.0,
            total: total as f32 / 1000.0,
        }
    }

    fn learn_costs(&mut self, times: &PhaseTimes<'_>) {
        let predicted = self.predicted();
        let contexts = self.views.iter().map(|view| view.context_len);
        let total_context: usize = contexts.clone().sum();
        if let Some(total) = times.total {
            self.cost.observe_prediction(f64::from(predicted.total), f64::from(total));
        }
        let verify = times.verify.map(f64::from);
        if !self.passengers.is_empty() {
            self.is_warm = false;
            self.learn_shared(verify);
            return;
        }
        let is_cold = !std::mem::replace(&mut self.is_warm, self.decision.drafting > 0);
        if self.decision.drafting == 0 {
            if let Some(us) = verify.or(times.total.map(f64::from)) {
                self.cost.observe_plain(self.views.len(), total_context, us);
            }
            if let (Some(total), Some(verify)) = (times.total, verify) {
                self.cost.observe_overhead(true, f64::from(total) - verify, f64::from(predicted.total));
            }
            return;
        }
        let mut left = 0.0;
        if let Some(us) = verify {
            let nodes = self.round.selected().iter().map(|selected| selected.tree.num_nodes());
            let tokens = nodes.clone().sum();
            let trees = nodes.zip(contexts);
            let us = believed(us, self.cost.verify_us(tokens, trees.clone()), is_cold);
            self.cost.observe_verify(tokens, trees.clone(), us);
            left = (us / self.cost.verify_us(tokens, trees)).ln();
        }
        let draft_us = self.learn_drafter(times.draft_levels, left, is_cold);
        let drafted_fully = times.draft_levels.len() == self.round.levels().len();
        if let (Some(total), Some(verify), true) = (times.total, verify, drafted_fully) {
            let us = f64::from(total) - draft_us - verify;
            if !is_cold || us < self.cost.overhead_us() {
                self.cost.observe_overhead(false, us, f64::from(predicted.total));
            }
        }
    }

    /// Learns from the drafter's passes of a round; returns what they took as passes, in microseconds: what is left of the round is overhead.
    ///
    /// The first pass reads features, finds no weights in any cache, and begins with whatever the round begins with. It counts as a level of its
    /// size, and teaches nothing. Of a drafter with heads it is the only pass: what later levels take is the host's time.
    ///
    /// `left` is the log error of the round's target pass that its cost has not followed yet: what these passes share of it is the machine's, not
    /// their sizes'.
    fn learn_drafter(&mut self, level_times: &[f32], left: f64, is_cold: bool) -> f64 {
        let drafting = self.views.iter().zip(&self.round.sequences).filter(|(_, sequence)| sequence.drafts);
        let context = drafting.map(|(view, _)| view.context_len).sum();
        let has_heads = self.config.heads.is_some();
        let mut passes_us = 0.0;
        for (i, (level, &us)) in self.round.levels().iter().zip(level_times).enumerate() {
            let (us, level_us) = (f64::from(us), self.cost.draft_us(level.rows, context));
            if (i == 0) == has_heads {
                passes_us += us;
                let own_us = without_shared(us, level_us, left);
                self.cost.observe_draft(level.rows, context, believed(own_us, level_us, is_cold));
            } else if !has_heads {
                passes_us += level_us;
            }
        }
        passes_us
    }

    /// Learns from a target pass in which prompts were read. What else such a round takes is not that of a round alone.
    fn learn_shared(&mut self, verify: Option<f64>) {
        let Some(us) = verify else { return };
        let trees = self.round.selected();
        let nodes = |sequence: usize| match self.decision.drafting {
            0 => 1,
            _ => trees.get(sequence).map_or(1, |selected| selected.tree.num_nodes()),
        };
        let own = self.views.iter().enumerate().map(|(i, view)| (nodes(i), view.context_len));
        let read = self.passengers.iter().map(|passenger| (passenger.rows, passenger.context_len));
        let all = own.chain(read);
        self.cost.observe_shared(all.clone().map(|(rows, _)| rows).sum(), all, us);
    }
}

/// What is believed of a measured time; see [`COLD_BELIEF`].
fn believed(us: f64, predicted_us: f64, is_cold: bool) -> f64 {
    if is_cold && us > predicted_us { predicted_us * (us / predicted_us).powf(COLD_BELIEF) } else { us }
}

/// `us` without as much of its log error as `error` is, if both are slower, or both faster, than predicted.
fn without_shared(us: f64, predicted_us: f64, error: f64) -> f64 {
    let own = (us / predicted_us).ln();
    let shared = if own * error > 0.0 { error.abs().min(own.abs()).copysign(error) } else { 0.0 };
    us * (-shared).exp()
}

/// The weight of a sequence, where it makes sense.
fn sound_weight(view: &SequenceView) -> f64 {
    if view.weight.is_finite() && view.weight > 0.0 { f64::from(view.weight) } else { 1.0 }
}
