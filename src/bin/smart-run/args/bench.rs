//! `bench` as typed and as meant.

use std::path::PathBuf;

use clap::Args;

use smart_run::control::Policy;

use super::model::LowModel;
use super::profile::picture;
use super::{
    ModelArgs, OutputFormat, Picture, from_str, integer, max_new_tokens, repetitions, seed, temperature,
};

/// Most sequences at once.
const MAX_BATCH: usize = 256;
/// What is compared with plain decoding when nothing is asked for.
const POLICIES: [&str; 5] = ["smart", "chain:1", "chain:3", "eagle2:4,2,8", "eagle2:10,5,60"];
const BATCHES: [usize; 3] = [1, 2, 4];
const TEMPERATURES: [f32; 2] = [0.0, 1.0];

/// What to measure.
#[derive(Debug, PartialEq)]
pub struct BenchArgs {
    /// What runs, and where.
    pub models: ModelArgs,
    /// Files of prompts, each a set of its own; empty means the demo pair's held-out prompts.
    pub prompts: Vec<PathBuf>,
    /// Requests of a pass; twice the batch if that is more.
    pub requests: usize,
    /// Tokens of a request at most.
    pub max_new_tokens: usize,
    /// Whether to go on after end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Policies beside plain decoding, none twice.
    pub policies: Vec<Policy>,
    /// Batch sizes, at least one, from 1.
    pub batches: Vec<usize>,
    /// At least one, from 0.
    pub temperatures: Vec<f32>,
    /// Passes of each combination that count; one more comes before them.
    pub repetitions: usize,
    /// Whether controllers forget between passes.
    pub cold: bool,
    /// Seed of the first request of a pass; the next has the next.
    pub seed: u64,
    /// What to print.
    pub format: OutputFormat,
    /// File to draw to.
    pub out: Option<(PathBuf, Picture)>,
}

/// `bench` as typed.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct LowBench {
    #[command(flatten)]
    models: LowModel,
    /// Prompts, as JSON Lines with a "prompt", "turns" (of which the first is taken) or "prompt_token_ids"; taken as they are,
    /// without a chat template; may be repeated [default, with the demo pair: its held-out prompts]
    #[arg(long, value_name = "FILE")]
    prompts: Vec<PathBuf>,
    /// Requests that a pass serves; twice the batch if that is more. A file with fewer prompts starts over, with other seeds
    #[arg(long, value_name = "N", default_value = "8", value_parser = requests)]
    requests: usize,
    /// Tokens to generate for a request at most
    #[arg(long, value_name = "N", default_value = "64", value_parser = max_new_tokens)]
    max_new_tokens: usize,
    /// Go on after end-of-sequence tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Policy to compare with plain decoding; may be repeated [default: smart, chain:1, chain:3, eagle2:4,2,8, eagle2:10,5,60]
    #[arg(long, value_name = "POLICY", value_parser = from_str::<Policy>)]
    policy: Vec<Policy>,
    /// Batch sizes [default: 1,2,4]
    #[arg(long, value_name = "B,...", value_delimiter = ',', value_parser = batch)]
    batch: Vec<usize>,
    /// Temperatures [default: 0,1]
    #[arg(long, value_name = "T,...", value_delimiter = ',', value_parser = temperature)]
    temperature: Vec<f32>,
    /// Passes of each combination that count, after one that does not
    #[arg(long, value_name = "N", default_value = "5", value_parser = repetitions)]
    repetitions: usize,
    /// Start every pass with a controller that has learned nothing, as a fresh process does
    #[arg(long)]
    cold: bool,
    /// Seed of the draws
    #[arg(long, value_name = "S", default_value = "0", value_parser = seed)]
    seed: u64,
    /// What to print: text, or one object as json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    format: OutputFormat,
    /// File to draw to: .html for a page with all charts, .svg for speed by batch size alone
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Sees the flags of `bench` together.
pub fn bench(typed: LowBench) -> Result<BenchArgs, String> {
    let models = ModelArgs::from(typed.models);
    if models.model.is_some() && typed.prompts.is_empty() {
        return Err(
            "--model needs --prompts: the prompts that come with this program are the demo pair's".into()
        );
    }
    models.check_policies(&typed.policy)?;
    let asked = match (typed.policy.is_empty(), models.has_drafter()) {
        (false, _) => typed.policy,
        (true, true) => POLICIES.iter().filter_map(|name| name.parse().ok()).collect(),
        (true, false) => Vec::new(),
    };
    let mut policies: Vec<Policy> = Vec::new();
    for policy in asked {
        if policy != Policy::Plain && !policies.contains(&policy) {
            policies.push(policy);
        }
    }
    Ok(BenchArgs {
        models,
        prompts: typed.prompts,
        requests: typed.requests,
        max_new_tokens: typed.max_new_tokens,
        ignore_eos: typed.ignore_eos,
        policies,
        batches: if typed.batch.is_empty() { BATCHES.to_vec() } else { typed.batch },
        temperatures: if typed.temperature.is_empty() { TEMPERATURES.to_vec() } else { typed.temperature },
        repetitions: typed.repetitions,
        cold: typed.cold,
        seed: typed.seed,
        format: typed.format,
        out: typed.out.map(picture).transpose()?,
    })
}

fn requests(typed: &str) -> Result<usize, String> {
    integer(typed, 1, 1 << 20)
}

fn batch(typed: &str) -> Result<usize, String> {
    integer(typed, 1, MAX_BATCH)
}
