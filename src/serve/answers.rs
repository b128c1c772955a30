//! From a request to its answer, whole or in pieces: what both APIs do alike. What a request asks is for [`Asked`], how a choice is spelled
//! for [`Format`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, Request as HttpRequest, header};
use axum::response::Response;
use futures_util::stream;
use serde_json::{Value, json};

use super::app::{App, Serving};
use super::body;
use super::errors::{ApiError, json_response};
use super::exchange::RequestId;
use super::generation::{Finish, Generation, Piece, Round};
use super::parameters::Parameters;
use super::{unix_seconds, usage};
use crate::engine::{Request, TokenLogprobs};

/// A stream that has nothing to say says so this often: a client that has gone is noticed, a proxy stays patient.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A request of an API as it was meant.
pub(super) trait Asked: Sized + Send + 'static {
    /// What names of its answers begin with.
    const ID_PREFIX: &'static str;
    /// `object` of whole answers.
    const OBJECT: &'static str;
    /// `object` of pieces.
    const CHUNK_OBJECT: &'static str;

    /// Reads a body; may take its time.
    fn read(bytes: &[u8], serving: &Serving) -> Result<Self, ApiError>;
    fn parameters(&self) -> &Parameters;
    /// What the engine is to do, once.
    fn take_prompts(&mut self) -> Vec<Request>;
    /// How the answers of `generation` are spelled.
    fn format(self, serving: Arc<Serving>, generation: &Generation) -> impl Format;
}

/// Answers a request of the API `A`.
pub(super) async fn answer<A: Asked>(
    State(app): State<Arc<App>>,
    Extension(RequestId(id)): Extension<RequestId>,
    request: HttpRequest<Body>,
) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    let content = body::read(&app, request).await?;
    let mut asked = {
        let serving = serving.clone();
        app.work(move || A::read(&content.bytes, &serving)).await?
    };
    let prompts = asked.take_prompts();
    let parameters = asked.parameters();
    let (stream, include_usage) = (parameters.stream, parameters.include_usage);
    let seed = parameters.settings.sampling.seed;
    let generation = Generation::begin(app, &serving, id, parameters, prompts)?;
    let id = format!("{}-{}", A::ID_PREFIX, generation.id());
    let envelope = Envelope::new(serving.clone(), id, A::OBJECT, A::CHUNK_OBJECT, seed);
    let format = asked.format(serving, &generation);
    if stream {
        Ok(streamed(generation, envelope, format, include_usage))
    } else {
        whole(generation, envelope, format).await
    }
}

/// How an API spells its choices.
pub(super) trait Format: Send + 'static {
    /// What a streamed choice begins with.
    fn opening(&mut self, choice: usize) -> Option<Value>;
    /// The entry of `choices` for a piece; `None` if it says nothing.
    fn delta(&mut self, piece: &Piece) -> Result<Option<Value>, ApiError>;
    /// The entry of `choices` for a whole answer.
    fn whole(&mut self, answer: Answer) -> Result<Value, ApiError>;
}

/// A whole answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub choice: usize,
    pub text: String,
    pub logprobs: Vec<(i32, TokenLogprobs)>,
    pub finish: Option<Finish>,
}

/// What stands around the choices.
struct Envelope {
    serving: Arc<Serving>,
    id: String,
    object: &'static str,
    chunk_object: &'static str,
    seed: u64,
    created: u64,
    fingerprint: String,
}

impl Envelope {
    fn new(
        serving: Arc<Serving>,
        id: String,
        object: &'static str,
        chunk_object: &'static str,
        seed: u64,
    ) -> Self {
        let fingerprint = fingerprint(&serving);
        Self { serving, id, object, chunk_object, seed, created: unix_seconds(), fingerprint }
    }

    fn around(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.serving.model.name,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            "smart_run": {"seed": self.seed},
        })
    }
}

/// What, beside the request, an answer depends on.
fn fingerprint(serving: &Serving) -> String {
    format!("smart-run {} {} {}", env!("CARGO_PKG_VERSION"), serving.facts.dtype, serving.facts.device)
}

/// Awaits the whole answer.
///
/// # Errors
/// A choice failed.
async fn whole(
    mut generation: Generation,
    envelope: Envelope,
    mut format: impl Format,
) -> Result<Response, ApiError> {
    let answer = |choice| Answer { choice, ..Answer::default() };
    let mut answers: Vec<Answer> = (0..generation.num_choices()).map(answer).collect();
    while let Some(piece) = generation.next().await {
        let Piece { choice, text, logprobs, finish, .. } = piece?;
        let answer = &mut answers[choice];
        answer.text.push_str(&text);
        answer.logprobs.extend(logprobs);
        answer.finish = finish;
    }
    let choices = answers.into_iter().map(|answer| format.whole(answer)).collect::<Result<_, _>>()?;
    let mut value = envelope.around(envelope.object, choices);
    value["usage"] = usage::to_json(&generation.usage());
    Ok(json_response(&value))
}

/// Answers with server-sent events, one a piece, until `data: [DONE]`.
fn streamed(
    generation: Generation,
    envelope: Envelope,
    format: impl Format,
    include_usage: bool,
) -> Response {
    let mut events =
        Events { generation, envelope, format, include_usage, ready: VecDeque::new(), over: false };
    events.open();
    let body = stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(event)), events))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that gather answers would hold the pieces back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The events of a streamed answer.
struct Events<F> {
    generation: Generation,
    envelope: Envelope,
    format: F,
    include_usage: bool,
    ready: VecDeque<String>,
    over: bool,
}

impl<F: Format> Events<F> {
    fn open(&mut self) {
        for choice in 0..self.generation.num_choices() {
            if let Some(opening) = self.format.opening(choice) {
                self.push_choice(opening, None);
            }
        }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            match tokio::time::timeout(KEEP_ALIVE, self.generation.next()).await {
                Err(_) => return Some(": still here\n\n".into()),
                Ok(Some(Ok(piece))) => match self.format.delta(&piece) {
                    Ok(Some(choice)) => self.push_choice(choice, piece.round.as_ref()),
                    Ok(None) => (),
                    Err(error) => self.fail(&error),
                },
                Ok(Some(Err(error))) => self.fail(&error),
                Ok(None) => self.close(),
            }
        }
    }

    fn push_choice(&mut self, choice: Value, round: Option<&Round>) {
        let mut value = self.envelope.around(self.envelope.chunk_object, vec![choice]);
        if self.include_usage {
            value["usage"] = Value::Null;
        }
        if let Some(round) = round {
            value["smart_run"]["round"] = round_json(round, &self.envelope.serving);
        }
        self.push(&value);
    }

    fn fail(&mut self, error: &ApiError) {
        self.push(&error.body());
        self.over = true;
    }

    fn close(&mut self) {
        if self.include_usage {
            let mut value = self.envelope.around(self.envelope.chunk_object, Vec::new());
            value["usage"] = usage::to_json(&self.generation.usage());
            self.push(&value);
        }
        self.ready.push_back("data: [DONE]\n\n".into());
        self.over = true;
    }

    fn push(&mut self, value: &Value) {
        self.ready.push_back(format!("data: {value}\n\n"));
    }
}

/// A round with the texts of all its tokens.
fn round_json(round: &Round, serving: &Serving) -> Value {
    let text = |&id: &i32| {
        let text = serving.model.texts.text(id).ok().flatten();
        text.unwrap_or_else(|| format!("#{id}"))
    };
    let tokens: Vec<Value> = round.tokens.iter().map(|id| json!({"id": id, "text": text(id)})).collect();
    let tree = round.tree.as_ref().map(|trace| {
        json!({
            "batch": trace.batch,
            "position": trace.position,
            "speedup": trace.speedup,
            "accepted": trace.accepted,
            "bonus": {"id": trace.bonus_token, "text": text(&trace.bonus_token)},
            "texts": trace.tree.tokens.iter().map(text).collect::<Vec<_>>(),
            "nodes": trace.tree,
        })
    });
    json!({"tokens": tokens, "accepted": round.accepted, "tree": tree})
}
