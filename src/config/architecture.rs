//! The architectures that can be run as targets, and what their decoder layers do not share.

use super::fields::Fields;
use super::{llama, mistral, qwen2, qwen3};
use crate::Result;

/// Target architectures that can be run. Each has a file here that reads what is its own of a config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`: Llama 2, 3, 3.1, 3.2 (text) and 3.3, Vicuna, DeepSeek-R1-Distill-Llama and what shares their layout.
    Llama,
    /// `MistralForCausalLM`: Mistral 7B, Nemo and Small.
    Mistral,
    /// `Qwen2ForCausalLM`: Qwen 2 and 2.5, DeepSeek-R1-Distill-Qwen.
    Qwen2,
    /// `Qwen3ForCausalLM`: the dense Qwen 3.
    Qwen3,
}

/// What decoder layers have or lack beyond the geometry that every architecture has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LayerTraits {
    /// The query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// The output projection of attention has a bias.
    pub o_bias: bool,
    /// The MLP projections have a bias.
    pub mlp_bias: bool,
    /// Every query and key head is normalised before it is rotated.
    pub qk_norm: bool,
    /// Keys that a row of each layer sees at most.
    pub windows: Vec<Option<usize>>,
}

impl Architecture {
    /// Every variant.
    pub const ALL: [Architecture; 4] =
        [Architecture::Llama, Architecture::Mistral, Architecture::Qwen2, Architecture::Qwen3];

    /// The name under `architectures` of a config.
    pub const fn hf_name(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Mistral => "MistralForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The architecture that a config names.
    pub(super) fn from_fields(fields: &Fields) -> Result<Self> {
        let name = fields.architecture()?;
        Self::ALL.into_iter().find(|architecture| architecture.hf_name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Architecture::hf_name).join(", ");
            let reason = format!("is {name:?}: this architecture is not supported; those that are: {known}");
            fields.error("architectures", reason)
        })
    }

    /// What the config says of the layers in this architecture's own words.
    pub(super) fn layer_traits(
        self,
        fields: &Fields,
        num_layers: usize,
        max_position: usize,
    ) -> Result<LayerTraits> {
        let mut traits = match self {
            Architecture::Llama => llama::layer_traits(fields, num_layers)?,
            Architecture::Mistral => mistral::layer_traits(fields, num_layers)?,
            Architecture::Qwen2 => qwen2::layer_traits(fields, num_layers)?,
            Architecture::Qwen3 => qwen3::layer_traits(fields, num_layers)?,
        };
        // A window that no context of this model outgrows hides nothing.
        for window in &mut traits.windows {
            *window = window.filter(|&keys| keys < max_position);
        }
        Ok(traits)
    }
}

/// A layer type of a config: every key is seen.
pub(super) const FULL_ATTENTION: &str = "full_attention";

/// Which layers have a window of `window` keys: those that `layer_types` names or, without that field, those that `default`
/// does.
pub(super) fn windows_by_layer(
    fields: &Fields,
    num_layers: usize,
    window: Option<usize>,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    const FIELD: &str = "layer_types";
    let Some(types) = fields.texts(FIELD)? else {
        return Ok((0..num_layers).map(|layer| window.filter(|_| default(layer))).collect());
    };
    if types.len() != num_layers {
        return Err(fields
            .error(FIELD, format_args!("holds {} types: `num_hidden_layers` is {num_layers}", types.len())));
    }
    let window_of = |kind: &str| match kind {
        FULL_ATTENTION => Ok(None),
        "sliding_attention" if window.is_some() => Ok(window),
        "sliding_attention" => {
            Err(fields
                .error(FIELD, format_args!("holds {kind:?}: the config has no `sliding_window` in use")))
        }
        other => Err(fields.error(
            FIELD,
            format_args!("holds {other:?}: only {FULL_ATTENTION:?} and \"sliding_attention\" are supported"),
        )),
    };
    types.into_iter().map(window_of).collect()
}

/// `sliding_window` of a config.
pub(super) fn sliding_window(fields: &Fields) -> Result<Option<usize>> {
    fields.count("sliding_window", 1..=1 << 24)
}
