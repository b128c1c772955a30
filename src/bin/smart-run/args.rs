//! The command line: what was typed ([`LowArgs`]) and what it means ([`Command`], validated).

mod bench;
mod chat;
mod folders;
mod model;
mod profile;
mod replay;
mod sampling;
mod serve;

use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use smart_run::Error;
use smart_run::control::Policy;

use model::LowModel;
use sampling::{LowEnd, LowSampling, max_new_tokens, number, seed, temperature};

pub use bench::BenchArgs;
pub use chat::ChatArgs;
pub use folders::{ConvertArgs, InspectArgs};
pub use model::ModelArgs;
pub use profile::{Picture, ProfileArgs, ProfileSubject};
pub use replay::ReplayArgs;
pub use sampling::SamplingArgs;
pub use serve::{LogFormat, ServeArgs};

/// What the user asks for.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Nothing in particular: show the demo pair at work.
    Demo,
    /// Complete one prompt.
    Generate(GenerateArgs),
    /// Talk.
    Chat(ChatArgs),
    /// Compare policies on this machine.
    Bench(BenchArgs),
    /// Show what passes cost.
    Profile(ProfileArgs),
    /// Play policies over recorded or synthetic texts under modelled time.
    Replay(ReplayArgs),
    /// Show a trace as a page.
    Trace(TraceArgs),
    /// Answer over HTTP.
    Serve(ServeArgs),
    /// Say what a model folder is.
    Inspect(InspectArgs),
    /// Write a model folder's weights as safetensors.
    Convert(ConvertArgs),
}

/// A request to complete one prompt; every value is within its range.
#[derive(Debug, PartialEq)]
pub struct GenerateArgs {
    /// What runs, and where.
    pub models: ModelArgs,
    /// What to complete.
    pub prompt: Prompt,
    /// Picture files, in the order of their places in the prompt.
    pub images: Vec<PathBuf>,
    /// Tokens generated at most, from 1.
    pub max_new_tokens: usize,
    /// Texts that end the completion, none empty.
    pub stop: Vec<String>,
    /// How the next token is drawn.
    pub sampling: SamplingArgs,
    /// Whether to go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// How trees are grown; `None` is `smart` with a drafter and `plain` without.
    pub policy: Option<Policy>,
    /// What to print.
    pub format: OutputFormat,
    /// File to write a JSON line a round to.
    pub trace: Option<PathBuf>,
    /// File to record drafts and draws to, for `replay`; then the text grows by one token a round.
    pub record: Option<PathBuf>,
}

/// What to complete.
#[derive(Debug, PartialEq)]
pub enum Prompt {
    /// Text, not empty.
    Text(String),
    /// A file of text.
    File(PathBuf),
    /// Token ids, at least one, taken as they are.
    Ids(Vec<i32>),
}

impl Prompt {
    /// The text to complete, read from its file if it is in one; `None` where the prompt is ids.
    pub fn text(&self) -> Result<Option<String>, Error> {
        match self {
            Prompt::Text(text) => Ok(Some(text.clone())),
            Prompt::Ids(_) => Ok(None),
            Prompt::File(path) => {
                let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
                let text =
                    String::from_utf8(bytes).map_err(|_| Error::format(path, "this is not UTF-8 text"))?;
                if text.is_empty() { Err(Error::format(path, "the prompt is empty")) } else { Ok(Some(text)) }
            }
        }
    }
}

/// What `generate` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// The completion, as it is generated.
    Text,
    /// One JSON object with tokens, text and statistics, at the end.
    Json,
}

/// A trace to show.
#[derive(Debug, PartialEq)]
pub struct TraceArgs {
    /// What `generate --trace` wrote.
    pub trace: PathBuf,
    /// Where the page goes.
    pub out: TraceOutput,
    /// Folder of the tokenizer; `None` is that of the model that the trace names.
    pub tokenizer: Option<PathBuf>,
    /// Rounds to show, not empty; `None` is all from the first.
    pub rounds: Option<Range<u64>>,
}

/// Where a page goes.
#[derive(Debug, PartialEq)]
pub enum TraceOutput {
    /// A file.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

/// Why there is no command to run.
#[derive(Debug, PartialEq)]
pub enum Stop {
    /// `--help` or `--version`: the text to print.
    Answer(String),
    /// The command line is wrong: one sentence that names the flag.
    Usage(String),
}

/// Reads a command line, program name first.
pub fn parse(typed: impl IntoIterator<Item = OsString>) -> Result<Command, Stop> {
    let matches = LowArgs::command().try_get_matches_from(typed).map_err(stop)?;
    match LowArgs::from_arg_matches(&matches).map_err(stop)?.command {
        None => Ok(Command::Demo),
        Some(LowCommand::Generate(typed)) => generate(typed).map(Command::Generate).map_err(Stop::Usage),
        Some(LowCommand::Chat(typed)) => chat::chat(typed).map(Command::Chat).map_err(Stop::Usage),
        Some(LowCommand::Bench(typed)) => bench::bench(typed).map(Command::Bench).map_err(Stop::Usage),
        Some(LowCommand::Profile(typed)) => {
            profile::profile(typed).map(Command::Profile).map_err(Stop::Usage)
        }
        Some(LowCommand::Replay(typed)) => replay::replay(typed).map(Command::Replay).map_err(Stop::Usage),
        Some(LowCommand::Trace(typed)) => Ok(Command::Trace(trace(typed))),
        Some(LowCommand::Serve(typed)) => serve::serve(typed).map(Command::Serve).map_err(Stop::Usage),
        Some(LowCommand::Inspect(typed)) => Ok(Command::Inspect(folders::inspect(typed))),
        Some(LowCommand::Convert(typed)) => Ok(Command::Convert(folders::convert(typed))),
    }
}

/// Tree speculative decoding that drafts where it pays.
///
/// Without a command: the demo, a small model and its drafter that this program carries.
#[derive(Parser)]
#[command(name = "smart-run", version, allow_negative_numbers = true, disable_help_subcommand = true)]
struct LowArgs {
    #[command(subcommand)]
    command: Option<LowCommand>,
}

#[derive(Subcommand)]
enum LowCommand {
    /// Complete a prompt.
    Generate(LowGenerate),
    /// Talk with a model that has a chat template: a message a line, an answer each
    ///
    /// Lines that begin with / are commands; /help lists them. Messages may come from a pipe.
    Chat(chat::LowChat),
    /// Compare policies on this machine: tokens per second by batch size, on the same prompts, in turn.
    ///
    /// Every policy must give the same text as plain decoding, token by token; if one does not, that is an error.
    Bench(bench::LowBench),
    /// Measure what target and drafter passes cost here, or show a cost table
    Profile(profile::LowProfile),
    /// Play policies over recorded or synthetic texts, under the time that a cost table models
    Replay(replay::LowReplay),
    /// Show what `generate --trace` wrote as a page for the browser: every round's tree and times.
    ///
    /// A page holds up to 4000 rounds and 64 MiB of them; of a longer trace it holds the first ones, or those from the first that
    /// --rounds names, and says so. The trace itself may be of any length.
    Trace(LowTrace),
    /// Answer over HTTP, as OpenAI's servers do: /v1/completions, /v1/chat/completions and more
    ///
    /// Ends on Ctrl-C and SIGTERM, once what runs has been answered. / is a page to talk with the model, /openapi.json lists the rest.
    Serve(serve::LowServe),
    /// Say what a model folder is, and whether this version can run it
    ///
    /// Nothing is loaded: configs and the names, shapes and types of tensors are read. The exit code is 0 whatever the answer;
    /// with --format json it is in `runs` and in `target.fits`.
    Inspect(folders::LowInspect),
    /// Write a model folder's weights as safetensors
    ///
    /// Reads what `generate` reads (safetensors, PyTorch files). The configuration, tokenizer and licence files are copied. The
    /// new folder appears when all of it is written.
    Convert(folders::LowConvert),
}

/// `generate` as typed: each value parsed and within its range, not yet seen together.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
struct LowGenerate {
    #[command(flatten)]
    models: LowModel,
    /// Text to complete
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the text to complete
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Token ids to complete, as in 1,2,3; no special tokens are added
    #[arg(long, value_name = "IDS", allow_hyphen_values = true, value_parser = token_ids)]
    prompt_ids: Option<TokenIds>,
    /// Picture (PNG, JPEG, WebP, GIF) for the next placeholder of the prompt; may be repeated
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    #[command(flatten)]
    end: LowEnd,
    #[command(flatten)]
    sampling: LowSampling,
    /// Go on after an end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
    /// How draft trees are grown: smart, smart-paper, plain, chain:K, eagle1, medusa, eagle2:K,D,N, auto-n, opt-tree:N[,DELTA],
    /// sequoia:N, goodput[:KMAX], ddd[:T], svip[:H], specdec++[:H], disco[:T] or tapout[:ucb1|thompson]
    /// [default: smart; plain without a drafter]
    #[arg(long, value_name = "POLICY", value_parser = from_str::<Policy>)]
    policy: Option<Policy>,
    /// What to print: text as it is generated, or at the end one object as json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    format: OutputFormat,
    /// File to write what each round did to, as JSON Lines
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// File to record to, for `smart-run replay`: a wide draft tree at every position, and what the target drew; one token a round
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// Sees the flags of `generate` together.
fn generate(typed: LowGenerate) -> Result<GenerateArgs, String> {
    let prompt = match (typed.prompt, typed.prompt_file, typed.prompt_ids) {
        (Some(text), None, None) if text.is_empty() => {
            return Err("--prompt is empty: give some text to complete".into());
        }
        (Some(text), None, None) => Prompt::Text(text),
        (None, Some(path), None) => Prompt::File(path),
        (None, None, Some(TokenIds(ids))) => Prompt::Ids(ids),
        (None, None, None) => {
            return Err("there is no prompt: give --prompt, --prompt-file or --prompt-ids".into());
        }
        _ => {
            return Err(
                "there are several prompts: give one of --prompt, --prompt-file and --prompt-ids".into()
            );
        }
    };
    let args = GenerateArgs {
        models: typed.models.into(),
        prompt,
        images: typed.image,
        max_new_tokens: typed.end.max_new_tokens,
        stop: typed.end.stop,
        sampling: typed.sampling.into(),
        ignore_eos: typed.ignore_eos,
        policy: typed.policy,
        format: typed.format,
        trace: typed.trace,
        record: typed.record,
    };
    if args.record.is_some() {
        if !args.models.has_drafter() {
            return Err("--record needs a drafter: give --draft".into());
        }
        if args.policy.is_some() || args.trace.is_some() {
            return Err("--record follows no policy: leave out --policy and --trace".into());
        }
    }
    args.models.check_policies(&args.policy)?;
    Ok(args)
}

/// `trace` as typed.
#[derive(Args)]
struct LowTrace {
    /// Trace: a file that `generate --trace` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Page to write; - is standard output [default: FILE with .html as its extension]
    #[arg(long, value_name = "PAGE")]
    out: Option<PathBuf>,
    /// Model folder whose tokenizer.json says what the tokens read [default: that of the trace's model, if it is here]
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Rounds to show, from A up to but without B [default: all, as far as a page goes]
    #[arg(long, value_name = "A..B", value_parser = rounds)]
    rounds: Option<Range<u64>>,
}

fn trace(typed: LowTrace) -> TraceArgs {
    let out = match typed.out {
        Some(out) if out.as_os_str() == "-" => TraceOutput::Stdout,
        Some(out) => TraceOutput::File(out),
        None => TraceOutput::File(typed.file.with_extension("html")),
    };
    TraceArgs { trace: typed.file, out, tokenizer: typed.tokenizer, rounds: typed.rounds }
}

fn rounds(typed: &str) -> Result<Range<u64>, String> {
    let range = typed.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range
        .filter(|range| !range.is_empty())
        .ok_or_else(|| "it should be two integers, the first below the second, as in 100..200".into())
}

/// Ids of `--prompt-ids`. (A type of its own: clap reads a `Vec` as a flag that may be repeated.)
#[derive(Clone)]
struct TokenIds(Vec<i32>);

fn token_ids(typed: &str) -> Result<TokenIds, String> {
    let id = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let id = if digits { text.parse().ok() } else { None };
        id.ok_or_else(|| {
            format!("{text:?} is not a token id: write integers from 0 with commas between, as in 1,2,3")
        })
    };
    typed.split(',').map(id).collect::<Result<_, _>>().map(TokenIds)
}

fn repetitions(typed: &str) -> Result<usize, String> {
    integer(typed, 1, 1000)
}

fn integer<T: FromStr + PartialOrd + std::fmt::Display>(typed: &str, min: T, max: T) -> Result<T, String> {
    match typed.parse::<T>() {
        Ok(value) if value >= min && value <= max => Ok(value),
        _ => Err(format!("it should be an integer from {min} to {max}")),
    }
}

fn from_str<T: FromStr<Err = Error>>(typed: &str) -> Result<T, String> {
    typed.parse().map_err(|error: Error| error.to_string())
}

/// What clap has to say, as one sentence.
fn stop(error: clap::Error) -> Stop {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Stop::Answer(text);
    }
    // clap sets its sentence first, then tips and usage after empty lines.
    let sentence: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let sentence = sentence.join(" ");
    Stop::Usage(sentence.strip_prefix("error: ").unwrap_or(&sentence).to_string())
}

#[cfg(test)]
mod tests;
