//! [`Learner`]: what drafting is expected to bring, learned round by round, and when.
//!
//! No decision reads what a round has taught of acceptance and of gains before the first level of the next one has come. So it may be learned while
//! the device runs that level: the outcome is [noted](Learner::note), the round [set aside](Learner::set_aside) when another begins, and
//! whoever is about to estimate [catches up](Learner::catch_up) first. It is the same whenever that is.
#![forbid(unsafe_code)]

use super::acceptance::{AcceptanceModel, Label};
use super::controller::{RoundReport, SequenceView};
use super::gain::GainModel;
use super::planner::Planner;
use super::round::DraftRound;

/// Where the round is that was noted and not yet learned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    Nothing,
    /// The present round of the controller.
    Present,
    /// [`Learner::previous`].
    Previous,
}

/// What the target drew after a node of a sequence's pool.
#[derive(Clone, Copy, Debug)]
struct Draw {
    node: u32,
    token: i32,
}

/// What is known of one sequence of the noted round.
#[derive(Clone, Copy, Debug)]
struct Walk {
    id: u64,
    sampled: bool,
    /// Its draws are those before this one, from the end of the sequence's before it.
    end: usize,
}

/// The models of acceptance and of gains, and what they have still to learn.
#[derive(Debug)]
pub(super) struct Learner {
    acceptance: AcceptanceModel,
    /// Of the one policy that reads it.
    gains: Option<GainModel>,
    noted: Noted,
    /// Along the accepted path of each sequence of the noted round, in their order.
    draws: Vec<Draw>,
    walks: Vec<Walk>,
    previous: DraftRound,
    // Scratch.
    labels: Vec<Label>,
}

impl Learner {
    pub fn new(planner: &Planner, learns_gains: bool) -> Self {
        Self {
            acceptance: AcceptanceModel::new(),
            gains: learns_gains.then(GainModel::default),
            noted: Noted::Nothing,
            draws: Vec::new(),
            walks: Vec::new(),
            previous: DraftRound::new(planner.widest().clone()),
            labels: Vec::new(),
        }
    }

    /// As learned so far.
    pub fn acceptance(&self) -> &AcceptanceModel {
        &self.acceptance
    }

    /// Notes what came of `round`, which drafted for `views`. What was noted before is learned.
    pub fn note(&mut self, round: &DraftRound, views: &[SequenceView], report: &RoundReport<'_>) {
        self.catch_up(round);
        self.noted = Noted::Present;
        self.draws.clear();
        self.walks.clear();
        for ((outcome, view), selected) in report.sequences.iter().zip(views).zip(round.selected()) {
            for &packed in std::iter::once(&0).chain(outcome.accepted) {
                let node = selected.pool_nodes.get(packed as usize);
                if let (Some(&node), Some(&token)) = (node, outcome.drawn.get(packed as usize)) {
                    self.draws.push(Draw { node, token });
                }
            }
            self.walks.push(Walk { id: view.id, sampled: view.sampled, end: self.draws.len() });
        }
    }

    /// Before `round` becomes another: keeps what is still to be learned from, and gives memory for another in its place.
    pub fn set_aside(&mut self, round: &mut DraftRound) {
        if self.noted == Noted::Present {
            std::mem::swap(&mut self.previous, round);
            self.noted = Noted::Previous;
        }
    }

    /// Learns what was noted. `present` is the controller's present round.
    pub fn catch_up(&mut self, present: &DraftRound) {
        let round = match std::mem::replace(&mut self.noted, Noted::Nothing) {
            Noted::Nothing => return,
            Noted::Present => present,
            Noted::Previous => &self.previous,
        };
        let mut start = 0;
        for (sequence, &Walk { id, sampled, end }) in self.walks.iter().enumerate() {
            let pool = round.pool(sequence);
            let draws = &self.draws[std::mem::replace(&mut start, end)..end];
            // Every drafted child of the root and of each accepted node.
            self.labels.clear();
            self.labels.extend(draws.iter().flat_map(|draw| pool.labels(draw.node as usize, draw.token)));
            if !self.labels.is_empty() {
                self.acceptance.observe(id, sampled, &self.labels);
            }
        }
        self.acceptance.refit();
        if let Some(gains) = &mut self.gains {
            gains.observe(round.pools(), round.levels(), round.selection());
        }
    }

    /// Gives `round`, which drafts for `views`, what estimates are made of, if it does not have that yet.
    pub fn equip(&mut self, round: &mut DraftRound, views: &[SequenceView]) {
        if std::mem::replace(&mut round.is_equipped, true) {
            return;
        }
        self.catch_up(round);
        if let Some(gains) = &self.gains {
            round.gains.clone_from(gains.table());
        }
        for (sampled, calibration) in round.calibrations.iter_mut().enumerate() {
            calibration.clone_from(self.acceptance.calibration(sampled > 0));
        }
        for (sequence, view) in round.sequences.iter_mut().zip(views) {
            sequence.odds = self.acceptance.odds(view.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::control::roofline::Roofline;
    use crate::control::{Controller, ControllerConfig, Policy, RoundReport, SequenceOutcome, SequenceView};
    use crate::replay::random::Random;

    /// Children of a row, the likeliest first.
    fn children(random: &mut Random, top_k: usize) -> impl Iterator<Item = (i32, f32)> + use<> {
        let share = 0.2 + 0.7 * random.unit() as f32;
        (0..top_k as i32).map(move |rank| (rank, (share * (1.0 - share).powi(rank)).ln()))
    }

    /// What is verified in each round, and what is expected of it, where the second half of what is learned is learned at once or late.
    fn verified(policy: &str, late: bool) -> Vec<(Vec<u32>, f32)> {
        let cost = Roofline::H200_LLAMA_8B.cost_model(512);
        let policy: Policy = policy.parse().unwrap();
        let mut controller = Controller::new(policy, ControllerConfig::default(), cost);
        let mut random = Random(7);
        let mut rounds = Vec::new();
        for number in 0..120_u64 {
            // Sequences come and go, and a plain round that nobody decides comes between.
            let views: Vec<_> = (number / 9..number / 9 + 1 + number % 3)
                .map(|id| SequenceView {
                    id,
                    root_token: 0,
                    context_len: 300,
                    sampled: id % 2 == 0,
                    backlog: 0,
                    max_depth: 40,
                    weight: 1.0,
                })
                .collect();
            if number % 11 == 5 {
                controller.begin_plain_round(&views);
            } else {
                controller.begin_round(&views);
            }
            let round = controller.round_mut();
            while let Some(rows) = round.next_level().map(<[_]>::len) {
                let top_k = round.top_k();
                let (tokens, logps): (Vec<_>, Vec<_>) =
                    (0..rows).flat_map(|_| children(&mut random, top_k)).unzip();
                round.add_level(&tokens, &logps);
            }
            let trees = round.select().to_vec();
            let nodes = trees.iter().flat_map(|selected| selected.pool_nodes.clone()).collect();
            rounds.push((nodes, round.speedup()));
            // The target takes the likeliest child four times of five.
            let drawn =
                |nodes: usize| (0..nodes).map(|node| i32::from((node as u64 + number).is_multiple_of(5)));
            let walks: Vec<(Vec<u32>, Vec<i32>)> = trees
                .iter()
                .map(|selected| {
                    let drawn: Vec<i32> = drawn(selected.tree.num_nodes()).collect();
                    (selected.tree.walk(&drawn).0.iter().map(|&node| node as u32).collect(), drawn)
                })
                .collect();
            let outcomes: Vec<_> =
                walks.iter().map(|(accepted, drawn)| SequenceOutcome { accepted, drawn }).collect();
            let report = RoundReport { sequences: &outcomes, ..RoundReport::default() };
            if late { controller.observe_first(&report) } else { controller.observe(&report) }
        }
        rounds
    }

    #[test]
    fn it_is_the_same_to_learn_late() {
        for policy in ["smart", "smart-paper", "eagle2:4,4,20"] {
            let (at_once, late) = (verified(policy, false), verified(policy, true));
            let drafted = at_once.iter().filter(|(nodes, _)| nodes.len() > 3).count();
            assert!(drafted > 60, "{policy} drafted {drafted} times");
            assert!(at_once == late, "{policy}");
        }
    }
}
