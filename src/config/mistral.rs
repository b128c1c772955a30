//! Mistral layers: Llama's, all with the same sliding window if the config has one.

use super::architecture::{LayerTraits, sliding_window};
use super::fields::Fields;
use crate::Result;

/// What transformers assumes where a config does not mention a window; `null` means none.
const DEFAULT_WINDOW: usize = 4096;

pub(super) fn layer_traits(fields: &Fields, num_layers: usize) -> Result<LayerTraits> {
    fields.require("num_key_value_heads", fields.value("num_key_value_heads"))?;
    if fields.value("layer_types").is_some() {
        return Err(fields.error("layer_types", "is set: Mistral layers are all of one type"));
    }
    let window =
        if fields.mentions("sliding_window") { sliding_window(fields)? } else { Some(DEFAULT_WINDOW) };
    Ok(LayerTraits {
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        windows: vec![window; num_layers],
    })
}
