//! `tapout`: a bandit over stop rules (TapOut, arXiv 2511.02017, abstract).
//!
//! Each round one arm, a [`StopRule`], drafts for the whole batch, and is rewarded by what came of it. Known: a bandit (UCB1 or Thompson
//! sampling) over training-free rules, chosen once a draft, rewarded by a blend of accepted length and acceptance rate. Assumed: the blend is
//! `1/2 accepted / longest + 1/2 accepted / drafted`, over the batch; Thompson sampling draws from a normal posterior of variance
//! `1 / (pulls + 1)`; the arms are the rules of [`ARMS`] and the classifier of [`disco`](super::disco), which learns from every
//! arm's rounds. DDD is no arm: it stops trees, whose acceptance rate does not compare with a chain's.
//!
//! Draws are those of a generator seeded once, so that the same rounds give the same choices.
#![forbid(unsafe_code)]

use std::fmt;

use super::disco::Disco;
use crate::control::controller::SequenceOutcome;
use crate::control::plan::StopRule;
use crate::control::round::{DraftRound, SelectedTree};

/// Rules with fixed thresholds (ours): SVIP at two levels, SpecDec++, and the plain rules of confidence and of the lead over the second choice.
pub const ARMS: [StopRule; 5] = [
    StopRule::EntropyAbove(0.8),
    StopRule::EntropyAbove(1.2),
    StopRule::RejectionAbove(0.7),
    StopRule::ConfidenceBelow(0.4),
    StopRule::MarginBelow(0.2),
];
const DISCO_THRESHOLD: f32 = 0.4;
const SEED: u64 = 0x7a90_0075_eed0_0001;

/// How a bandit weighs trying against knowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BanditKind {
    /// The largest `mean + sqrt(2 ln(rounds) / pulls)` (Auer et al. 2002).
    Ucb1,
    /// The largest draw from each arm's posterior.
    Thompson,
}

impl fmt::Display for BanditKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BanditKind::Ucb1 => "ucb1",
            BanditKind::Thompson => "thompson",
        })
    }
}

/// A bandit with rewards in [0, 1].
#[derive(Clone, Debug)]
pub struct Bandit {
    kind: BanditKind,
    /// (pulls, mean reward).
    arms: Vec<(u64, f64)>,
    random: u64,
}

impl Bandit {
    /// A bandit that knows nothing of its `num_arms` arms.
    pub fn new(kind: BanditKind, num_arms: usize) -> Self {
        Self { kind, arms: vec![(0, 0.0); num_arms], random: SEED }
    }

    /// How often each arm was rewarded.
    pub fn pulls(&self) -> impl Iterator<Item = u64> + '_ {
        self.arms.iter().map(|arm| arm.0)
    }

    /// The next arm: the first one never tried, else the one with the largest index, the first of equals.
    pub fn choose(&mut self) -> usize {
        if let Some(untried) = self.arms.iter().position(|arm| arm.0 == 0) {
            return untried;
        }
        let rounds: u64 = self.pulls().sum();
        let mut best = (f64::NEG_INFINITY, 0);
        for arm in 0..self.arms.len() {
            let (pulls, mean) = self.arms[arm];
            let index = match self.kind {
                BanditKind::Ucb1 => mean + (2.0 * (rounds as f64).ln() / pulls as f64).sqrt(),
                BanditKind::Thompson => mean + self.normal() / (pulls as f64 + 1.0).sqrt(),
            };
            if index > best.0 {
                best = (index, arm);
            }
        }
        best.1
    }

    /// Rewards `arm`; a reward that is not a number is 0.
    pub fn reward(&mut self, arm: usize, reward: f64) {
        let (pulls, mean) = &mut self.arms[arm];
        *pulls += 1;
        let reward = if reward > 0.0 { reward.min(1.0) } else { 0.0 };
        *mean += (reward - *mean) / *pulls as f64;
    }

    /// A standard normal draw (Box-Muller over SplitMix64).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.unit().max(f64::MIN_POSITIVE).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    fn unit(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The stop rule of each round.
#[derive(Debug)]
pub struct TapOut {
    bandit: Bandit,
    disco: Disco,
    arm: usize,
}

impl TapOut {
    /// A bandit over [`ARMS`] and the classifier.
    pub fn new(kind: BanditKind) -> Self {
        Self { bandit: Bandit::new(kind, ARMS.len() + 1), disco: Disco::new(DISCO_THRESHOLD), arm: 0 }
    }

    /// The rule for the coming round.
    pub fn choose(&mut self) -> StopRule {
        self.arm = self.bandit.choose();
        ARMS.get(self.arm).copied().unwrap_or_else(|| self.disco.stop_rule())
    }

    /// Rewards the arm of the round, in which no chain could be longer than `longest`. A round without drafts says nothing.
    pub(in crate::control) fn observe<'a>(
        &mut self,
        round: &DraftRound,
        outcomes: impl Iterator<Item = (usize, &'a SelectedTree, &'a SequenceOutcome<'a>)> + Clone,
        longest: usize,
    ) {
        let (mut chains, mut drafted, mut accepted) = (0, 0, 0);
        for (_, tree, outcome) in outcomes.clone() {
            chains += 1;
            drafted += tree.tree.num_draft_tokens();
            accepted += outcome.accepted.len();
        }
        if drafted > 0 {
            let length = accepted as f64 / (chains * longest) as f64;
            let rate = accepted as f64 / drafted as f64;
            self.bandit.reward(self.arm, 0.5 * (length + rate));
        }
        self.disco.observe(round, outcomes);
    }
}
