//! `POST /v1/completions`: a text, continued.

use std::sync::Arc;

use serde_json::{Value, json};

use super::answers::{self, Answer, Format};
use super::app::Serving;
use super::errors::ApiError;
use super::fields::{Fields, as_ids};
use super::generation::{Finish, Generation, Piece, check_choices};
use super::logprobs;
use super::parameters::{Parameters, is_in_vocabulary};
use crate::engine::{Request, TokenLogprobs};

/// Tokens of an answer where the request does not say, as in OpenAI's API.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A text to be continued, or several.
pub(super) struct Asked {
    parameters: Parameters,
    prompts: Vec<Request>,
    /// Texts of the prompts, where they are to be repeated.
    echoes: Vec<String>,
}

impl answers::Asked for Asked {
    const ID_PREFIX: &'static str = "cmpl";
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";

    fn read(bytes: &[u8], serving: &Serving) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(bytes)?;
        let vocab_size = serving.client.limits().config().geometry.vocab_size;
        let mut parameters = Parameters::read(&mut fields, &serving.model, vocab_size)?;
        parameters.read_completion_logprobs(&mut fields)?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        if echo && parameters.settings.logprobs.is_some() {
            return Err(ApiError::unsupported(
                "echo",
                "echo with logprobs is not supported: only emitted tokens have log-probabilities",
            ));
        }
        parameters.default_max_tokens(DEFAULT_MAX_TOKENS)?;
        let given = prompts_of(&mut fields)?;
        check_choices(given.len(), parameters.n, serving)?;
        let (mut prompts, mut echoes) = (Vec::new(), Vec::new());
        for prompt in given {
            let ids = prompt.ids(serving)?;
            if echo {
                echoes.push(match prompt {
                    Prompt::Text(text) => text,
                    Prompt::Ids(ids) => {
                        serving.model.tokenizer.decode(&ids).map_err(|error| ApiError::of("prompt", error))?
                    }
                });
            }
            let room = serving.client.limits().max_context - ids.len();
            prompts.push(parameters.request(ids, room));
        }
        Ok(Self { parameters, prompts, echoes })
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn take_prompts(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.prompts)
    }

    fn format(self, serving: Arc<Serving>, generation: &Generation) -> impl Format {
        let Self { parameters, echoes, .. } = self;
        let n = parameters.n;
        let length = |choice: usize| echoes.get(choice / n).map_or(0, |echo| echo.chars().count());
        let offsets = (0..generation.num_choices()).map(length).collect();
        CompletionFormat {
            serving,
            echoes,
            n,
            wants_logprobs: parameters.settings.logprobs.is_some(),
            offsets,
        }
    }
}

/// A prompt as it was given.
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<i32>),
}

impl Prompt {
    /// Its token ids.
    ///
    /// # Errors
    /// 400: nothing in it, ids outside the vocabulary, or more than the context holds.
    pub fn ids(&self, serving: &Serving) -> Result<Vec<i32>, ApiError> {
        let ids = match self {
            Prompt::Text(text) => {
                check_length(text, "prompt", serving)?;
                serving.model.tokenizer.encode(text, true).map_err(|error| ApiError::of("prompt", error))?
            }
            Prompt::Ids(ids) => ids.clone(),
        };
        check_ids(&ids, "prompt", serving)?;
        Ok(ids)
    }
}

/// Refuses a text that has more bytes than the longest tokens fill a context with, before time is spent on its tokens.
pub(super) fn check_length(text: &str, param: &str, serving: &Serving) -> Result<(), ApiError> {
    let context = serving.client.limits().max_context;
    let most = context.saturating_mul(serving.model.longest_token);
    if text.len() <= most {
        return Ok(());
    }
    let reason = format!("the text has {} bytes: the context of {context} tokens holds less", text.len());
    Err(ApiError::context_length(param, reason))
}

/// Refuses ids that a model cannot read.
pub(super) fn check_ids(ids: &[i32], param: &str, serving: &Serving) -> Result<(), ApiError> {
    let limits = serving.client.limits();
    let vocab_size = limits.config().geometry.vocab_size;
    if ids.is_empty() {
        return Err(ApiError::field(param, format!("{param} is empty: at least one token is needed")));
    }
    if let Some(id) = ids.iter().find(|&&id| !is_in_vocabulary(id, vocab_size)) {
        let reason = format!("{param} has the token {id}, which is outside the vocabulary of {vocab_size}");
        return Err(ApiError::field(param, reason));
    }
    if ids.len() >= limits.max_context {
        let reason = format!(
            "{param} has {} tokens, which leaves no room for an answer in the context of {}",
            ids.len(),
            limits.max_context
        );
        return Err(ApiError::context_length(param, reason));
    }
    Ok(())
}

/// `prompt`: a string, a list of strings, token ids, or a list of lists of these.
fn prompts_of(fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let Some(value) = fields.take("prompt") else {
        let reason = match fields.take("messages") {
            Some(_) => "prompt is missing: messages are for /v1/chat/completions",
            None => "prompt is missing: give a text, token ids, or a list of either",
        };
        return Err(ApiError::field("prompt", reason));
    };
    let all = match value {
        Value::String(text) => Some(vec![Prompt::Text(text)]),
        Value::Array(list) if list.first().is_some_and(Value::is_number) => {
            as_ids(&list).map(|ids| vec![Prompt::Ids(ids)])
        }
        Value::Array(list) if !list.is_empty() => list
            .into_iter()
            .map(|prompt| match prompt {
                Value::String(text) => Some(Prompt::Text(text)),
                Value::Array(ids) => as_ids(&ids).map(Prompt::Ids),
                _ => None,
            })
            .collect(),
        _ => None,
    };
    all.ok_or_else(|| {
        fields.wrong("prompt", "a string, a list of strings, token ids, or a list of lists of these")
    })
}

/// `choices` of completions.
struct CompletionFormat {
    serving: Arc<Serving>,
    echoes: Vec<String>,
    n: usize,
    wants_logprobs: bool,
    /// Characters of each choice's text so far.
    offsets: Vec<usize>,
}

impl CompletionFormat {
    fn entry(
        &mut self,
        choice: usize,
        text: &str,
        tokens: &[(i32, TokenLogprobs)],
        finish: Option<&str>,
    ) -> Result<Value, ApiError> {
        let mut values = Value::Null;
        if self.wants_logprobs {
            (values, self.offsets[choice]) =
                logprobs::completion(&self.serving.model.texts, tokens, self.offsets[choice])?;
        }
        Ok(json!({"index": choice, "text": text, "logprobs": values, "finish_reason": finish}))
    }
}

impl Format for CompletionFormat {
    fn opening(&mut self, choice: usize) -> Option<Value> {
        let echo = self.echoes.get(choice / self.n)?;
        Some(json!({"index": choice, "text": echo, "logprobs": null, "finish_reason": null}))
    }

    fn delta(&mut self, piece: &Piece) -> Result<Option<Value>, ApiError> {
        let says_nothing = piece.text.is_empty()
            && piece.logprobs.is_empty()
            && piece.finish.is_none()
            && piece.round.is_none();
        if says_nothing {
            return Ok(None);
        }
        let finish = piece.finish.map(Finish::name);
        self.entry(piece.choice, &piece.text, &piece.logprobs, finish).map(Some)
    }

    fn whole(&mut self, answer: Answer) -> Result<Value, ApiError> {
        let echo = self.echoes.get(answer.choice / self.n).cloned().unwrap_or_default();
        let text = echo + &answer.text;
        self.entry(answer.choice, &text, &answer.logprobs, answer.finish.map(Finish::name))
    }
}
