//! The configuration of an EAGLE-1 drafter, which is also EAGLE-2's, and MSD's.

use super::fields::Fields;
use super::model::in_config;
use super::{Geometry, ModelConfig, ModelSource, llama};
use crate::{Error, Result};

/// Names that EAGLE-1 drafters go by: the authors' and vLLM's.
const ARCHITECTURES: [&str; 3] = ["LlamaForCausalLM", "LlamaForCausalLMEagle", "EagleLlamaForCausalLM"];

/// An EAGLE-1 drafter: one decoder layer over the target's last hidden state, read by the target's head.
#[derive(Debug, Clone, PartialEq)]
pub struct Eagle1Config {
    /// Sizes of its layer; width and vocabulary are the target's.
    pub geometry: Geometry,
    /// Whether `fc` has a bias, where the config says so. The authors' code takes true where it does not.
    pub fc_bias: Option<bool>,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub o_bias: bool,
    /// Whether the MLP projections have a bias.
    pub mlp_bias: bool,
    /// Whether it is an MSD drafter, which reads pictures apart from text.
    pub is_msd: bool,
}

impl Eagle1Config {
    /// Reads and validates the `config.json` of a drafter for `target`.
    ///
    /// # Errors
    /// A field that is missing, broken or not supported, or that does not fit the target.
    pub fn from_hf(source: &ModelSource, target: &ModelConfig) -> Result<Self> {
        Self::read(source, false)?.fitted(source, target)
    }

    /// As [`Eagle1Config::from_hf`], of an MSD drafter (arXiv 2505.14260). Its config repeats the target's, whatever that is called.
    ///
    /// # Errors
    /// As [`Eagle1Config::from_hf`]; a target that sees no pictures.
    pub fn msd(source: &ModelSource, target: &ModelConfig) -> Result<Self> {
        if target.vision.is_none() {
            let reason = "MSD drafters are made for targets that see pictures: this target reads text alone";
            return Err(Error::format(source.path("config.json"), reason));
        }
        Self::read(source, true)?.fitted(source, target)
    }

    fn fitted(self, source: &ModelSource, target: &ModelConfig) -> Result<Self> {
        let config = self;
        let Geometry { vocab_size, hidden_size, .. } = config.geometry;
        target.fits_drafter(vocab_size, hidden_size).map_err(|reason| in_config(source, reason))?;
        Ok(config)
    }

    /// What [`Eagle1Config::from_hf`] asks of the drafter alone, whatever its target.
    ///
    /// # Errors
    /// A field that is missing, broken or not supported.
    pub fn check(source: &ModelSource, is_msd: bool) -> Result<()> {
        Self::read(source, is_msd).map(drop)
    }

    fn read(source: &ModelSource, is_msd: bool) -> Result<Self> {
        let fields = Fields::read(source, "config.json")?;
        if !is_msd {
            fields.require_architecture("an EAGLE-1 drafter", &ARCHITECTURES)?;
        }
        let geometry = Geometry::from_fields(&fields)?;
        if geometry.num_layers != 1 {
            return Err(fields.error(
                "num_hidden_layers",
                format_args!("is {}: EAGLE-1 and MSD drafters have one layer", geometry.num_layers),
            ));
        }
        // The layer is the target's: Qwen's has biases that its configs do not mention.
        let is_qwen = fields.text("model_type")?.is_some_and(|name| name.starts_with("qwen2"));
        let traits = llama::layer_traits(&fields, geometry.num_layers)?;
        Ok(Eagle1Config {
            geometry,
            fc_bias: fields.flag("bias")?,
            qkv_bias: traits.qkv_bias || fields.flag("qkv_bias")?.unwrap_or(is_msd && is_qwen),
            o_bias: traits.o_bias,
            mlp_bias: traits.mlp_bias,
            is_msd,
        })
    }
}
