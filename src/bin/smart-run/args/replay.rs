//! `replay` as typed and as meant.

use std::path::PathBuf;

use clap::Args;

use smart_run::control::Policy;
use smart_run::replay::Knowledge;

use super::profile::picture;
use super::{OutputFormat, Picture, from_str, integer, number, repetitions};

/// Most sequences at once.
const MAX_BATCH: usize = 1024;
/// What is compared when nothing is asked for.
const POLICIES: [&str; 7] =
    ["smart", "smart-paper", "sequoia:64", "opt-tree:60", "goodput", "chain:3", "eagle2:10,5,60"];
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// What to replay.
#[derive(Debug, PartialEq)]
pub struct ReplayArgs {
    /// Records.
    pub records: Vec<PathBuf>,
    /// Names of synthetic processes, each a text of its own.
    pub synthetic: Vec<String>,
    /// Cost table: a file, or a name of the catalogue.
    pub costs: String,
    /// Policies, at least one.
    pub policies: Vec<Policy>,
    /// Batch sizes, at least one, from 1.
    pub batches: Vec<usize>,
    /// Cached tokens of a sequence at its first position; `None` is the recorded prompt's length.
    pub context: Option<usize>,
    /// Tokens of each replay; `None` is one pass over the record, and at least a hundred a sequence.
    pub tokens: Option<usize>,
    /// Replays of each combination.
    pub repetitions: usize,
    /// First seed.
    pub seed: u64,
    /// Spread of measured times.
    pub noise: f64,
    /// Cost table that policies believe at the start; the one that prices the rounds if `None`.
    pub belief: Option<String>,
    /// What policies are told that they would have to learn.
    pub knowledge: Knowledge,
    /// Whether to search the best static tree for every batch.
    pub rivals: bool,
    /// Whether to play the oracle.
    pub oracle: bool,
    /// What to print.
    pub format: OutputFormat,
    /// File to draw to.
    pub out: Option<(PathBuf, Picture)>,
}

/// `replay` as typed.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct LowReplay {
    /// Records that generate --record wrote, played together
    #[arg(value_name = "RECORD")]
    records: Vec<PathBuf>,
    /// Replay a synthetic process: accepts-2, accepts-3, accepts-4.5, hopeless, mixed, changing, collapsing or distorted; may be repeated
    #[arg(long, value_name = "NAME")]
    synthetic: Vec<String>,
    /// Cost table that prices the rounds: a file, or CARD/MODEL/DRAFTER
    #[arg(long, value_name = "TABLE", default_value = "h200/llama-3.1-8b/eagle3")]
    costs: String,
    /// Policy to play; may be repeated [default: smart, smart-paper, sequoia:64, opt-tree:60, goodput, chain:3, eagle2:10,5,60]
    #[arg(long, value_name = "POLICY", value_parser = from_str::<Policy>)]
    policy: Vec<Policy>,
    /// Batch sizes [default: 1,2,4,8,16,32,64]
    #[arg(long, value_name = "B,...", value_delimiter = ',', value_parser = batch)]
    batch: Vec<usize>,
    /// Cached tokens of a sequence at its first position, or recorded for the prompt's own length
    #[arg(long, value_name = "N", default_value = "1024", value_parser = context)]
    context: Context,
    /// Tokens of each replay [default: one pass over the record, and at least 100 a sequence]
    #[arg(long, value_name = "N", value_parser = tokens)]
    tokens: Option<usize>,
    /// Replays of each combination, each with the texts in another order
    #[arg(long, value_name = "N", default_value = "5", value_parser = repetitions)]
    repetitions: usize,
    /// First seed
    #[arg(long, value_name = "S", default_value = "0", value_parser = super::seed)]
    seed: u64,
    /// Spread of the times that policies measure, as a share
    #[arg(long, value_name = "X", default_value = "0", value_parser = noise)]
    noise: f64,
    /// Cost table that policies believe at the start [default: that of --costs]
    #[arg(long, value_name = "TABLE")]
    belief: Option<String>,
    /// Tell policies the target's probabilities of what is drafted, in place of calibrated ones (records of a temperature above 0, made with --uncoupled)
    #[arg(long)]
    true_probabilities: bool,
    /// Tell policies the true costs, whatever --belief and --noise say
    #[arg(long)]
    true_costs: bool,
    /// Search the best static tree for every batch size: 4 to 60 nodes, 1 to 8 levels, 1 to 10 children
    #[arg(long)]
    rivals: bool,
    /// Play the oracle, which knows the target's probabilities (records of a temperature above 0, made with --uncoupled)
    #[arg(long)]
    oracle: bool,
    /// What to print: text, or one object as json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    format: OutputFormat,
    /// File to draw to: .html for a page with all charts, .svg for speed by batch size alone
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Sees the flags of `replay` together.
pub fn replay(typed: LowReplay) -> Result<ReplayArgs, String> {
    if typed.records.is_empty() && typed.synthetic.is_empty() {
        return Err("there is nothing to replay: give records of generate --record, or --synthetic".into());
    }
    let policies = match typed.policy.is_empty() {
        false => typed.policy,
        true => POLICIES.iter().filter_map(|name| name.parse().ok()).collect(),
    };
    Ok(ReplayArgs {
        records: typed.records,
        synthetic: typed.synthetic,
        costs: typed.costs,
        policies,
        batches: if typed.batch.is_empty() { BATCHES.to_vec() } else { typed.batch },
        context: typed.context.0,
        tokens: typed.tokens,
        repetitions: typed.repetitions,
        seed: typed.seed,
        noise: typed.noise,
        belief: typed.belief,
        knowledge: Knowledge { probabilities: typed.true_probabilities, costs: typed.true_costs },
        rivals: typed.rivals,
        oracle: typed.oracle,
        format: typed.format,
        out: typed.out.map(picture).transpose()?,
    })
}

/// The tokens of `--context`; `None` is `recorded`.
#[derive(Clone, Copy)]
struct Context(Option<usize>);

fn context(typed: &str) -> Result<Context, String> {
    match typed {
        "recorded" => Ok(Context(None)),
        _ => integer(typed, 0, 1 << 24)
            .map(|tokens| Context(Some(tokens)))
            .map_err(|e| format!("{e}, or recorded")),
    }
}

fn batch(typed: &str) -> Result<usize, String> {
    integer(typed, 1, MAX_BATCH)
}

fn tokens(typed: &str) -> Result<usize, String> {
    integer(typed, 1, 1 << 32)
}

fn noise(typed: &str) -> Result<f64, String> {
    number(typed, |value| (0.0..1.0).contains(&value), "a share from 0 to below 1").map(f64::from)
}
