//! The target's configuration.

use super::fields::{Fields, brief};
use super::{FloatType, ModelSource, RopeConfig};
use crate::Result;

/// Widths of an attention head that the kernels are built for.
pub const HEAD_DIMS: [usize; 4] = [32, 64, 96, 128];

/// Most layers that a model may have.
pub(super) const MAX_LAYERS: usize = 1 << 10;

/// Target architectures that can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`: Llama 2, 3, 3.1, 3.2 (text) and what shares their layout.
    Llama,
}

/// A target model, as its `config.json` and `generation_config.json` describe it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which model file of ours runs it.
    pub architecture: Architecture,
    /// Token ids are below this; rows of the embedding and of the logits.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_q_heads: usize,
    /// Key and value heads; divides `num_q_heads`.
    pub num_kv_heads: usize,
    /// Width of a head, one of [`HEAD_DIMS`]; `num_q_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Longest context the model was made for, in tokens.
    pub max_position: usize,
    /// Whether the output head is the embedding table, so that the checkpoint needs no `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// Whether the query, key, value and output projections have a bias.
    pub attention_bias: bool,
    /// Whether the MLP projections have a bias.
    pub mlp_bias: bool,
    /// Type that the weights are stored in, where the config says so.
    pub dtype: Option<FloatType>,
    /// Token that begins a text.
    pub bos_token_id: Option<i32>,
    /// Tokens that end generation; may be empty.
    pub eos_token_ids: Vec<i32>,
}

impl ModelConfig {
    /// Reads and validates `config.json` and `generation_config.json` of a Hugging Face model.
    pub fn from_hf(source: &ModelSource) -> Result<Self> {
        let fields = Fields::read(source, "config.json")?;
        let architecture = match fields.architecture()? {
            "LlamaForCausalLM" => Architecture::Llama,
            other => {
                return Err(fields.error(
                    "architectures",
                    format_args!("is {other:?}: only \"LlamaForCausalLM\" is supported"),
                ));
            }
        };
        let decoder = Decoder::from_fields(&fields)?;
        let special = SpecialTokens::read(source, &fields, decoder.vocab_size)?;
        let max_position = fields.count("max_position_embeddings", 1..=1 << 24)?;
        Ok(ModelConfig {
            architecture,
            vocab_size: decoder.vocab_size,
            hidden_size: decoder.hidden_size,
            intermediate_size: decoder.intermediate_size,
            num_layers: decoder.num_layers,
            num_q_heads: decoder.num_q_heads,
            num_kv_heads: decoder.num_kv_heads,
            head_dim: decoder.head_dim,
            rms_norm_eps: decoder.rms_norm_eps,
            rope: decoder.rope,
            max_position: fields.require("max_position_embeddings", max_position)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: decoder.attention_bias,
            mlp_bias: decoder.mlp_bias,
            dtype: fields.float_type()?,
            bos_token_id: special.bos,
            eos_token_ids: special.eos,
        })
    }
}

/// What a target and a drafter say in the same words: the geometry of Llama-like decoder layers.
pub(super) struct Decoder {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_q_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f32,
    pub rope: RopeConfig,
    pub attention_bias: bool,
    pub mlp_bias: bool,
}

impl Decoder {
    /// Reads the fields of a Llama-like config. The bounds are some ten times the largest model known: what is beyond
    /// them is a mistake, and no product of sizes within them overflows.
    pub fn from_fields(fields: &Fields) -> Result<Self> {
        let size = |field: &str, max: usize| fields.require(field, fields.count(field, 1..=max)?);
        refuse_unsupported(fields)?;
        let hidden_size = size("hidden_size", 1 << 18)?;
        let num_q_heads = size("num_attention_heads", 1 << 12)?;
        let num_kv_heads = fields.count("num_key_value_heads", 1..=1 << 12)?.unwrap_or(num_q_heads);
        if num_q_heads % num_kv_heads != 0 {
            return Err(fields.error(
                "num_key_value_heads",
                format_args!("is {num_kv_heads}: it should divide `num_attention_heads`, {num_q_heads}"),
            ));
        }
        let rms_norm_eps = fields.require("rms_norm_eps", fields.number("rms_norm_eps", 1e-12..=1.0)?)?;
        Ok(Decoder {
            vocab_size: size("vocab_size", 1 << 24)?,
            hidden_size,
            intermediate_size: size("intermediate_size", 1 << 20)?,
            num_layers: size("num_hidden_layers", MAX_LAYERS)?,
            num_q_heads,
            num_kv_heads,
            head_dim: head_dim(fields, hidden_size, num_q_heads)?,
            rms_norm_eps: rms_norm_eps as f32,
            rope: RopeConfig::from_fields(fields)?,
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
        })
    }
}

/// `head_dim`, or `hidden_size / num_attention_heads` where the config has none.
fn head_dim(fields: &Fields, hidden_size: usize, num_q_heads: usize) -> Result<usize> {
    let head_dim = match fields.count("head_dim", 1..=1 << 12)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_q_heads) => hidden_size / num_q_heads,
        None => {
            return Err(fields.error(
                "num_attention_heads",
                format_args!(
                    "is {num_q_heads}: without `head_dim` it should divide `hidden_size`, {hidden_size}"
                ),
            ));
        }
    };
    if HEAD_DIMS.contains(&head_dim) {
        Ok(head_dim)
    } else {
        Err(fields.error("head_dim", format_args!("is {head_dim}: only {HEAD_DIMS:?} are supported")))
    }
}

/// Fails on a field that asks for mathematics that the decoder layers do not do.
fn refuse_unsupported(fields: &Fields) -> Result<()> {
    if let Some(activation) = fields.text("hidden_act")?.filter(|&name| name != "silu") {
        return Err(fields.error("hidden_act", format_args!("is {activation:?}: only \"silu\" is supported")));
    }
    let windowed = fields.flag("use_sliding_window")?.unwrap_or(true);
    if let Some(window) = fields.value("sliding_window").filter(|_| windowed) {
        return Err(fields.error(
            "sliding_window",
            format_args!("is {}: sliding-window attention is not supported", brief(window)),
        ));
    }
    if let Some(quantization) = fields.object("quantization_config")? {
        let method = quantization.value("quant_method").map_or_else(|| "not named".into(), brief);
        return Err(quantization.error(
            "quant_method",
            format_args!(
                "is {method}: quantised weights are not supported; use the bf16, f16 or f32 original"
            ),
        ));
    }
    Ok(())
}

/// Ids of the tokens that begin and end a text.
struct SpecialTokens {
    bos: Option<i32>,
    eos: Vec<i32>,
}

impl SpecialTokens {
    /// Reads `generation_config.json`, and `config.json` for what that lacks.
    fn read(source: &ModelSource, config: &Fields, vocab_size: usize) -> Result<Self> {
        let generation = Fields::read_optional(source, "generation_config.json")?;
        let ids = |field: &str| -> Result<Vec<i32>> {
            for fields in generation.iter().chain([config]) {
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
