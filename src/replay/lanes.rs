//! [`Lane`]: a recorded text in play, and [`Texts`], where the next one comes from.
#![forbid(unsafe_code)]

use super::player::Settings;
use super::random::Random;
use super::record::{Record, RecordedSequence, RecordedTree};
use crate::control::SequenceView;
use crate::tree::MAX_NODES;

/// A text being played.
pub(super) struct Lane<'a> {
    id: u64,
    pub text: &'a RecordedSequence,
    /// Position of the root within the text.
    pub at: usize,
    /// Cached tokens at position 0.
    context: usize,
    /// Committed tokens that the drafter has not seen, beyond the root.
    pub backlog: usize,
}

/// The texts in a seeded order, round and round.
pub(super) struct Texts<'a> {
    record: &'a Record,
    order: Vec<usize>,
    next: usize,
    context: Option<usize>,
}

impl<'a> Texts<'a> {
    /// The texts, and a batch of the first of them.
    pub fn start(record: &'a Record, settings: &Settings) -> (Self, Vec<Lane<'a>>) {
        let mut order: Vec<usize> = (0..record.sequences().len()).collect();
        Random(settings.seed).shuffle(&mut order);
        let mut texts = Texts { record, order, next: 0, context: settings.context };
        let lanes = (0..settings.batch).map(|_| texts.next()).collect();
        (texts, lanes)
    }

    fn next(&mut self) -> Lane<'a> {
        let text = &self.record.sequences()[self.order[self.next % self.order.len()]];
        self.next += 1;
        Lane {
            id: self.next as u64,
            text,
            at: 0,
            context: self.context.unwrap_or(text.prompt_len),
            backlog: 0,
        }
    }
}

impl<'a> Lane<'a> {
    /// The tree recorded at the present position.
    pub fn tree(&self) -> &'a RecordedTree {
        &self.text.trees[self.at]
    }

    /// Tokens in the target's cache.
    pub fn context_len(&self) -> usize {
        self.context + self.at
    }

    /// The sequence as a controller sees it.
    pub fn view(&self) -> SequenceView {
        SequenceView {
            id: self.id,
            root_token: self.tree().root_token,
            context_len: self.context_len(),
            sampled: self.text.sampled,
            backlog: self.backlog,
            weight: 1.0,
            max_depth: self.text.trees.len() - 1 - self.at,
        }
    }

    /// Goes on after a round, with the next text where this one ends.
    pub fn advance(&mut self, accepted: usize, drafted: bool, texts: &mut Texts<'a>) {
        self.at += accepted + 1;
        self.backlog = if drafted { accepted } else { self.backlog + accepted + 1 };
        // The engine lets the drafter catch up by a pass once a whole pass of tokens, the root's among them, waits for it.
        if self.backlog + 1 >= MAX_NODES {
            self.backlog = (self.backlog + 1 - MAX_NODES).saturating_sub(1);
        }
        if self.at >= self.text.trees.len() {
            *self = texts.next();
        }
    }
}
