//! Qwen 2 and 2.5 layers: biased query, key and value projections; a sliding window in the upper layers, normally not used.

use super::architecture::{LayerTraits, sliding_window, windows_by_layer};
use super::fields::Fields;
use super::geometry::MAX_LAYERS;
use crate::Result;

pub(super) fn layer_traits(fields: &Fields, num_layers: usize) -> Result<LayerTraits> {
    fields.require("num_key_value_heads", fields.value("num_key_value_heads"))?;
    Ok(LayerTraits {
        qkv_bias: true,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        windows: windows(fields, num_layers)?,
    })
}

/// Windows of Qwen layers: where `use_sliding_window` is set, those from `max_window_layers` on, or those that `layer_types`
/// names.
pub(super) fn windows(fields: &Fields, num_layers: usize) -> Result<Vec<Option<usize>>> {
    /// What transformers assumes where a config has none.
    const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;
    let used = fields.flag("use_sliding_window")?.unwrap_or(false);
    let window = if used { sliding_window(fields)? } else { None };
    let first = fields.count("max_window_layers", 0..=MAX_LAYERS)?.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS);
    windows_by_layer(fields, num_layers, window, |layer| layer >= first)
}
