//! The EAGLE-3 drafter (Li et al., *EAGLE-3*, arXiv 2503.01840, and its published checkpoints): one decoder layer that
//! reads a token's embedding beside a feature of the position before it.
//!
//! The feature of a committed token is `fc` of three tapped residual streams of the target.

use crate::config::{Eagle3Config, FloatType};
use crate::device::{Device, Tensor};
use crate::drafter::Drafter;
use crate::drafter::layer::{DraftLayer, Ends, LayerBiases};
use crate::error::{Error, Result};
use crate::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use crate::kv_cache::KvCache;
use crate::model::{Decoder, Pass, Progress, WeightLoader};
use crate::weights::Checkpoint;

/// An EAGLE-3 drafter on a device.
pub struct Eagle3 {
    tap_layers: Vec<usize>,
    norm_before_residual: bool,
    /// `[hidden, taps * target hidden]`.
    fc: Tensor,
    /// Norm of the token embedding.
    input_norm: Tensor,
    /// Norm of the feature.
    hidden_norm: Tensor,
    layer: DraftLayer,
    /// Offset from draft id to target id, i32 `[draft vocab]`; `None` when both vocabularies are one.
    d2t: Option<Tensor>,
    buffers: Option<Buffers>,
}

struct Buffers {
    /// The target's streams of one pass, gathered, `[rows, taps * target hidden]`.
    taps: Tensor,
    embedded: Tensor,
}

impl Eagle3 {
    /// Loads a drafter in the published layout (`midlayer.` or `layers.0.` names, with or without a `model.` prefix).
    pub fn load(
        device: &Device,
        config: Eagle3Config,
        checkpoint: &Checkpoint,
        float_type: FloatType,
        target: &Decoder,
        progress: Progress,
    ) -> Result<Self> {
        let hidden = config.geometry.hidden_size;
        let mut loader = WeightLoader { device, checkpoint, float_type, progress, loaded_bytes: 0 };
        let root = if checkpoint.contains("model.fc.weight") { "model." } else { "" };
        let layer = if checkpoint.contains(&format!("{root}layers.0.self_attn.q_proj.weight")) {
            format!("{root}layers.0")
        } else {
            format!("{root}midlayer")
        };
        let fc = loader.matrix(
            &format!("{root}fc.weight"),
            hidden,
            config.tap_layers.len() * config.target_hidden_size,
        )?;
        let embedding = match checkpoint.find(&format!("{root}embed_tokens.weight")) {
            Some(_) => {
                loader.matrix(&format!("{root}embed_tokens.weight"), config.geometry.vocab_size, hidden)?
            }
            None => target.embedding().clone(),
        };
        if embedding.dim(1) != hidden {
            return Err(Error::Input(format!(
                "the drafter has hidden size {hidden}, the target {}, and the drafter brings no embed_tokens of its own",
                embedding.dim(1)
            )));
        }
        let head = match ["lm_head.weight", "model.lm_head.weight"]
            .into_iter()
            .find(|name| checkpoint.contains(name))
        {
            Some(name) => loader.matrix(name, config.draft_vocab_size, hidden)?,
            None => shared_head(&config, target)?,
        };
        let mut norm = |name: String| loader.vector(&[&name], &[hidden]);
        let input_norm = norm(format!("{layer}.input_layernorm.weight"))?;
        let hidden_norm = norm(format!("{layer}.hidden_norm.weight"))?;
        let final_norm = Some(norm(format!("{root}norm.weight"))?);
        let bias = config.attention_bias;
        let drafter = Self {
            d2t: load_d2t(device, &config, checkpoint)?,
            fc,
            input_norm,
            hidden_norm,
            layer: DraftLayer::load(
                &mut loader,
                &layer,
                config.geometry,
                2 * hidden,
                LayerBiases { qkv: bias, o: bias, mlp: config.mlp_bias },
                Ends { embedding, final_norm, head },
            )?,
            tap_layers: config.tap_layers,
            norm_before_residual: config.norm_before_residual,
            buffers: None,
        };
        checkpoint.finish()?;
        Ok(drafter)
    }

    /// A pass over the `features` of its rows, which become its outputs.
    fn forward(&self, pass: &Pass, kv: &KvCache, features: &Tensor) -> Result<Tensor> {
        let (layer, hidden, rows) = (&self.layer, self.layer.geometry.hidden_size, 0..pass.num_rows());
        let embedded = self.buffers().embedded.rows(rows.clone());
        let [pair, normed] =
            [&layer.buffers().pair, &layer.buffers().normed].map(|buffer| buffer.rows(rows.clone()));
        layer.embed(pass, &embedded)?;
        pass.overlay_pictures(&embedded)?;
        layer.norm(&embedded, None, &self.input_norm, &pair.columns(0..hidden))?;
        layer.norm(features, None, &self.hidden_norm, &pair.columns(hidden..2 * hidden))?;
        if self.norm_before_residual {
            layer.norm(features, None, &self.hidden_norm, &normed)?;
            features.copy_from(&normed)?;
        }
        layer.run(pass, kv, features, &pair)
    }

    fn buffers(&self) -> &Buffers {
        self.buffers.as_ref().expect("prepare comes before passes")
    }
}

impl Drafter for Eagle3 {
    fn layer(&self) -> &DraftLayer {
        &self.layer
    }

    fn prepare(&mut self, max_rows: usize, max_round_rows: usize, max_positions: usize) -> Result<()> {
        let (hidden, taps) = (self.fc.dim(0), self.fc.dim(1));
        let layer = &mut self.layer;
        layer.prepare(max_rows, max_round_rows, max_positions, (hidden, taps))?;
        let buffer = |cols: usize| Tensor::uninit(&layer.device, layer.dtype, &[max_rows, cols]);
        self.buffers = Some(Buffers { taps: buffer(taps)?, embedded: buffer(hidden)? });
        Ok(())
    }

    fn extend(&mut self, pass: &Pass, kv: &KvCache, taps: &Tensor) -> Result<Tensor> {
        let features = self.layer.take_features(pass.num_rows(), true);
        let x = self.buffers().taps.rows(0..pass.num_rows());
        gather_rows(&self.layer.device, GatherRowsArgs { src: taps, index: &pass.links(), out: &x })?;
        self.layer.linear(&x, &self.fc, None, &features)?;
        self.forward(pass, kv, &features)
    }

    fn step(&mut self, pass: &Pass, kv: &KvCache) -> Result<Tensor> {
        let features = self.layer.take_features(pass.num_rows(), false);
        let src = self.layer.buffers().features.all();
        gather_rows(&self.layer.device, GatherRowsArgs { src, index: &pass.links(), out: &features })?;
        self.forward(pass, kv, &features)
    }

    fn tap_layers(&self) -> &[usize] {
        &self.tap_layers
    }

    fn tap_width(&self) -> usize {
        self.fc.dim(1)
    }

    fn d2t(&self) -> Option<&Tensor> {
        self.d2t.as_ref()
    }
}

/// The target's head, for drafters that bring none.
fn shared_head(config: &Eagle3Config, target: &Decoder) -> Result<Tensor> {
    let head = target.head();
    if head.shape() == [config.draft_vocab_size, config.geometry.hidden_size] {
        return Ok(head.clone());
    }
    Err(Error::Input(format!(
        "the drafter has no lm_head.weight, and the target's head {:?} does not fit its [{}, {}]",
        head.shape(),
        config.draft_vocab_size,
        config.geometry.hidden_size
    )))
}

/// The offset table, checked to lead into the target's vocabulary.
fn load_d2t(device: &Device, config: &Eagle3Config, checkpoint: &Checkpoint) -> Result<Option<Tensor>> {
    checkpoint.ignore("t2d");
    let Some(view) = checkpoint.find("d2t") else {
        return if config.draft_vocab_size == config.geometry.vocab_size {
            Ok(None)
        } else {
            Err(checkpoint
                .get("d2t")
                .err()
                .unwrap_or_else(|| Error::Input("the drafter has no d2t table".into())))
        };
    };
    let view = view.with_shape(&[config.draft_vocab_size])?;
    let offsets = view.to_i64_vec()?;
    let mut table = Vec::with_capacity(offsets.len());
    for (draft_id, &offset) in offsets.iter().enumerate() {
        let id = offset
            .checked_add(draft_id as i64)
            .filter(|id| (0..config.geometry.vocab_size as i64).contains(id));
        if id.is_none() {
            return Err(view.error(format!(
                "maps draft id {draft_id} outside the target's vocabulary of {}",
                config.geometry.vocab_size
            )));
        }
        table.push(offset as i32);
    }
    Ok(Some(Tensor::from_slice(device, &table, &[table.len()])?))
}
