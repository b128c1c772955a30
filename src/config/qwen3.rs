//! Qwen 3 layers: every query and key head normalised; biases where the config asks for them; windows as in Qwen 2.

use super::architecture::LayerTraits;
use super::fields::Fields;
use super::qwen2;
use crate::Result;

pub(super) fn layer_traits(fields: &Fields, num_layers: usize) -> Result<LayerTraits> {
    // What transformers assumes for these is not what the other fields suggest; every published config has them.
    for field in ["num_key_value_heads", "head_dim"] {
        fields.require(field, fields.value(field))?;
    }
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    Ok(LayerTraits {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: false,
        qk_norm: true,
        windows: qwen2::windows(fields, num_layers)?,
    })
}
