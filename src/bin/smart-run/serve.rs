//! `smart-run serve`: a model behind an HTTP server.

use std::io::IsTerminal;
use std::path::Path;

use smart_run::serve::{ServedModel, Server};
use smart_run::{Error, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::args::{LogFormat, ModelArgs, ServeArgs};
use crate::loading::{self, Models};
use crate::output::print_now;

/// What requests call the demo pair.
const DEMO: &str = "demo";

/// Starts the log.
pub fn log(format: LogFormat) {
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(colours).with_target(false);
    match format {
        LogFormat::Text => log.with_max_level(tracing::Level::INFO).init(),
        LogFormat::Json => log.with_max_level(tracing::Level::INFO).json().flatten_event(true).init(),
        LogFormat::Quiet => log.with_max_level(tracing::Level::WARN).init(),
    }
}

/// Runs the command: listens, loads, answers, until a signal.
pub fn run(args: ServeArgs) -> Result<()> {
    let models = Models::of(&args.models)?;
    let own_name = || args.models.model.as_deref().map_or_else(|| DEMO.into(), name_of);
    let name = args.name.clone().unwrap_or_else(own_name);
    let model = ServedModel::open(&models.target, name)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::Device(format!("no threads for the server: {error}")))?;
    let outcome = runtime.block_on(serve(args, models, model));
    // What may still be loading ends with the process.
    runtime.shutdown_background();
    outcome
}

async fn serve(args: ServeArgs, models: Models, model: ServedModel) -> Result<()> {
    // First of all: a signal that comes early ends the server well, too.
    let mut stops = Stops::listen()?;
    let name = model.name().to_owned();
    let max_sequences = args.server.max_sequences;
    let server = Server::bind(args.server).await?;
    let address = server.address()?;
    print_now(&format!("listening on http://{address}\n"))?;
    if !address.ip().is_loopback() {
        tracing::info!("this address may be reached from other machines");
    }

    let handle = server.handle();
    let (failed, failure) = oneshot::channel();
    let load = move || {
        let drafter = models.drafter.as_ref().map(|_| drafter_name(&args.models));
        let mut builder = models.builder(&args.models).max_sequences(max_sequences);
        if let Some(policy) = args.policy {
            builder = builder.policy(policy);
        }
        if let Some(tokens) = args.max_context {
            builder = builder.max_context(tokens);
        }
        if let Some(bytes) = args.kv_budget_bytes {
            builder = builder.kv_budget_bytes(bytes);
        }
        match loading::build(builder) {
            Ok(engine) => {
                tracing::info!(
                    model = name,
                    device = engine.device().name(),
                    dtype = engine.dtype(),
                    policy = %engine.controller().policy(),
                    context = engine.max_context(),
                    "ready"
                );
                handle.serve(model, drafter, engine);
            }
            Err(error) => {
                handle.fail(error.to_string());
                // Nobody waits any more where a signal came first.
                let _ = failed.send(error);
            }
        }
    };
    std::thread::Builder::new()
        .name("loading".into())
        .spawn(load)
        .map_err(|error| Error::Device(format!("no thread to load the model: {error}")))?;

    let mut failure = std::pin::pin!(failure);
    let mut error = None;
    let stop = async {
        tokio::select! {
            () = stops.next() => (),
            Ok(reason) = &mut failure => error = Some(reason),
        }
        // Who asks twice does not want to wait.
        tokio::spawn(async move {
            stops.next().await;
            std::process::exit(130);
        });
    };
    server.run(stop).await;
    error.map_or(Ok(()), Err)
}

/// SIGTERM and Ctrl-C.
struct Stops {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stops {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| Error::Device(format!("no signals: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}

/// What clients are told of the drafter; no path of this machine.
fn drafter_name(models: &ModelArgs) -> String {
    models.draft.as_deref().map_or_else(|| "demo drafter".into(), name_of)
}

/// The name of the folder, or of the repository as it was typed.
fn name_of(model: &Path) -> String {
    let folder = model.canonicalize().ok();
    let name = folder.as_deref().and_then(Path::file_name).unwrap_or(model.as_os_str());
    name.to_string_lossy().into_owned()
}
