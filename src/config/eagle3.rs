//! The configuration of an EAGLE-3 drafter.

use super::fields::Fields;
use super::geometry::MAX_LAYERS;
use super::model::in_config;
use super::{FloatType, Geometry, ModelConfig, ModelSource, llama};
use crate::{Error, Result};

/// Names that EAGLE-3 drafters go by: the authors', SGLang's and SpecForge's, vLLM's.
const ARCHITECTURES: [&str; 6] = [
    "LlamaForCausalLM",
    "LlamaForCausalLMEagle",
    "LlamaForCausalLMEagle3",
    "Eagle3LlamaForCausalLM",
    "Eagle3Speculator",
    "Eagle3DraftModel",
];

/// How a drafter makes the feature of a committed token from what it reads of its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureKind {
    /// `fc` joins the tapped streams, side by side.
    Taps,
    /// As `Taps`, each stream behind an RMSNorm of its own (`fc_norm`, in EAGLE-3.1).
    NormedTaps,
    /// As `Taps`, the streams side by side behind one RMSNorm (`norm_before_fc`).
    JointlyNormedTaps,
    /// The target's last hidden state behind its final norm is the feature; there is no `fc` (`use_aux_hidden_state: false`).
    LastHiddenState,
}

/// An EAGLE-3 drafter: a decoder layer over features tapped from its target, and perhaps plain ones behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Eagle3Config {
    /// Sizes of its layers; the vocabulary is the target's.
    pub geometry: Geometry,
    /// Rows of the drafter's own head. Where it is below `vocab_size` the checkpoint has a `d2t` table of offsets.
    pub draft_vocab_size: usize,
    /// Width of the target's residual stream; `fc` reads `tap_layers.len()` of them side by side.
    pub target_hidden_size: usize,
    /// Target layers whose *input* residual is tapped, in the order in which `fc` reads them; with
    /// [`FeatureKind::LastHiddenState`] the number of the target's layers alone, which names what its final norm gives.
    pub tap_layers: Vec<usize>,
    /// What is made of the tapped streams.
    pub feature: FeatureKind,
    /// Whether the first layer's residual is the normalised feature (vLLM's `norm_before_residual`) instead of the bare one.
    pub norm_before_residual: bool,
    /// Whether the feature of a drafted token is the output *behind* the final norm (`norm_output`, in EAGLE-3.1) instead of
    /// the one before it. The head reads what is behind the norm either way.
    pub norm_output: bool,
    /// Whether the query, key, value and output projections have a bias.
    pub attention_bias: bool,
    /// Whether the MLP projections have a bias.
    pub mlp_bias: bool,
    /// Type that the weights are stored in, where the config says so.
    pub dtype: Option<FloatType>,
}

impl Eagle3Config {
    /// Reads and validates the `config.json` of a drafter for `target`.
    ///
    /// # Errors
    /// A field that is missing, broken or not supported, or that does not fit the target.
    pub fn from_hf(source: &ModelSource, target: &ModelConfig) -> Result<Self> {
        let config = Self::read(source, target.geometry.num_layers)?;
        config.fits_target(target).map_err(|reason| in_config(source, reason))?;
        Ok(config)
    }

    /// What [`Eagle3Config::from_hf`] asks of the drafter alone, whatever its target.
    ///
    /// # Errors
    /// A field that is missing, broken or not supported.
    pub fn check(source: &ModelSource) -> Result<()> {
        Self::read(source, MAX_LAYERS).map(drop)
    }

    fn read(source: &ModelSource, num_target_layers: usize) -> Result<Self> {
        let fields = Fields::read(source, "config.json")?;
        fields.require_architecture("an EAGLE-3 drafter", &ARCHITECTURES)?;
        // vLLM's speculators keep the Llama fields of the layer in an object of their own.
        let layer_fields = fields.object("transformer_layer_config")?.unwrap_or_else(|| fields.clone());
        let layer = Geometry::from_fields(&layer_fields)?;
        let traits = llama::layer_traits(&layer_fields, layer.num_layers)?;
        let draft_vocab_size = fields.count("draft_vocab_size", 1..=layer.vocab_size)?;
        let target_hidden_size = fields.count("target_hidden_size", 1..=1 << 18)?;
        let target_hidden_size = target_hidden_size.unwrap_or(layer.hidden_size);
        let feature = feature_kind(&fields)?;
        let tap_layers = match feature {
            FeatureKind::LastHiddenState if target_hidden_size != layer.hidden_size => {
                return Err(fields.error(
                    "target_hidden_size",
                    format_args!(
                        "is {target_hidden_size}: without an fc, as `use_aux_hidden_state` says, it should be \
                         `hidden_size`, {}",
                        layer.hidden_size
                    ),
                ));
            }
            // Whatever layers the config lists all the same: nobody reads them.
            FeatureKind::LastHiddenState => vec![num_target_layers],
            _ => tap_layers(&fields, num_target_layers)?,
        };
        Ok(Eagle3Config {
            draft_vocab_size: draft_vocab_size.unwrap_or(layer.vocab_size),
            target_hidden_size,
            tap_layers,
            feature,
            norm_output: fields.flag("norm_output")?.unwrap_or(false),
            norm_before_residual: fields.flag("norm_before_residual")?.unwrap_or(false),
            attention_bias: traits.qkv_bias,
            mlp_bias: traits.mlp_bias,
            dtype: layer_fields.float_type()?,
            geometry: layer,
        })
    }

    /// Whether the drafter was made for a target of this geometry. [`Eagle3Config::from_hf`] has asked already.
    ///
    /// # Errors
    /// [`Error::Input`] that says what differs.
    pub fn fits_target(&self, target: &ModelConfig) -> Result<()> {
        target.fits_drafter(self.geometry.vocab_size, self.target_hidden_size)?;
        let num_layers = target.geometry.num_layers;
        let has = |layer| match self.feature {
            FeatureKind::LastHiddenState => layer == num_layers,
            _ => layer < num_layers,
        };
        if let Some(layer) = self.tap_layers.iter().find(|&&layer| !has(layer)) {
            return Err(Error::Input(format!(
                "this drafter does not fit its target: it taps layer {layer}, the target has {num_layers} layers"
            )));
        }
        Ok(())
    }
}

/// What `fc` reads, if there is one. NVIDIA's configs keep these fields in `eagle_config`.
fn feature_kind(fields: &Fields) -> Result<FeatureKind> {
    let eagle = fields.object("eagle_config")?;
    let last_hidden_state = match &eagle {
        Some(eagle) => eagle.flag("use_aux_hidden_state")? == Some(false),
        None => false,
    };
    let mut found = None;
    for (field, kind) in
        [("fc_norm", FeatureKind::NormedTaps), ("norm_before_fc", FeatureKind::JointlyNormedTaps)]
    {
        for holder in [fields].into_iter().chain(&eagle) {
            if holder.flag(field)? != Some(true) {
                continue;
            }
            if last_hidden_state {
                return Err(holder.error(
                    field,
                    "is true, and `eagle_config.use_aux_hidden_state` false: without tapped streams there is nothing to norm",
                ));
            }
            if found.is_some_and(|other| other != kind) {
                return Err(holder.error(field, "is true, and so is `fc_norm`: a drafter has one of the two"));
            }
            found = Some(kind);
        }
    }
    Ok(match found {
        Some(kind) => kind,
        None if last_hidden_state => FeatureKind::LastHiddenState,
        None => FeatureKind::Taps,
    })
}

/// Layers whose input is tapped; the default is the published 2, L/2 and L-3.
///
/// Configs list them in two ways, which SGLang tells apart by the first: nobody taps the embedding, so a list that begins with layer 0
/// or 1 means *outputs* (SpecForge's), each the input of the next layer, and any other means inputs (vLLM's speculators).
fn tap_layers(fields: &Fields, num_target_layers: usize) -> Result<Vec<usize>> {
    const FIELD: &str = "eagle_aux_hidden_state_layer_ids";
    const MAX_TAPS: usize = 16;
    let eagle = fields.object("eagle_config")?;
    for holder in eagle.iter().chain([fields]) {
        let Some(inputs) = holder.indices(FIELD, num_target_layers)? else { continue };
        if inputs.is_empty() || inputs.len() > MAX_TAPS {
            return Err(holder.error(
                FIELD,
                format_args!("holds {} layers: it should hold 1 to {MAX_TAPS}", inputs.len()),
            ));
        }
        if inputs[0] > 1 {
            return Ok(inputs);
        }
        let outputs = holder.indices(FIELD, num_target_layers.saturating_sub(1))?.unwrap_or_default();
        return Ok(outputs.into_iter().map(|layer| layer + 1).collect());
    }
    if num_target_layers < 3 {
        return Err(fields.error(
            FIELD,
            format_args!(
                "is missing, and its default needs a target of 3 layers or more, not {num_target_layers}"
            ),
        ));
    }
    Ok(vec![2, num_target_layers / 2, num_target_layers - 3])
}
