//! `smart-run inspect`: what a model folder is, whether this version can run it, and whether a drafter fits its target.

mod tensors;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use indicatif::HumanBytes;
use serde_json::{Value, json};
use smart_run::config::{
    ConfigSummary, Eagle1Config, Eagle3Config, FloatType, MedusaConfig, ModelKind, ModelSource,
};
use smart_run::device::DeviceChoice;
use smart_run::engine::{Engine, EngineBuilder};
use smart_run::text::{self, Tokenizer};
use smart_run::weights::{Checkpoint, TensorInfo};
use smart_run::{Error, Result};

use crate::args::{InspectArgs, OutputFormat};
use crate::output::print_now;

/// All that is said about a folder.
struct Inspection {
    folder: String,
    kind: Option<ModelKind>,
    config: ConfigSummary,
    checkpoint: Checkpoint,
    /// Type that the weights run in unless asked otherwise; `None` without float weights.
    float_type: Option<FloatType>,
    /// Why this version cannot run it.
    refusal: Option<String>,
    fit: Option<Fit>,
    /// Token ids of the tokenizer, or what is wrong with it.
    tokenizer: Result<Option<usize>>,
    /// File that holds the chat template.
    chat_template: Option<&'static str>,
}

/// Whether a drafter was made for a target.
struct Fit {
    target: String,
    /// A sentence each.
    mismatches: Vec<String>,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<()> {
    let inspection = Inspection::of(&args.folder, args.target.as_deref())?;
    match args.format {
        OutputFormat::Text => print_now(&inspection.text()),
        OutputFormat::Json => print_now(&format!("{}\n", inspection.json())),
    }
}

impl Inspection {
    fn of(folder: &Path, target: Option<&Path>) -> Result<Self> {
        let source = ModelSource::from(folder);
        let config = ConfigSummary::read(&source)?;
        let checkpoint = Checkpoint::open(&source)?;
        let kind = ModelKind::of(&config, checkpoint.names());
        if target.is_some() && matches!(kind, None | Some(ModelKind::Target)) {
            return Err(Error::Input(format!(
                "--target goes with a drafter, but {} is none: leave the flag out",
                folder.display()
            )));
        }
        let tokenizer = Tokenizer::open(&source).map(|tokenizer| tokenizer.map(|it| it.num_ids()));
        let mut refusal = refusal(kind, &source, &checkpoint)?;
        if let Err(error) = &tokenizer {
            refusal = refusal.or(Some(error.to_string()));
        }
        let fit = target
            .map(|target| fit(kind, &source, &config, &checkpoint, refusal.is_none(), target))
            .transpose()?;
        Ok(Inspection {
            folder: source.name(),
            kind,
            float_type: config.dtype.or_else(|| checkpoint.float_type().ok()),
            refusal,
            fit,
            tokenizer,
            chat_template: text::chat_template_file(&source)?,
            config,
            checkpoint,
        })
    }

    /// Elements of the tensors that were trained: integers are tables.
    fn num_parameters(&self) -> usize {
        let trained = self.checkpoint.tensors().filter(TensorInfo::is_float);
        trained.map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    /// Number of tensors by type, the most frequent type first.
    fn dtypes(&self) -> Vec<(String, usize)> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for tensor in self.checkpoint.tensors() {
            *counts.entry(tensors::dtype_name(tensor)).or_default() += 1;
        }
        let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
        counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        counts
    }

    fn kv_bytes_per_token(&self) -> Option<usize> {
        // Medusa's heads have no attention; their config may repeat the target's.
        let float_type = self.float_type.filter(|_| self.kind != Some(ModelKind::Medusa))?;
        self.config.kv_bytes_per_token(float_type)
    }

    fn text(&self) -> String {
        let config = &self.config;
        let mut text = format!("{}\n", self.folder);
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<14} {}", printable(&value));
        };
        let names = [&config.architecture, &config.model_type].map(|name| name.as_deref());
        let family = self.kind.map_or("of no known family", ModelKind::title);
        let architecture = names.into_iter().flatten().next();
        row("what", architecture.map_or_else(|| family.into(), |name| format!("{family} ({name})")));
        row(
            "runs",
            match (&self.refusal, self.kind) {
                (Some(reason), _) => format!("no: {reason}"),
                (None, Some(ModelKind::Target)) => "yes".into(),
                (None, _) if self.fit.is_some() => "yes, with a target that it fits".into(),
                (None, _) => "yes, with a target that it fits (--target DIR says whether)".into(),
            },
        );
        if let Some(fit) = &self.fit {
            match fit.mismatches.as_slice() {
                [] => row("fits", format!("yes: {}", fit.target)),
                mismatches => row("fits", format!("no, not {}: {}", fit.target, mismatches.join("; "))),
            }
        }
        let dtypes = self.dtypes().into_iter().map(|(dtype, count)| match count {
            1 => format!("{dtype} (1 tensor)"),
            _ => format!("{dtype} ({count} tensors)"),
        });
        let dtypes = dtypes.collect::<Vec<_>>().join(", ");
        row("parameters", format!("{} as {dtypes}", rounded(self.num_parameters())));
        let files: Vec<_> = self.checkpoint.files().collect();
        let bytes = HumanBytes(files.iter().map(|&(_, _, bytes)| bytes as u64).sum());
        let format = files.first().map_or("", |&(_, format, _)| format.name());
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match files.as_slice() {
            [(path, _, _)] => row("weights", format!("{bytes} in {} ({format})", name(path))),
            many => row("weights", format!("{bytes} in {} files ({format})", many.len())),
        }
        if let Some(vocab) = config.vocab_size {
            let drafted = config.draft_vocab_size.filter(|&drafted| drafted != vocab);
            let drafted = drafted.map_or_else(String::new, |drafted| format!(", {drafted} of them drafted"));
            row("vocabulary", format!("{vocab} tokens{drafted}"));
        }
        if let (Some(hidden), Some(layers)) = (config.hidden_size, config.num_layers) {
            let plural = if layers == 1 { "" } else { "s" };
            row("size", format!("{layers} layer{plural} of width {hidden}"));
        }
        if let Some(context) = config.max_position {
            row("context", format!("{context} tokens"));
        }
        if let (Some(bytes), Some(float_type)) = (self.kv_bytes_per_token(), self.float_type) {
            row("K/V", format!("{bytes} bytes per token in {float_type}"));
        }
        row(
            "tokenizer",
            match self.tokenizer {
                Ok(Some(ids)) => format!("tokenizer.json, {ids} ids"),
                Ok(None) => "none".into(),
                Err(_) => "tokenizer.json, which cannot be used".into(),
            },
        );
        row("chat template", self.chat_template.unwrap_or("none").into());
        text.push_str("  tensors\n");
        for line in tensors::grouped(self.checkpoint.tensors()) {
            let _ = writeln!(text, "    {line}");
        }
        text
    }

    fn json(&self) -> Value {
        let config = &self.config;
        let tensors = self.checkpoint.tensors().map(|tensor| {
            json!({"name": tensor.name, "shape": tensor.shape, "dtype": tensors::dtype_name(tensor),
                   "bytes": tensor.size_in_bytes})
        });
        let files = self.checkpoint.files().map(|(path, format, bytes)| {
            json!({"file": path.display().to_string(), "format": format.name(), "bytes": bytes})
        });
        json!({
            "folder": self.folder,
            "kind": self.kind.map(ModelKind::name),
            "architecture": config.architecture,
            "model_type": config.model_type,
            "runs": self.refusal.is_none(),
            "reason": self.refusal,
            "target": self.fit.as_ref().map(|fit| json!({
                "folder": fit.target, "fits": fit.mismatches.is_empty(), "mismatches": fit.mismatches,
            })),
            "dtype": self.float_type.map(FloatType::name),
            "parameters": self.num_parameters(),
            "bytes": self.checkpoint.total_bytes(),
            "files": files.collect::<Vec<_>>(),
            "vocab_size": config.vocab_size,
            "draft_vocab_size": config.draft_vocab_size,
            "hidden_size": config.hidden_size,
            "num_layers": config.num_layers,
            "context": config.max_position,
            "kv_bytes_per_token": self.kv_bytes_per_token(),
            "tokenizer_ids": self.tokenizer.as_ref().ok().copied().flatten(),
            "chat_template": self.chat_template,
            "tensors": tensors.collect::<Vec<_>>(),
        })
    }
}

/// Why this version cannot run the folder, if it cannot; of a drafter, with no target.
fn refusal(kind: Option<ModelKind>, source: &ModelSource, checkpoint: &Checkpoint) -> Result<Option<String>> {
    match kind {
        Some(ModelKind::Target) => fault(builder(source).check()),
        Some(ModelKind::Eagle3) => fault(Eagle3Config::check(source)),
        Some(ModelKind::Eagle1) => fault(Eagle1Config::check(source, false)),
        Some(ModelKind::Msd) => fault(Eagle1Config::check(source, true)),
        Some(ModelKind::Medusa) => fault(heads(source, checkpoint).map(drop)),
        None => Ok(Some(
            "config.json and the tensors' names are those of no target or drafter that is known".into(),
        )),
    }
}

/// An engine to rehearse with: no GPU is touched.
fn builder(target: &ModelSource) -> EngineBuilder<'static> {
    Engine::builder(target.clone()).device(DeviceChoice::Host)
}

/// The sentence of an error that blames the input; other errors are the caller's.
fn fault(outcome: Result<()>) -> Result<Option<String>> {
    match outcome {
        Ok(()) => Ok(None),
        Err(error) if error.is_input() => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Holds a drafter against a target: sizes, then, if it `runs`, all that loading both would find.
fn fit(
    kind: Option<ModelKind>,
    source: &ModelSource,
    config: &ConfigSummary,
    checkpoint: &Checkpoint,
    runs: bool,
    target: &Path,
) -> Result<Fit> {
    let target_source = ModelSource::from(target);
    let theirs = ConfigSummary::read(&target_source)?;
    let (width, vocab) = match kind {
        Some(ModelKind::Medusa) => {
            let heads = heads(source, checkpoint).ok();
            (heads.as_ref().map(|it| it.hidden_size), heads.map(|it| it.vocab_size))
        }
        _ => (config.target_hidden_size.or(config.hidden_size), config.vocab_size),
    };
    let mut mismatches = Vec::new();
    for (what, field, ours, theirs) in [
        ("features of width", "hidden_size", width, theirs.hidden_size),
        ("a vocabulary of", "vocab_size", vocab, theirs.vocab_size),
    ] {
        match (ours, theirs) {
            (Some(ours), Some(theirs)) if ours == theirs => {}
            (Some(ours), Some(theirs)) => {
                mismatches.push(format!("it expects {what} {ours}, the target has {theirs}"));
            }
            (None, _) => mismatches.push(format!("its own config.json names no usable `{field}`")),
            (_, None) => mismatches.push(format!("the target's config.json names no usable `{field}`")),
        }
    }
    if mismatches.is_empty() && runs {
        mismatches.extend(match fault(builder(&target_source).check())? {
            Some(reason) => Some(format!("the target itself cannot run: {reason}")),
            None => fault(builder(&target_source).drafter(source.clone()).check())?,
        });
    }
    Ok(Fit { target: target_source.name(), mismatches })
}

/// What config and tensors say about Medusa heads.
fn heads(source: &ModelSource, checkpoint: &Checkpoint) -> Result<MedusaConfig> {
    MedusaConfig::read(source, checkpoint.tensors().map(|tensor| (tensor.name, tensor.shape)))
}

/// `text` without what moves a terminal's cursor: configs come from strangers.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A count with three digits, in thousands, millions or billions.
fn rounded(count: usize) -> String {
    let count_as = |unit: f64, name: &str| format!("{:.2} {name}", count as f64 / unit);
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => count_as(1e3, "thousand"),
        1_000_000..1_000_000_000 => count_as(1e6, "million"),
        _ => count_as(1e9, "billion"),
    }
}
