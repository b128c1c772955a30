//! `smart-run generate`: one prompt, completed.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use serde_json::json;
use smart_run::config::ModelConfig;
use smart_run::control::Policy;
use smart_run::control::trace::{TRACE_VERSION, TraceHeader};
use smart_run::engine::{Engine, FinishReason, Request, expand_prompt};
use smart_run::replay::{RECORD_VERSION, RecordHeader, RecordShape};
use smart_run::text::{StopStream, StopStrings, Tokenizer};
use smart_run::{Error, Result};

use crate::args::{GenerateArgs, OutputFormat, Prompt};
use crate::interrupt;
use crate::loading::{self, Models};
use crate::output::print_now;
use crate::pictures::PictureFiles;

/// Runs the command.
pub fn run(args: &GenerateArgs) -> Result<()> {
    let models = Models::of(&args.models)?;
    let config = ModelConfig::from_hf(&models.target)?;
    let tokenizer = Tokenizer::open(&models.target)?;
    let stops = StopStrings::new(args.stop.clone())?;
    if tokenizer.is_none() && !stops.is_empty() {
        return Err(Error::Input(
            "--stop needs a tokenizer, and the model folder has no tokenizer.json".into(),
        ));
    }
    let prompt = prompt_ids(args, tokenizer.as_ref(), config.geometry.vocab_size)?;
    let pictures = PictureFiles::open_all(&models.target, &config, &args.images)?;
    let prompt = expand_prompt(&config, &prompt, &pictures)?;
    let sampling = args.sampling.params();
    let request = Request {
        sampling,
        ignore_eos: args.ignore_eos,
        pictures,
        ..Request::new(prompt.clone(), args.max_new_tokens)
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
    let show = |text: &str| if args.format == OutputFormat::Text { print_now(text) } else { Ok(()) };
    let done = complete(&mut engine, request, tokenizer.as_ref(), &stops, show)?;
    engine.finish_trace()?;
    engine.finish_record()?;
    match args.format {
        OutputFormat::Json => print_json(&engine, &prompt, &done),
        OutputFormat::Text => {
            print_now("\n")?;
            let stats = engine.stats();
            eprintln!(
                "{} tokens at {:.1} tokens/s ({}, {}, {}): {:.2} accepted and {:.1} nodes a round",
                done.tokens.len(),
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

/// What came of a request.
pub struct Completion {
    /// The tokens that count: without an end-of-sequence token, and with a stop string those before it (see [`StopStream::num_ids`]).
    pub tokens: Vec<i32>,
    /// Their text, up to a stop string; `None` without a tokenizer.
    pub text: Option<String>,
    /// Why it ended.
    pub finish: Finish,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The engine ended it.
    Engine(FinishReason),
    /// A stop string came.
    StopString,
    /// Ctrl-C was pressed.
    Interrupted,
}

impl Finish {
    /// As in the JSON output.
    fn name(self) -> &'static str {
        match self {
            Finish::Engine(reason) => reason.name(),
            Finish::StopString | Finish::Interrupted => "stop",
        }
    }
}

/// Generates to the end, a stop string or Ctrl-C, handing text to `show` as it becomes certain. Without a tokenizer the ids are the text.
pub fn complete(
    engine: &mut Engine,
    request: Request,
    tokenizer: Option<&Tokenizer>,
    stops: &StopStrings,
    mut show: impl FnMut(&str) -> Result<()>,
) -> Result<Completion> {
    let mut stream = tokenizer.map(|tokenizer| tokenizer.stream_until(stops));
    let mut streamed = String::new();
    let mut generation = engine.generate(request)?;
    let mut tokens = Vec::new();
    for batch in generation.by_ref() {
        for token in batch? {
            tokens.push(token);
            match &mut stream {
                Some(stream) => {
                    if let Some(text) = stream.push(token)? {
                        show(&text)?;
                        streamed.push_str(&text);
                    }
                    // What the round accepted after a stop string does not count.
                    if stream.stopped() {
                        break;
                    }
                }
                None => show(&format!("{token} "))?,
            }
        }
        if interrupt::requested() || stream.as_ref().is_some_and(StopStream::stopped) {
            break;
        }
    }
    let ended = generation.finish_reason();
    drop(generation);
    let mut finish = ended.map_or(Finish::Interrupted, Finish::Engine);
    if let Some(stream) = &mut stream {
        if let Some(text) = stream.finish()? {
            show(&text)?;
            streamed.push_str(&text);
        }
        if stream.stopped() {
            finish = Finish::StopString;
        }
        tokens.truncate(stream.num_ids());
    }
    let text = match tokenizer {
        None => None,
        Some(_) if finish == Finish::StopString => Some(streamed),
        Some(tokenizer) => Some(tokenizer.decode(&tokens)?),
    };
    Ok(Completion { tokens, text, finish })
}

fn prompt_ids(args: &GenerateArgs, tokenizer: Option<&Tokenizer>, vocab_size: usize) -> Result<Vec<i32>> {
    if let Prompt::Ids(ids) = &args.prompt {
        return Ok(ids.clone());
    }
    let text = args.prompt.text()?.unwrap_or_default();
    match tokenizer {
        Some(tokenizer) => {
            let ids = tokenizer.encode(&text, true)?;
            tokenizer.check_ids(&ids, vocab_size)?;
            Ok(ids)
        }
        None => Err(Error::Input(
            "the model folder has no tokenizer.json; give the prompt as --prompt-ids".into(),
        )),
    }
}

fn print_json(engine: &Engine, prompt: &[i32], done: &Completion) -> Result<()> {
    let stats = engine.stats();
    let object = json!({
        "prompt_token_ids": prompt,
        "token_ids": done.tokens,
        "text": done.text,
        "finish_reason": done.finish.name(),
        "stats": {
            "rounds": stats.rounds,
            "emitted_tokens": done.tokens.len(),
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
