//! The worker keeps Dynamo's contract, with the demo pair on the host driver.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dynamo_backend_common::testing::{mock_context, run_conformance};
use dynamo_backend_common::{
    AsyncEngineContext, BackendError, DynamoError, ErrorType, FinishReason, GenerateContext, LLMEngine,
    LLMEngineOutput, PreprocessedRequest,
};
use dynamo_runtime::pipeline::{AsyncEngineContextProvider, Context};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use smart_run::device::DeviceChoice;
use smart_run::engine::{Engine, Request};
use smart_run::text::Tokenizer;
use smart_worker::{Settings, SmartEngine};

const PATIENCE: Duration = Duration::from_secs(60);

type Chunk = Result<LLMEngineOutput, DynamoError>;

fn demo(part: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets/demo").join(part)
}

fn settings() -> Settings {
    Settings {
        model: demo("target"),
        draft: Some(demo("drafter").as_path().into()),
        draft_vocabulary: None,
        name: "demo".into(),
        device: DeviceChoice::Host,
        dtype: None,
        policy: None,
        max_sequences: 4,
        max_waiting: 16,
        max_context: Some(1024),
        kv_budget_bytes: None,
        drain: PATIENCE,
    }
}

async fn started(settings: Settings) -> SmartEngine {
    let engine = SmartEngine::new(settings);
    let config = engine.start(7).await.unwrap();
    let llm = config.llm.unwrap();
    assert_eq!((&config.model[..], llm.kv_cache_block_size, llm.enable_eagle), ("demo", Some(16), true));
    engine
}

/// Greedy unless `change` says otherwise.
fn request(prompt: &[i32], most: u32, change: Value) -> PreprocessedRequest {
    let mut request = json!({
        "token_ids": prompt,
        "stop_conditions": {"max_tokens": most},
        "sampling_options": {"temperature": 0.0},
        "output_options": {},
    });
    for (group, fields) in change.as_object().unwrap() {
        for (field, value) in fields.as_object().unwrap() {
            request[group][field] = value.clone();
        }
    }
    serde_json::from_value(request).unwrap()
}

fn context(id: &str) -> Arc<dyn AsyncEngineContext> {
    Context::with_id_and_metadata((), id.to_owned(), BTreeMap::new()).context()
}

async fn open(
    engine: &SmartEngine,
    request: PreprocessedRequest,
    context: &Arc<dyn AsyncEngineContext>,
) -> Result<BoxStream<'static, Chunk>, DynamoError> {
    engine.generate(request, GenerateContext::new(Arc::clone(context), None)).await
}

/// All tokens and the last chunk.
async fn answer(engine: &SmartEngine, request: PreprocessedRequest) -> (Vec<i32>, LLMEngineOutput) {
    let chunks: Vec<Chunk> = open(engine, request, &mock_context()).await.unwrap().collect().await;
    let chunks: Vec<LLMEngineOutput> = chunks.into_iter().map(Result::unwrap).collect();
    let tokens = chunks.iter().flat_map(|chunk| &chunk.token_ids).map(|&token| token as i32).collect();
    (tokens, chunks.into_iter().last().unwrap())
}

async fn wait_until_quiescent(engine: &SmartEngine) {
    let wait = async {
        while engine.is_quiescent().await.unwrap() != Some(true) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the place is given back");
}

fn prompt(text: &str) -> (Tokenizer, Vec<i32>) {
    let tokenizer = Tokenizer::open(&demo("target").as_path().into()).unwrap().unwrap();
    let ids = tokenizer.encode(text, true).unwrap();
    (tokenizer, ids)
}

#[tokio::test]
async fn the_conformance_kit_passes() {
    run_conformance(|| SmartEngine::new(settings())).await.unwrap();
}

#[tokio::test]
async fn tokens_are_those_of_the_engine_alone_and_the_second_time_the_prompt_is_found() {
    let (_, ids) = prompt(
        "def quicksort(items):\n    \"\"\"Sorts a list of numbers in place.\"\"\"\n    if len(items) < 2:\n",
    );
    let mut alone = Engine::builder(demo("target").as_path())
        .device(DeviceChoice::Host)
        .max_context(1024)
        .build()
        .unwrap();
    let mut wanted = Vec::new();
    for tokens in alone.generate(Request::new(ids.clone(), 40)).unwrap() {
        wanted.extend(tokens.unwrap());
    }
    let engine = started(settings()).await;
    for again in [false, true] {
        let (tokens, last) = answer(&engine, request(&ids, 40, json!({}))).await;
        assert_eq!(tokens, wanted);
        let usage = last.completion_usage.unwrap();
        assert_eq!(
            (usage.prompt_tokens as usize, usage.completion_tokens as usize),
            (ids.len(), wanted.len())
        );
        assert_eq!(usage.prompt_tokens_details.unwrap().cached_tokens.unwrap() > 0, again);
    }
}

#[tokio::test]
async fn who_cancels_or_goes_frees_the_place() {
    let engine = started(Settings { max_sequences: 1, ..settings() }).await;
    let long = || request(&[1, 2, 3], 900, json!({"stop_conditions": {"ignore_eos": true}}));
    let stopped = context("stopped");
    let mut stream = open(&engine, long(), &stopped).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert!(!first.token_ids.is_empty() && first.finish_reason.is_none());
    stopped.stop_generating();
    let rest: Vec<Chunk> = stream.collect().await;
    let last = rest.last().unwrap().as_ref().unwrap();
    assert!(matches!(last.finish_reason, Some(FinishReason::Cancelled)));
    wait_until_quiescent(&engine).await;

    let mut stream = open(&engine, long(), &mock_context()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    wait_until_quiescent(&engine).await;
}

/// What the frontend does after a worker died: the tokens so far become part of the prompt, the id stays.
#[tokio::test]
async fn a_sampled_request_goes_on_elsewhere_as_it_would_have() {
    let (one, other) = (started(settings()).await, started(settings()).await);
    let sampled = |prompt: &[i32], most| {
        request(
            prompt,
            most,
            json!({"sampling_options": {"temperature": 0.9}, "stop_conditions": {"ignore_eos": true}}),
        )
    };
    let (_, ids) = prompt("class Stack:\n");
    let all = |chunks: Vec<Chunk>| -> Vec<i32> {
        chunks.into_iter().flat_map(|chunk| chunk.unwrap().token_ids).map(|token| token as i32).collect()
    };
    let id = context("one id");
    let wanted = all(open(&one, sampled(&ids, 30), &id).await.unwrap().collect().await);
    let longer = [&ids[..], &wanted[..11]].concat();
    let rest = all(open(&other, sampled(&longer, 19), &context("one id")).await.unwrap().collect().await);
    assert_eq!(rest, wanted[11..]);
    let another = all(open(&other, sampled(&ids, 30), &context("another id")).await.unwrap().collect().await);
    assert_ne!(another, wanted);
}

#[tokio::test]
async fn guided_answers_keep_to_their_grammar() {
    let engine = started(settings()).await;
    let (tokenizer, ids) = prompt("config = ");
    let guided = |guide: Value| {
        let fields = json!({"guided_decoding": guide, "temperature": 0.8, "seed": 5});
        request(&ids, 200, json!({ "sampling_options": fields }))
    };
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "size"],
        "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    });
    let (tokens, last) = answer(&engine, guided(json!({"json": schema}))).await;
    assert!(matches!(last.finish_reason, Some(FinishReason::Stop)));
    let value: Value = serde_json::from_str(&tokenizer.decode(&tokens).unwrap()).unwrap();
    assert!(value["name"].is_string() && value["size"].as_u64().unwrap() < 100, "{value}");

    let (tokens, _) = answer(&engine, guided(json!({"choice": ["left.", "right."]}))).await;
    assert!(["left.", "right."].contains(&&tokenizer.decode(&tokens).unwrap()[..]));
    let (tokens, _) = answer(&engine, guided(json!({"grammar": "start: \"ab\" \"c\"+ \"d\""}))).await;
    let text = tokenizer.decode(&tokens).unwrap();
    assert!(text.starts_with("abc") && text.ends_with('d'), "{text}");

    let refused = open(&engine, guided(json!({"regex": "("})), &mock_context()).await.err().unwrap();
    assert_eq!(refused.error_type(), ErrorType::Backend(BackendError::InvalidArgument));
    assert!(refused.to_string().contains("guided_decoding"), "{refused}");
}

#[tokio::test]
async fn texts_end_where_stops_say() {
    let engine = started(settings()).await;
    let (tokenizer, ids) = prompt("class Stack:\n    def __init__(self, items):\n");
    let (whole, _) =
        answer(&engine, request(&ids, 40, json!({"stop_conditions": {"ignore_eos": true}}))).await;
    let at = (3..40)
        .find(|&at| !whole[..at].contains(&whole[at]))
        .expect("some token comes late for the first time");
    let visible = whole[at];

    let fields = json!({"stop_conditions": {"stop_token_ids_visible": [visible]}});
    let (tokens, last) = answer(&engine, request(&ids, 40, fields)).await;
    assert_eq!(tokens, whole[..=at]);
    assert!(matches!(last.finish_reason, Some(FinishReason::Stop)));
    assert_eq!(last.completion_usage.unwrap().completion_tokens as usize, at + 1);

    let fields = json!({"stop_conditions": {"stop_token_ids": [visible]}});
    let (tokens, last) = answer(&engine, request(&ids, 40, fields)).await;
    assert_eq!(tokens, whole[..at]);
    assert!(matches!(last.finish_reason, Some(FinishReason::Stop)));

    let text = tokenizer.decode(&whole).unwrap();
    let stop: String = text.chars().skip(9).take(4).collect();
    let (tokens, last) =
        answer(&engine, request(&ids, 40, json!({"stop_conditions": {"stop": [stop]}}))).await;
    let (with, without) =
        (tokenizer.decode(&tokens).unwrap(), tokenizer.decode(&tokens[..tokens.len() - 1]).unwrap());
    assert!(
        with.contains(&stop) && !without.contains(&stop),
        "{with:?} ends with the token that completes {stop:?}"
    );
    assert!(matches!(last.finish_reason, Some(FinishReason::Stop)));
    wait_until_quiescent(&engine).await;
}

#[tokio::test]
async fn log_probabilities_come_with_every_token() {
    let engine = started(settings()).await;
    let fields = json!({"output_options": {"logprobs": 2}, "stop_conditions": {"ignore_eos": true}});
    let stream = open(&engine, request(&[5, 6, 7], 12, fields), &mock_context()).await.unwrap();
    let chunks: Vec<Chunk> = stream.collect().await;
    let mut count = 0;
    for chunk in chunks.into_iter().map(Result::unwrap) {
        let (drawn, top) = (chunk.log_probs.unwrap_or_default(), chunk.top_logprobs.unwrap_or_default());
        assert_eq!((drawn.len(), top.len()), (chunk.token_ids.len(), chunk.token_ids.len()));
        for ((token, drawn), top) in chunk.token_ids.iter().zip(drawn).zip(top) {
            // Greedy: what was drawn is the likeliest.
            assert_eq!((top.len(), top[0].rank, top[0].token_id), (2, 1, *token));
            assert!(
                drawn <= 0.0 && (drawn - top[0].logprob).abs() < 1e-5 && top[1].logprob <= top[0].logprob
            );
            count += 1;
        }
    }
    assert_eq!(count, 12);
}

#[tokio::test]
async fn a_worker_that_ends_lets_texts_end_or_sends_them_elsewhere() {
    let long = || request(&[1, 2, 3], 150, json!({"stop_conditions": {"ignore_eos": true}}));
    let patient = started(settings()).await;
    let stream = open(&patient, long(), &mock_context()).await.unwrap();
    let (chunks, ended) = tokio::join!(stream.collect::<Vec<Chunk>>(), patient.cleanup());
    ended.unwrap();
    let tokens: usize = chunks.into_iter().map(|chunk| chunk.unwrap().token_ids.len()).sum();
    assert_eq!(tokens, 150);
    let gone = open(&patient, long(), &mock_context()).await.err().unwrap();
    assert_eq!(gone.error_type(), ErrorType::Backend(BackendError::EngineShutdown));

    let impatient = started(Settings { drain: Duration::ZERO, max_context: Some(2048), ..settings() }).await;
    let longest = request(&[1, 2, 3], 2000, json!({"stop_conditions": {"ignore_eos": true}}));
    let mut stream = open(&impatient, longest, &mock_context()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    impatient.cleanup().await.unwrap();
    let rest: Vec<Chunk> = stream.collect().await;
    let error = rest.into_iter().last().unwrap().unwrap_err();
    assert_eq!(error.error_type(), ErrorType::Backend(BackendError::EngineShutdown), "{error}");
}

#[tokio::test]
async fn a_full_worker_sends_requests_elsewhere_and_a_wrong_one_is_told() {
    let engine = started(Settings { max_sequences: 1, max_waiting: 1, ..settings() }).await;
    let long = || request(&[1, 2, 3], 900, json!({"stop_conditions": {"ignore_eos": true}}));
    let mut runs = open(&engine, long(), &mock_context()).await.unwrap();
    runs.next().await.unwrap().unwrap();
    let waits = open(&engine, long(), &mock_context()).await.unwrap();
    let full = open(&engine, long(), &mock_context()).await.err().unwrap();
    assert_eq!(full.error_type(), ErrorType::WorkerOverloaded, "{full}");
    let wrong = open(&engine, request(&[4096], 1, json!({})), &mock_context()).await.err().unwrap();
    assert_eq!(wrong.error_type(), ErrorType::Backend(BackendError::InvalidArgument), "{wrong}");
    drop((runs, waits));
    wait_until_quiescent(&engine).await;
}
