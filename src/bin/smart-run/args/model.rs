//! The flags that say what runs, and where, alike in every command that runs a model.

use std::path::PathBuf;

use clap::Args;

use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::device::DeviceChoice;
use smart_run::engine::DraftVocabulary;

use super::from_str;

/// What runs, and where.
#[derive(Debug, Default, PartialEq)]
pub struct ModelArgs {
    /// The target's folder or repository; `None` is the demo pair.
    pub model: Option<PathBuf>,
    /// The drafter's folder or repository, or `ngram`; `None` is the demo pair's drafter with the demo pair, else no drafter.
    pub draft: Option<PathBuf>,
    /// The target's tokens that the drafter may propose; `None` is all that it knows.
    pub draft_vocab: Option<DraftVocabulary>,
    /// Whether drafts are made without the noise of the draws that they are to foresee.
    pub uncoupled: bool,
    /// Type to run in; `None` is the one that the weights are stored in.
    pub dtype: Option<FloatType>,
    /// Where to run.
    pub device: DeviceChoice,
}

/// The same as typed.
#[derive(Args)]
pub struct LowModel {
    /// Target: a Hugging Face model folder, or org/name or org/name@revision to fetch one [default: the demo pair; chat needs one]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Drafter: a folder, or org/name, with an EAGLE-3, EAGLE-1 or MSD checkpoint or Medusa heads made for the target; or ngram, which drafts what the text has said before
    #[arg(long, value_name = "DIR")]
    draft: Option<PathBuf>,
    /// The target's tokens that the drafter may propose: the N with the lowest ids, or those that a file lists (a JSON array, or FR-Spec's
    /// freq_32768.pt). Makes the head of EAGLE-1, MSD and Medusa drafters quicker beside a large vocabulary; the text stays the same
    #[arg(long, value_name = "N|FILE", value_parser = from_str::<DraftVocabulary>)]
    draft_vocab: Option<DraftVocabulary>,
    /// Draft sampled text without the noise of its draws, as other runtimes do: fewer drafts are accepted; the text stays the same. For
    /// comparisons, and for records that an oracle can play
    #[arg(long)]
    uncoupled: bool,
    /// Type to run in: auto (as the weights are stored), bf16, f16 or f32
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = dtype)]
    dtype: Dtype,
    /// Where to run: auto, cuda:N or host
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = from_str::<DeviceChoice>)]
    device: DeviceChoice,
}

impl From<LowModel> for ModelArgs {
    fn from(typed: LowModel) -> Self {
        Self {
            model: typed.model,
            draft: typed.draft,
            draft_vocab: typed.draft_vocab,
            uncoupled: typed.uncoupled,
            dtype: typed.dtype.0,
            device: typed.device,
        }
    }
}

impl ModelArgs {
    /// Whether there is a drafter to speculate with.
    pub fn has_drafter(&self) -> bool {
        self.draft.is_some() || self.model.is_none()
    }

    /// Fails on the first of `policies` that needs a drafter where there is none.
    pub fn check_policies<'a>(&self, policies: impl IntoIterator<Item = &'a Policy>) -> Result<(), String> {
        match policies.into_iter().find(|policy| **policy != Policy::Plain && !self.has_drafter()) {
            Some(policy) => {
                Err(format!("--policy {policy} needs a drafter: give --draft, or use --policy plain"))
            }
            None => Ok(()),
        }
    }
}

/// The type of `--dtype`; `None` is `auto`.
#[derive(Clone, Copy)]
struct Dtype(Option<FloatType>);

fn dtype(typed: &str) -> Result<Dtype, String> {
    match typed {
        "auto" => Ok(Dtype(None)),
        name => name.parse().map(|dtype| Dtype(Some(dtype))).map_err(|_| "use auto, bf16, f16 or f32".into()),
    }
}
