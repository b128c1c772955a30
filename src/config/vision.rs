//! What a config says of the tower that turns pictures into embeddings, and of how these join a text.

use super::fields::{Fields, brief};
use crate::Result;

/// Activation of a feed-forward layer without a gate; transformers' `gelu`, `gelu_pytorch_tanh` and `quick_gelu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Activation {
    Gelu,
    GeluTanh,
    QuickGelu,
}

/// Families of vision towers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TowerKind {
    /// CLIP's: a class token, learned positions, a norm before the first layer; pictures of one size.
    Clip {
        /// Side of a picture in pixels.
        image_size: usize,
        /// Whether the class token is left out of what the tower gives.
        drops_class: bool,
    },
    /// SigLIP's: learned positions, no class token; pictures of one size.
    Siglip {
        /// Side of a picture in pixels.
        image_size: usize,
    },
    /// Qwen2-VL's: rotary positions by row and column, pictures of any size; neighbouring patches are merged into one token.
    Qwen2Vl {
        /// Patches that are merged into a token, in a row and in a column.
        merge: usize,
        /// Frames of a patch; a still picture is repeated.
        frames: usize,
    },
}

/// The tower.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerConfig {
    /// Family.
    pub kind: TowerKind,
    /// Width of its residual stream.
    pub hidden_size: usize,
    /// Width of its feed-forward layers.
    pub intermediate_size: usize,
    /// Layers in the checkpoint.
    pub num_layers: usize,
    /// Layers that are run: what the last ones make of the stream, LLaVA does not use.
    pub num_layers_run: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Width of a head: a multiple of 8, at most 128.
    pub head_dim: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Of its feed-forward layers.
    pub activation: Activation,
    /// Added to the variance in every norm.
    pub norm_eps: f32,
}

impl TowerConfig {
    /// Numbers of a patch.
    pub fn patch_len(&self) -> usize {
        let frames = if let TowerKind::Qwen2Vl { frames, .. } = self.kind { frames } else { 1 };
        3 * frames * self.patch_size.pow(2)
    }
}

/// The two-layer network between a LLaVA tower and the language model.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectorConfig {
    /// Between its layers.
    pub activation: Activation,
    /// Whether its layers have a bias.
    pub bias: bool,
}

/// How what the tower gives becomes the embeddings of a picture.
#[derive(Debug, Clone, PartialEq)]
pub enum JoinConfig {
    /// LLaVA: every patch is projected.
    Projected(ProjectorConfig),
    /// LLaVA-NeXT: as LLaVA; tiles are put together, what was padding is cut off, and a learned embedding ends every row.
    Tiled(ProjectorConfig),
    /// Qwen2-VL: neighbouring patches are merged by a two-layer network.
    Merged,
}

/// All that a config says of pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// The token that stands for a picture in a prompt.
    pub image_token_id: i32,
    /// The tower.
    pub tower: TowerConfig,
    /// From the tower to the language model.
    pub join: JoinConfig,
}

/// What the tower's configuration leaves unsaid, by family, as transformers does it.
struct Unsaid {
    hidden_size: usize,
    intermediate_size: usize,
    num_layers: usize,
    num_heads: usize,
    image_size: usize,
    patch_size: usize,
    activation: Activation,
    norm_eps: f64,
}

const CLIP: Unsaid = Unsaid {
    hidden_size: 768,
    intermediate_size: 3072,
    num_layers: 12,
    num_heads: 12,
    image_size: 224,
    patch_size: 32,
    activation: Activation::QuickGelu,
    norm_eps: 1e-5,
};
const SIGLIP: Unsaid = Unsaid { patch_size: 16, activation: Activation::GeluTanh, norm_eps: 1e-6, ..CLIP };
const QWEN2_VL: Unsaid = Unsaid {
    hidden_size: 1280,
    intermediate_size: 4 * 1280,
    num_layers: 32,
    num_heads: 16,
    image_size: 0,
    patch_size: 14,
    activation: Activation::QuickGelu,
    norm_eps: 1e-6,
};

impl VisionConfig {
    /// Reads a LLaVA (`tiled`: LLaVA-NeXT) config, for a language model of `vocab_size` tokens.
    pub(super) fn llava(outer: &Fields, vocab_size: usize, tiled: bool) -> Result<Self> {
        let vision = require_object(outer, "vision_config")?;
        let strategy = outer.text("vision_feature_select_strategy")?.unwrap_or("default");
        if !["default", "full"].contains(&strategy) {
            return Err(outer.error(
                "vision_feature_select_strategy",
                format_args!("is {strategy:?}: it should be \"default\" or \"full\""),
            ));
        }
        let image_size =
            |unsaid: &Unsaid| Ok(vision.count("image_size", 1..=1 << 14)?.unwrap_or(unsaid.image_size));
        let tower = match vision.text("model_type")?.unwrap_or("clip_vision_model") {
            "clip_vision_model" if tiled && strategy == "full" => {
                return Err(outer.error(
                    "vision_feature_select_strategy",
                    "is \"full\", which keeps a class token: tiles are put together without; use \"default\"",
                ));
            }
            "clip_vision_model" => {
                let drops_class = strategy == "default";
                tower(&vision, &CLIP, TowerKind::Clip { image_size: image_size(&CLIP)?, drops_class })?
            }
            "siglip_vision_model" if strategy == "full" => {
                tower(&vision, &SIGLIP, TowerKind::Siglip { image_size: image_size(&SIGLIP)? })?
            }
            "siglip_vision_model" => {
                return Err(outer.error(
                    "vision_feature_select_strategy",
                    "is \"default\", which drops a class token: SigLIP towers have none; use \"full\"",
                ));
            }
            other => {
                return Err(vision.error(
                    "model_type",
                    format_args!(
                        "is {other:?}: only \"clip_vision_model\" and \"siglip_vision_model\" are supported"
                    ),
                ));
            }
        };
        let projector = ProjectorConfig {
            activation: activation(outer, "projector_hidden_act", Activation::Gelu)?,
            bias: outer.flag("multimodal_projector_bias")?.unwrap_or(true),
        };
        Ok(VisionConfig {
            image_token_id: image_token_id(outer, vocab_size)?,
            tower: TowerConfig { num_layers_run: layers_run(outer, tower.num_layers)?, ..tower },
            join: if tiled { JoinConfig::Tiled(projector) } else { JoinConfig::Projected(projector) },
        })
    }

    /// Reads a Qwen2-VL config, for a language model of `hidden_size` and `vocab_size` tokens.
    pub(super) fn qwen2_vl(outer: &Fields, hidden_size: usize, vocab_size: usize) -> Result<Self> {
        let vision = require_object(outer, "vision_config")?;
        let size = |field: &str, unsaid: usize| -> Result<usize> {
            Ok(vision.count(field, 1..=64)?.unwrap_or(unsaid))
        };
        let kind = TowerKind::Qwen2Vl {
            merge: size("spatial_merge_size", 2)?,
            frames: size("temporal_patch_size", 2)?,
        };
        // `hidden_size` is that of the language model here; what it says must be so.
        if let Some(other) = vision.count("hidden_size", 1..=1 << 18)?.filter(|&other| other != hidden_size) {
            return Err(vision.error(
                "hidden_size",
                format_args!("is {other}: the language model's `hidden_size` is {hidden_size}"),
            ));
        }
        Ok(VisionConfig {
            image_token_id: image_token_id(outer, vocab_size)?,
            tower: tower(&vision, &QWEN2_VL, kind)?,
            join: JoinConfig::Merged,
        })
    }
}

/// The tower, all its layers run.
fn tower(vision: &Fields, unsaid: &Unsaid, kind: TowerKind) -> Result<TowerConfig> {
    let size = |field: &str, unsaid: usize, max: usize| -> Result<usize> {
        Ok(vision.count(field, 1..=max)?.unwrap_or(unsaid))
    };
    // Qwen2-VL has words of its own.
    let is_qwen = matches!(kind, TowerKind::Qwen2Vl { .. });
    let [hidden_field, layers_field, heads_field] = match is_qwen {
        true => ["embed_dim", "depth", "num_heads"],
        false => ["hidden_size", "num_hidden_layers", "num_attention_heads"],
    };
    for field in ["num_channels", "in_channels", "in_chans"] {
        if let Some(channels) = vision.count(field, 1..=64)?.filter(|&channels| channels != 3) {
            return Err(vision.error(field, format_args!("is {channels}: pictures have 3 channels")));
        }
    }
    let hidden_size = size(hidden_field, unsaid.hidden_size, 1 << 16)?;
    let num_heads = size(heads_field, unsaid.num_heads, 1 << 10)?;
    let head_dim = hidden_size / num_heads;
    if !hidden_size.is_multiple_of(num_heads) || !head_dim.is_multiple_of(8) || head_dim > 128 {
        return Err(vision.error(
            heads_field,
            format_args!(
                "is {num_heads}: a head's share of `{hidden_field}`, {hidden_size}, should be a multiple of 8, at most 128"
            ),
        ));
    }
    let intermediate_size = match is_qwen {
        false => size("intermediate_size", unsaid.intermediate_size, 1 << 18)?,
        true => {
            let ratio = vision.number("mlp_ratio", 0.01..=64.0)?.unwrap_or(4.0);
            ((hidden_size as f64 * ratio) as usize).max(1)
        }
    };
    let patch_size = size("patch_size", unsaid.patch_size, 1 << 10)?;
    if let TowerKind::Clip { image_size, .. } | TowerKind::Siglip { image_size } = kind
        && image_size < patch_size
    {
        return Err(vision
            .error("image_size", format_args!("is {image_size}: a patch alone has {patch_size} pixels")));
    }
    let num_layers = size(layers_field, unsaid.num_layers, 1 << 10)?;
    Ok(TowerConfig {
        kind,
        hidden_size,
        intermediate_size,
        num_layers,
        num_layers_run: num_layers,
        num_heads,
        head_dim,
        patch_size,
        activation: activation(vision, "hidden_act", unsaid.activation)?,
        norm_eps: vision.number("layer_norm_eps", 1e-12..=1.0)?.unwrap_or(unsaid.norm_eps) as f32,
    })
}

/// Layers of the tower behind which LLaVA reads its stream: `vision_feature_layer` counts the embedding as 0, from the end -1 is
/// the last layer.
fn layers_run(outer: &Fields, num_layers: usize) -> Result<usize> {
    const FIELD: &str = "vision_feature_layer";
    let Some(value) = outer.value(FIELD) else { return Ok(num_layers.saturating_sub(1)) };
    let layers = i64::try_from(num_layers).unwrap_or(i64::MAX);
    let behind = value.as_i64().map(|index| if index < 0 { layers + 1 + index } else { index });
    match behind.filter(|behind| (1..=layers).contains(behind)) {
        Some(behind) => Ok(behind as usize),
        None => Err(outer.error(
            FIELD,
            format_args!(
                "is {}: it should be one layer, from 1 to {layers} or from -{layers} to -1",
                brief(value)
            ),
        )),
    }
}

fn activation(fields: &Fields, field: &str, unsaid: Activation) -> Result<Activation> {
    match fields.text(field)? {
        None => Ok(unsaid),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some("quick_gelu") => Ok(Activation::QuickGelu),
        Some(other) => Err(fields.error(
            field,
            format_args!(
                "is {other:?}: only \"gelu\", \"gelu_pytorch_tanh\" and \"quick_gelu\" are supported"
            ),
        )),
    }
}

/// `image_token_id`, which LLaVA calls `image_token_index`.
fn image_token_id(outer: &Fields, vocab_size: usize) -> Result<i32> {
    let field = if outer.value("image_token_id").is_some() { "image_token_id" } else { "image_token_index" };
    let id = outer.require(field, outer.count(field, 0..=vocab_size.saturating_sub(1))?)?;
    // Below `vocab_size`, so it fits.
    Ok(id as i32)
}

fn require_object(outer: &Fields, field: &str) -> Result<Fields> {
    outer.require(field, outer.object(field)?)
}
