//! [`Updates`]: what a request is answered, round by round.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use tokio::sync::mpsc as channel;

use super::worker::{Command, Submission};
use crate::control::trace::SequenceTrace;
use crate::engine::{FinishReason, Request, TokenLogprobs};
use crate::error::{Error, Result};

/// What one round brought for a request.
#[derive(Clone, Debug)]
pub struct Update {
    /// New tokens.
    pub tokens: Vec<i32>,
    /// How many of them, from the first on, were drafted and accepted.
    pub accepted: usize,
    /// One entry a token, if the request asked for them.
    pub logprobs: Vec<TokenLogprobs>,
    /// The draft tree, for a watched request, after a drafted round.
    pub tree: Option<SequenceTrace>,
    /// Set with the last update.
    pub finished: Option<FinishReason>,
    /// The request so far.
    pub usage: Usage,
}

/// What a request has taken so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, pictures expanded.
    pub prompt_tokens: usize,
    /// Of these, tokens whose keys and values were there already.
    pub cached_tokens: usize,
    /// Tokens emitted.
    pub completion_tokens: usize,
    /// Rounds that it took part in.
    pub rounds: u64,
    /// Draft tokens verified for it.
    pub drafted_tokens: u64,
    /// Draft tokens accepted.
    pub accepted_tokens: u64,
}

/// All that a request was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Emitted tokens.
    pub tokens: Vec<i32>,
    /// One entry a token, if the request asked for them.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub finished: FinishReason,
    /// What it took.
    pub usage: Usage,
}

/// Yields updates until the one that is `finished`; dropping it cancels the request.
///
/// Nothing waits for a slow reader: what has not been read yet is kept, at most the tokens that were asked for.
pub struct Updates {
    ticket: u64,
    inbox: channel::UnboundedReceiver<Result<Update>>,
    commands: mpsc::Sender<Command>,
    /// The last update, or an error, has been read.
    done: bool,
}

impl Updates {
    pub(super) fn open(
        request: Request,
        watched: bool,
        commands: mpsc::Sender<Command>,
    ) -> (Self, Submission) {
        static NEXT_TICKET: AtomicU64 = AtomicU64::new(0);
        let ticket = NEXT_TICKET.fetch_add(1, Ordering::Relaxed);
        let (outbox, inbox) = channel::unbounded_channel();
        (Self { ticket, inbox, commands, done: false }, Submission { ticket, request, watched, outbox })
    }

    /// The next update; `None` after the last one, or after an error.
    ///
    /// # Errors
    /// The request failed; nothing follows.
    pub async fn next(&mut self) -> Option<Result<Update>> {
        if self.done {
            return None;
        }
        let update = self.inbox.recv().await;
        Some(self.read(update))
    }

    /// As [`Updates::next`], for a thread that may wait.
    ///
    /// # Panics
    /// Within an asynchronous context.
    pub fn wait(&mut self) -> Option<Result<Update>> {
        if self.done {
            return None;
        }
        let update = self.inbox.blocking_recv();
        Some(self.read(update))
    }

    /// Waits for all of it.
    ///
    /// # Errors
    /// The request failed.
    pub fn wait_for_all(mut self) -> Result<Answer> {
        let mut answer = Collected::default();
        while let Some(update) = self.wait() {
            answer.add(update?);
        }
        answer.finish()
    }

    /// Awaits all of it.
    ///
    /// # Errors
    /// The request failed.
    pub async fn all(mut self) -> Result<Answer> {
        let mut answer = Collected::default();
        while let Some(update) = self.next().await {
            answer.add(update?);
        }
        answer.finish()
    }

    fn read(&mut self, update: Option<Result<Update>>) -> Result<Update> {
        let update = update.unwrap_or_else(|| {
            Err(Error::Device("the engine stopped before the request was finished".into()))
        });
        self.done = update.as_ref().map_or(true, |update| update.finished.is_some());
        update
    }
}

impl Drop for Updates {
    fn drop(&mut self) {
        if !self.done {
            // A worker that has ended has nothing to cancel.
            let _ = self.commands.send(Command::Cancel { ticket: self.ticket });
        }
    }
}

/// An answer in the making.
#[derive(Default)]
struct Collected {
    tokens: Vec<i32>,
    logprobs: Vec<TokenLogprobs>,
    end: Option<(FinishReason, Usage)>,
}

impl Collected {
    fn add(&mut self, update: Update) {
        self.tokens.extend(update.tokens);
        self.logprobs.extend(update.logprobs);
        self.end = update.finished.map(|finished| (finished, update.usage));
    }

    fn finish(self) -> Result<Answer> {
        let Self { tokens, logprobs, end } = self;
        let (finished, usage) =
            end.ok_or_else(|| Error::Defect("a request ended without a reason".into()))?;
        Ok(Answer { tokens, logprobs, finished, usage })
    }
}
