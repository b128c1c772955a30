//! An HTTP server that speaks OpenAI's protocol over a [`Service`](crate::service).
//!
//! A [`Server`] is bound first and answers at once: `/health` says that it lives, everything else that the model is being loaded. Once
//! [`Handle::serve`] has given it an engine it takes requests, until it is told to stop; then it refuses new ones, lets those that run
//! end, and returns. It fetches nothing, writes nothing, and logs nothing of what clients say.
//!
//! What a request waits for happens on the engine's thread; what may take long on the host (JSON, templates, tokens, pictures) on
//! blocking threads, few at a time. All that a client can make large is bounded: see [`ServerConfig`].
//!
//! ```no_run
//! use smart_run::config::ModelSource;
//! use smart_run::engine::Engine;
//! use smart_run::serve::{ServedModel, Server, ServerConfig};
//!
//! # async fn example() -> smart_run::Result<()> {
//! let config = ServerConfig { max_sequences: 4, ..ServerConfig::default() };
//! let target = ModelSource::from(std::path::Path::new("assets/demo/target"));
//! let engine = Engine::builder(target.clone()).max_sequences(config.max_sequences).build()?;
//! let server = Server::bind(config).await?;
//! println!("http://{}", server.address()?);
//! server.handle().serve(ServedModel::open(&target, "demo")?, None, engine);
//! server.run(async { _ = tokio::signal::ctrl_c().await }).await;
//! # Ok(())
//! # }
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `connections`, `stalls` | how many connections, how long a peer may take |
//! | `routes`, `access`, `exchange` | which path is what; keys, hosts and origins; names, log, counts |
//! | `app`, `model` | what all handlers share; what stands around the engine |
//! | `body`, `fields`, `errors` | reading requests, and what is said of bad ones |
//! | `parameters`, `constraint`, `conversation`, `pictures`, `tool_choice` | what requests mean |
//! | `completions`, `chat`, `tokens`, `probes`, `metrics`, `openapi`, `page` | the endpoints |
//! | `generation`, `answers`, `logprobs`, `usage`, `tool_calls` | from rounds to answers, whole or streamed |
#![forbid(unsafe_code)]

mod access;
mod answers;
mod app;
mod body;
mod chat;
mod completions;
mod connections;
mod constraint;
mod conversation;
mod counters;
mod errors;
mod exchange;
mod fields;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod generation;
mod logprobs;
mod metrics;
mod model;
mod openapi;
mod page;
mod parameters;
mod pictures;
mod probes;
mod routes;
mod stalls;
mod tokens;
mod tool_calls;
mod tool_choice;
mod usage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpListener;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::service::ServiceConfig;

pub use access::ApiKey;
pub use model::ServedModel;

use app::App;
use connections::Connections;

/// Time for answers to reach their readers once they are complete.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Bounds of a server, and who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where to listen; port 0 takes any that is free.
    pub address: SocketAddr,
    /// Keys of which a client needs one; none are needed if there are none.
    pub api_keys: Vec<ApiKey>,
    /// Origins whose pages may read answers, as in `https://example.org`; `*` is all.
    pub cors_origins: Vec<String>,
    /// Names by which requests may call the server, beside the loopback's; no port. A server that listens on the loopback, or has such
    /// names, refuses all others (403), as pages of other sites may lead theirs here.
    pub allowed_hosts: Vec<String>,
    /// Sequences that the engine was built for.
    pub max_sequences: usize,
    /// Sequences that may wait for a place.
    pub max_waiting: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// Largest body.
    pub max_body_bytes: usize,
    /// Memory for what vision towers are given of pictures, for all requests together, from before a picture is decoded until the answers that
    /// look at it have ended. A request that finds too little is told to come back (429).
    pub picture_budget_bytes: usize,
    /// Time for the head of a request, from the connection's start or the answer before it.
    pub header_timeout: Duration,
    /// Time for a body.
    pub body_timeout: Duration,
    /// Time for which a peer may take nothing of what it is sent.
    pub write_timeout: Duration,
    /// Time for running requests once the server is to stop.
    pub drain: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            max_sequences: 16,
            max_waiting: 256,
            max_connections: 1024,
            max_body_bytes: 16 << 20,
            picture_budget_bytes: 4 << 30,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(30),
        }
    }
}

/// A bound server; see the module's documentation.
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
}

/// Gives a server its model, from any thread.
#[derive(Clone)]
pub struct Handle {
    app: Arc<App>,
}

impl Server {
    /// Listens, but answers nothing yet.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(config: ServerConfig) -> Result<Self> {
        let address = config.address;
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Error::Input(format!("cannot listen on {address}: {error}; choose another --host or --port"))
        })?;
        Ok(Self { listener, app: Arc::new(App::new(config)) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|error| Error::Device(format!("the address is unknown: {error}")))
    }

    /// What gives it its model.
    pub fn handle(&self) -> Handle {
        Handle { app: self.app.clone() }
    }

    /// Answers until `stop` is done, then refuses new requests, lets those that run end within the time for it, and returns.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, app } = self;
        let patience = app.config.drain;
        let mut connections = Connections::new(app.clone(), routes::router(app.clone()));
        tokio::select! {
            () = connections.accept(&listener) => (),
            () = stop => (),
        }
        let deadline = Instant::now() + patience;
        let service = app.drain();
        tracing::info!(drain_seconds = patience.as_secs(), "shutting down: new requests are refused");
        if let Some(service) = service {
            let ended = tokio::task::spawn_blocking(move || service.shut_down(patience));
            tokio::select! {
                () = connections.accept(&listener) => (),
                _ = ended => (),
            }
        }
        drop(listener);
        let left = deadline.saturating_duration_since(Instant::now());
        connections.close(left.max(LAST_WORDS)).await;
        tracing::info!("stopped");
    }
}

impl Handle {
    /// From now on requests are answered by `engine`, for which `drafter` drafts.
    pub fn serve(&self, model: ServedModel, drafter: Option<String>, engine: Engine) {
        let config = ServiceConfig { max_waiting: self.app.config.max_waiting };
        self.app.begin(model, drafter, engine, config);
    }

    /// There will be no model, for this `reason`.
    pub fn fail(&self, reason: impl Into<String>) {
        self.app.fail(reason.into());
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
