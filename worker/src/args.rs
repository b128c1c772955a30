//! The command line: Dynamo's common flags, and what smart-run needs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use dynamo_backend_common::{CommonArgs, DisaggregationMode, WorkerConfig};
use dynamo_runtime::config::environment_names::worker::DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT;
use dynamo_runtime::worker::{
    DEFAULT_GRACEFUL_SHUTDOWN_TIMEOUT_DEBUG, DEFAULT_GRACEFUL_SHUTDOWN_TIMEOUT_RELEASE,
};
use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::device::DeviceChoice;
use smart_run::engine::{DraftSource, DraftVocabulary};

use crate::engine::Settings;

/// What `--draft` says for a drafter without weights.
const NGRAM: &str = "ngram";
/// Of the time that Dynamo gives a worker to end, what is left for everything but requests, s.
const RESERVE: u64 = 2;

/// Serve a model with smart-run as a worker of NVIDIA Dynamo
#[derive(Parser, Debug)]
#[command(name = "smart-worker", version)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Folder of the model: config.json, weights, tokenizer.json
    #[arg(long, value_name = "DIR", env = "SMART_MODEL")]
    model: PathBuf,
    /// Folder of the drafter's weights, or `ngram`
    #[arg(long, value_name = "DIR", env = "SMART_DRAFT")]
    draft: Option<PathBuf>,
    /// The target's tokens that the drafter may propose: the N with the lowest ids, or those that a file lists [default: all it knows]
    #[arg(long, value_name = "N|FILE")]
    draft_vocab: Option<DraftVocabulary>,
    /// What requests call the model [default: the name of its folder]
    #[arg(long, value_name = "NAME", env = "SMART_SERVED_NAME")]
    served_name: Option<String>,
    /// Where to run: auto, cuda:N or host
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// Type of weights and activations: bf16, f16 or f32 [default: as stored]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<FloatType>,
    /// How draft trees are grown [default: smart with a drafter, else plain]
    #[arg(long, value_name = "POLICY")]
    policy: Option<Policy>,
    /// Sequences served at once
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u16).range(1..=256))]
    max_sequences: u16,
    /// Requests that wait for a place at most; more go to other workers
    #[arg(long, value_name = "N", default_value = "256")]
    max_waiting: usize,
    /// Tokens of a prompt and its answer at most [default: what the model was made for]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// Device memory for keys and values [default: what full contexts need, at most half of what is free]
    #[arg(long, value_name = "MIB")]
    kv_budget_mib: Option<usize>,
    /// Time for running requests once the worker is told to stop; what is left goes on elsewhere, if the frontend may migrate
    /// [default: DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT less 2]
    #[arg(long, value_name = "SECONDS")]
    drain_seconds: Option<u64>,
}

impl Args {
    /// What these mean, for the engine and for Dynamo.
    ///
    /// # Errors
    /// A role that there is not, a model that is no folder, or a time to drain that Dynamo would cut short.
    pub fn resolve(self) -> anyhow::Result<(Settings, WorkerConfig)> {
        let common = self.common;
        if common.disaggregation_mode != DisaggregationMode::Aggregated {
            bail!(
                "--disaggregation-mode: this worker reads prompts and writes answers, `agg` alone is possible"
            );
        }
        if common.route_to_encoder {
            bail!("--route-to-encoder: this worker reads text alone");
        }
        let model = self.model.canonicalize().with_context(|| format!("--model {}", self.model.display()))?;
        if !model.is_dir() {
            bail!("--model {}: not a folder", self.model.display());
        }
        let name = match self.served_name {
            Some(name) => name,
            None => model.file_name().unwrap_or(model.as_os_str()).to_string_lossy().into_owned(),
        };
        let config = WorkerConfig {
            namespace: common.namespace,
            component: common.component,
            endpoint: common.endpoint,
            endpoint_types: common.endpoint_types,
            custom_jinja_template: common.custom_jinja_template,
            tool_call_parser: common.dyn_tool_call_parser,
            reasoning_parser: common.dyn_reasoning_parser,
            exclude_tools_when_tool_choice_none: common.exclude_tools_when_tool_choice_none,
            enable_rl: common.enable_rl,
            runtime: common.runtime,
            model_name: model.to_string_lossy().into_owned(),
            served_model_name: Some(name.clone()),
            metrics_labels: vec![("model".into(), name.clone())],
            ..WorkerConfig::default()
        };
        let settings = Settings {
            model,
            draft: self.draft.map(draft_source),
            draft_vocabulary: self.draft_vocab,
            name,
            device: self.device,
            dtype: self.dtype,
            policy: self.policy,
            max_sequences: self.max_sequences.into(),
            max_waiting: self.max_waiting,
            max_context: self.max_context,
            kv_budget_bytes: self.kv_budget_mib.map(|mib| mib << 20),
            drain: drain(self.drain_seconds, time_to_end())?,
        };
        Ok((settings, config))
    }
}

fn draft_source(path: PathBuf) -> DraftSource {
    match path == Path::new(NGRAM) {
        true => DraftSource::Ngrams,
        false => path.as_path().into(),
    }
}

/// Seconds from a signal, and Dynamo's grace period after it, to the end of the process.
fn time_to_end() -> u64 {
    let default = match cfg!(debug_assertions) {
        true => DEFAULT_GRACEFUL_SHUTDOWN_TIMEOUT_DEBUG,
        false => DEFAULT_GRACEFUL_SHUTDOWN_TIMEOUT_RELEASE,
    };
    let given = std::env::var(DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT).ok();
    given.and_then(|given| given.parse().ok()).unwrap_or(default)
}

fn drain(asked: Option<u64>, time_to_end: u64) -> anyhow::Result<Duration> {
    let most = time_to_end.saturating_sub(RESERVE);
    match asked {
        Some(seconds) if seconds > most => bail!(
            "--drain-seconds {seconds}: Dynamo ends the process after {time_to_end} s; set {DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT} to at least {}",
            seconds + RESERVE
        ),
        asked => Ok(Duration::from_secs(asked.unwrap_or(most))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(more: &[&str]) -> Result<(Settings, WorkerConfig), String> {
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/demo/target");
        let typed = ["smart-worker", "--model", demo].into_iter().chain(more.iter().copied());
        let args = Args::try_parse_from(typed).map_err(|error| error.to_string())?;
        args.resolve().map_err(|error| error.to_string())
    }

    #[test]
    fn flags_arrive() {
        let (settings, config) =
            resolve(&["--draft", "ngram", "--device", "host", "--kv-budget-mib", "3"]).unwrap();
        assert_eq!((&settings.name[..], settings.kv_budget_bytes), ("target", Some(3 << 20)));
        assert!(matches!(settings.draft, Some(DraftSource::Ngrams)));
        assert_eq!((config.served_model_name.as_deref(), &config.namespace[..]), (Some("target"), "dynamo"));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (more, name) in [
            (&["--disaggregation-mode", "prefill"][..], "--disaggregation-mode"),
            (&["--route-to-encoder"], "--route-to-encoder"),
            (&["--device", "tpu"], "--device"),
            (&["--max-sequences", "0"], "--max-sequences"),
            (&["--drain-seconds", "4000"], "--drain-seconds 4000"),
        ] {
            let error = resolve(more).expect_err(name);
            assert!(error.contains(name), "{error}");
        }
        let args = Args::try_parse_from(["smart-worker", "--model", "/no/such/folder"]).unwrap();
        assert!(args.resolve().unwrap_err().to_string().contains("/no/such/folder"));
    }

    #[test]
    fn draining_ends_before_dynamo_ends_the_process() {
        assert_eq!(drain(None, 30).unwrap(), Duration::from_secs(28));
        assert_eq!(drain(Some(3), 5).unwrap(), Duration::from_secs(3));
        assert!(drain(Some(4), 5).unwrap_err().to_string().contains("at least 6"));
    }
}
