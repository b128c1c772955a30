//! [`Generation`]: all the answers to one HTTP request on their way, as pieces of text.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::app::{App, Facts, Serving};
use super::errors::ApiError;
use super::parameters::Parameters;
use super::usage;
use crate::control::trace::SequenceTrace;
use crate::engine::{FinishReason, Request, TokenLogprobs};
use crate::error::{Error, Result};
use crate::service::{Histogram, Refusal, Update, Updates, Usage};
use crate::text::StopStream;

/// What a round brought for one choice.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// Which choice.
    pub choice: usize,
    /// Text, stop strings held back.
    pub text: String,
    /// The tokens of the text so far that no piece before has listed, if the request asked for log-probabilities.
    pub logprobs: Vec<(i32, TokenLogprobs)>,
    /// Set with the choice's last piece.
    pub finish: Option<Finish>,
    /// For a watched request.
    pub round: Option<Round>,
}

/// A round as a page shows it.
#[derive(Debug)]
pub(super) struct Round {
    /// Emitted tokens.
    pub tokens: Vec<i32>,
    /// How many of them, from the first on, were drafted.
    pub accepted: usize,
    /// The draft tree, if one was drafted.
    pub tree: Option<SequenceTrace>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// An end-of-sequence or stop token, or a stop string.
    Stop,
    /// `max_tokens`, or the context.
    Length,
}

impl Finish {
    /// As OpenAI spells it.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// One answer in the making.
struct Choice {
    /// `None` once it has ended; to drop them cancels the rest.
    updates: Option<Updates>,
    stream: StopStream,
    /// Tokens pushed into `stream`.
    pushed: usize,
    /// Tokens that pieces have listed.
    listed: usize,
    /// Pushed, but not listed.
    unlisted: VecDeque<(i32, TokenLogprobs)>,
    wants_logprobs: bool,
    watched: bool,
    usage: Usage,
    completion_tokens: usize,
    finish: Option<Finish>,
}

/// Answers on their way; dropping it cancels what has not ended.
pub(super) struct Generation {
    app: Arc<App>,
    id: String,
    choices: Vec<Choice>,
    /// Choices to each prompt.
    n: usize,
    /// Where to look first for the next piece.
    turn: usize,
    failed: bool,
    began: Instant,
    first_piece: Option<Duration>,
}

impl Generation {
    /// Submits `prompts`, each as often as the parameters say. Choice `p * n + i` is the i-th answer to prompt p.
    ///
    /// # Errors
    /// 400 for a request that cannot be served, 429 where too many wait, 503 at the end.
    pub fn begin(
        app: Arc<App>,
        serving: &Serving,
        id: String,
        parameters: &Parameters,
        prompts: Vec<Request>,
    ) -> std::result::Result<Self, ApiError> {
        let n = parameters.n;
        check_choices(prompts.len(), n, serving)?;
        let mut choices = Vec::new();
        for prompt in prompts {
            for i in 0..n {
                let mut request = prompt.clone();
                request.sampling.seed = request.sampling.seed.wrapping_add(i as u64);
                // What was submitted before a refusal is dropped with `choices`, and so cancelled.
                let updates = serving
                    .client
                    .submit_watched(request, parameters.watch)
                    .map_err(|refusal| refused(refusal, &app.counters.choice_seconds(), &serving.facts))?;
                choices.push(Choice {
                    updates: Some(updates),
                    stream: serving.model.tokenizer.stream_until(&parameters.stops),
                    pushed: 0,
                    listed: 0,
                    unlisted: VecDeque::new(),
                    wants_logprobs: parameters.settings.logprobs.is_some(),
                    watched: parameters.watch,
                    usage: Usage::default(),
                    completion_tokens: 0,
                    finish: None,
                });
            }
        }
        Ok(Self { app, id, choices, n, turn: 0, failed: false, began: Instant::now(), first_piece: None })
    }

    /// Names the HTTP request in logs.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How many answers there will be.
    pub fn num_choices(&self) -> usize {
        self.choices.len()
    }

    /// The next piece of any choice; `None` once all have ended, or after an error. May be given up while it waits, and called again.
    ///
    /// # Errors
    /// A choice failed; nothing follows.
    pub async fn next(&mut self) -> Option<std::result::Result<Piece, ApiError>> {
        if self.failed {
            return None;
        }
        let (index, update) = self.next_update().await?;
        let piece = update.and_then(|update| self.choices[index].take(index, update));
        if matches!(&piece, Ok(Piece { finish: Some(_), .. })) {
            self.app.counters.count_seconds(self.began.elapsed().as_secs_f64());
        }
        self.first_piece.get_or_insert_with(|| self.began.elapsed());
        Some(piece.map_err(|error| {
            self.failed = true;
            self.failure(&error)
        }))
    }

    async fn next_update(&mut self) -> Option<(usize, Result<Update>)> {
        let (choices, turn) = (&mut self.choices, &mut self.turn);
        poll_fn(|context| {
            let mut all_ended = true;
            for step in 0..choices.len() {
                let index = (*turn + step) % choices.len();
                let Some(updates) = &mut choices[index].updates else { continue };
                all_ended = false;
                // A receiver that is not ready remembers who asked, also when the question is dropped.
                if let Poll::Ready(update) = pin!(updates.next()).poll(context) {
                    *turn = index + 1;
                    let lost = || Err(Error::Defect("a request ended without a reason".into()));
                    return Poll::Ready(Some((index, update.unwrap_or_else(lost))));
                }
            }
            if all_ended { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    fn failure(&self, error: &Error) -> ApiError {
        tracing::warn!(request_id = self.id, "generation failed: {error}");
        if let Error::Input(reason) = error {
            // What was asked for cannot be done, now or later.
            ApiError::invalid(reason)
        } else if self.app.is_draining() {
            ApiError::unavailable("shutting_down", "the server is shutting down; the answer was not finished")
        } else {
            ApiError::internal(error.to_string())
        }
    }

    /// What has been taken so far.
    pub fn usage(&self) -> Usage {
        let mut total = Usage::default();
        for (index, choice) in self.choices.iter().enumerate() {
            usage::add(&mut total, &choice.usage, choice.completion_tokens, index % self.n == 0);
        }
        total
    }
}

impl Choice {
    fn take(&mut self, index: usize, update: Update) -> Result<Piece> {
        self.usage = update.usage;
        if self.wants_logprobs && update.logprobs.len() != update.tokens.len() {
            return Err(Error::Defect(format!(
                "{} log-probabilities came with {} tokens",
                update.logprobs.len(),
                update.tokens.len()
            )));
        }
        let mut text = String::new();
        let mut logprobs = update.logprobs.into_iter();
        for &token in &update.tokens {
            // What the round accepted after a stop string does not count.
            if self.stream.stopped() {
                break;
            }
            self.pushed += 1;
            text.extend(self.stream.push(token)?);
            self.unlisted.extend(logprobs.next().map(|logprobs| (token, logprobs)));
        }
        let ended = match update.finished {
            Some(FinishReason::Eos) => Some(Finish::Stop),
            Some(FinishReason::Length | FinishReason::Failed) => Some(Finish::Length),
            None => None,
        };
        if self.stream.stopped() || ended.is_some() {
            text.extend(self.stream.finish()?);
            self.finish = if self.stream.stopped() { Some(Finish::Stop) } else { ended };
            self.updates = None;
            self.completion_tokens = self.stream.num_ids();
        } else {
            self.completion_tokens = self.pushed;
        }
        let listed = self.stream.num_ids();
        let new = listed.saturating_sub(self.listed).min(self.unlisted.len());
        self.listed = listed;
        let round = Round {
            accepted: update.accepted.min(update.tokens.len()),
            tokens: update.tokens,
            tree: update.tree,
        };
        Ok(Piece {
            choice: index,
            text,
            logprobs: self.unlisted.drain(..new).collect(),
            finish: self.finish,
            round: self.watched.then_some(round),
        })
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let usage = self.usage();
        for choice in &self.choices {
            let outcome = match choice.finish {
                Some(finish) => finish.name(),
                None if self.failed => "failed",
                None => "cancelled",
            };
            self.app.counters.count_choice(outcome);
        }
        let finished = self.choices.iter().filter(|choice| choice.finish.is_some()).count();
        self.app.counters.count_usage(&usage);
        tracing::info!(
            request_id = self.id,
            choices = self.choices.len(),
            finished,
            failed = self.failed,
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            completion_tokens = usage.completion_tokens,
            rounds = usage.rounds,
            first_piece_ms = self.first_piece.map(|time| time.as_millis() as u64),
            ms = self.began.elapsed().as_millis() as u64,
            "generation ended"
        );
    }
}

/// Refuses a request for more answers than can ever wait at once.
pub(super) fn check_choices(
    num_prompts: usize,
    n: usize,
    serving: &Serving,
) -> std::result::Result<(), ApiError> {
    let (asked, most) = (num_prompts.saturating_mul(n), serving.max_waiting);
    if asked <= most {
        return Ok(());
    }
    let param = if num_prompts > 1 { "prompt" } else { "n" };
    Err(ApiError::field(
        param,
        format!("{asked} answers are asked for: this server takes at most {most} at once"),
    ))
}

/// What a refusal of the service means to a client.
fn refused(refusal: Refusal, choice_seconds: &Histogram, facts: &Facts) -> ApiError {
    match refusal {
        Refusal::Invalid(error) => match error {
            Error::Format { reason, .. } => ApiError::invalid(reason),
            error if error.is_input() => ApiError::invalid(error.to_string()),
            error => ApiError::internal(error.to_string()),
        },
        Refusal::Full { waiting } => ApiError::busy(
            format!("{waiting} requests wait already; try again later"),
            retry_after(choice_seconds, waiting, facts.max_sequences),
        ),
        Refusal::ShuttingDown => ApiError::unavailable("shutting_down", "the server is shutting down"),
        Refusal::Stopped(reason) => {
            ApiError::unavailable("failed", format!("the engine has stopped: {reason}"))
        }
    }
}

/// Seconds in which those who wait will have had their turn, by what choices have taken so far.
pub(super) fn retry_after(choice_seconds: &Histogram, waiting: usize, max_sequences: usize) -> u64 {
    let mean = choice_seconds.sum() / (choice_seconds.count() as f64).max(1.0);
    (mean * waiting as f64 / max_sequences as f64).ceil().clamp(1.0, 60.0) as u64
}
