//! The configuration of Medusa heads, most of which the weights themselves say.

use std::collections::BTreeSet;

use super::fields::Fields;
use super::model::in_config;
use super::{ModelConfig, ModelSource};
use crate::{Error, Result};

/// What some exporters put before every name: the module that the authors' model keeps its heads in.
const PREFIX: &str = "medusa_head.";
/// Bounds far beyond any published heads.
const MAX_HEADS: usize = 64;
const MAX_BLOCKS: usize = 16;

/// Medusa heads: residual blocks over the target's last hidden state, then a linear layer to the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MedusaConfig {
    /// Stands before every name: nothing, or `medusa_head.`.
    pub prefix: &'static str,
    /// Heads that the weights hold. Published configs say 2 whatever that is, so nothing is asked of `medusa_num_heads`.
    pub num_heads: usize,
    /// Residual blocks of each head: `medusa_num_layers`, 1 where the config is silent.
    pub num_blocks: usize,
    /// Width of the states that the heads read.
    pub hidden_size: usize,
    /// Tokens that they score.
    pub vocab_size: usize,
}

impl MedusaConfig {
    /// Whether `name` is that of a tensor of Medusa heads.
    pub(super) fn knows(name: &str) -> bool {
        name.strip_prefix(PREFIX).unwrap_or(name) == "0.0.linear.weight"
    }

    /// Reads the `config.json` of heads for `target`, and the names and shapes of their `tensors`.
    ///
    /// # Errors
    /// A field that is broken, no head among the tensors, or heads for another target.
    pub fn from_hf<'a>(
        source: &ModelSource,
        tensors: impl Iterator<Item = (&'a str, &'a [usize])>,
        target: &ModelConfig,
    ) -> Result<Self> {
        let config = Self::read(source, tensors)?;
        target
            .fits_drafter(config.vocab_size, config.hidden_size)
            .map_err(|reason| in_config(source, reason))?;
        Ok(config)
    }

    /// What [`MedusaConfig::from_hf`] reads, whatever the target.
    ///
    /// # Errors
    /// A field that is broken, or no head among the tensors.
    pub fn read<'a>(
        source: &ModelSource,
        tensors: impl Iterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<Self> {
        let fields = Fields::read(source, "config.json")?;
        let num_blocks = fields.count("medusa_num_layers", 1..=MAX_BLOCKS)?.unwrap_or(1);
        let (mut heads, mut prefix, mut sizes) = (BTreeSet::new(), "", None);
        let last = format!("0.{num_blocks}.weight");
        for (name, shape) in tensors {
            let bare = name.strip_prefix(PREFIX);
            prefix = if bare.is_some() { PREFIX } else { prefix };
            let bare = bare.unwrap_or(name);
            let head = bare.split_once('.').and_then(|(head, _)| head.parse::<usize>().ok());
            heads.extend(head);
            if let (true, &[vocab_size, hidden_size]) = (bare == last, shape) {
                sizes = Some((vocab_size, hidden_size));
            }
        }
        let Some((vocab_size, hidden_size)) = sizes else {
            return Err(fields.error(
                "medusa_num_layers",
                format_args!("is {num_blocks}, but the weights hold no matrix {prefix}{last}"),
            ));
        };
        let num_heads = heads.len();
        if num_heads > MAX_HEADS {
            return Err(Error::format(
                source.path("config.json"),
                format!(
                    "the weights beside it hold {num_heads} Medusa heads; at most {MAX_HEADS} are supported"
                ),
            ));
        }
        Ok(MedusaConfig { prefix, num_heads, num_blocks, hidden_size, vocab_size })
    }
}
