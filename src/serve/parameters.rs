//! [`Parameters`]: the fields that completions and chats have in common, checked.

use serde_json::Value;

use super::constraint;
use super::errors::ApiError;
use super::fields::{Fields, as_ids, as_integer};
use super::model::ServedModel;
use crate::engine::{MAX_LOGIT_BIASES, MAX_TOP_LOGPROBS, Request};
use crate::sampling::{Penalties, SamplingParams};
use crate::text::StopStrings;

/// Most answers to one prompt.
pub(super) const MAX_CHOICES: usize = 128;
/// Most stop strings.
pub(super) const MAX_STOPS: usize = 16;
/// Longest stop string, in bytes.
pub(super) const MAX_STOP_BYTES: usize = 1000;
/// Most stop tokens.
pub(super) const MAX_STOP_TOKENS: usize = 256;
/// Largest repetition penalty.
const MAX_REPETITION: f32 = 100.0;
/// Seeds that are drawn here stay below this, so that a client that reads numbers as doubles reads them right.
const DRAWN_SEEDS: u64 = 1 << 53;

/// What a client asks for, but for the prompt.
pub(super) struct Parameters {
    /// What the engine is to do, without a prompt; `max_new_tokens` is 0 where it is left to the API.
    pub settings: Request,
    /// Answers to each prompt; answer i is drawn with the seed of `settings` plus i.
    pub n: usize,
    pub stops: StopStrings,
    pub stream: bool,
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// Every chunk comes with its round's draft tree.
    pub watch: bool,
}

impl Parameters {
    /// Reads all of them but the log-probabilities, which each API spells its own way.
    ///
    /// # Errors
    /// 400 that names the field, 404 for another model.
    pub fn read(fields: &mut Fields, model: &ServedModel, vocab_size: usize) -> Result<Self, ApiError> {
        if let Some(asked) = fields.text("model")?
            && asked != model.name
        {
            return Err(ApiError::no_such_model(&asked, &model.name));
        }
        refuse_unsupported(fields)?;
        let grammar = constraint::response_format(fields, model)?;
        let max_tokens = fields.integer("max_tokens", 1, i32::MAX)?;
        let max_tokens = fields.integer("max_completion_tokens", 1, i32::MAX)?.or(max_tokens);
        let min_tokens = fields.integer("min_tokens", 0, i32::MAX)?.unwrap_or(0);
        let stream = fields.flag("stream")?.unwrap_or(false);
        let include_usage = match fields.object("stream_options")? {
            Some(_) if !stream => {
                return Err(ApiError::field("stream_options", "stream_options needs \"stream\": true"));
            }
            Some(mut options) => options.flag("include_usage")?.unwrap_or(false),
            None => false,
        };
        let watch = match fields.object("smart_run")? {
            Some(mut own) => own.flag("watch")?.unwrap_or(false),
            None => false,
        };
        if watch && !stream {
            return Err(ApiError::field(
                "smart_run.watch",
                "smart_run.watch shows rounds as they run: it needs \"stream\": true",
            ));
        }
        let speculation = fields.choice("speculation", &["auto", "off"])?;
        let settings = Request {
            sampling: sampling(fields)?,
            penalties: penalties(fields)?,
            logit_bias: logit_bias(fields, vocab_size)?,
            stop_tokens: stop_tokens(fields, vocab_size)?,
            grammar,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            min_new_tokens: min_tokens as usize,
            speculation: speculation != Some("off"),
            ..Request::new(Vec::new(), max_tokens.map_or(0, |tokens| tokens as usize))
        };
        let n = fields.integer("n", 1, MAX_CHOICES as u32)?.unwrap_or(1) as usize;
        Ok(Self { settings, n, stops: stops(fields)?, stream, include_usage, watch })
    }

    /// Sets how many tokens an answer has where the request does not say, now that its API is known.
    ///
    /// # Errors
    /// 400: `min_tokens` is more than that.
    pub fn default_max_tokens(&mut self, default: usize) -> Result<(), ApiError> {
        let settings = &mut self.settings;
        if settings.max_new_tokens == 0 {
            settings.max_new_tokens = default;
        }
        if settings.min_new_tokens <= settings.max_new_tokens {
            return Ok(());
        }
        let reason = format!(
            "min_tokens is {}: an answer has at most {} tokens",
            settings.min_new_tokens, settings.max_new_tokens
        );
        Err(ApiError::field("min_tokens", reason))
    }

    /// What the engine is to do with a prompt behind which there is `room` for so many tokens.
    pub fn request(&self, prompt: Vec<i32>, room: usize) -> Request {
        let max_new_tokens = self.settings.max_new_tokens.min(room);
        let min_new_tokens = self.settings.min_new_tokens.min(max_new_tokens);
        Request { prompt, max_new_tokens, min_new_tokens, ..self.settings.clone() }
    }

    /// As the chat API spells it: `logprobs` and `top_logprobs`.
    pub fn read_chat_logprobs(&mut self, fields: &mut Fields) -> Result<(), ApiError> {
        let wanted = fields.flag("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS as u32)?;
        if top.is_some() && !wanted {
            return Err(ApiError::field("top_logprobs", "top_logprobs needs \"logprobs\": true"));
        }
        self.settings.logprobs = wanted.then_some(top.unwrap_or(0) as usize);
        Ok(())
    }

    /// As the completions API spells it: `logprobs` is a count.
    pub fn read_completion_logprobs(&mut self, fields: &mut Fields) -> Result<(), ApiError> {
        let top = fields.integer("logprobs", 0, MAX_TOP_LOGPROBS as u32)?;
        self.settings.logprobs = top.map(|top| top as usize);
        Ok(())
    }
}

/// What OpenAI's servers do and this one does not: refused, as an answer without it would be another than was asked for.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let is_one = |value: &Value| as_integer(value) == Some(1);
    fields.refuse("best_of", is_one, "ask for n answers and choose among them")?;
    fields.refuse("suffix", |value| value == "", "text is only continued at its end")?;
    fields.refuse("audio", |_| false, "answers are text")?;
    fields.refuse(
        "modalities",
        |value| value.as_array().is_some_and(|all| all.iter().all(|one| one == "text")),
        "answers are text",
    )?;
    fields.refuse("functions", |value| value == &Value::Array(Vec::new()), "use tools")?;
    fields.refuse("function_call", |value| value == "none", "use tools and tool_choice")?;
    fields.refuse("web_search_options", |_| false, "the server fetches nothing")?;
    fields.refuse("prompt_logprobs", |_| false, "only emitted tokens have log-probabilities")?;
    fields.refuse("use_beam_search", |value| value == &Value::Bool(false), "tokens are drawn")?;
    fields.refuse(
        "chat_template_kwargs",
        |value| value.as_object().is_some_and(serde_json::Map::is_empty),
        "the template gets messages and tools",
    )
}

fn sampling(fields: &mut Fields) -> Result<SamplingParams, ApiError> {
    let temperature = fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0);
    // OpenAI's 0 keeps the likeliest token, as does any share below its own.
    let top_p = fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0).max(f32::MIN_POSITIVE);
    let top_k = fields.integer("top_k", -1, i32::MAX)?.unwrap_or(0).max(0) as u32;
    let min_p = fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0);
    let seed = fields.integer("seed", i128::from(i64::MIN), i128::from(u64::MAX))?;
    let seed = match seed {
        // A negative one stands for its two's complement.
        Some(seed) => seed as u64,
        None => {
            let drawn =
                getrandom::u64().map_err(|error| ApiError::internal(format!("no random seed: {error}")))?;
            drawn % DRAWN_SEEDS
        }
    };
    Ok(SamplingParams { temperature, top_p, top_k, min_p, seed })
}

fn penalties(fields: &mut Fields) -> Result<Penalties, ApiError> {
    let repetition = fields.number("repetition_penalty", 0.0, MAX_REPETITION)?.unwrap_or(1.0);
    if repetition == 0.0 {
        return Err(fields.wrong("repetition_penalty", &format!("above 0 and at most {MAX_REPETITION}")));
    }
    Ok(Penalties {
        repetition,
        presence: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        frequency: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
    })
}

/// An object from token ids, as text, to biases.
fn logit_bias(fields: &mut Fields, vocab_size: usize) -> Result<Vec<(i32, f32)>, ApiError> {
    let name = fields.name("logit_bias");
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(fields.wrong("logit_bias", "an object from token ids to numbers")),
    };
    if map.len() > MAX_LOGIT_BIASES {
        return Err(ApiError::field(
            &name,
            format!("{name} names {} tokens: at most {MAX_LOGIT_BIASES} are possible", map.len()),
        ));
    }
    let mut biases: Vec<(i32, f32)> = Vec::new();
    for (id, bias) in &map {
        let known = id.parse().ok().filter(|&id: &i32| is_in_vocabulary(id, vocab_size));
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        let (Some(known), Some(bias)) = (known, bias) else {
            let reason = format!(
                "{name}: every key should be a token id below {vocab_size} and every value a number from -100 to 100; {id:?} is not"
            );
            return Err(ApiError::field(name, reason));
        };
        if biases.iter().any(|&(other, _)| other == known) {
            return Err(ApiError::field(&name, format!("{name} names token {known} twice")));
        }
        biases.push((known, bias as f32));
    }
    Ok(biases)
}

fn stop_tokens(fields: &mut Fields, vocab_size: usize) -> Result<Vec<i32>, ApiError> {
    let expected = format!("a list of at most {MAX_STOP_TOKENS} token ids below {vocab_size}");
    let ids = match fields.take("stop_token_ids") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => as_ids(&list),
        Some(_) => None,
    };
    ids.filter(|ids| ids.len() <= MAX_STOP_TOKENS && ids.iter().all(|&id| is_in_vocabulary(id, vocab_size)))
        .ok_or_else(|| fields.wrong("stop_token_ids", &expected))
}

fn stops(fields: &mut Fields) -> Result<StopStrings, ApiError> {
    let strings = match fields.take("stop") {
        None => Some(Vec::new()),
        Some(Value::String(text)) => Some(vec![text]),
        Some(Value::Array(list)) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    };
    let fits = |strings: &Vec<String>| {
        strings.len() <= MAX_STOPS
            && strings.iter().all(|text| !text.is_empty() && text.len() <= MAX_STOP_BYTES)
    };
    let strings = strings.filter(fits).ok_or_else(|| {
        let expected = format!(
            "a string, or up to {MAX_STOPS} of them, none empty or longer than {MAX_STOP_BYTES} bytes"
        );
        fields.wrong("stop", &expected)
    })?;
    StopStrings::new(strings).map_err(|error| ApiError::of("stop", error))
}

pub(super) fn is_in_vocabulary(id: i32, vocab_size: usize) -> bool {
    usize::try_from(id).is_ok_and(|id| id < vocab_size)
}
