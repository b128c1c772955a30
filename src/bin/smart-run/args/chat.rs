//! `chat` as typed and as meant.

use std::path::PathBuf;

use clap::Args;

use smart_run::control::Policy;

use super::model::LowModel;
use super::sampling::{LowEnd, LowSampling};
use super::{ModelArgs, SamplingArgs, from_str};

/// A conversation at the terminal.
#[derive(Debug, PartialEq)]
pub struct ChatArgs {
    /// What runs, and where; there is a model.
    pub models: ModelArgs,
    /// What the model is told before the first message.
    pub system: Option<String>,
    /// Picture files that go with the first message.
    pub images: Vec<PathBuf>,
    /// Tokens of an answer at most, from 1.
    pub max_new_tokens: usize,
    /// Texts that end an answer, none empty.
    pub stop: Vec<String>,
    /// How the next token is drawn.
    pub sampling: SamplingArgs,
    /// How trees are grown; `None` is `smart` with a drafter and `plain` without.
    pub policy: Option<Policy>,
}

/// `chat` as typed.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct LowChat {
    #[command(flatten)]
    models: LowModel,
    /// System message: what the model is told before the first message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Picture (PNG, JPEG, WebP, GIF) that goes with the first message; may be repeated. /image FILE sends more
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    #[command(flatten)]
    end: LowEnd,
    #[command(flatten)]
    sampling: LowSampling,
    /// How draft trees are grown, as for generate [default: smart; plain without a drafter]
    #[arg(long, value_name = "POLICY", value_parser = from_str::<Policy>)]
    policy: Option<Policy>,
}

/// Sees the flags of `chat` together.
pub fn chat(typed: LowChat) -> Result<ChatArgs, String> {
    let models = ModelArgs::from(typed.models);
    if models.model.is_none() {
        return Err("chat needs a model that was trained to chat: give --model (the demo pair completes code, see `smart-run generate`)".into());
    }
    models.check_policies(&typed.policy)?;
    Ok(ChatArgs {
        models,
        system: typed.system,
        images: typed.image,
        max_new_tokens: typed.end.max_new_tokens,
        stop: typed.end.stop,
        sampling: typed.sampling.into(),
        policy: typed.policy,
    })
}
