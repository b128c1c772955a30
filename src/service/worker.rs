//! [`Worker`]: the thread that an engine lives on. Between rounds it takes in what clients ask; after each round it hands out what the
//! round brought.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use tokio::sync::mpsc as channel;

use super::cache_events::Followers;
use super::snapshot::Snapshot;
use super::updates::{Update, Usage};
use super::{Shared, lock};
use crate::engine::{CacheEvent, Emission, Engine, Request, SequenceId};
use crate::error::{Error, Result};

/// Rounds that may fail one after another before those that were running are given up: what a round does not bring, the next can.
const RETRIES: u32 = 2;
/// Failures one after another after which the device counts as lost.
const LOST: u32 = 6;

/// What clients ask of the worker.
pub(super) enum Command {
    Submit(Box<Submission>),
    Cancel {
        ticket: u64,
    },
    /// Tell of the prefix cache.
    Follow(channel::UnboundedSender<Vec<CacheEvent>>),
    ShutDown {
        deadline: Instant,
    },
}

/// A request on its way to the engine.
pub(super) struct Submission {
    /// Names the request before the engine does.
    pub ticket: u64,
    pub request: Request,
    /// Send draft trees along.
    pub watched: bool,
    pub outbox: channel::UnboundedSender<Result<Update>>,
}

/// A request in the engine.
struct Served {
    ticket: u64,
    watched: bool,
    prompt_tokens: usize,
    outbox: channel::UnboundedSender<Result<Update>>,
    completion_tokens: usize,
    /// Its wait for a place is over.
    begun: bool,
    submitted: Instant,
}

pub(super) struct Worker {
    engine: Engine,
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Command>,
    served: HashMap<SequenceId, Served>,
    followers: Followers,
    /// When to stop at the latest.
    deadline: Option<Instant>,
    failures: u32,
    snapshot: Snapshot,
}

impl Worker {
    pub fn new(engine: Engine, shared: Arc<Shared>, inbox: mpsc::Receiver<Command>) -> Self {
        let snapshot = Snapshot::of(&engine);
        Self {
            engine,
            shared,
            inbox,
            served: HashMap::new(),
            followers: Followers::default(),
            deadline: None,
            failures: 0,
            snapshot,
        }
    }

    /// Serves until it is told to shut down, or until nobody is left who could ask.
    pub fn run(mut self) -> Engine {
        while self.take_commands() {
            if self.served.is_empty() {
                continue;
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.fail_all("the service was shut down before the request was finished");
                continue;
            }
            let start = Instant::now();
            match self.engine.step() {
                Ok(emissions) => {
                    self.failures = 0;
                    self.hand_out(emissions);
                }
                Err(error) => self.recover(&error),
            }
            self.snapshot.observe_round(&self.engine, start.elapsed());
            self.publish();
        }
        self.fail_all("the service was shut down before the request was finished");
        self.publish();
        self.engine
    }

    /// Takes in all that was asked, waiting for something while there is nothing to do; false at the end.
    fn take_commands(&mut self) -> bool {
        loop {
            let idle = self.served.is_empty();
            if idle && self.deadline.is_some() {
                return false;
            }
            if idle {
                // Nothing will tell of what was cancelled until something else runs.
                self.publish();
            }
            let command = match idle {
                true => self.inbox.recv().map_err(|_| true),
                false => self.inbox.try_recv().map_err(|error| error == mpsc::TryRecvError::Disconnected),
            };
            match command {
                Ok(Command::Submit(submission)) => self.accept(*submission),
                Ok(Command::Cancel { ticket }) => self.cancel(ticket),
                Ok(Command::Follow(outbox)) => self.followers.add(&mut self.engine, outbox),
                Ok(Command::ShutDown { deadline }) => self.deadline = Some(deadline),
                // Nobody is left to ask for more, nor to read: streams hold a sender.
                Err(true) => return false,
                Err(false) => return true,
            }
        }
    }

    fn accept(&mut self, submission: Submission) {
        let Submission { ticket, request, watched, outbox } = submission;
        if let Some(reason) = lock(&self.shared.failure).clone() {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            let _ = outbox.send(Err(Error::Device(reason)));
            return;
        }
        let prompt_tokens = request.prompt.len();
        match self.engine.submit(request) {
            Ok(id) => {
                let served = Served {
                    ticket,
                    watched,
                    prompt_tokens,
                    outbox,
                    completion_tokens: 0,
                    begun: false,
                    submitted: Instant::now(),
                };
                self.served.insert(id, served);
                self.snapshot.requests += 1;
            }
            Err(error) => {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                let _ = outbox.send(Err(error));
            }
        }
    }

    fn cancel(&mut self, ticket: u64) {
        let id = self.served.iter().find(|(_, served)| served.ticket == ticket).map(|(&id, _)| id);
        // One that has ended meanwhile needs no cancelling.
        if let Some(id) = id {
            self.engine.cancel(id);
            self.forget(id);
            self.snapshot.cancelled += 1;
        }
    }

    fn forget(&mut self, id: SequenceId) {
        if let Some(served) = self.served.remove(&id)
            && !served.begun
        {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// What has begun to run waits no longer.
    fn note_begun(&mut self) {
        for id in self.engine.running() {
            if let Some(served) = self.served.get_mut(&id)
                && !std::mem::replace(&mut served.begun, true)
            {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                self.snapshot.queue_seconds.observe(served.submitted.elapsed().as_secs_f64());
            }
        }
    }

    fn hand_out(&mut self, emissions: Vec<Emission>) {
        self.note_begun();
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
                tree: if served.watched { self.engine.round_trace(id) } else { None },
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
            let finished = emission.finished;
            let mut unread = served.outbox.send(Ok(update)).is_err();
            if let Some(failure) = emission.failure {
                unread |= served.outbox.send(Err(Error::Device(failure))).is_err();
            }
            if let Some(reason) = finished {
                self.snapshot.count_finished(reason);
                self.snapshot.request_seconds.observe(served.submitted.elapsed().as_secs_f64());
                self.forget(id);
            } else if unread {
                // Its reader is gone, and so is its cancellation's sender: it may come later or never.
                self.engine.cancel(id);
                self.forget(id);
                self.snapshot.cancelled += 1;
            }
        }
    }

    /// A round has failed. What it was to bring follows from what the host knows, so it is tried again; if that fails too, those that run
    /// are given up, and after more failures all.
    fn recover(&mut self, error: &Error) {
        self.failures += 1;
        self.snapshot.failed_rounds += 1;
        tracing::error!(failures = self.failures, "a round failed: {error}");
        self.note_begun();
        if self.failures >= LOST {
            let reason = format!("the device failed {LOST} times in a row: {error}");
            *lock(&self.shared.failure) = Some(reason.clone());
            self.fail_all(&reason);
            return;
        }
        let given_up: Vec<SequenceId> =
            if self.failures > RETRIES { self.engine.running().collect() } else { Vec::new() };
        for id in given_up {
            self.engine.cancel(id);
            if let Some(served) = self.served.get(&id) {
                let _ = served.outbox.send(Err(Error::Device(error.to_string())));
                self.snapshot.failed += 1;
            }
            self.forget(id);
        }
        self.engine.restart_running();
    }

    fn fail_all(&mut self, reason: &str) {
        let all: Vec<SequenceId> = self.served.keys().copied().collect();
        for id in all {
            self.engine.cancel(id);
            if let Some(served) = self.served.get(&id) {
                let _ = served.outbox.send(Err(Error::Device(reason.into())));
                self.snapshot.failed += 1;
            }
            self.forget(id);
        }
    }

    fn publish(&mut self) {
        self.followers.tell(&mut self.engine);
        self.snapshot.observe(&self.engine);
        lock(&self.shared.snapshot).clone_from(&self.snapshot);
    }
}
