//! `disco`: a classifier that says whether the newest token of a chain will be accepted (DISCO, arXiv 2405.04304, abstract).
//!
//! The paper trains a classifier on the drafter's confidence, its entropy and the position, and stops a draft when it says no. Ours is an
//! assumption: a logistic regression on the same statistics, learned online by gradient steps from every token whose parent was
//! accepted. Before anything is learned it goes by confidence alone.
#![forbid(unsafe_code)]

use crate::control::controller::SequenceOutcome;
use crate::control::plan::StopRule;
use crate::control::round::stop::{Spread, logistic};
use crate::control::round::{DraftRound, SelectedTree};

/// Weights before anything is known: confidence 0.5 is even odds.
const PRIOR: [f32; 4] = [-2.0, 4.0, 0.0, 0.0];
/// Size of a gradient step, and bound of a weight.
const STEP: f32 = 0.05;
const MAX_WEIGHT: f32 = 20.0;

/// The online classifier.
#[derive(Clone, Debug)]
pub struct Disco {
    weights: [f32; 4],
    threshold: f32,
}

impl Disco {
    /// A classifier that stops below `threshold`.
    pub fn new(threshold: f32) -> Self {
        Self { weights: PRIOR, threshold }
    }

    /// The rule as it stands.
    pub fn stop_rule(&self) -> StopRule {
        StopRule::Classifier { weights: self.weights, threshold: self.threshold }
    }

    /// Learns from a token with these features.
    pub fn learn(&mut self, features: &[f32; 4], accepted: bool) {
        let surprise = f32::from(u8::from(accepted)) - logistic(&self.weights, features);
        for (weight, feature) in self.weights.iter_mut().zip(features) {
            *weight = (*weight + STEP * surprise * feature).clamp(-MAX_WEIGHT, MAX_WEIGHT);
        }
    }

    /// Learns from chains: their accepted tokens and the first that was not.
    pub(in crate::control) fn observe<'a>(
        &mut self,
        round: &DraftRound,
        outcomes: impl Iterator<Item = (usize, &'a SelectedTree, &'a SequenceOutcome<'a>)>,
    ) {
        for (sequence, tree, outcome) in outcomes {
            let pool = round.pool(sequence);
            for (i, nodes) in tree.pool_nodes.windows(2).enumerate().take(outcome.accepted.len() + 1) {
                let depth = usize::from(pool.nodes()[nodes[1] as usize].depth);
                let features = Spread::after(pool, nodes[0] as usize).features(depth);
                self.learn(&features, i < outcome.accepted.len());
            }
        }
    }
}
