//! [`Asked`]: what a request of Dynamo's asks of the engine. Everything that would change the answer is mapped, or refused by name;
//! what only the frontend or the router acts upon is left alone.

use dynamo_backend_common::{
    DynamoError, OutputOptions, PreprocessedRequest, SamplingOptions, StopConditions,
};
use smart_run::engine::{MAX_TOP_LOGPROBS, Request};
use smart_run::sampling::{Penalties, SamplingParams};
use smart_run::text::{GrammarCompiler, StopStrings, Tokenizer};

use crate::errors::invalid;
use crate::guided::grammar_of;

/// What stands around the engine, for requests.
pub struct Texts {
    /// To watch for stop strings.
    pub tokenizer: Option<Tokenizer>,
    /// Compiles grammars; or why that is not possible.
    pub grammars: Result<GrammarCompiler, String>,
}

/// A request, as the engine takes it, and what is left to do with its answer.
#[derive(Debug)]
pub struct Asked {
    pub request: Request,
    /// Tokens that end the text and are part of it.
    pub visible_stops: Vec<u32>,
    /// Texts that end the text. The frontend takes them off.
    pub stop_strings: StopStrings,
}

impl Asked {
    /// Reads `request`, whose id is `id`. Compiling a grammar takes its time.
    ///
    /// # Errors
    /// The name of what is not supported here, or out of its range.
    pub fn read(request: &PreprocessedRequest, id: &str, texts: &Texts) -> Result<Self, DynamoError> {
        refuse_other_inputs(request)?;
        refuse_unsupported(request)?;
        let stop = &request.stop_conditions;
        let ignore_eos = stop.ignore_eos.unwrap_or(false);
        let (sampling, penalties) = sampling(&request.sampling_options, id)?;
        let guided = request.sampling_options.guided_decoding.as_ref();
        let grammar = match guided.map(grammar_of).transpose()?.flatten() {
            None => None,
            Some(spec) => {
                let compiler = texts
                    .grammars
                    .as_ref()
                    .map_err(|reason| invalid(format!("guided_decoding: {reason}")))?;
                let compiled = compiler.compile(&spec);
                Some(compiled.map_err(|error| invalid(format!("guided_decoding: {error}")))?)
            }
        };
        refuse_min_tokens(stop, grammar.is_some())?;
        let stop_strings = StopStrings::new(stop.stop.clone().unwrap_or_default())
            .map_err(|error| invalid(format!("stop: {error}")))?;
        if !stop_strings.is_empty() && texts.tokenizer.is_none() {
            return Err(invalid("stop: the model has no tokenizer to read its text by"));
        }
        let max_new_tokens = stop.max_tokens.map_or(usize::MAX, |tokens| tokens as usize);
        let request = Request {
            sampling,
            penalties,
            grammar,
            logprobs: logprobs(&request.output_options)?,
            stop_tokens: stop_tokens(stop, &request.eos_token_ids, ignore_eos)?,
            ignore_eos,
            ..Request::new(ids("token_ids", &request.token_ids)?, max_new_tokens)
        };
        let visible_stops = stop.stop_token_ids_visible.clone().unwrap_or_default();
        Ok(Self { request, visible_stops, stop_strings })
    }
}

/// Only tokens are read, and only here.
fn refuse_other_inputs(request: &PreprocessedRequest) -> Result<(), DynamoError> {
    let media =
        request.multi_modal_data.as_ref().is_some_and(|media| media.values().any(|list| !list.is_empty()));
    refuse(media, "multi_modal_data", "this worker reads text alone")?;
    refuse(request.prompt_embeds.is_some(), "prompt_embeds", "prompts are tokens")?;
    refuse(request.encoder_result.is_some(), "encoder_result", "there are no encoders before this worker")?;
    refuse(request.mm_processor_kwargs.is_some(), "mm_processor_kwargs", "this worker reads text alone")?;
    let handed_over = request.prefill_result.is_some() || request.bootstrap_info.is_some();
    refuse(handed_over, "prefill_result", "this worker reads prompts itself")
}

fn refuse_unsupported(request: &PreprocessedRequest) -> Result<(), DynamoError> {
    if let Some(routing) = &request.routing {
        refuse(routing.lora_name.is_some(), "lora_name", "there are no adapters")?;
        refuse(routing.cache_namespace.is_some(), "cache_salt", "all requests share one prefix cache")?;
        refuse(routing.priority.is_some_and(|it| it != 0), "priority", "first come, first served")?;
        refuse(routing.dp_rank.is_some_and(|rank| rank != 0), "dp_rank", "there is rank 0 alone")?;
    }
    refuse(request.require_reasoning, "require_reasoning", "a grammar holds from the first token on")?;
    let extra = |path: &str| {
        request.extra_args.as_ref().and_then(|extra| extra.pointer(path)).is_some_and(|it| !it.is_null())
    };
    for name in ["allowed_token_ids", "bad_words_token_ids", "logprob_token_ids"] {
        refuse(extra(&format!("/sampling_options/{name}")), name, "use guided decoding")?;
    }
    refuse(extra("/nvext/cache_salt"), "cache_salt", "all requests share one prefix cache")?;
    refuse(extra("/nvext/metadata_upload"), "metadata_upload", "this worker sends nothing elsewhere")
}

fn refuse(asked: bool, name: &str, reason: &str) -> Result<(), DynamoError> {
    match asked {
        true => Err(invalid(format!("{name} is not supported: {reason}"))),
        false => Ok(()),
    }
}

/// As OpenAI's protocol has it, so the defaults are temperature 1 and all tokens.
fn sampling(options: &SamplingOptions, id: &str) -> Result<(SamplingParams, Penalties), DynamoError> {
    refuse(options.n.is_some_and(|n| n != 1), "n", "send the request n times")?;
    refuse(options.best_of.is_some_and(|n| n != 1), "best_of", "send the request several times and choose")?;
    refuse(options.use_beam_search == Some(true), "use_beam_search", "tokens are drawn")?;
    refuse(options.length_penalty.is_some_and(|it| it != 1.0), "length_penalty", "it is for beam search")?;
    let penalties = Penalties {
        repetition: options.repetition_penalty.unwrap_or(1.0),
        presence: options.presence_penalty.unwrap_or(0.0),
        frequency: options.frequency_penalty.unwrap_or(0.0),
    };
    penalties.validate().map_err(|error| invalid(error.to_string()))?;
    let outside = |value: Option<f32>, range: std::ops::RangeInclusive<f32>| {
        value.is_some_and(|value| !range.contains(&value))
    };
    refuse(
        outside(options.temperature, 0.0..=f32::MAX),
        "temperature",
        "it should be a number of at least 0",
    )?;
    refuse(outside(options.top_p, 0.0..=1.0), "top_p", "it should be from 0 to 1")?;
    refuse(outside(options.min_p, 0.0..=1.0), "min_p", "it should be from 0 to 1")?;
    refuse(options.top_k.is_some_and(|k| k < -1), "top_k", "it should be a count, or -1 for all tokens")?;
    let params = SamplingParams {
        temperature: options.temperature.unwrap_or(1.0),
        // 0 keeps the likeliest token, as does any share below its own.
        top_p: options.top_p.unwrap_or(1.0).max(f32::MIN_POSITIVE),
        top_k: options.top_k.unwrap_or(0).max(0) as u32,
        min_p: options.min_p.unwrap_or(0.0),
        // A negative seed stands for its two's complement.
        seed: options.seed.map_or_else(|| seed_of(id), |seed| seed as u64),
    };
    Ok((params, penalties))
}

/// The seed of a request that names none. Noise is a function of seed and position, and a request that is started anew on another worker
/// keeps its id: the text goes on as it would have.
fn seed_of(id: &str) -> u64 {
    // FNV-1a: the same in every build of every worker.
    id.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn stop_tokens(stop: &StopConditions, eos: &[u32], ignore_eos: bool) -> Result<Vec<i32>, DynamoError> {
    let mut tokens = ids("stop_token_ids", stop.stop_token_ids.as_deref().unwrap_or_default())?;
    if !ignore_eos {
        tokens
            .extend(ids("stop_token_ids_hidden", stop.stop_token_ids_hidden.as_deref().unwrap_or_default())?);
        tokens.extend(ids("eos_token_ids", eos)?);
    }
    // The text goes on to such a token, and with it.
    let visible = ids("stop_token_ids_visible", stop.stop_token_ids_visible.as_deref().unwrap_or_default())?;
    tokens.retain(|token| !visible.contains(token));
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}

/// A least length is what `ignore_eos` gives where nothing else can end the text early.
fn refuse_min_tokens(stop: &StopConditions, has_grammar: bool) -> Result<(), DynamoError> {
    let lists = [&stop.stop_token_ids, &stop.stop_token_ids_visible];
    let stops = lists.into_iter().flatten().any(|list| !list.is_empty())
        || stop.stop.as_ref().is_some_and(|list| !list.is_empty());
    let is_sure = stop.ignore_eos == Some(true) && !stops && !has_grammar;
    let least = stop.min_tokens.unwrap_or(0);
    refuse(least > 0 && !is_sure, "min_tokens", "use ignore_eos, without stops")?;
    let at_least_all = stop.max_tokens.is_some_and(|most| most < least);
    refuse(at_least_all, "min_tokens", "it is more than max_tokens")?;
    refuse(stop.max_thinking_tokens.is_some(), "max_thinking_tokens", "all tokens count alike")
}

fn logprobs(options: &OutputOptions) -> Result<Option<usize>, DynamoError> {
    refuse(
        options.prompt_logprobs.is_some(),
        "prompt_logprobs",
        "only emitted tokens have log-probabilities",
    )?;
    refuse(options.no_stop_trim == Some(true), "no_stop_trim", "the token that ends a text is not emitted")?;
    match options.logprobs {
        Some(count) if count as usize > MAX_TOP_LOGPROBS => {
            Err(invalid(format!("logprobs is {count}: at most {MAX_TOP_LOGPROBS} alternatives are possible")))
        }
        count => Ok(count.map(|count| count as usize)),
    }
}

/// Token ids as the engine has them.
fn ids(name: &str, ids: &[u32]) -> Result<Vec<i32>, DynamoError> {
    let id = |&id: &u32| {
        i32::try_from(id).map_err(|_| invalid(format!("{name}: token {id} is outside of every vocabulary")))
    };
    ids.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(change: Value) -> Result<Asked, String> {
        let mut request = json!({"token_ids": [1, 2, 3], "stop_conditions": {}, "sampling_options": {}, "output_options": {}});
        for (field, value) in change.as_object().unwrap() {
            request[field] = value.clone();
        }
        let request: PreprocessedRequest = serde_json::from_value(request).unwrap();
        let texts = Texts { tokenizer: None, grammars: Err("no grammars here".into()) };
        Asked::read(&request, "some id", &texts).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_asked_arrives() {
        let asked = read(json!({
            "stop_conditions": {"max_tokens": 7, "stop_token_ids": [5], "stop_token_ids_hidden": [6, 5], "stop_token_ids_visible": [8, 6]},
            "sampling_options": {"temperature": 0.5, "top_p": 0.0, "top_k": -1, "min_p": 0.1, "seed": -1, "n": 1,
                "presence_penalty": 0.25, "frequency_penalty": 0.5, "repetition_penalty": 1.5},
            "output_options": {"logprobs": 3, "skip_special_tokens": true},
            "eos_token_ids": [9],
        }))
        .unwrap();
        let request = asked.request;
        assert_eq!((&request.prompt[..], request.max_new_tokens), (&[1, 2, 3][..], 7));
        assert_eq!(request.stop_tokens, [5, 9], "6 is visible");
        assert_eq!(asked.visible_stops, [8, 6]);
        let expected = SamplingParams {
            temperature: 0.5,
            top_p: f32::MIN_POSITIVE,
            top_k: 0,
            min_p: 0.1,
            seed: u64::MAX,
        };
        assert_eq!(request.sampling, expected);
        assert_eq!(request.penalties, Penalties { repetition: 1.5, presence: 0.25, frequency: 0.5 });
        assert_eq!(request.logprobs, Some(3));
    }

    #[test]
    fn defaults_are_those_of_the_protocol_and_the_seed_is_the_ids() {
        let asked = read(json!({})).unwrap().request;
        assert_eq!(
            asked.sampling,
            SamplingParams { temperature: 1.0, seed: seed_of("some id"), ..SamplingParams::default() }
        );
        assert_eq!((asked.max_new_tokens, asked.logprobs, asked.ignore_eos), (usize::MAX, None, false));
        assert_ne!(seed_of("a"), seed_of("b"));
    }

    #[test]
    fn eos_is_ignored_where_that_is_asked() {
        let stop =
            json!({"ignore_eos": true, "min_tokens": 4, "max_tokens": 4, "stop_token_ids_hidden": [6]});
        let asked = read(json!({"stop_conditions": stop, "eos_token_ids": [9]})).unwrap().request;
        assert!(asked.ignore_eos && asked.stop_tokens.is_empty());
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let stop = |field: Value| json!({ "stop_conditions": field });
        let sampling = |field: Value| json!({ "sampling_options": field });
        for (change, name) in [
            (json!({"prompt_embeds": "AA=="}), "prompt_embeds"),
            (json!({"multi_modal_data": {"image": [{"Url": "http://127.0.0.1/a.png"}]}}), "multi_modal_data"),
            (json!({"prefill_result": {"disaggregated_params": {}}}), "prefill_result"),
            (json!({"routing": {"lora_name": "x"}}), "lora_name"),
            (json!({"routing": {"cache_salt": "x"}}), "cache_salt"),
            (json!({"routing": {"priority": 1}}), "priority"),
            (json!({"routing": {"dp_rank": 1}}), "dp_rank"),
            (json!({"require_reasoning": true}), "require_reasoning"),
            (
                json!({"extra_args": {"sampling_options": {"bad_words_token_ids": [[1]]}}}),
                "bad_words_token_ids",
            ),
            (json!({"extra_args": {"nvext": {"cache_salt": "x"}}}), "cache_salt"),
            (sampling(json!({"n": 2})), "n is not supported"),
            (sampling(json!({"best_of": 2})), "best_of"),
            (sampling(json!({"use_beam_search": true})), "use_beam_search"),
            (sampling(json!({"length_penalty": 0.5})), "length_penalty"),
            (sampling(json!({"temperature": -1.0})), "temperature"),
            (sampling(json!({"top_p": 1.5})), "top_p"),
            (sampling(json!({"top_k": -2})), "top_k"),
            (sampling(json!({"min_p": -0.5})), "min_p"),
            (sampling(json!({"repetition_penalty": 0.0})), "repetition"),
            (sampling(json!({"guided_decoding": {"regex": "a"}})), "no grammars here"),
            (stop(json!({"min_tokens": 2})), "min_tokens"),
            (stop(json!({"min_tokens": 2, "ignore_eos": true, "stop_token_ids": [4]})), "min_tokens"),
            (stop(json!({"max_thinking_tokens": 2})), "max_thinking_tokens"),
            (stop(json!({"stop": ["x"]})), "stop: the model has no tokenizer"),
            (stop(json!({"stop": [""]})), "stop"),
            (stop(json!({"stop_token_ids": [3_000_000_000_u32]})), "stop_token_ids"),
            (json!({"output_options": {"logprobs": 21}}), "logprobs"),
            (json!({"output_options": {"prompt_logprobs": 0}}), "prompt_logprobs"),
            (json!({"output_options": {"no_stop_trim": true}}), "no_stop_trim"),
        ] {
            let error = read(change.clone()).expect_err(name);
            assert!(error.contains(name), "{change}: {error}");
        }
    }
}
