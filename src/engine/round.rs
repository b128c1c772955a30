//! One round: draft, select, verify, accept, commit, learn. Read [`Engine::step`] first.

use std::ops::Range;
use std::time::Instant;

use crate::control::trace::SequenceTrace;
use crate::control::{DraftRound, PhaseTimes, RoundReport, SequenceOutcome, SequenceView};
use crate::device::Tensor;
use crate::engine::proposer::Proposer;
use crate::engine::sequence::{Sequence, SequenceStats};
use crate::engine::stats::RoundClock;
use crate::engine::verifier::Verified;
use crate::engine::{Bug, Engine, FinishReason, SequenceId};
use crate::error::{Error, Result};
use crate::model::{MAX_ROWS_PER_SEQUENCE, Row, Taps, causal_words};
use crate::replay::{Outcome, RoundCount};
use crate::tree::DraftTree;

/// What one round emitted for one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Emission {
    /// The sequence.
    pub sequence: SequenceId,
    /// Its new tokens.
    pub tokens: Vec<i32>,
    /// How many of them, from the first on, were drafted and accepted.
    pub accepted: usize,
    /// One entry a token, if the request asked for them.
    pub logprobs: Vec<TokenLogprobs>,
    /// The sequence's rounds so far.
    pub stats: SequenceStats,
    /// Set when the sequence ended with this round.
    pub finished: Option<FinishReason>,
}

/// The log-probability of an emitted token, and what else was likely. Of the law that the token was drawn from, after penalties and biases,
/// at temperature 1.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The emitted token's natural log-probability.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(i32, f32)>,
}

/// The latest round under a controller, for who counts rounds.
pub(super) struct LastRound {
    verified: Vec<Verified>,
    tokens: usize,
    pub predicted_us: f32,
    pub speedup: f32,
}

impl Engine {
    /// Runs one round over all running sequences and returns what each emitted. After [`Engine::submit`] the first call
    /// returns the tokens that prefill drew, without a round. Empty when nothing is running.
    ///
    /// # Errors
    /// A driver failure, or logits that are not numbers. The engine's sequences are in no defined state then.
    pub fn step(&mut self) -> Result<Vec<Emission>> {
        self.last_round = None;
        if self.pending.is_empty() {
            self.admit()?;
        }
        let slots = self.running_slots();
        if slots.is_empty() || !self.pending.is_empty() {
            return Ok(std::mem::take(&mut self.pending));
        }
        if let Some(shape) = self.record_shape() {
            return self.record_round(slots[0], shape);
        }
        self.times.begin()?;
        let drafted = self.draft(&slots)?;
        let trees: Vec<DraftTree> = if drafted {
            self.controller.round().selected().iter().map(|selected| selected.tree.clone()).collect()
        } else {
            slots.iter().map(|&slot| DraftTree::new(self.sequence(slot).root_token())).collect()
        };
        let verified = self.verify(&slots, &trees)?;
        self.times.collect()?;
        self.learn(&verified);
        self.trace_round(&slots, &verified)?;
        let emissions = self.commit(&slots, &trees, &verified)?;
        self.times.stats.count_round(&trees, &verified, &emissions);
        self.times.end();
        let tokens = emissions.iter().map(|emission| emission.tokens.len()).sum();
        let predicted_us = self.controller.predicted().total;
        let speedup = self.controller.round().speedup();
        self.last_round = Some(LastRound { verified, tokens, predicted_us, speedup });
        Ok(emissions)
    }

    /// Adds the round that the latest [`Engine::step`] ran to `outcome`; nothing if it ran none. What plain rounds would have taken
    /// is not known here.
    pub fn count_round(&self, outcome: &mut Outcome) {
        let Some(round) = &self.last_round else { return };
        let accepted = accepted_nodes(&round.verified);
        let times = &self.times.last;
        let times = RoundCount {
            tokens: round.tokens,
            draft_us: times.draft_us.iter().sum::<f64>() - times.control_in_draft_us,
            verify_us: times.verify_us - times.control_in_verify_us,
            control_us: times.control_us,
            us: times.total_us,
            plain_us: 0.0,
        };
        outcome.count_round(&self.controller, &outcomes(&accepted, &round.verified), &times);
    }

    /// What the round that the latest [`Engine::step`] ran did for a sequence, ratios left out; `None` if it ran none with it.
    pub fn round_trace(&self, id: SequenceId) -> Option<SequenceTrace> {
        self.trace_of(self.controller.views().iter().position(|view| view.id == id.0)?)
    }

    /// As [`Engine::round_trace`], of the first sequence.
    pub fn last_round_trace(&self) -> Option<SequenceTrace> {
        self.trace_of(0)
    }

    fn trace_of(&self, index: usize) -> Option<SequenceTrace> {
        let round = self.last_round.as_ref()?;
        let accepted = accepted_nodes(&round.verified);
        let outcome = outcomes(&accepted, &round.verified).into_iter().nth(index)?;
        Some(SequenceTrace::new(&self.controller, 0, index, &outcome))
    }

    /// Runs one round with the caller's trees, one for each sequence of [`Engine::running`] in that order: for drafters outside
    /// this crate, and for tests. Each tree's root is the sequence's last token.
    ///
    /// # Errors
    /// Trees that do not fit; first tokens that [`Engine::step`] has not handed out yet; as [`Engine::step`].
    pub fn step_with(&mut self, trees: &[DraftTree]) -> Result<Vec<Emission>> {
        let slots = self.running_slots();
        let fits = trees.len() == slots.len()
            && slots.iter().zip(trees).all(|(&slot, tree)| tree.token(0) == self.sequence(slot).root_token());
        if !fits || !self.pending.is_empty() {
            return Err(Error::Input(
                "one tree per running sequence is needed, rooted at its last token, which `step` has handed out".into(),
            ));
        }
        self.last_round = None;
        self.times.begin()?;
        let verified = self.verify(&slots, trees)?;
        self.times.collect()?;
        let emissions = self.commit(&slots, trees, &verified)?;
        self.times.stats.count_round(trees, &verified, &emissions);
        self.times.end();
        Ok(emissions)
    }

    /// Drafts and selects the trees; false for a plain round. The result stays in the controller's round.
    fn draft(&mut self, slots: &[usize]) -> Result<bool> {
        let control = Instant::now();
        let catches_up =
            self.feeds_drafter() && self.proposer.as_ref().is_some_and(|it| it.network().is_some());
        let views: Vec<SequenceView> = slots
            .iter()
            .map(|&slot| {
                let sequence = self.sequences[slot].as_ref().expect("running slots hold sequences");
                let left = sequence.max_new_tokens - sequence.emitted().len();
                let view = sequence.view((left - 1).min(MAX_ROWS_PER_SEQUENCE - 1));
                if catches_up { view } else { SequenceView { backlog: 0, ..view } }
            })
            .collect();
        let plan = self.controller.begin_round(&views);
        self.times.control(control);
        let Engine { proposer, sequences, times, controller, .. } = self;
        let Some(proposer) = proposer.as_mut().filter(|_| plan.drafts()) else { return Ok(false) };
        let round = controller.round_mut();
        run_levels(proposer, sequences, slots, times, round)?;
        let control = Instant::now();
        round.select();
        times.control(control);
        Ok(true)
    }

    /// One target pass over all trees, the draws, the walk and the compaction.
    fn verify(&mut self, slots: &[usize], trees: &[DraftTree]) -> Result<Vec<Verified>> {
        let ranges = self.fill_trees(slots, trees)?;
        self.run_target(ranges.last().map_or(0, |rows| rows.end))?;
        let deepest = trees.iter().flat_map(|tree| tree.depths()).copied().max().unwrap_or(0);
        self.verifier.walk(if self.has(Bug::StaleKv) { 0 } else { usize::from(deepest) })?;
        self.times.mark_verify()?;
        let mut verified = self.verifier.read(&ranges, true)?;
        if self.has(Bug::WrongSibling) {
            mutate_siblings(trees, slots, &mut verified);
        }
        Ok(slots.iter().map(|&slot| std::mem::take(&mut verified[slot])).collect())
    }

    /// Fills the target's pass with the trees; the rows of each sequence slot up to the last.
    pub(super) fn fill_trees(&mut self, slots: &[usize], trees: &[DraftTree]) -> Result<Vec<Range<usize>>> {
        self.verifier.pass.clear();
        let (mut ranges, mut by_slot) = (Vec::new(), 0..0);
        let mut next = slots.iter().zip(trees).peekable();
        for slot in 0..=slots.last().copied().unwrap_or(0) {
            by_slot = by_slot.end..by_slot.end;
            let Some((_, tree)) = next.next_if(|&(&busy, _)| busy == slot) else {
                self.verifier.pass.begin_sequence(0);
                ranges.push(by_slot.clone());
                continue;
            };
            let root = self.sequence(slot).root();
            self.verifier.kv.reserve(slot, root + tree.num_nodes())?;
            self.verifier.pass.begin_sequence(root);
            for node in 0..tree.num_nodes() {
                let position = root + tree.depth(node) + usize::from(node > 0 && self.has(Bug::LatePosition));
                let row = Row {
                    token: tree.token(node),
                    position,
                    rotary: self.sequence(slot).pictures.rotary(position),
                    slot: self.verifier.kv.slot(slot, root + node),
                    ancestors: if self.has(Bug::SeesSiblings) {
                        causal_words(node)
                    } else {
                        tree.ancestor_words(node)
                    },
                    link: tree.parents()[node],
                };
                self.verifier.pass.push(row, true);
            }
            by_slot.end += tree.num_nodes();
            ranges.push(by_slot.clone());
        }
        Ok(ranges)
    }

    /// The target over the `num_rows` rows of its pass, with draws, and with features for the drafter if it may run; the logits.
    pub(super) fn run_target(&mut self, num_rows: usize) -> Result<Tensor> {
        let proposer = self.proposer.as_ref().filter(|_| self.feeds_drafter());
        let taps = proposer.and_then(|proposer| proposer.taps(num_rows));
        self.verifier.run(taps.as_ref().map(|(out, layers)| Taps { layers, out }))
    }

    /// Appends accepted and bonus tokens, hands the features of accepted nodes to the drafter, releases what has ended.
    pub(super) fn commit(
        &mut self,
        slots: &[usize],
        trees: &[DraftTree],
        verified: &[Verified],
    ) -> Result<Vec<Emission>> {
        let (mut emissions, mut features, mut first_row) = (Vec::new(), Vec::new(), 0);
        for ((&slot, tree), outcome) in slots.iter().zip(trees).zip(verified) {
            let sequence = self.sequences[slot].as_mut().expect("running slots hold sequences");
            let root = sequence.root();
            let mut tokens: Vec<i32> = outcome.accepted.iter().map(|&node| tree.token(node)).collect();
            tokens.push(outcome.bonus);
            let count = sequence.commit(&tokens);
            tokens.truncate(count);
            if sequence.finished.is_none() && sequence.committed.len() >= self.max_context {
                sequence.finished = Some(FinishReason::Length);
            }
            let path = std::iter::once(0).chain(outcome.accepted.iter().copied()).enumerate();
            features.extend(path.map(|(i, node)| (slot, root + i, first_row + node)));
            first_row += tree.num_nodes();
            sequence.stats.rounds += 1;
            sequence.stats.drafted_tokens += tree.num_draft_tokens() as u64;
            sequence.stats.accepted_tokens += outcome.accepted.len() as u64;
            emissions.push(Emission {
                sequence: sequence.id,
                accepted: outcome.accepted.len().min(tokens.len()),
                tokens,
                logprobs: Vec::new(),
                stats: sequence.stats,
                finished: sequence.finished,
            });
        }
        if self.feeds_drafter() {
            self.remember(&features)?;
        }
        for (&slot, emission) in slots.iter().zip(&emissions) {
            if emission.finished.is_some() {
                self.release(slot);
            }
        }
        Ok(emissions)
    }

    /// Stores features and keeps the backlog bounded: a drafter that has been off for long sees them now.
    fn remember(&mut self, features: &[(usize, usize, usize)]) -> Result<()> {
        let Some(proposer) = &mut self.proposer else { return Ok(()) };
        proposer.remember(features)?;
        let Some(drafting) = proposer.network_mut() else { return Ok(()) };
        let full = |s: &&crate::engine::sequence::Sequence| {
            s.finished.is_none() && s.backlog() >= MAX_ROWS_PER_SEQUENCE
        };
        let late: Vec<usize> = (0..self.sequences.len())
            .filter(|&i| self.sequences[i].as_ref().filter(full).is_some())
            .collect();
        for slot in late {
            if let Some(sequence) = &mut self.sequences[slot] {
                drafting.catch_up(&[(slot, &*sequence)], |_| MAX_ROWS_PER_SEQUENCE, None)?;
                sequence.draft_len += MAX_ROWS_PER_SEQUENCE;
                self.device.synchronize()?;
            }
        }
        Ok(())
    }

    /// Feeds times and outcomes to the controller.
    fn learn(&mut self, verified: &[Verified]) {
        let control = Instant::now();
        let accepted = accepted_nodes(verified);
        let outcomes = outcomes(&accepted, verified);
        let times = &self.times.last;
        let levels: Vec<f32> = times.draft_us.iter().map(|&us| us as f32).collect();
        let times = PhaseTimes {
            draft_levels: &levels,
            verify: Some(times.verify_us as f32),
            total: Some(times.total_us as f32),
        };
        self.controller.observe(&RoundReport { sequences: &outcomes, times });
        self.times.control(control);
    }
}

/// Accepted nodes as controllers name them.
fn accepted_nodes(verified: &[Verified]) -> Vec<Vec<u32>> {
    verified.iter().map(|v| v.accepted.iter().map(|&node| node as u32).collect()).collect()
}

/// What a controller is told; `accepted` by [`accepted_nodes`].
fn outcomes<'a>(accepted: &'a [Vec<u32>], verified: &'a [Verified]) -> Vec<SequenceOutcome<'a>> {
    let pairs = accepted.iter().zip(verified);
    pairs.map(|(accepted, v)| SequenceOutcome { accepted, drawn: &v.drawn }).collect()
}

/// Drafts level by level, on what `round` asks for, until it asks for nothing more.
pub(super) fn run_levels(
    proposer: &mut Proposer,
    sequences: &mut [Option<Sequence>],
    slots: &[usize],
    times: &mut RoundClock,
    round: &mut DraftRound,
) -> Result<()> {
    let (top_k, levels) = (round.top_k(), round.plan().max_levels);
    loop {
        let control = Instant::now();
        let rows = round.next_level().map(<[_]>::to_vec);
        times.control(control);
        let Some(rows) = rows else { return Ok(()) };
        proposer.run(&rows, sequences, slots, top_k, levels)?;
        times.mark_level()?;
        let (tokens, logps) = proposer.read_children()?;
        let count = rows.len() * top_k;
        let control = Instant::now();
        round.add_level(&tokens[..count], &logps[..count]);
        times.control(control);
        if rows[0].node == 0 {
            for row in &rows {
                if let Some(sequence) = &mut sequences[slots[row.sequence as usize]] {
                    sequence.draft_len = sequence.root();
                }
            }
        }
    }
}

/// [`Bug::WrongSibling`]: the last accepted node becomes a sibling, where it has one.
fn mutate_siblings(trees: &[DraftTree], slots: &[usize], verified: &mut [Verified]) {
    for (tree, &slot) in trees.iter().zip(slots) {
        if let Some(last) = verified[slot].accepted.last_mut() {
            let parent = tree.parent(*last).unwrap_or(0);
            *last = tree.children(parent).find(|child| child != last).unwrap_or(*last);
        }
    }
}
