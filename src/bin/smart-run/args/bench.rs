//! `bench` as typed and as meant.

use std::path::PathBuf;

use clap::Args;

use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::device::DeviceChoice;

use super::profile::picture;
use super::{
    Dtype, OutputFormat, Picture, dtype, from_str, integer, max_new_tokens, repetitions, seed, temperature,
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
    /// The target's folder; `None` is the demo pair.
    pub model: Option<PathBuf>,
    /// The drafter's folder, or `ngram`; `None` is the demo pair's drafter with the demo pair, else no drafter.
    pub draft: Option<PathBuf>,
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
    /// Type to run in; `None` is the one that the weights are stored in.
    pub dtype: Option<FloatType>,
    /// Where to run.
    pub device: DeviceChoice,
    /// What to print.
    pub format: OutputFormat,
    /// File to draw to.
    pub out: Option<(PathBuf, Picture)>,
}

/// `bench` as typed.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct LowBench {
    /// Target: a Hugging Face model folder [default: the demo pair]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Drafter: a folder with an EAGLE-3 or EAGLE-1 checkpoint made for the target; or ngram, which drafts what the text has said before
    #[arg(long, value_name = "DIR")]
    draft: Option<PathBuf>,
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
    /// Type to run in: auto (as the weights are stored), bf16, f16 or f32
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = dtype)]
    dtype: Dtype,
    /// Where to run: auto, cuda:N or host
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = from_str::<DeviceChoice>)]
    device: DeviceChoice,
    /// What to print: text, or one object as json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    format: OutputFormat,
    /// File to draw to: .html for a page with all charts, .svg for speed by batch size alone
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Sees the flags of `bench` together.
pub fn bench(typed: LowBench) -> Result<BenchArgs, String> {
    let has_drafter = typed.draft.is_some() || typed.model.is_none();
    if typed.model.is_some() && typed.prompts.is_empty() {
        return Err(
            "--model needs --prompts: the prompts that come with this program are the demo pair's".into()
        );
    }
    if let (false, Some(policy)) = (has_drafter, typed.policy.iter().find(|p| **p != Policy::Plain)) {
        return Err(format!("--policy {policy} needs a drafter: give --draft, or use --policy plain"));
    }
    let asked = match (typed.policy.is_empty(), has_drafter) {
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
        model: typed.model,
        draft: typed.draft,
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
        dtype: typed.dtype.0,
        device: typed.device,
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
