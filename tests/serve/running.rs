//! Servers within this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use smart_run::config::{FloatType, ModelSource};
use smart_run::control::Policy;
use smart_run::device::DeviceChoice;
use smart_run::engine::{Engine, EngineBuilder, Request};
use smart_run::serve::{Handle, ServedModel, Server, ServerConfig};
use tokio::sync::oneshot;

use super::client;

/// Context of the engines.
pub const CONTEXT: usize = 256;
pub const SEQUENCES: usize = 4;

pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub fn target() -> ModelSource {
    ModelSource::from(in_repository("assets/demo/target"))
}

pub fn builder(target: &ModelSource) -> EngineBuilder<'static> {
    Engine::builder(target.clone())
        .device(DeviceChoice::Host)
        .float_type(FloatType::F32)
        .max_context(CONTEXT)
        .max_sequences(SEQUENCES)
}

/// An engine that drafts a tree in every round, without a measurement at its start.
pub fn drafting_engine(target: &ModelSource) -> Engine {
    let policy: Policy = "eagle2:4,3,12".parse().unwrap();
    builder(target).drafter(in_repository("assets/demo/drafter").as_path()).policy(policy).build().unwrap()
}

/// What plain decoding answers.
pub fn plain_tokens(target: &ModelSource, request: Request) -> Vec<i32> {
    let mut engine = builder(target).max_sequences(1).build().unwrap();
    engine.generate(request).unwrap().flat_map(|tokens| tokens.unwrap()).collect()
}

/// A server; dropped, it is told to stop and waited for.
pub struct Running {
    pub address: SocketAddr,
    pub handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

pub fn config() -> ServerConfig {
    ServerConfig {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        max_sequences: SEQUENCES,
        // Machines that run tests may be slow.
        drain: Duration::from_secs(120),
        ..ServerConfig::default()
    }
}

impl Running {
    /// A server whose model is being loaded.
    pub fn loading(config: ServerConfig) -> Self {
        let (ready, bound) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async move {
                let server = Server::bind(config).await.unwrap();
                ready.send((server.address().unwrap(), server.handle())).unwrap();
                server.run(async { _ = stopped.await }).await;
            });
        });
        let (address, handle) = bound.recv().unwrap();
        Self { address, handle, stop: Some(stop), thread: Some(thread) }
    }

    /// A server of the demo pair, or of `target` with its drafter.
    pub fn start(config: ServerConfig, target: &ModelSource) -> Self {
        Self::with(config, target, drafting_engine(target))
    }

    pub fn with(config: ServerConfig, target: &ModelSource, engine: Engine) -> Self {
        let running = Self::loading(config);
        running.handle.serve(ServedModel::open(target, "demo").unwrap(), Some("demo drafter".into()), engine);
        running
    }

    /// Begins to shut down.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits for the end of a server that was told to stop.
    pub fn join(mut self) {
        self.stop();
        self.thread.take().unwrap().join().unwrap();
    }

    pub fn stats(&self) -> Value {
        client::get(self.address, "/stats").good()
    }

    /// Waits until the counters are as `wanted` says.
    pub fn wait_until(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let stats = self.stats();
            if wanted(&stats) {
                return stats;
            }
            assert!(Instant::now() < deadline, "the counters stay as {stats}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A server of the demo pair that tests share; it is never stopped.
pub static DEMO: LazyLock<Running> = LazyLock::new(|| Running::start(config(), &target()));
