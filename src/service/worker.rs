//! [`Worker`]: the thread that an engine lives on. Between rounds it takes in what clients ask; what a round brought it hands out while the
//! device runs the next.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use tokio::sync::mpsc as channel;

use super::cache_events::Followers;
use super::desk::{Brought, Desk, Served};
use super::snapshot::Snapshot;
use super::updates::Update;
use super::{Shared, lock};
use crate::engine::{CacheEvent, Emission, Engine, FinishReason, Request, SequenceId};
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

pub(super) struct Worker {
    engine: Engine,
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Command>,
    desk: Desk,
    /// What the latest round brought, until it is handed out.
    brought: Brought,
    followers: Followers,
    /// When to stop at the latest.
    deadline: Option<Instant>,
    failures: u32,
}

impl Worker {
    pub fn new(engine: Engine, shared: Arc<Shared>, inbox: mpsc::Receiver<Command>) -> Self {
        let desk = Desk::new(shared.clone(), Snapshot::of(&engine));
        Self {
            engine,
            shared,
            inbox,
            desk,
            brought: Brought::default(),
            followers: Followers::default(),
            deadline: None,
            failures: 0,
        }
    }

    /// Serves until it is told to shut down, or until nobody is left who could ask.
    pub fn run(mut self) -> Engine {
        while self.take_commands() {
            if self.desk.is_empty() {
                continue;
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.fail_all("the service was shut down before the request was finished");
                continue;
            }
            let start = Instant::now();
            self.step();
            self.desk.snapshot.observe_round(&self.engine, start.elapsed());
            self.publish();
        }
        self.fail_all("the service was shut down before the request was finished");
        self.publish();
        self.engine
    }

    /// Runs a round, and hands out what the one before it brought.
    fn step(&mut self) {
        let Self { engine, desk, brought, .. } = self;
        let mut unread = Vec::new();
        let result = engine.step_meanwhile(&mut || unread = desk.hand_out(std::mem::take(brought)));
        self.cancel_all(unread);
        match result {
            Ok(emissions) => {
                // Whoever failed alone says nothing of the device: no pass has to have come with it.
                let failed_alone = |emission: &Emission| emission.finished == Some(FinishReason::Failed);
                if emissions.is_empty() || !emissions.iter().all(failed_alone) {
                    self.failures = 0;
                }
                self.brought = self.desk.brought(&self.engine, emissions);
                if self.engine.is_idle() {
                    // No other round comes.
                    self.hand_out();
                }
            }
            Err(error) => self.recover(&error),
        }
    }

    fn hand_out(&mut self) {
        let unread = self.desk.hand_out(std::mem::take(&mut self.brought));
        self.cancel_all(unread);
    }

    fn cancel_all(&mut self, ids: Vec<SequenceId>) {
        for id in ids {
            self.engine.cancel(id);
        }
    }

    /// Takes in all that was asked, waiting for something while there is nothing to do; false at the end.
    fn take_commands(&mut self) -> bool {
        loop {
            let idle = self.desk.is_empty();
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
                self.desk.serve(id, Served::new(ticket, watched, prompt_tokens, outbox));
            }
            Err(error) => {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                let _ = outbox.send(Err(error));
            }
        }
    }

    fn cancel(&mut self, ticket: u64) {
        // One that has ended meanwhile needs no cancelling.
        if let Some(id) = self.desk.find(ticket) {
            self.engine.cancel(id);
            self.desk.forget(id);
            self.desk.snapshot.cancelled += 1;
        }
    }

    /// A round has failed. What it was to bring follows from what the host knows, so it is tried again; if that fails too, those that run
    /// are given up (or, where nobody does, who would be next), and after more failures all.
    fn recover(&mut self, error: &Error) {
        self.failures += 1;
        self.desk.snapshot.failed_rounds += 1;
        tracing::error!(failures = self.failures, "a round failed: {error}");
        self.desk.note_begun(self.engine.running());
        if self.failures >= LOST {
            let reason = format!("the device failed {LOST} times in a row: {error}");
            *lock(&self.shared.failure) = Some(reason.clone());
            self.fail_all(&reason);
            return;
        }
        let given_up: Vec<SequenceId> = match self.failures > RETRIES {
            true if self.engine.running().next().is_none() => {
                self.engine.next_in_line().into_iter().collect()
            }
            true => self.engine.running().collect(),
            false => Vec::new(),
        };
        for id in given_up {
            self.engine.cancel(id);
            self.desk.fail(id, &error.to_string());
        }
        self.engine.restart_running();
    }

    /// Gives up all, who get what was brought before.
    fn fail_all(&mut self, reason: &str) {
        self.hand_out();
        for id in self.desk.all() {
            self.engine.cancel(id);
            self.desk.fail(id, reason);
        }
    }

    fn publish(&mut self) {
        self.followers.tell(&mut self.engine);
        self.desk.snapshot.observe(&self.engine);
        lock(&self.shared.snapshot).clone_from(&self.desk.snapshot);
    }
}
