//! [`Geometry`]: the sizes of decoder layers.

use super::RopeConfig;
use super::fields::{Fields, brief};
use crate::Result;

/// Widths of an attention head that the kernels are built for.
pub const HEAD_DIMS: [usize; 4] = [32, 64, 96, 128];

/// Most layers that a model may have.
pub(super) const MAX_LAYERS: usize = 1 << 10;

/// The sizes of decoder layers, which every target and drafter says in the same words.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// Token ids are below this; rows of the embedding.
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
    /// Rotary embedding; without `rope_theta` the base is 10000.
    pub rope: RopeConfig,
}

impl Geometry {
    /// Reads the fields that all architectures share. The bounds are some ten times the largest model known: what is beyond
    /// them is a mistake, and no product of sizes within them overflows.
    pub(super) fn from_fields(fields: &Fields) -> Result<Self> {
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
        let head_dim = head_dim(fields, hidden_size, num_q_heads)?;
        let rope = RopeConfig::from_fields(fields)?;
        rope.check_sections(fields, head_dim)?;
        Ok(Geometry {
            vocab_size: size("vocab_size", 1 << 24)?,
            hidden_size,
            intermediate_size: size("intermediate_size", 1 << 20)?,
            num_layers: size("num_hidden_layers", MAX_LAYERS)?,
            num_q_heads,
            num_kv_heads,
            head_dim,
            rms_norm_eps: rms_norm_eps as f32,
            rope,
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
    refuse_quantized(fields)
}

/// Fails on weights that are not plain floats. A config with a `text_config` says so outside it.
pub(super) fn refuse_quantized(fields: &Fields) -> Result<()> {
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
