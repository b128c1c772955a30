//! [`SmartEngine`]: the contract of a worker, over a service.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dynamo_backend_common::{
    DynamoError, EngineConfig, GenerateContext, KvEventPublisher, KvEventSource, LLMEngine, LlmRegistration,
    MetricsBindings, MetricsCtx, PreprocessedRequest,
};
use dynamo_kv_router::protocols::KvCacheEvent;
use futures::stream::BoxStream;
use smart_run::config::{FloatType, ModelSource};
use smart_run::control::Policy;
use smart_run::device::DeviceChoice;
use smart_run::engine::{DraftSource, DraftVocabulary, Engine};
use smart_run::service::{Client, Service, ServiceConfig};
use smart_run::text::{GrammarCompiler, Tokenizer};
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, spawn_blocking};

use crate::answer::{Answer, Chunk};
use crate::errors::{refused, shut_down, unknown};
use crate::metrics::{self, Counts};
use crate::request::{Asked, Texts};
use crate::router_events::{RouterBlocks, is_eagle};

/// What runs, and how much of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of the model.
    pub model: PathBuf,
    /// What drafts, if anything does.
    pub draft: Option<DraftSource>,
    /// The tokens that it may propose; all that it knows by default.
    pub draft_vocabulary: Option<DraftVocabulary>,
    /// What requests call the model.
    pub name: String,
    /// Where to run.
    pub device: DeviceChoice,
    /// Type of weights and activations; as stored by default.
    pub dtype: Option<FloatType>,
    /// How trees are grown; `smart` with a drafter and `plain` without by default.
    pub policy: Option<Policy>,
    /// Sequences served at once.
    pub max_sequences: usize,
    /// Requests that wait for a place at most; more are for other workers.
    pub max_waiting: usize,
    /// Longest context; the model's own limit by default.
    pub max_context: Option<usize>,
    /// Memory for keys and values; what full contexts need, at most half of what is free, by default.
    pub kv_budget_bytes: Option<usize>,
    /// Time for running requests once the worker is to stop.
    pub drain: Duration,
}

/// A model that Dynamo serves.
pub struct SmartEngine {
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    service: Option<Service>,
    serving: Option<Arc<Serving>>,
    /// Tasks that tell others how the worker stands. They end with it.
    tasks: Vec<AbortHandle>,
}

/// What requests need.
struct Serving {
    client: Client,
    texts: Texts,
    counts: Arc<Counts>,
}

impl SmartEngine {
    /// An engine that [`LLMEngine::start`] loads.
    pub fn new(settings: Settings) -> Self {
        Self { settings, state: Mutex::new(State::default()) }
    }

    /// What is left of panicking threads is whole: the state is only ever replaced.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serving(&self) -> Result<Arc<Serving>, DynamoError> {
        self.state().serving.clone().ok_or_else(|| shut_down("this worker serves no requests now"))
    }

    fn keep(&self, task: AbortHandle) {
        self.state().tasks.push(task);
    }
}

fn load(settings: &Settings) -> smart_run::Result<(Engine, Texts)> {
    let source = ModelSource::from(settings.model.as_path());
    let mut builder =
        Engine::builder(source.clone()).device(settings.device).max_sequences(settings.max_sequences);
    if let Some(draft) = settings.draft.clone() {
        builder = builder.drafter(draft);
    }
    if let Some(vocabulary) = settings.draft_vocabulary.clone() {
        builder = builder.draft_vocabulary(vocabulary);
    }
    if let Some(dtype) = settings.dtype {
        builder = builder.float_type(dtype);
    }
    if let Some(policy) = settings.policy {
        builder = builder.policy(policy);
    }
    if let Some(tokens) = settings.max_context {
        builder = builder.max_context(tokens);
    }
    if let Some(bytes) = settings.kv_budget_bytes {
        builder = builder.kv_budget_bytes(bytes);
    }
    let engine = builder.build()?;
    let tokenizer = Tokenizer::open(&source)?;
    let config = engine.model_config();
    let grammars = match &tokenizer {
        Some(tokenizer) => GrammarCompiler::new(tokenizer, config.geometry.vocab_size, &config.eos_token_ids)
            .map_err(|error| error.to_string()),
        None => Err("the model has no tokenizer, whose tokens' bytes a grammar needs".into()),
    };
    Ok((engine, Texts { tokenizer, grammars }))
}

#[async_trait]
impl LLMEngine for SmartEngine {
    async fn start(&self, worker_id: u64) -> Result<EngineConfig, DynamoError> {
        let settings = self.settings.clone();
        tracing::info!(worker_id, model = %settings.model.display(), "loading");
        let loaded = spawn_blocking(move || load(&settings)).await;
        let (engine, texts) = loaded
            .map_err(|error| unknown(format!("loading did not end well: {error}")))?
            .map_err(|error| unknown(error.to_string()))?;
        let (layout, limits) = (engine.cache_layout(), engine.limits());
        tracing::info!(
            device = engine.device().name(),
            dtype = engine.dtype(),
            policy = %engine.controller().policy(),
            context = limits.max_context,
            blocks = layout.num_blocks,
            "ready"
        );
        let service = Service::start(engine, ServiceConfig { max_waiting: self.settings.max_waiting });
        let serving = Serving { client: service.client(), texts, counts: Arc::default() };
        let mut state = self.state();
        state.serving = Some(Arc::new(serving));
        state.service = Some(service);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(EngineConfig {
            model: self.settings.name.clone(),
            served_model_name: Some(self.settings.name.clone()),
            llm: Some(LlmRegistration {
                context_length: Some(count(limits.max_context)),
                kv_cache_block_size: Some(count(layout.block_size)),
                total_kv_blocks: Some(layout.num_blocks as u64),
                max_num_seqs: Some(self.settings.max_sequences as u64),
                data_parallel_size: Some(1),
                enable_eagle: is_eagle(layout),
                ..LlmRegistration::default()
            }),
            ..EngineConfig::default()
        })
    }

    async fn generate(
        &self,
        request: PreprocessedRequest,
        context: GenerateContext,
    ) -> Result<BoxStream<'static, Chunk>, DynamoError> {
        let serving = self.serving()?;
        let id = context.id().to_owned();
        // Compiling a grammar may take seconds.
        let read = spawn_blocking({
            let serving = Arc::clone(&serving);
            move || Asked::read(&request, &id, &serving.texts)
        });
        let asked = read
            .await
            .map_err(|error| unknown(format!("the request was not read to its end: {error}")))??;
        let Asked { request, visible_stops, stop_strings } = asked;
        let prompt_tokens = request.prompt.len();
        let updates = serving.client.submit(request).map_err(refused)?;
        let tokenizer = serving.texts.tokenizer.as_ref().filter(|_| !stop_strings.is_empty());
        let stops = tokenizer.map(|tokenizer| tokenizer.stream_until(&stop_strings));
        let (counts, client) = (Arc::clone(&serving.counts), serving.client.clone());
        let answer = Answer::new(prompt_tokens, visible_stops, stops, counts, client);
        Ok(answer.stream(updates, context.inner_arc()))
    }

    async fn is_quiescent(&self) -> Result<Option<bool>, DynamoError> {
        let serving = self.state().serving.clone();
        Ok(Some(serving.is_none_or(|serving| {
            let snapshot = serving.client.snapshot();
            snapshot.running == 0 && snapshot.waiting == 0
        })))
    }

    /// Lets what runs end, for as long as the settings say. What is left then ends with an error after which the frontend goes on elsewhere.
    async fn cleanup(&self) -> Result<(), DynamoError> {
        let State { service, tasks, serving: _ } = std::mem::take(&mut *self.state());
        if let Some(service) = service {
            let drain = self.settings.drain;
            tracing::info!(seconds = drain.as_secs_f64(), "draining");
            let ended = spawn_blocking(move || service.shut_down(drain).is_some()).await;
            if !ended.unwrap_or(false) {
                tracing::error!("the engine's thread had died");
            }
        }
        for task in tasks {
            task.abort();
        }
        Ok(())
    }

    async fn kv_event_sources(&self) -> Result<Vec<KvEventSource>, DynamoError> {
        let client = self.serving()?.client.clone();
        let runtime = Handle::current();
        // It ends with the engine's thread, which drops the other end.
        let on_ready = Box::new(move |publisher: Arc<KvEventPublisher>| {
            runtime.spawn(tell_router(publisher, client));
            Ok(())
        });
        Ok(vec![KvEventSource::Push { on_ready, dp_rank: 0 }])
    }

    async fn setup_metrics(&self, context: MetricsCtx<'_>) -> Result<MetricsBindings, DynamoError> {
        let serving = self.serving()?;
        let (client, counts) = (serving.client.clone(), Arc::clone(&serving.counts));
        context.metrics.add_expfmt_callback(Arc::new(move || Ok(metrics::page(&client, &counts))));
        // The publisher comes later, but `cleanup` has to know the task.
        let (handed_over, publisher) = tokio::sync::oneshot::channel();
        let (client, counts) = (serving.client.clone(), Arc::clone(&serving.counts));
        let task = tokio::spawn(async move {
            if let Ok(publisher) = publisher.await {
                metrics::publish(publisher, client, counts).await;
            }
        });
        self.keep(task.abort_handle());
        let on_publisher_ready = Box::new(move |publisher| {
            // A worker that has ended meanwhile has nothing to tell.
            let _ = handed_over.send(publisher);
            Ok(())
        });
        Ok(MetricsBindings { dp_ranks: vec![0], on_publisher_ready: Some(on_publisher_ready) })
    }

    async fn health_check_payload(&self) -> Result<Option<serde_json::Value>, DynamoError> {
        Ok(Some(serde_json::json!({
            "token_ids": [0],
            "stop_conditions": {"max_tokens": 1, "ignore_eos": true},
            "sampling_options": {"temperature": 0.0},
            "output_options": {},
        })))
    }
}

/// Tells the router what the prefix cache holds, from now to the end of the engine.
async fn tell_router(publisher: Arc<KvEventPublisher>, client: Client) {
    let mut events = client.cache_events();
    let mut blocks = RouterBlocks::new(client.cache_layout());
    drop(client);
    while let Some(batch) = events.next().await {
        let told = batch.into_iter().filter_map(|event| blocks.translate(event)).map(|data| KvCacheEvent {
            event_id: publisher.next_event_id(),
            data,
            dp_rank: 0,
        });
        if publisher.publish_batch(told.collect()).is_err() {
            return;
        }
    }
}
