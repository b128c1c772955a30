//! Which models a command means, and building their engine with a progress bar on the terminal.

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use smart_run::Result;
use smart_run::config::ModelSource;
use smart_run::engine::{Engine, EngineBuilder};

use crate::demo_model;

/// What `--draft` says for a drafter without weights.
const NGRAM: &str = "ngram";

/// What drafts.
pub enum DraftSource {
    /// A drafter's weights.
    Weights(ModelSource),
    /// N-grams of the text itself.
    Ngrams,
}

impl DraftSource {
    /// What reports call it.
    pub fn name(&self) -> String {
        match self {
            Self::Weights(source) => source.name(),
            Self::Ngrams => "n-grams".into(),
        }
    }

    /// Gives it to an engine.
    pub fn add_to(self, builder: EngineBuilder<'static>) -> EngineBuilder<'static> {
        match self {
            Self::Weights(source) => builder.drafter(source),
            Self::Ngrams => builder.ngram_drafter(),
        }
    }
}

/// The target and drafter that `--model` and `--draft` mean: without a model the demo pair, whose drafter may be replaced.
pub fn sources(model: Option<&Path>, draft: Option<&Path>) -> Result<(ModelSource, Option<DraftSource>)> {
    let draft = draft.map(|path| match path.to_str() {
        Some(NGRAM) => DraftSource::Ngrams,
        _ => DraftSource::Weights(ModelSource::from(path)),
    });
    match model {
        Some(path) => Ok((ModelSource::from(path), draft)),
        None => {
            let (target, drafter) = demo_model::pair()?;
            Ok((target, Some(draft.unwrap_or(DraftSource::Weights(drafter)))))
        }
    }
}

/// Builds the engine, drawing a bar on stderr while weights load (none when stderr is no terminal).
pub fn build(builder: EngineBuilder<'static>) -> Result<Engine> {
    let bar = bar("loading {msg}");
    let shown = bar.clone();
    let engine = builder
        .cost_cache(cost_cache())
        .progress(move |what, done, all| {
            shown.set_length(all as u64);
            shown.set_message(what.to_owned());
            shown.set_position(done as u64);
        })
        .build();
    bar.finish_and_clear();
    engine
}

/// A bar of bytes on stderr behind `what`; hidden when stderr is no terminal.
pub fn bar(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{what} {{bar:30}} {{bytes}}/{{total_bytes}}"));
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Where measured costs are kept: `$XDG_CACHE_HOME` or `~/.cache`, else the temporary folder.
fn cost_cache() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let folder = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home)
        .unwrap_or_else(std::env::temp_dir);
    folder.join("smart-run").join("costs.json")
}
