//! [`Tower`]: a vision transformer over patches. CLIP, SigLIP and Qwen2-VL share their layers (norm, attention, norm, feed-forward);
//! they differ in what enters the first one.

use half::{bf16, f16};

use super::layout::merged_positions;
use crate::config::{Activation, RopeConfig, RopeScaling, TowerConfig, TowerKind};
use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};
use crate::image::Patches;
use crate::kernels::gelu::{Gelu, gelu};
use crate::kernels::layernorm::{LayerNormArgs, layernorm};
use crate::kernels::linear::{LinearArgs, LinearWorkspace, linear};
use crate::kernels::vision_attention::{VisionAttentionArgs, vision_attention};
use crate::kernels::vision_rope::{VisionRopeArgs, vision_rope};
use crate::model::WeightLoader;

/// Base of the rotary frequencies of Qwen2-VL's tower.
const THETA: f64 = 10_000.0;

/// A linear layer.
pub(super) struct Affine {
    /// `[outputs, inputs]`.
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

/// A layer norm.
pub(super) struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

struct Layer {
    norm1: Norm,
    qkv: Affine,
    proj: Affine,
    norm2: Norm,
    fc1: Affine,
    fc2: Affine,
}

/// A vision transformer on a device.
pub(super) struct Tower {
    config: TowerConfig,
    device: Device,
    dtype: DType,
    /// `[hidden, patch numbers]`, padded to a multiple of 8 numbers.
    patch: Affine,
    /// `[hidden]`, CLIP's.
    class: Option<Tensor>,
    /// `[class and patches, hidden]`: learned positions.
    positions: Option<Tensor>,
    /// CLIP's, before the first layer.
    pre_norm: Option<Norm>,
    layers: Vec<Layer>,
}

impl Affine {
    pub fn load(
        loader: &mut WeightLoader,
        name: &str,
        outputs: usize,
        inputs: usize,
        bias: bool,
    ) -> Result<Self> {
        let weight = loader.matrix(&format!("{name}.weight"), outputs, inputs)?;
        let bias = match bias {
            true => Some(loader.vector(&[&format!("{name}.bias")], &[outputs])?),
            false => None,
        };
        Ok(Self { weight, bias })
    }

    /// Several layers that read the same: their outputs behind each other.
    fn stacked(loader: &mut WeightLoader, names: [String; 3], outputs: usize, inputs: usize) -> Result<Self> {
        let [weights, biases] =
            ["weight", "bias"].map(|kind| names.each_ref().map(|name| format!("{name}.{kind}")));
        let weight = loader.stacked(&weights.each_ref().map(String::as_str), &[outputs; 3], inputs)?;
        let bias = loader.vector(&biases.each_ref().map(String::as_str), &[outputs; 3])?;
        Ok(Self { weight, bias: Some(bias) })
    }

    /// `out[T, outputs] = x weight^T + bias`.
    pub fn forward(&self, x: &Tensor, out: &Tensor, workspace: &LinearWorkspace) -> Result<()> {
        let bias = self.bias.as_ref();
        linear(x.device(), LinearArgs { x, weight: &self.weight, bias, out, workspace })
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> (usize, usize) {
        (self.weight.dim(0), self.weight.dim(1))
    }
}

impl Norm {
    pub fn load(loader: &mut WeightLoader, name: &str, width: usize, eps: f32) -> Result<Self> {
        Ok(Self {
            weight: loader.vector(&[&format!("{name}.weight")], &[width])?,
            bias: loader.vector(&[&format!("{name}.bias")], &[width])?,
            eps,
        })
    }

    /// `residual += delta`, then `out = norm(residual)`.
    pub fn forward(&self, residual: &Tensor, delta: Option<&Tensor>, out: &Tensor) -> Result<()> {
        let Self { weight, bias, eps } = self;
        layernorm(residual.device(), LayerNormArgs { residual, delta, weight, bias, out, eps: *eps })
    }
}

/// The kernel's name of an activation.
pub(super) fn gelu_of(activation: Activation) -> Gelu {
    match activation {
        Activation::Gelu => Gelu::Erf,
        Activation::GeluTanh => Gelu::Tanh,
        Activation::QuickGelu => Gelu::Quick,
    }
}

impl Tower {
    /// Loads the layers that are run.
    pub fn load(loader: &mut WeightLoader, config: &TowerConfig) -> Result<Self> {
        let TowerConfig {
            kind, hidden_size: hidden, intermediate_size, patch_size: side, norm_eps: eps, ..
        } = *config;
        let root = root_of(loader, kind)?;
        let is_qwen = matches!(kind, TowerKind::Qwen2Vl { .. });
        let patch = match kind {
            TowerKind::Qwen2Vl { frames, .. } => Affine {
                weight: loader.patch_matrix(
                    &format!("{root}patch_embed.proj.weight"),
                    &[hidden, 3, frames, side, side],
                )?,
                bias: None,
            },
            TowerKind::Clip { .. } | TowerKind::Siglip { .. } => {
                let name = format!("{root}embeddings.patch_embedding");
                let weight = loader.patch_matrix(&format!("{name}.weight"), &[hidden, 3, side, side])?;
                let biased = matches!(kind, TowerKind::Siglip { .. });
                let bias =
                    if biased { Some(loader.vector(&[&format!("{name}.bias")], &[hidden])?) } else { None };
                Affine { weight, bias }
            }
        };
        let (mut class, mut positions, mut pre_norm) = (None, None, None);
        if let TowerKind::Clip { image_size, .. } | TowerKind::Siglip { image_size } = kind {
            let is_clip = matches!(kind, TowerKind::Clip { .. });
            let num_patches = (image_size / side).pow(2) + usize::from(is_clip);
            let name = format!("{root}embeddings.position_embedding.weight");
            positions = Some(loader.matrix(&name, num_patches, hidden)?);
            if is_clip {
                class = Some(loader.vector(&[&format!("{root}embeddings.class_embedding")], &[hidden])?);
                // The spelling is that of the checkpoints.
                pre_norm = Some(Norm::load(loader, &format!("{root}pre_layrnorm"), hidden, eps)?);
            }
        }
        let mut layers = Vec::with_capacity(config.num_layers_run);
        for i in 0..config.num_layers_run {
            let mut affine =
                |name: String, outputs, inputs| Affine::load(loader, &name, outputs, inputs, true);
            layers.push(match is_qwen {
                true => {
                    let prefix = format!("{root}blocks.{i}");
                    Layer {
                        qkv: affine(format!("{prefix}.attn.qkv"), 3 * hidden, hidden)?,
                        proj: affine(format!("{prefix}.attn.proj"), hidden, hidden)?,
                        fc1: affine(format!("{prefix}.mlp.fc1"), intermediate_size, hidden)?,
                        fc2: affine(format!("{prefix}.mlp.fc2"), hidden, intermediate_size)?,
                        norm1: Norm::load(loader, &format!("{prefix}.norm1"), hidden, eps)?,
                        norm2: Norm::load(loader, &format!("{prefix}.norm2"), hidden, eps)?,
                    }
                }
                false => {
                    let prefix = format!("{root}encoder.layers.{i}");
                    let names = ["q", "k", "v"].map(|name| format!("{prefix}.self_attn.{name}_proj"));
                    Layer {
                        proj: affine(format!("{prefix}.self_attn.out_proj"), hidden, hidden)?,
                        fc1: affine(format!("{prefix}.mlp.fc1"), intermediate_size, hidden)?,
                        fc2: affine(format!("{prefix}.mlp.fc2"), hidden, intermediate_size)?,
                        qkv: Affine::stacked(loader, names, hidden, hidden)?,
                        norm1: Norm::load(loader, &format!("{prefix}.layer_norm1"), hidden, eps)?,
                        norm2: Norm::load(loader, &format!("{prefix}.layer_norm2"), hidden, eps)?,
                    }
                }
            });
        }
        ignore_unused(loader, config, &root);
        Ok(Self {
            device: loader.device.clone(),
            dtype: loader.float_type.into(),
            config: config.clone(),
            patch,
            class,
            positions,
            pre_norm,
            layers,
        })
    }

    /// What the tower makes of a picture, tile by tile: `[tiles * tokens of a tile, hidden]`. The patches have been checked.
    pub fn forward(&self, patches: &Patches) -> Result<Tensor> {
        let TowerConfig { hidden_size: hidden, intermediate_size, num_heads, head_dim, .. } = self.config;
        let extra = usize::from(self.class.is_some());
        let layout = patches.layout();
        let num_patches = layout.grid.0 * layout.grid.1;
        let (tile_rows, num_rows) = (num_patches + extra, layout.tiles * (num_patches + extra));
        let buffer = |columns: usize| Tensor::uninit(&self.device, self.dtype, &[num_rows, columns]);
        let [mut residual, mut normed, delta, attended] =
            [buffer(hidden)?, buffer(hidden)?, buffer(hidden)?, buffer(hidden)?];
        let (qkv, act) = (buffer(3 * hidden)?, buffer(intermediate_size)?);
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.proj, &l.fc1, &l.fc2]);
        let shapes = layers.chain([&self.patch]).map(Affine::shape);
        let workspace = LinearWorkspace::new(&self.device, num_rows, shapes, 0)?;

        // What enters the first layer: patches, class and positions.
        let pixels = self.upload(patches)?;
        if let Some(positions) = &self.positions {
            for tile in 0..layout.tiles {
                let first = tile * tile_rows;
                let rows = first + extra..first + tile_rows;
                let pixels = pixels.rows(tile * num_patches..(tile + 1) * num_patches);
                self.patch.forward(&pixels, &delta.rows(rows), &workspace)?;
                residual.rows(first..first + tile_rows).copy_from(positions)?;
                if let Some(class) = &self.class {
                    delta.rows(first..first + 1).copy_from(&class.reshape(&[1, hidden]))?;
                }
            }
        } else {
            self.patch.forward(&pixels, &residual, &workspace)?;
        }
        let mut incoming = self.positions.is_some().then_some(&delta);
        if let Some(pre_norm) = &self.pre_norm {
            pre_norm.forward(&residual, incoming.take(), &normed)?;
            std::mem::swap(&mut residual, &mut normed);
        }

        let rotation = match self.config.kind {
            TowerKind::Qwen2Vl { merge, .. } => Some(self.rotation(layout.grid, merge)?),
            TowerKind::Clip { .. } | TowerKind::Siglip { .. } => None,
        };
        let starts: Vec<i32> = (0..=layout.tiles).map(|tile| (tile * tile_rows) as i32).collect();
        let seq_start = Tensor::from_slice(&self.device, &starts, &[starts.len()])?;
        let attention = VisionAttentionArgs {
            qkv: &qkv,
            seq_start: &seq_start,
            out: &attended,
            max_rows: tile_rows,
            num_heads,
            head_dim,
            sm_scale: (head_dim as f32).sqrt().recip(),
        };
        for layer in &self.layers {
            layer.norm1.forward(&residual, incoming.take(), &normed)?;
            layer.qkv.forward(&normed, &qkv, &workspace)?;
            if let Some((cos_sin, positions)) = &rotation {
                vision_rope(
                    &self.device,
                    VisionRopeArgs { qkv: &qkv, cos_sin, positions, num_heads, head_dim },
                )?;
            }
            vision_attention(&self.device, VisionAttentionArgs { ..attention })?;
            layer.proj.forward(&attended, &delta, &workspace)?;
            layer.norm2.forward(&residual, Some(&delta), &normed)?;
            layer.fc1.forward(&normed, &act, &workspace)?;
            gelu(&self.device, gelu_of(self.config.activation), &act, &act)?;
            layer.fc2.forward(&act, &delta, &workspace)?;
            incoming = Some(&delta);
        }
        if let (Some(delta), Some(layer)) = (incoming, self.layers.last()) {
            // For the sum alone: nothing reads the norm behind it.
            layer.norm1.forward(&residual, Some(delta), &normed)?;
        }
        self.without_class(residual, layout.tiles, tile_rows)
    }

    /// The stream without the class tokens, where the model drops them.
    fn without_class(&self, stream: Tensor, tiles: usize, tile_rows: usize) -> Result<Tensor> {
        if !matches!(self.config.kind, TowerKind::Clip { drops_class: true, .. }) {
            return Ok(stream);
        }
        let kept = tile_rows - 1;
        let out = Tensor::uninit(&self.device, self.dtype, &[tiles * kept, self.config.hidden_size])?;
        for tile in 0..tiles {
            let first = tile * tile_rows + 1;
            out.rows(tile * kept..(tile + 1) * kept).copy_from(&stream.rows(first..first + kept))?;
        }
        Ok(out)
    }

    /// Rotations of the patches: the table by position, f32 `[positions, head_dim / 2]`, and i32 `[2, patches]`.
    fn rotation(&self, grid: (usize, usize), merge: usize) -> Result<(Tensor, Tensor)> {
        let (num_positions, half) = (grid.0.max(grid.1), self.config.head_dim / 2);
        let rope = RopeConfig { theta: THETA, scaling: RopeScaling::None, sections: None };
        let table = rope.cos_sin_table(num_positions, half);
        let positions = merged_positions(grid, merge).concat();
        Ok((
            Tensor::from_slice(&self.device, &table, &[num_positions, half])?,
            Tensor::from_slice(&self.device, &positions, &[2, positions.len() / 2])?,
        ))
    }

    /// The patches on the device, `[patches, numbers]`, padded with zeros as the weight is.
    fn upload(&self, patches: &Patches) -> Result<Tensor> {
        let (len, padded) = (patches.layout().patch_len, self.patch.weight.dim(1));
        let num_rows = patches.layout().num_patches();
        let mut rows = vec![0.0f32; num_rows * padded];
        for (row, values) in rows.chunks_exact_mut(padded).zip(patches.values().chunks_exact(len)) {
            row[..len].copy_from_slice(values);
        }
        let shape = [num_rows, padded];
        match self.dtype {
            DType::Bf16 => {
                let rows: Vec<bf16> = rows.into_iter().map(bf16::from_f32).collect();
                Tensor::from_slice(&self.device, &rows, &shape)
            }
            DType::F16 => {
                let rows: Vec<f16> = rows.into_iter().map(f16::from_f32).collect();
                Tensor::from_slice(&self.device, &rows, &shape)
            }
            _ => Tensor::from_slice(&self.device, &rows, &shape),
        }
    }
}

/// What stands before the names of the tower's tensors: transformers 4 and 5 differ.
fn root_of(loader: &WeightLoader, kind: TowerKind) -> Result<String> {
    let (roots, probe): (&[&str], &str) = match kind {
        TowerKind::Qwen2Vl { .. } => (&["visual.", "model.visual."], "patch_embed.proj.weight"),
        TowerKind::Clip { .. } | TowerKind::Siglip { .. } => (
            &[
                "vision_tower.vision_model.",
                "vision_tower.",
                "model.vision_tower.vision_model.",
                "model.vision_tower.",
            ],
            "embeddings.patch_embedding.weight",
        ),
    };
    match roots.iter().find(|root| loader.checkpoint.contains(&format!("{root}{probe}"))) {
        Some(root) => Ok((*root).to_owned()),
        None => Err(Error::Input(format!(
            "the config describes a model that sees pictures, but its checkpoint has no {}{probe}: is it the language model alone?",
            roots[0]
        ))),
    }
}

/// Marks what the checkpoint has of the tower beyond what is run.
fn ignore_unused(loader: &WeightLoader, config: &TowerConfig, root: &str) {
    let layers: Vec<String> =
        (config.num_layers_run..config.num_layers).map(|i| format!("{root}encoder.layers.{i}.")).collect();
    // Behind the last layer; SigLIP's head pools the patches into one vector.
    let behind = ["post_layernorm.", "head.", "embeddings.position_ids"].map(|name| format!("{root}{name}"));
    let unused: Vec<&str> = loader
        .checkpoint
        .names()
        .filter(|name| layers.iter().chain(&behind).any(|prefix| name.starts_with(prefix.as_str())))
        .collect();
    for name in unused {
        loader.checkpoint.ignore(name);
    }
}
