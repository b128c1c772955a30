//! [`Desk`]: the requests that are served, and what goes back to those who asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::mpsc as channel;

use super::Shared;
use super::snapshot::Snapshot;
use super::updates::{Update, Usage};
use crate::control::trace::SequenceTrace;
use crate::engine::{Emission, Engine, SequenceId};
use crate::error::{Error, Result};

/// A request in the engine.
pub(super) struct Served {
    /// Names the request before the engine does.
    pub ticket: u64,
    /// Send draft trees along.
    pub watched: bool,
    pub prompt_tokens: usize,
    pub outbox: channel::UnboundedSender<Result<Update>>,
    completion_tokens: usize,
    /// Its wait for a place is over.
    begun: bool,
    submitted: Instant,
}

impl Served {
    pub fn new(
        ticket: u64,
        watched: bool,
        prompt_tokens: usize,
        outbox: channel::UnboundedSender<Result<Update>>,
    ) -> Self {
        let submitted = Instant::now();
        Self { ticket, watched, prompt_tokens, outbox, completion_tokens: 0, begun: false, submitted }
    }
}

/// What a step of the engine has brought and is still to be handed out: nothing here needs the engine, which may be busy with the next.
#[derive(Default)]
pub(super) struct Brought {
    emissions: Vec<Emission>,
    /// Of those who watch.
    trees: HashMap<SequenceId, SequenceTrace>,
    running: Vec<SequenceId>,
}

pub(super) struct Desk {
    shared: Arc<Shared>,
    served: HashMap<SequenceId, Served>,
    pub snapshot: Snapshot,
}

impl Desk {
    pub fn new(shared: Arc<Shared>, snapshot: Snapshot) -> Self {
        Self { shared, served: HashMap::new(), snapshot }
    }

    /// Whether nobody waits for anything.
    pub fn is_empty(&self) -> bool {
        self.served.is_empty()
    }

    pub fn serve(&mut self, id: SequenceId, served: Served) {
        self.served.insert(id, served);
        self.snapshot.requests += 1;
    }

    /// The engine's name of a request.
    pub fn find(&self, ticket: u64) -> Option<SequenceId> {
        self.served.iter().find(|(_, served)| served.ticket == ticket).map(|(&id, _)| id)
    }

    pub fn all(&self) -> Vec<SequenceId> {
        self.served.keys().copied().collect()
    }

    /// What `engine` has brought with the `emissions` of its latest step.
    pub fn brought(&self, engine: &Engine, emissions: Vec<Emission>) -> Brought {
        let watched = self.served.iter().filter(|(_, served)| served.watched);
        let trees = watched.filter_map(|(&id, _)| Some((id, engine.round_trace(id)?))).collect();
        Brought { emissions, trees, running: engine.running().collect() }
    }

    /// Hands out; those whose readers are gone, to be cancelled.
    #[must_use]
    pub fn hand_out(&mut self, brought: Brought) -> Vec<SequenceId> {
        let Brought { emissions, mut trees, running } = brought;
        self.note_begun(running);
        let mut unread = Vec::new();
        for emission in emissions {
            let id = emission.sequence;
            let Some(served) = self.served.get_mut(&id) else { continue };
            if served.completion_tokens == 0 && !emission.tokens.is_empty() {
                self.snapshot.first_token_seconds.observe(served.submitted.elapsed().as_secs_f64());
            }
            served.completion_tokens += emission.tokens.len();
            let stats = emission.stats;
            let update = Update {
                accepted: emission.accepted,
                logprobs: emission.logprobs,
                tree: trees.remove(&id),
                // A failure is told by an error, behind what came before it.
                finished: emission.finished.filter(|_| emission.failure.is_none()),
                usage: Usage {
                    prompt_tokens: served.prompt_tokens,
                    cached_tokens: stats.cached_tokens,
                    completion_tokens: served.completion_tokens,
                    rounds: stats.rounds,
                    drafted_tokens: stats.drafted_tokens,
                    accepted_tokens: stats.accepted_tokens,
                },
                tokens: emission.tokens,
            };
            self.snapshot.emitted_tokens += update.tokens.len() as u64;
            let mut is_unread = served.outbox.send(Ok(update)).is_err();
            if let Some(failure) = emission.failure {
                is_unread |= served.outbox.send(Err(failure.into_error())).is_err();
            }
            if let Some(reason) = emission.finished {
                self.snapshot.count_finished(reason);
                self.snapshot.request_seconds.observe(served.submitted.elapsed().as_secs_f64());
                self.forget(id);
            } else if is_unread {
                // Its reader is gone, and so is its cancellation's sender: it may come later or never.
                unread.push(id);
                self.forget(id);
                self.snapshot.cancelled += 1;
            }
        }
        unread
    }

    /// What has begun to run waits no longer.
    pub fn note_begun(&mut self, running: impl IntoIterator<Item = SequenceId>) {
        for id in running {
            if let Some(served) = self.served.get_mut(&id)
                && !std::mem::replace(&mut served.begun, true)
            {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                self.snapshot.queue_seconds.observe(served.submitted.elapsed().as_secs_f64());
            }
        }
    }

    /// Tells whoever asked that the engine gave it up.
    pub fn fail(&mut self, id: SequenceId, reason: &str) {
        if let Some(served) = self.served.get(&id) {
            let _ = served.outbox.send(Err(Error::Device(reason.into())));
            self.snapshot.failed += 1;
        }
        self.forget(id);
    }

    pub fn forget(&mut self, id: SequenceId) {
        if let Some(served) = self.served.remove(&id)
            && !served.begun
        {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
