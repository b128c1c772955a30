//! Which models a command means, and building their engine with a progress bar on the terminal.

use std::path::{Path, PathBuf};

use smart_run::Result;
use smart_run::config::ModelSource;
use smart_run::engine::{DraftSource, Engine, EngineBuilder};
use smart_run::hub::{HubSettings, Repository};

use crate::args::ModelArgs;
use crate::{demo_model, output};

/// What `--draft` says for a drafter without weights.
const NGRAM: &str = "ngram";

/// The target and what drafts for it.
pub struct Models {
    pub target: ModelSource,
    pub drafter: Option<DraftSource>,
}

impl Models {
    /// What `--model` and `--draft` mean: without a model the demo pair, whose drafter may be replaced. Repositories are fetched.
    pub fn of(args: &ModelArgs) -> Result<Self> {
        let draft = match args.draft.as_deref() {
            None => None,
            Some(path) if path.to_str() == Some(NGRAM) => Some(DraftSource::Ngrams),
            Some(path) => Some(source(path)?.into()),
        };
        match &args.model {
            Some(path) => Ok(Self { target: source(path)?, drafter: draft }),
            None => {
                let (target, drafter) = demo_model::pair()?;
                Ok(Self { target, drafter: Some(draft.unwrap_or(drafter.into())) })
            }
        }
    }

    /// What reports call what drafts.
    pub fn drafter_name(&self) -> Option<String> {
        self.drafter.as_ref().map(DraftSource::name)
    }

    /// An engine of these models, on the device and in the type that `args` says.
    pub fn builder(self, args: &ModelArgs) -> EngineBuilder<'static> {
        let mut builder = Engine::builder(self.target).device(args.device);
        if let Some(drafter) = self.drafter {
            builder = builder.drafter(drafter);
        }
        if let Some(vocabulary) = &args.draft_vocab {
            builder = builder.draft_vocabulary(vocabulary.clone());
        }
        if args.uncoupled {
            builder = builder.uncoupled();
        }
        match args.dtype {
            Some(dtype) => builder.float_type(dtype),
            None => builder,
        }
    }
}

/// The folder at `path`; if there is none, and it reads as `org/name`, the repository of that name.
fn source(path: &Path) -> Result<ModelSource> {
    let repository = path.to_str().and_then(Repository::parse).filter(|_| !path.exists());
    let Some(repository) = repository else { return Ok(path.into()) };
    let bar = bytes_bar("fetching {msg}");
    let folder = HubSettings::from_env()?.fetch(&repository, &mut |file, done, all| {
        bar.set_length(all);
        bar.set_message(file.to_owned());
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(folder?.into())
}

/// Builds the engine, drawing a bar on stderr while weights load (none when stderr is no terminal).
pub fn build(builder: EngineBuilder<'static>) -> Result<Engine> {
    let bar = bytes_bar("loading {msg}");
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

/// A bar of bytes behind `what`.
pub fn bytes_bar(what: &str) -> indicatif::ProgressBar {
    output::bar(&format!("{what} {{bar:30}} {{bytes}}/{{total_bytes}}"), 0)
}

/// Where measured costs are kept: `$XDG_CACHE_HOME`, if that is a whole path, or `~/.cache`, else the temporary folder.
fn cost_cache() -> PathBuf {
    let folder = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|it| it.is_absolute());
    let home = || folder("HOME").map(|home| home.join(".cache"));
    let cache = folder("XDG_CACHE_HOME").or_else(home).unwrap_or_else(std::env::temp_dir);
    cache.join("smart-run").join("costs.json")
}
