//! [`Join`]: from what a tower gives to embeddings of the language model's width.

use super::layout::{NEWLINE, tiled_rows};
use super::tower::{Affine, Norm, gelu_of};
use crate::config::{Activation, JoinConfig, TowerKind, VisionConfig};
use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};
use crate::image::PatchLayout;
use crate::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use crate::kernels::gelu::{Gelu, gelu};
use crate::kernels::linear::LinearWorkspace;
use crate::model::WeightLoader;

/// Two linear layers with an activation between.
struct Mlp {
    first: Affine,
    activation: Gelu,
    second: Affine,
}

enum Kind {
    /// LLaVA's projector.
    Projected,
    /// LLaVA-NeXT's: with the embedding that ends a row, `[hidden]`.
    Tiled { newline: Tensor },
    /// Qwen2-VL's merger: patches are normalised, then `merged` of them are read as one row.
    Merged { norm: Norm, merged: usize },
}

/// What joins a tower to a language model.
pub(super) struct Join {
    device: Device,
    dtype: DType,
    mlp: Mlp,
    kind: Kind,
}

impl Join {
    /// Loads it, for a language model of width `hidden`.
    pub fn load(loader: &mut WeightLoader, config: &VisionConfig, hidden: usize) -> Result<Self> {
        let width = config.tower.hidden_size;
        let optional_root = |probe: &str| match loader.checkpoint.contains(probe) {
            true => "",
            false => "model.",
        };
        let (mlp, kind) = match &config.join {
            JoinConfig::Projected(projector) | JoinConfig::Tiled(projector) => {
                let root = optional_root("multi_modal_projector.linear_1.weight");
                let newline_root = optional_root("image_newline");
                let name = |layer: usize| format!("{root}multi_modal_projector.linear_{layer}");
                let mlp = Mlp {
                    first: Affine::load(loader, &name(1), hidden, width, projector.bias)?,
                    activation: gelu_of(projector.activation),
                    second: Affine::load(loader, &name(2), hidden, hidden, projector.bias)?,
                };
                let kind = match &config.join {
                    JoinConfig::Tiled(_) => Kind::Tiled {
                        newline: loader.vector(&[&format!("{newline_root}image_newline")], &[hidden])?,
                    },
                    _ => Kind::Projected,
                };
                (mlp, kind)
            }
            JoinConfig::Merged => {
                let root = format!("{}visual.merger", optional_root("visual.merger.ln_q.weight"));
                let TowerKind::Qwen2Vl { merge, .. } = config.tower.kind else {
                    return Err(Error::Input("only Qwen2-VL's tower is joined by a merger".into()));
                };
                let merged = merge * merge;
                let mlp = Mlp {
                    first: Affine::load(
                        loader,
                        &format!("{root}.mlp.0"),
                        merged * width,
                        merged * width,
                        true,
                    )?,
                    activation: gelu_of(Activation::Gelu),
                    second: Affine::load(loader, &format!("{root}.mlp.2"), hidden, merged * width, true)?,
                };
                let norm = Norm::load(loader, &format!("{root}.ln_q"), width, config.tower.norm_eps)?;
                (mlp, Kind::Merged { norm, merged })
            }
        };
        Ok(Self { device: loader.device.clone(), dtype: loader.float_type.into(), mlp, kind })
    }

    /// The embeddings of a picture from the tower's `features`.
    pub fn forward(&self, features: &Tensor, patches: &PatchLayout) -> Result<Tensor> {
        match &self.kind {
            Kind::Projected => self.project(features),
            Kind::Tiled { newline } => {
                let projected = self.project(features)?;
                self.arrange(&projected, newline, patches)
            }
            Kind::Merged { norm, merged } => {
                let (rows, width) = (features.dim(0), features.dim(1));
                let normed = self.buffer(rows, width)?;
                norm.forward(features, None, &normed)?;
                self.project(&normed.reshape(&[rows / merged, merged * width]))
            }
        }
    }

    fn buffer(&self, rows: usize, columns: usize) -> Result<Tensor> {
        Tensor::uninit(&self.device, self.dtype, &[rows, columns])
    }

    fn project(&self, x: &Tensor) -> Result<Tensor> {
        let Mlp { first, activation, second } = &self.mlp;
        let rows = x.dim(0);
        let (act, out) = (self.buffer(rows, first.weight.dim(0))?, self.buffer(rows, second.weight.dim(0))?);
        let workspace = LinearWorkspace::new(&self.device, rows, [first.shape(), second.shape()], 0)?;
        first.forward(x, &act, &workspace)?;
        gelu(&self.device, *activation, &act, &act)?;
        second.forward(&act, &out, &workspace)?;
        Ok(out)
    }

    /// The tiles put together, a `newline` behind every row.
    fn arrange(&self, projected: &Tensor, newline: &Tensor, patches: &PatchLayout) -> Result<Tensor> {
        let (rows, hidden) = (projected.dim(0), projected.dim(1));
        let all = self.buffer(rows + 1, hidden)?;
        all.rows(0..rows).copy_from(projected)?;
        all.rows(rows..rows + 1).copy_from(&newline.reshape(&[1, hidden]))?;
        let order = tiled_rows(patches).into_iter();
        let order: Vec<i32> = order.map(|row| if row == NEWLINE { rows } else { row } as i32).collect();
        let index = Tensor::from_slice(&self.device, &order, &[order.len()])?;
        let out = self.buffer(order.len(), hidden)?;
        gather_rows(&self.device, GatherRowsArgs { src: &all, index: &index, out: &out })?;
        Ok(out)
    }
}
