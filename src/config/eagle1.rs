//! The configuration of an EAGLE-1 drafter, which is also EAGLE-2's.

use super::fields::Fields;
use super::geometry::Geometry;
use super::{ModelConfig, ModelSource, RopeConfig, llama};
use crate::{Error, Result};

/// Names that EAGLE-1 drafters go by: the authors' and vLLM's.
const ARCHITECTURES: [&str; 3] = ["LlamaForCausalLM", "LlamaForCausalLMEagle", "EagleLlamaForCausalLM"];

/// An EAGLE-1 drafter: one decoder layer over the target's last hidden state, read by the target's head.
#[derive(Debug, Clone, PartialEq)]
pub struct Eagle1Config {
    /// Token ids are below this; the target's vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream, which is the target's.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_q_heads: usize,
    /// Key and value heads; divides `num_q_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary embedding. Often not the target's: without `rope_theta` the base is 10000.
    pub rope: RopeConfig,
    /// Whether `fc` has a bias, where the config says so. The authors' code takes true where it does not.
    pub fc_bias: Option<bool>,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub o_bias: bool,
    /// Whether the MLP projections have a bias.
    pub mlp_bias: bool,
    /// The target's layers: the stream behind the last of them is tapped.
    pub num_target_layers: usize,
}

impl Eagle1Config {
    /// Reads and validates the `config.json` of a drafter for `target`.
    pub fn from_hf(source: &ModelSource, target: &ModelConfig) -> Result<Self> {
        let config = Self::read(source, target.num_layers)?;
        for (what, ours, theirs) in [
            ("a vocabulary of", config.vocab_size, target.vocab_size),
            ("features of width", config.hidden_size, target.hidden_size),
        ] {
            if ours != theirs {
                return Err(Error::format(
                    source.path("config.json"),
                    format!(
                        "this drafter does not fit its target: it expects {what} {ours}, the target has {theirs}"
                    ),
                ));
            }
        }
        Ok(config)
    }

    /// Whether a drafter of this `config.json` can be run with some target.
    pub fn check(source: &ModelSource) -> Result<()> {
        Self::read(source, 1).map(drop)
    }

    fn read(source: &ModelSource, num_target_layers: usize) -> Result<Self> {
        let fields = Fields::read(source, "config.json")?;
        let architecture = fields.architecture()?;
        if !ARCHITECTURES.contains(&architecture) {
            return Err(fields.error(
                "architectures",
                format_args!(
                    "is {architecture:?}: a supported EAGLE-1 drafter is one of {}",
                    ARCHITECTURES.join(", ")
                ),
            ));
        }
        let layer = Geometry::from_fields(&fields)?;
        if layer.num_layers != 1 {
            return Err(fields.error(
                "num_hidden_layers",
                format_args!("is {}: an EAGLE-1 drafter has one layer", layer.num_layers),
            ));
        }
        let traits = llama::layer_traits(&fields, layer.num_layers)?;
        Ok(Eagle1Config {
            vocab_size: layer.vocab_size,
            hidden_size: layer.hidden_size,
            intermediate_size: layer.intermediate_size,
            num_q_heads: layer.num_q_heads,
            num_kv_heads: layer.num_kv_heads,
            head_dim: layer.head_dim,
            rms_norm_eps: layer.rms_norm_eps,
            rope: layer.rope,
            fc_bias: fields.flag("bias")?,
            qkv_bias: traits.qkv_bias || fields.flag("qkv_bias")?.unwrap_or(false),
            o_bias: traits.o_bias,
            mlp_bias: traits.mlp_bias,
            num_target_layers,
        })
    }
}
