//! The target's configuration.

use super::architecture::SeeingModel;
use super::fields::Fields;
use super::geometry::refuse_quantized;
use super::{Architecture, FloatType, Geometry, ModelSource, RopeConfig, VisionConfig};
use crate::{Error, Result};

/// A target model, as its `config.json` and `generation_config.json` describe it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// What the config calls the model; the fields below say in what it differs from others.
    pub architecture: Architecture,
    /// Sizes of its layers.
    pub geometry: Geometry,
    /// Longest context the model was made for, in tokens.
    pub max_position: usize,
    /// Whether the output head is the embedding table, so that the checkpoint needs no `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub o_bias: bool,
    /// Whether the MLP projections have a bias.
    pub mlp_bias: bool,
    /// Whether each query and key head is normalised, with weights that all heads share, before it is rotated.
    pub qk_norm: bool,
    /// Sliding window of each layer: the most keys that a token sees there, its own included; `None` is all.
    pub windows: Vec<Option<usize>>,
    /// The tower through which it sees pictures, if it does.
    pub vision: Option<VisionConfig>,
    /// Type that the weights are stored in, where the config says so.
    pub dtype: Option<FloatType>,
    /// Token that begins a text.
    pub bos_token_id: Option<i32>,
    /// Tokens that end generation; may be empty.
    pub eos_token_ids: Vec<i32>,
}

impl ModelConfig {
    /// Reads and validates `config.json` and `generation_config.json` of a Hugging Face model.
    ///
    /// # Errors
    /// [`crate::Error::Format`] names the field; an architecture that cannot be run is told which can.
    pub fn from_hf(source: &ModelSource) -> Result<Self> {
        let outer = Fields::read(source, "config.json")?;
        refuse_quantized(&outer)?;
        // Configs that have room for other modalities keep the language model's fields in an object of their own.
        let mut inner = outer.object("text_config")?;
        let seeing = SeeingModel::from_fields(&outer)?;
        let architecture = match (seeing, &mut inner) {
            (None, _) => Architecture::from_fields(&outer)?,
            (Some(SeeingModel::Qwen2Vl), _) => Architecture::Qwen2,
            (Some(SeeingModel::Llava | SeeingModel::LlavaNext), Some(text)) => Architecture::fill_in(text)?,
            (Some(_), None) => outer.require("text_config", None)?,
        };
        let fields = inner.as_ref().unwrap_or(&outer);
        let holders: Vec<&Fields> = inner.iter().chain([&outer]).collect();

        let geometry = Geometry::from_fields(fields)?;
        let (hidden_size, vocab_size) = (geometry.hidden_size, geometry.vocab_size);
        let vision = match seeing {
            None => None,
            Some(SeeingModel::Llava) => Some(VisionConfig::llava(&outer, vocab_size, false)?),
            Some(SeeingModel::LlavaNext) => Some(VisionConfig::llava(&outer, vocab_size, true)?),
            Some(SeeingModel::Qwen2Vl) => Some(VisionConfig::qwen2_vl(&outer, hidden_size, vocab_size)?),
        };
        let max_position = max_position(fields)?;
        let traits = architecture.layer_traits(fields, geometry.num_layers, max_position)?;
        let special = SpecialTokens::read(source, &holders, geometry.vocab_size)?;
        let mut tie_word_embeddings = None;
        let mut dtype = None;
        for holder in &holders {
            tie_word_embeddings = tie_word_embeddings.or(holder.flag("tie_word_embeddings")?);
            dtype = dtype.or(holder.float_type()?);
        }
        Ok(ModelConfig {
            architecture,
            geometry,
            max_position,
            tie_word_embeddings: tie_word_embeddings.unwrap_or(false),
            qkv_bias: traits.qkv_bias,
            o_bias: traits.o_bias,
            mlp_bias: traits.mlp_bias,
            qk_norm: traits.qk_norm,
            windows: traits.windows,
            vision,
            dtype,
            bos_token_id: special.bos,
            eos_token_ids: special.eos,
        })
    }
}

impl ModelConfig {
    /// Whether a drafter of this vocabulary, which reads features of this width, was made for such a target.
    ///
    /// # Errors
    /// [`Error::Input`] that says what differs.
    pub(super) fn fits_drafter(&self, vocab_size: usize, feature_width: usize) -> Result<()> {
        for (what, ours, theirs) in [
            ("a vocabulary of", vocab_size, self.geometry.vocab_size),
            ("features of width", feature_width, self.geometry.hidden_size),
        ] {
            if ours != theirs {
                return Err(Error::Input(format!(
                    "this drafter does not fit its target: it expects {what} {ours}, the target has {theirs}"
                )));
            }
        }
        Ok(())
    }
}

/// What is wrong, said of the `config.json` of `source`.
pub(super) fn in_config(source: &ModelSource, error: Error) -> Error {
    match error {
        Error::Input(reason) => Error::format(source.path("config.json"), reason),
        other => other,
    }
}

/// Longest context, in tokens. Configs of models whose rotation was stretched afterwards (Vicuna 16k) keep the length before
/// that under `max_position_embeddings` and the one after it under `max_sequence_length`. Some scalings reach further, or not so far.
pub(super) fn max_position(fields: &Fields) -> Result<usize> {
    const LENGTH: std::ops::RangeInclusive<usize> = 1..=1 << 24;
    let [stretched, plain] = ["max_sequence_length", "max_position_embeddings"];
    let stated = match fields.count(stretched, LENGTH)? {
        Some(length) => length,
        None => fields.require(plain, fields.count(plain, LENGTH)?)?,
    };
    Ok(RopeConfig::from_fields(fields)?.scaling.longest_context(stated))
}

/// Ids of the tokens that begin and end a text.
struct SpecialTokens {
    bos: Option<i32>,
    eos: Vec<i32>,
}

impl SpecialTokens {
    /// Reads `generation_config.json`, and `config.json` for what that lacks.
    fn read(source: &ModelSource, config: &[&Fields], vocab_size: usize) -> Result<Self> {
        let generation = Fields::read_optional(source, "generation_config.json")?;
        let ids = |field: &str| -> Result<Vec<i32>> {
            for fields in generation.iter().chain(config.iter().copied()) {
                if let Some(ids) = fields.indices(field, vocab_size)? {
                    // Below `vocab_size`, so it fits.
                    return Ok(ids.into_iter().map(|id| id as i32).collect());
                }
            }
            Ok(Vec::new())
        };
        Ok(SpecialTokens { bos: ids("bos_token_id")?.first().copied(), eos: ids("eos_token_id")? })
    }
}
