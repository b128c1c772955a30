//! Llama layers: full attention; biases where the config asks for them.

use super::architecture::{FULL_ATTENTION, LayerTraits};
use super::fields::{Fields, brief};
use crate::Result;

/// Also those of the layer of an EAGLE-3 drafter.
pub(super) fn layer_traits(fields: &Fields, num_layers: usize) -> Result<LayerTraits> {
    let windowed = fields.flag("use_sliding_window")?.unwrap_or(true);
    if let Some(window) = fields.value("sliding_window").filter(|_| windowed) {
        return Err(fields.error(
            "sliding_window",
            format_args!("is {}: Llama layers have no sliding-window attention", brief(window)),
        ));
    }
    // Their number is not looked at: drafters keep the list of their target.
    let types = fields.texts("layer_types")?.unwrap_or_default();
    if let Some(other) = types.into_iter().find(|&kind| kind != FULL_ATTENTION) {
        return Err(fields
            .error("layer_types", format_args!("holds {other:?}: Llama layers are all {FULL_ATTENTION:?}")));
    }
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    Ok(LayerTraits {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: false,
        windows: vec![None; num_layers],
    })
}
