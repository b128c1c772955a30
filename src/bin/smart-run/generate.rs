//! `smart-run generate`: one prompt, completed.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use serde_json::json;
use smart_run::config::ModelConfig;
use smart_run::control::Policy;
use smart_run::control::trace::{TRACE_VERSION, TraceHeader};
use smart_run::engine::{Engine, FinishReason, Request};
use smart_run::replay::{RECORD_VERSION, RecordHeader, RecordShape};
use smart_run::sampling::SamplingParams;
use smart_run::text::Tokenizer;
use smart_run::{Error, Result};

use crate::args::{GenerateArgs, OutputFormat, Prompt};
use crate::interrupt;
use crate::loading::{self, Models};
use crate::output::print_now;

/// Runs the command.
pub fn run(args: &GenerateArgs) -> Result<()> {
    let models = Models::of(&args.models)?;
    let config = ModelConfig::from_hf(&models.target)?;
    let tokenizer = Tokenizer::open(&models.target)?;
    let prompt = prompt_ids(args, tokenizer.as_ref())?;
    let sampling = SamplingParams {
        temperature: args.sampling.temperature,
        top_p: args.sampling.top_p,
        top_k: args.sampling.top_k.unwrap_or(0),
        min_p: args.sampling.min_p,
        seed: args.sampling.seed,
    };
    let request = Request {
        prompt: prompt.clone(),
        max_new_tokens: args.max_new_tokens,
        sampling,
        ignore_eos: args.ignore_eos,
        weight: 1.0,
        pictures: Vec::new(),
    };
    // The engine asks again; here a wrong prompt does not cost the time to load the weights.
    request.validate(config.geometry.vocab_size, config.max_position)?;
    let (model_name, drafter_name) = (models.target.name(), models.drafter_name());
    let mut builder =
        models.builder(&args.models).max_context(prompt.len().saturating_add(args.max_new_tokens));
    // A record follows no policy, so costs need not be measured.
    if let Some(policy) = args.policy.or(args.record.is_some().then_some(Policy::Plain)) {
        builder = builder.policy(policy);
    }
    interrupt::listen();
    // Files are made before the model is loaded: a wrong path should not cost minutes.
    let create = |path: &PathBuf| File::create(path).map(BufWriter::new).map_err(|e| Error::io(path, e));
    let trace = args.trace.as_ref().map(create).transpose()?;
    let record = args.record.as_ref().map(create).transpose()?;
    let mut engine = loading::build(builder)?;
    if let Some(file) = trace {
        let header = TraceHeader {
            version: TRACE_VERSION,
            model: model_name.clone(),
            drafter: drafter_name.clone(),
            device: engine.device().name().to_owned(),
            policy: engine.controller().policy().to_string(),
            seed: sampling.seed,
            temperature: sampling.temperature,
        };
        engine.set_trace(file, &header)?;
    }
    if let Some(file) = record {
        let header = RecordHeader {
            record_version: RECORD_VERSION,
            shape: RecordShape::DEFAULT,
            model: model_name,
            drafter: drafter_name.unwrap_or_default(),
            device: engine.device().name().to_owned(),
            dtype: engine.dtype().to_owned(),
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            seed: sampling.seed,
        };
        engine.set_record(file, &header)?;
    }
    let streamed = tokenizer.as_ref().filter(|_| args.format == OutputFormat::Text);
    let (tokens, finish) = complete(&mut engine, request, print_now, streamed, args.format)?;
    engine.finish_trace()?;
    engine.finish_record()?;
    match args.format {
        OutputFormat::Json => print_json(&engine, &prompt, &tokens, finish, tokenizer.as_ref()),
        OutputFormat::Text => {
            print_now("\n")?;
            let stats = engine.stats();
            eprintln!(
                "{} tokens at {:.1} tokens/s ({}, {}, {}): {:.2} accepted and {:.1} nodes a round",
                tokens.len(),
                stats.tokens_per_second(),
                engine.controller().policy(),
                engine.dtype(),
                engine.device().name(),
                stats.mean_accepted_len(),
                stats.mean_nodes()
            );
            Ok(())
        }
    }
}

/// Generates to the end (or Ctrl-C), handing text to `show` as it becomes whole.
pub fn complete(
    engine: &mut Engine,
    request: Request,
    mut show: impl FnMut(&str) -> Result<()>,
    tokenizer: Option<&Tokenizer>,
    format: OutputFormat,
) -> Result<(Vec<i32>, Option<FinishReason>)> {
    let mut stream = tokenizer.map(Tokenizer::stream);
    let mut generation = engine.generate(request)?;
    let mut tokens = Vec::new();
    for batch in generation.by_ref() {
        for token in batch? {
            match &mut stream {
                Some(stream) => {
                    if let Some(text) = stream.push(token)? {
                        show(&text)?;
                    }
                }
                // No tokenizer: the ids are the text.
                None if format == OutputFormat::Text => show(&format!("{token} "))?,
                None => (),
            }
            tokens.push(token);
        }
        if interrupt::requested() {
            break;
        }
    }
    let finish = generation.finish_reason();
    drop(generation);
    if let Some(text) = stream.map(|stream| stream.finish()).transpose()?.flatten() {
        show(&text)?;
    }
    Ok((tokens, finish))
}

fn prompt_ids(args: &GenerateArgs, tokenizer: Option<&Tokenizer>) -> Result<Vec<i32>> {
    if let Prompt::Ids(ids) = &args.prompt {
        return Ok(ids.clone());
    }
    let text = args.prompt.text()?.unwrap_or_default();
    match tokenizer {
        Some(tokenizer) => tokenizer.encode(&text, true),
        None => Err(Error::Input(
            "the model folder has no tokenizer.json; give the prompt as --prompt-ids".into(),
        )),
    }
}

fn print_json(
    engine: &Engine,
    prompt: &[i32],
    tokens: &[i32],
    finish: Option<FinishReason>,
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    let stats = engine.stats();
    let text = tokenizer.map(|tokenizer| tokenizer.decode(tokens)).transpose()?;
    let object = json!({
        "prompt_token_ids": prompt,
        "token_ids": tokens,
        "text": text,
        // An interrupted generation has been stopped.
        "finish_reason": finish.map_or("stop", FinishReason::name),
        "stats": {
            "rounds": stats.rounds,
            "emitted_tokens": tokens.len(),
            "mean_accepted_len": stats.mean_accepted_len(),
            "mean_nodes": stats.mean_nodes(),
            "tokens_per_second": stats.tokens_per_second(),
            "prefill_ms": stats.prefill_ms,
            "draft_ms": stats.draft_ms,
            "verify_ms": stats.verify_ms,
            "control_ms": stats.control_ms,
            "total_ms": stats.prefill_ms + stats.decode_ms,
            "device": engine.device().name(),
            "policy": engine.controller().policy().to_string(),
            "dtype": engine.dtype(),
        },
    });
    print_now(&format!("{object}\n"))
}
