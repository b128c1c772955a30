//! [`App`]: what all handlers share, from the first connection on, before there is a model, to the last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::Semaphore;

use super::body::BUDGET_UNIT;
use super::counters::Counters;
use super::errors::ApiError;
use super::model::ServedModel;
use super::pictures::PictureBudget;
use super::{ServerConfig, unix_seconds};
use crate::engine::Engine;
use crate::service::{Client, Service, ServiceConfig};

/// Bodies of the largest size that may be in memory at once.
const BODIES_AT_ONCE: usize = 16;
/// Threads that read JSON, run templates and tokenize.
const MAX_WORKERS: usize = 8;

/// A model with the engine that runs it.
pub(super) struct Serving {
    pub model: ServedModel,
    pub client: Client,
    pub facts: Facts,
    /// Memory for prepared pictures.
    pub pictures: PictureBudget,
    /// Requests that may wait.
    pub max_waiting: usize,
}

/// What is said of the engine.
pub(super) struct Facts {
    pub device: String,
    pub dtype: &'static str,
    pub policy: String,
    pub drafter: Option<String>,
    /// Sequences served at once.
    pub max_sequences: usize,
    /// When it was ready, s since 1970.
    pub since: u64,
}

enum Phase {
    Loading,
    Serving(Arc<Serving>),
    Failed(String),
}

pub(super) struct App {
    pub config: ServerConfig,
    pub counters: Counters,
    phase: RwLock<Phase>,
    draining: AtomicBool,
    /// Ends with the server.
    service: Mutex<Option<Service>>,
    /// Memory for bodies, in units of [`BUDGET_UNIT`].
    pub body_budget: Arc<Semaphore>,
    workers: Arc<Semaphore>,
}

impl App {
    pub fn new(config: ServerConfig) -> Self {
        let units =
            (BODIES_AT_ONCE * config.max_body_bytes).div_ceil(BUDGET_UNIT).min(Semaphore::MAX_PERMITS);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            config,
            counters: Counters::default(),
            phase: RwLock::new(Phase::Loading),
            draining: AtomicBool::new(false),
            service: Mutex::new(None),
            body_budget: Arc::new(Semaphore::new(units)),
            workers: Arc::new(Semaphore::new(cores.clamp(2, MAX_WORKERS))),
        }
    }

    /// From now on `engine` answers.
    pub fn begin(&self, model: ServedModel, drafter: Option<String>, engine: Engine, config: ServiceConfig) {
        let facts = Facts {
            device: engine.device().name().to_owned(),
            dtype: engine.dtype(),
            policy: engine.controller().policy().to_string(),
            drafter,
            max_sequences: self.config.max_sequences,
            since: unix_seconds(),
        };
        let service = Service::start(engine, config);
        let client = service.client();
        if self.is_draining() {
            client.close();
        }
        *self.service.lock().unwrap_or_else(PoisonError::into_inner) = Some(service);
        let pictures = PictureBudget::new(self.config.picture_budget_bytes);
        let serving = Serving { model, client, facts, pictures, max_waiting: config.max_waiting };
        self.set(Phase::Serving(Arc::new(serving)));
    }

    /// There will be no model.
    pub fn fail(&self, reason: String) {
        self.set(Phase::Failed(reason));
    }

    fn set(&self, phase: Phase) {
        *self.phase.write().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// Refuses requests from now on; those that run go on. The service, to be shut down.
    pub fn drain(&self) -> Option<Service> {
        self.draining.store(true, Ordering::Release);
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(service) = &service {
            service.client().close();
        }
        service
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// The model, if there is one, whatever its state.
    pub fn model(&self) -> Option<Arc<Serving>> {
        match &*self.phase.read().unwrap_or_else(PoisonError::into_inner) {
            Phase::Serving(serving) => Some(serving.clone()),
            Phase::Loading | Phase::Failed(_) => None,
        }
    }

    /// What made the engine unable to answer for good, if anything has.
    pub fn failure(&self) -> Option<String> {
        if let Phase::Failed(reason) = &*self.phase.read().unwrap_or_else(PoisonError::into_inner) {
            return Some(reason.clone());
        }
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner);
        match &*service {
            Some(service) if !service.is_running() => Some("the engine's thread has died".into()),
            Some(service) => service.client().failure(),
            None => None,
        }
    }

    /// The model, ready for requests.
    ///
    /// # Errors
    /// 503 while it loads, once it has failed, and while the server shuts down.
    pub fn serving(&self) -> Result<Arc<Serving>, ApiError> {
        if self.is_draining() {
            return Err(ApiError::unavailable("shutting_down", "the server is shutting down"));
        }
        if let Some(reason) = self.failure() {
            return Err(ApiError::unavailable("failed", format!("the engine has stopped: {reason}")));
        }
        self.model().ok_or_else(|| ApiError::unavailable("loading", "the model is being loaded"))
    }

    /// What `work` returns, done on a thread that may take its time.
    ///
    /// # Errors
    /// Its own.
    pub async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = self.workers.clone().acquire_owned().await;
        let worker = tokio::task::spawn_blocking(move || {
            // Held by the work itself: a client that goes away does not end it.
            let _turn = turn;
            work()
        });
        match worker.await {
            Ok(done) => done,
            Err(error) => {
                tracing::error!("a request's preparation has died: {error}");
                Err(ApiError::internal("the request could not be prepared: a defect of this server"))
            }
        }
    }
}
