//! The end of a round: tokens are committed and handed out, features kept, and who has ended goes.

use crate::engine::schedule::Chunk;
use crate::engine::sequence::{Failure, Sequence, SequenceStats};
use crate::engine::verifier::Verified;
use crate::engine::{Engine, FinishReason, NO_TOKEN, SequenceId};
use crate::error::Result;
use crate::model::MAX_ROWS_PER_SEQUENCE;
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
    /// With [`FinishReason::Failed`], why.
    pub failure: Option<Failure>,
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

impl Engine {
    /// Appends accepted and bonus tokens, and those drawn behind chunks, hands the features of what was read to the drafter, releases what has
    /// ended. Emissions of trees come first, in their order. `keeps_features` where those have not been kept when the pass was issued.
    ///
    /// # Errors
    /// A driver failure. What has been committed by then is handed out by the next [`Engine::step`].
    pub(super) fn commit(
        &mut self,
        (slots, trees, verified): (&[usize], &[DraftTree], &[Verified]),
        (chunks, firsts): (&[Chunk], &[Option<Verified>]),
        keeps_features: bool,
    ) -> Result<Vec<Emission>> {
        let features = match keeps_features && self.feeds_drafter() {
            true => self.features_read((slots, verified), chunks),
            false => Vec::new(),
        };
        let mut emissions = Vec::with_capacity(slots.len());
        for ((&slot, tree), outcome) in slots.iter().zip(trees).zip(verified) {
            emissions.extend(self.emit(slot, outcome, Some(tree)));
        }
        for (chunk, first) in chunks.iter().zip(firsts) {
            if let Some(sequence) = &mut self.sequences[chunk.slot] {
                sequence.unread = Some(chunk.positions.end).filter(|_| !chunk.is_last);
            }
            if let Some(first) = first {
                emissions.extend(self.emit(chunk.slot, first, None));
            }
        }
        match self.follow_up(&features, chunks, &emissions) {
            Ok(()) => Ok(emissions),
            Err(error) => {
                self.pending.extend(emissions);
                Err(error)
            }
        }
    }

    /// Positions whose features the pass brought for good: (slot, position, row of the pass), in that order.
    fn features_read(
        &self,
        (slots, verified): (&[usize], &[Verified]),
        chunks: &[Chunk],
    ) -> Vec<(usize, usize, usize)> {
        let mut features = Vec::new();
        for (&slot, outcome) in slots.iter().zip(verified) {
            let (first_row, root) = (self.verifier.pass.first_row(slot), self.sequence(slot).root());
            let path = std::iter::once(0).chain(outcome.accepted.iter().copied()).enumerate();
            features.extend(path.map(|(i, node)| (slot, root + i, first_row + node)));
        }
        for chunk in chunks {
            let first_row = self.verifier.pass.first_row(chunk.slot);
            let rows = chunk.positions.clone().enumerate();
            features.extend(rows.map(|(row, position)| (chunk.slot, position, first_row + row)));
        }
        features.sort_unstable();
        features
    }

    /// What the device has to do for what is committed; then those that have ended go.
    fn follow_up(
        &mut self,
        features: &[(usize, usize, usize)],
        chunks: &[Chunk],
        emissions: &[Emission],
    ) -> Result<()> {
        if self.feeds_drafter() {
            self.remember(features, chunks)?;
        }
        for slot in self.running_slots() {
            let id = self.sequence(slot).id;
            if let Some(emission) = emissions.iter().find(|emission| emission.sequence == id) {
                self.verifier.penalties.count(slot, &emission.tokens, true)?;
            }
        }
        for chunk in chunks {
            self.publish(chunk.slot);
            if let Some(sequence) = self.sequences[chunk.slot].as_mut().filter(|_| chunk.is_last) {
                sequence.pictures.forget_embeddings();
            }
        }
        for slot in self.running_slots() {
            if self.sequence(slot).finished.is_some() {
                self.publish(slot);
                self.release(slot);
            }
        }
        Ok(())
    }

    /// Commits what was drawn for a sequence: with `tree` a round, else the token behind its text.
    fn emit(&mut self, slot: usize, outcome: &Verified, tree: Option<&DraftTree>) -> Option<Emission> {
        let sequence = self.sequences[slot].as_mut()?;
        let mut tokens: Vec<i32> = Vec::with_capacity(outcome.accepted.len() + 1);
        if sequence.failure.is_none() {
            tokens.extend(tree.iter().flat_map(|tree| outcome.accepted.iter().map(|&node| tree.token(node))));
            tokens.extend((outcome.bonus >= 0).then_some(outcome.bonus));
        }
        let count = sequence.commit(&tokens);
        tokens.truncate(count);
        let logprobs = outcome.logprobs.iter().take(count).cloned().collect();
        if outcome.bonus < 0 {
            sequence.failure.get_or_insert_with(|| Failure::Run(NO_TOKEN.into()));
        }
        if sequence.failure.is_some() {
            sequence.finished.get_or_insert(FinishReason::Failed);
        }
        if let Some(tree) = tree {
            sequence.stats.rounds += 1;
            sequence.stats.drafted_tokens += tree.num_draft_tokens() as u64;
            sequence.stats.accepted_tokens += outcome.accepted.len() as u64;
        }
        Some(Emission {
            sequence: sequence.id,
            accepted: outcome.accepted.len().min(tokens.len()),
            tokens,
            logprobs,
            stats: sequence.stats,
            failure: sequence.failure.clone().filter(|_| sequence.finished == Some(FinishReason::Failed)),
            finished: sequence.finished,
        })
    }

    /// Stores features and keeps the backlog bounded: a drafter that has been off for long sees them now, as it does those of prompts.
    fn remember(&mut self, features: &[(usize, usize, usize)], chunks: &[Chunk]) -> Result<()> {
        let Some(proposer) = &mut self.proposer else { return Ok(()) };
        if !features.is_empty() {
            proposer.remember(features)?;
        }
        let Some(drafting) = proposer.network_mut() else { return Ok(()) };
        let is_read = |slot: usize| chunks.iter().any(|chunk| chunk.slot == slot);
        // A round needs one pair to begin with, and that of the last position read waits for the token behind it.
        let known = |sequence: &Sequence| match sequence.unread {
            Some(read) => read.min(sequence.root()) - sequence.draft_len,
            None => sequence.backlog().saturating_sub(1),
        };
        let late: Vec<usize> = (0..self.sequences.len())
            .filter(|&slot| {
                self.sequences[slot].as_ref().is_some_and(|sequence| {
                    let full = known(sequence) + 1 >= MAX_ROWS_PER_SEQUENCE;
                    sequence.finished.is_none() && known(sequence) > 0 && (full || is_read(slot))
                })
            })
            .collect();
        if late.is_empty() {
            return Ok(());
        }
        let batch: Vec<(usize, &Sequence)> =
            late.iter().filter_map(|&slot| Some((slot, self.sequences[slot].as_ref()?))).collect();
        let count = |sequence: &Sequence| known(sequence).min(MAX_ROWS_PER_SEQUENCE);
        drafting.catch_up(&self.pool, &batch, count, None)?;
        for &slot in &late {
            if let Some(sequence) = &mut self.sequences[slot] {
                sequence.draft_len += count(sequence);
            }
        }
        self.device.synchronize()
    }
}
