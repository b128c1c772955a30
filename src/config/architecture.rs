//! The architectures that can be run as targets, and what their decoder layers do not share.

use super::fields::Fields;
use super::{llama, mistral, qwen2, qwen3};
use crate::Result;

/// Target architectures that can be run: layers of a language model. Each has a file here that reads what is its own of a config.
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

/// Models that see pictures: a vision tower beside one of the architectures above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeeingModel {
    /// `LlavaForConditionalGeneration`: LLaVA-1.5, LLaVA-NeXT-Interleave.
    Llava,
    /// `LlavaNextForConditionalGeneration`: LLaVA-NeXT (LLaVA-1.6).
    LlavaNext,
    /// `Qwen2VLForConditionalGeneration`: Qwen2-VL.
    Qwen2Vl,
}

impl SeeingModel {
    const ALL: [SeeingModel; 3] = [SeeingModel::Llava, SeeingModel::LlavaNext, SeeingModel::Qwen2Vl];

    const fn hf_name(self) -> &'static str {
        match self {
            SeeingModel::Llava => "LlavaForConditionalGeneration",
            SeeingModel::LlavaNext => "LlavaNextForConditionalGeneration",
            SeeingModel::Qwen2Vl => "Qwen2VLForConditionalGeneration",
        }
    }

    /// What a config names, if it is a model that sees pictures.
    pub fn from_fields(fields: &Fields) -> Result<Option<Self>> {
        let name = fields.architecture()?;
        Ok(Self::ALL.into_iter().find(|model| model.hf_name() == name))
    }
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

    /// The `model_type` of its configs.
    const fn model_type(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Mistral => "mistral",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        }
    }

    /// The architecture that a `text_config` names by its `model_type`.
    fn from_model_type(fields: &Fields) -> Result<Self> {
        let name = fields.text("model_type")?.unwrap_or("llama");
        Self::ALL.into_iter().find(|architecture| architecture.model_type() == name).ok_or_else(|| {
            let known = Self::ALL.map(Architecture::model_type).join(", ");
            fields.error("model_type", format_args!("is {name:?}: it should be one of {known}"))
        })
    }

    /// Gives a LLaVA `text_config` what it leaves out, as transformers does: what it has in common with its architecture's defaults.
    pub(super) fn fill_in(text: &mut Fields) -> Result<Self> {
        let architecture = Self::from_model_type(text)?;
        text.fill_in(architecture.unsaid());
        if text.value("rms_norm_eps").is_none() {
            text.set("rms_norm_eps", 1e-6);
        }
        Ok(architecture)
    }

    /// What transformers takes where a config says nothing.
    fn unsaid(self) -> &'static [(&'static str, u32)] {
        match self {
            Architecture::Llama => &[
                ("vocab_size", 32_000),
                ("hidden_size", 4096),
                ("intermediate_size", 11_008),
                ("num_hidden_layers", 32),
                ("num_attention_heads", 32),
                ("max_position_embeddings", 2048),
            ],
            Architecture::Mistral => &[
                ("vocab_size", 32_000),
                ("hidden_size", 4096),
                ("intermediate_size", 14_336),
                ("num_hidden_layers", 32),
                ("num_attention_heads", 32),
                ("num_key_value_heads", 8),
                ("max_position_embeddings", 131_072),
                ("sliding_window", 4096),
            ],
            Architecture::Qwen2 | Architecture::Qwen3 => &[
                ("vocab_size", 151_936),
                ("hidden_size", 4096),
                ("intermediate_size", 22_016),
                ("num_hidden_layers", 32),
                ("num_attention_heads", 32),
                ("num_key_value_heads", 32),
                ("max_position_embeddings", 32_768),
            ],
        }
    }

    /// The architecture that a config names.
    pub(super) fn from_fields(fields: &Fields) -> Result<Self> {
        let name = fields.architecture()?;
        Self::ALL.into_iter().find(|architecture| architecture.hf_name() == name).ok_or_else(|| {
            let seeing = SeeingModel::ALL.map(SeeingModel::hf_name);
            let known =
                Self::ALL.map(Architecture::hf_name).into_iter().chain(seeing).collect::<Vec<_>>().join(", ");
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
