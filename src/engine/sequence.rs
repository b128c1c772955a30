//! One request being served: what is committed, what the drafter still has to see, when to stop.

use std::time::Instant;

use crate::control::SequenceView;
use crate::engine::guided::GuidedText;
use crate::engine::masks::EarlyEnds;
use crate::engine::pictures::Pictures;
use crate::engine::request::Request;
use crate::error::{Error, Result};
use crate::pages::PositionKey;

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_new_tokens` or the context length was reached.
    Length,
    /// The target drew an end-of-sequence token, or a stop token of the request; or its grammar allows nothing more.
    Eos,
    /// The text cannot go on: no token could be drawn ([`NO_TOKEN`]), or its grammar gave up.
    Failed,
}

impl FinishReason {
    /// As in the JSON output.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Length => "length",
            FinishReason::Eos => "eos",
            FinishReason::Failed => "failed",
        }
    }
}

/// Why a text cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// What was asked for cannot be done: its grammar gave up, or lets nothing follow. Asked again, it would fail again.
    #[error("{0}")]
    Request(String),
    /// Nothing could be drawn ([`NO_TOKEN`]), or there was no memory for a picture, say.
    #[error("{0}")]
    Run(String),
}

impl Failure {
    /// What a text's grammar said.
    fn of_grammar(error: Error) -> Self {
        match error {
            Error::Input(reason) => Failure::Request(reason),
            error => Failure::Run(error.to_string()),
        }
    }

    /// [`Error::Input`] where the request is at fault, else [`Error::Device`].
    pub fn into_error(self) -> Error {
        match self {
            Failure::Request(reason) => Error::Input(reason),
            Failure::Run(reason) => Error::Device(reason),
        }
    }
}

/// What [`Failure::Run`] says where the logits allow no draw.
pub const NO_TOKEN: &str = "no token can be drawn: the target's logits are not numbers, as the weights are damaged or overflow in this dtype \
     (try --dtype f32), or logit_bias bans every token";

/// A grammar whose masks take longer, each made on the host while all wait, is not worth a tree of them.
const DEAR_MASK_US: f64 = 200.0;
/// Weight of the newest round in their mean.
const MASK_RATE: f64 = 0.2;

/// What a sequence has taken so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SequenceStats {
    /// Tokens of the prompt whose keys and values were there already.
    pub cached_tokens: usize,
    /// Rounds that it took part in.
    pub rounds: u64,
    /// Draft tokens verified for it.
    pub drafted_tokens: u64,
    /// Draft tokens accepted.
    pub accepted_tokens: u64,
}

/// Identifies a sequence of an engine; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// State of one sequence.
///
/// `committed` ends with the root: its token is known, but the target has not seen it. The target's cache holds positions
/// `0..root()`. The target's features of positions `draft_len..root()` wait in the backlog; the drafter's cache holds the
/// pairs of positions `0..draft_len`.
///
/// While `unread` is set the sequence is *prefilling*: the target's cache holds positions up to there, and what is committed beyond is read,
/// its last token included, before rounds begin. So begins a prompt, and so does a text whose keys and values were given up.
pub(super) struct Sequence {
    pub id: SequenceId,
    pub request: Request,
    pub committed: Vec<i32>,
    /// What each committed position is known by in the prefix cache.
    pub keys: Vec<PositionKey>,
    pub pictures: Pictures,
    /// The text under the request's grammar.
    pub guided: Option<GuidedText>,
    /// What a node's mask takes, a fading mean, µs.
    pub mask_us: f64,
    pub eos: Vec<i32>,
    pub unread: Option<usize>,
    pub draft_len: usize,
    pub finished: Option<FinishReason>,
    /// Why the text cannot go on.
    pub failure: Option<Failure>,
    pub stats: SequenceStats,
}

impl Sequence {
    /// A request whose placeholders are expanded, with nothing read yet. `keys` are those of the prompt; `eos` ends the text.
    pub fn new(id: SequenceId, request: Request, keys: Vec<PositionKey>, eos: Vec<i32>) -> Self {
        Self {
            id,
            committed: request.prompt.clone(),
            keys,
            pictures: Pictures::default(),
            guided: request.grammar.clone().map(GuidedText::new),
            mask_us: 0.0,
            eos,
            unread: Some(0),
            draft_len: 0,
            finished: None,
            failure: None,
            stats: SequenceStats::default(),
            request,
        }
    }

    /// Gives up keys and values: what is committed is read again.
    pub fn restart(&mut self) {
        self.pictures = Pictures::default();
        self.unread = Some(0);
        self.draft_len = 0;
    }

    /// Positions in the target's cache.
    pub fn kv_len(&self) -> usize {
        self.unread.unwrap_or_else(|| self.root())
    }

    /// Position of the root, which is the number of positions in the target's cache.
    pub fn root(&self) -> usize {
        self.committed.len() - 1
    }

    /// The last committed token.
    pub fn root_token(&self) -> i32 {
        self.committed[self.root()]
    }

    /// Features that wait for the drafter.
    pub fn backlog(&self) -> usize {
        self.root() - self.draft_len
    }

    /// Tokens emitted so far.
    pub fn emitted(&self) -> &[i32] {
        &self.committed[self.request.prompt.len()..]
    }

    /// The sequence as a controller sees it; `max_depth` as in [`SequenceView`].
    pub fn view(&self, max_depth: usize) -> SequenceView {
        let can_draft = self.guided.as_ref().is_none_or(GuidedText::can_draft);
        let may_draft = self.request.speculation && can_draft && self.mask_us < DEAR_MASK_US;
        SequenceView {
            id: self.id.0,
            root_token: self.root_token(),
            context_len: self.root(),
            sampled: !self.request.sampling.is_greedy(),
            // The newest feature goes with the root itself.
            backlog: self.backlog().saturating_sub(1),
            max_depth: if may_draft { max_depth } else { 0 },
            weight: self.request.weight,
        }
    }

    /// What may not come yet, by depth below the root.
    pub fn early_ends(&self) -> EarlyEnds {
        let depth = self.request.min_new_tokens.saturating_sub(self.emitted().len());
        EarlyEnds { ids: if depth > 0 { self.eos.clone() } else { Vec::new() }, depth }
    }

    /// Asks the text's grammar, if it has one, notes what its masks took, and whether it gave up: then the text fails when the round is
    /// committed, and whatever is drawn for it until then is not.
    pub fn guide(&mut self, ask: impl FnOnce(&mut GuidedText) -> Result<()>) {
        let Some(text) = &mut self.guided else { return };
        let (start, before) = (Instant::now(), text.masks_made());
        let outcome = ask(text);
        let (us, made) = (start.elapsed().as_secs_f64() * 1e6, text.masks_made() - before);
        self.observe_masks(made, us);
        if let Err(error) = outcome {
            self.failure.get_or_insert(Failure::of_grammar(error));
        }
    }

    /// Notes that `made` masks took `us` together.
    fn observe_masks(&mut self, made: usize, us: f64) {
        if made > 0 {
            self.mask_us += MASK_RATE * (us / made as f64 - self.mask_us);
        }
    }

    /// Lets the grammar follow a committed token; a text that it has brought to its end is finished.
    fn follow_grammar(&mut self, token: i32) {
        let Some(text) = &mut self.guided else { return };
        match text.push(token) {
            Ok(true) => self.finished = Some(FinishReason::Eos),
            Ok(false) => (),
            Err(error) => self.failure = Some(Failure::of_grammar(error)),
        }
    }

    /// Appends drawn tokens until the text ends or fails, and returns how many counted. It ends with an end-of-sequence token, which is not
    /// emitted, at the limit, or where its grammar lets nothing follow.
    pub fn commit(&mut self, tokens: &[i32]) -> usize {
        for (i, &token) in tokens.iter().enumerate() {
            if i > 0 {
                // Plain decoding would have asked what may follow the token before, and might have been told that the grammar gives up.
                self.guide(|text| text.mask(0).map(|_| ()));
                if self.failure.is_some() {
                    return i;
                }
            }
            if self.eos.contains(&token) {
                self.finished = Some(FinishReason::Eos);
                return i;
            }
            self.committed.push(token);
            self.keys.push(token.into());
            if self.emitted().len() == self.request.max_new_tokens {
                self.finished = Some(FinishReason::Length);
                return i + 1;
            }
            self.follow_grammar(token);
            if self.finished.is_some() || self.failure.is_some() {
                return i + 1;
            }
        }
        tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(max_new_tokens: usize, eos: &[i32]) -> Sequence {
        let request = Request::new(vec![5, 6], max_new_tokens);
        Sequence::new(SequenceId(0), request, vec![5, 6], eos.to_vec())
    }

    #[test]
    fn the_limit_cuts_inside_an_accepted_path() {
        let mut sequence = sequence(3, &[]);
        assert_eq!(sequence.commit(&[1, 2]), 2);
        assert_eq!(sequence.commit(&[3, 4, 5]), 1);
        assert_eq!((sequence.emitted(), sequence.finished), (&[1, 2, 3][..], Some(FinishReason::Length)));
    }

    #[test]
    fn a_sequence_with_dear_masks_does_not_draft_until_they_are_cheap_again() {
        let mut sequence = sequence(9, &[]);
        sequence.observe_masks(4, 600.0);
        assert_eq!(sequence.view(7).max_depth, 7, "150 us each");
        sequence.observe_masks(1, 4000.0);
        assert_eq!(sequence.view(7).max_depth, 0);
        (0..10).for_each(|_| sequence.observe_masks(1, 50.0));
        assert_eq!(sequence.view(7).max_depth, 7);
    }

    #[test]
    fn eos_ends_the_sequence_and_is_not_emitted() {
        let mut sequence = sequence(9, &[8, 7]);
        assert_eq!(sequence.commit(&[1, 7, 2]), 1);
        assert_eq!((sequence.emitted(), sequence.finished), (&[1][..], Some(FinishReason::Eos)));
    }
}
