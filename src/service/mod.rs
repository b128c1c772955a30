//! [`Service`]: an engine on a thread of its own, which many callers use at once.
//!
//! A [`Client`] submits a request and gets [`Updates`]: the tokens of each round as they come, awaited or waited for. Dropping them cancels
//! the request. Too many waiting requests are refused ([`Refusal::Full`]), so that callers feel when the engine is behind. What a request
//! is answered does not depend on the others.
//!
//! ```
//! use smart_run::engine::{Engine, Request};
//! use smart_run::service::{Service, ServiceConfig};
//!
//! # fn main() -> smart_run::Result<()> {
//! let engine = Engine::builder(std::path::Path::new("assets/demo/target"))
//!     .drafter(std::path::Path::new("assets/demo/drafter"))
//!     .max_sequences(4)
//!     .max_context(256)
//!     .build()?;
//! let service = Service::start(engine, ServiceConfig::default());
//! let client = service.client();
//! let texts: Vec<_> = std::thread::scope(|scope| {
//!     let ask = |first: i32| client.submit(Request::new(vec![first, 87, 12], 8)).unwrap().wait_for_all();
//!     let asked: Vec<_> = (0..3).map(|first| scope.spawn(move || ask(first))).collect();
//!     asked.into_iter().map(|thread| thread.join().unwrap()).collect()
//! });
//! for answer in texts {
//!     println!("{:?}", answer?.tokens);
//! }
//! service.shut_down(std::time::Duration::from_secs(10));
//! # Ok(())
//! # }
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `updates` | what a caller reads |
//! | `cache_events` | what the prefix cache holds, followed from outside |
//! | `worker` | the thread that the engine lives on |
//! | `desk` | what goes back to those who asked |
//! | `snapshot`, `metrics` | counters, for who watches; the same in the text format of Prometheus |
#![forbid(unsafe_code)]

mod cache_events;
mod desk;
mod metrics;
mod snapshot;
mod updates;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::{CacheLayout, Engine, Request, RequestLimits};
use crate::error::Error;

pub use cache_events::CacheEvents;
pub use metrics::MetricsPage;
pub use snapshot::{Histogram, Snapshot};
pub use updates::{Answer, Update, Updates, Usage};

use worker::{Command, Submission, Worker};

/// Bounds of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Requests that may wait for a place, beyond those that run.
    pub max_waiting: usize,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self { max_waiting: 256 }
    }
}

/// Why a request was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request cannot be served, now or later.
    #[error(transparent)]
    Invalid(#[from] Error),
    /// So many requests wait that this one would wait too long.
    #[error("{waiting} requests are waiting already; try again later")]
    Full {
        /// Those that wait.
        waiting: usize,
    },
    /// The service is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The device has failed for good.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
}

/// What clients and worker share.
pub(crate) struct Shared {
    limits: RequestLimits,
    cache_layout: CacheLayout,
    max_waiting: usize,
    /// Requests submitted that have not begun to run.
    waiting: AtomicUsize,
    closing: AtomicBool,
    /// What made the engine stop.
    failure: Mutex<Option<String>>,
    snapshot: Mutex<Snapshot>,
}

/// An engine that serves; see the module's documentation.
pub struct Service {
    client: Client,
    worker: Option<JoinHandle<Engine>>,
}

/// Submits requests; clones share the engine.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Service {
    /// Moves `engine` to a thread of its own.
    pub fn start(engine: Engine, config: ServiceConfig) -> Self {
        let shared = Arc::new(Shared {
            limits: engine.limits(),
            cache_layout: engine.cache_layout(),
            max_waiting: config.max_waiting,
            waiting: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            failure: Mutex::new(None),
            snapshot: Mutex::new(Snapshot::of(&engine)),
        });
        let (commands, inbox) = mpsc::channel();
        let worker = Worker::new(engine, Arc::clone(&shared), inbox);
        let worker = std::thread::Builder::new().name("engine".into()).spawn(move || worker.run());
        let worker = worker.expect("the system can start one more thread");
        Self { client: Client { shared, commands }, worker: Some(worker) }
    }

    /// A client of this service.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Whether the engine's thread is alive.
    pub fn is_running(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| !worker.is_finished())
    }

    /// Accepts nothing more, lets what runs and waits end, at most for `patience`, and cancels the rest. The engine, unless its thread
    /// died.
    pub fn shut_down(mut self, patience: Duration) -> Option<Engine> {
        self.client.close();
        // The worker ends without clients, too; it must not have to wait for their end.
        let _ = self.client.commands.send(Command::ShutDown { deadline: Instant::now() + patience });
        self.worker.take()?.join().ok()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.client.close();
        let _ = self.client.commands.send(Command::ShutDown { deadline: Instant::now() });
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl Client {
    /// Hands a request in. It runs once there is room for it.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn submit(&self, request: Request) -> Result<Updates, Refusal> {
        self.submit_watched(request, false)
    }

    /// As [`Client::submit`]; with `watched` each update comes with the round's draft tree.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn submit_watched(&self, request: Request, watched: bool) -> Result<Updates, Refusal> {
        if let Some(reason) = self.failure() {
            return Err(Refusal::Stopped(reason));
        }
        if self.shared.closing.load(Ordering::Acquire) {
            return Err(Refusal::ShuttingDown);
        }
        let request = self.shared.limits.check(request)?;
        let enough = |waiting: usize| (waiting < self.shared.max_waiting).then_some(waiting + 1);
        let waiting = &self.shared.waiting;
        if let Err(waiting) = waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, enough) {
            return Err(Refusal::Full { waiting });
        }
        let (updates, submission) = Updates::open(request, watched, self.commands.clone());
        self.send(submission).inspect_err(|_| _ = waiting.fetch_sub(1, Ordering::AcqRel))?;
        Ok(updates)
    }

    fn send(&self, submission: Submission) -> Result<(), Refusal> {
        self.commands.send(Command::Submit(Box::new(submission))).map_err(|_| Refusal::ShuttingDown)
    }

    /// What requests must keep to.
    pub fn limits(&self) -> &RequestLimits {
        &self.shared.limits
    }

    /// How the prefix cache cuts texts into blocks.
    pub fn cache_layout(&self) -> CacheLayout {
        self.shared.cache_layout
    }

    /// Follows the prefix cache from now on. While nobody does, it costs nothing.
    pub fn cache_events(&self) -> CacheEvents {
        let (events, outbox) = CacheEvents::open();
        // Where the worker has ended, so do the events: the outbox is dropped.
        let _ = self.commands.send(Command::Follow(outbox));
        events
    }

    /// The counters as they stood after the latest round.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = lock(&self.shared.snapshot).clone();
        snapshot.waiting = self.shared.waiting.load(Ordering::Acquire);
        snapshot
    }

    /// Accepts nothing more from now on; what has been accepted goes on.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
    }

    /// Whether requests are accepted.
    pub fn is_open(&self) -> bool {
        !self.shared.closing.load(Ordering::Acquire) && self.failure().is_none()
    }

    /// What made the engine stop for good, if it has.
    pub fn failure(&self) -> Option<String> {
        lock(&self.shared.failure).clone()
    }
}

/// What a poisoned lock guards here is whole: it is only ever replaced.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
