//! The EAGLE-3 drafter (Li et al., *EAGLE-3*, arXiv 2503.01840, and its published checkpoints): one decoder layer that
//! reads a token's embedding beside a feature of the position before it.
//!
//! The feature of a committed token is `fc` of three tapped residual streams of the target.

use crate::config::{Eagle3Config, FloatType};
use crate::device::{DType, Device, Tensor};
use crate::drafter::Drafter;
use crate::drafter::features::FeatureStore;
use crate::error::{Error, Result};
use crate::kernels::embedding::{EmbeddingArgs, embedding};
use crate::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use crate::kernels::linear::{LinearArgs, linear};
use crate::kernels::rmsnorm::{RmsNormArgs, rmsnorm};
use crate::kv_cache::{KvCache, KvShape};
use crate::model::{
    AttentionKind, AttentionShape, AttentionWeights, Decoder, Mlp, Pass, Scratch, ScratchSize, WeightLoader,
    attend,
};
use crate::weights::Checkpoint;

/// An EAGLE-3 drafter on a device.
pub struct Eagle3 {
    config: Eagle3Config,
    device: Device,
    dtype: DType,
    /// `[vocab, hidden]`, usually the target's.
    embedding: Tensor,
    /// `[hidden, taps * target hidden]`.
    fc: Tensor,
    /// Norm of the token embedding.
    input_norm: Tensor,
    /// Norm of the feature.
    hidden_norm: Tensor,
    attention: AttentionWeights,
    post_norm: Tensor,
    mlp: Mlp,
    final_norm: Tensor,
    /// `[draft vocab, hidden]`.
    head: Tensor,
    /// Offset from draft id to target id, i32 `[draft vocab]`; `None` when both vocabularies are one.
    d2t: Option<Tensor>,
    cos_sin: Tensor,
    buffers: Option<Buffers>,
}

struct Buffers {
    /// Drafter outputs before the final norm: the features of later levels.
    features: FeatureStore,
    /// The target's streams of one pass, gathered, `[rows, taps * target hidden]`.
    taps: Tensor,
    embedded: Tensor,
    /// `[rows, 2 hidden]`: normed embedding beside normed feature.
    pair: Tensor,
    normed: Tensor,
    delta: Tensor,
    head_in: Tensor,
    logits: Tensor,
    scratch: Scratch,
}

impl Eagle3 {
    /// Loads a drafter in the published layout (`midlayer.` or `layers.0.` names, with or without a `model.` prefix).
    pub fn load(
        device: &Device,
        config: Eagle3Config,
        checkpoint: &Checkpoint,
        float_type: FloatType,
        target: &Decoder,
        progress: crate::model::Progress,
    ) -> Result<Self> {
        config.fits_target(target.config())?;
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let shape = attention_shape(&config);
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
            Some(_) => loader.matrix(&format!("{root}embed_tokens.weight"), config.vocab_size, hidden)?,
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
        let norm = |loader: &mut WeightLoader, name: String| loader.vector(&[&name], &[hidden]);
        let drafter = Self {
            fc,
            embedding,
            input_norm: norm(&mut loader, format!("{layer}.input_layernorm.weight"))?,
            hidden_norm: norm(&mut loader, format!("{layer}.hidden_norm.weight"))?,
            attention: AttentionWeights::load(
                &mut loader,
                &format!("{layer}.self_attn"),
                AttentionKind {
                    shape,
                    input: 2 * hidden,
                    hidden,
                    qkv_bias: config.attention_bias,
                    o_bias: config.attention_bias,
                    norm_eps: None,
                    window: None,
                },
            )?,
            post_norm: norm(&mut loader, format!("{layer}.post_attention_layernorm.weight"))?,
            mlp: Mlp::load(&mut loader, &format!("{layer}.mlp"), hidden, intermediate, config.mlp_bias)?,
            final_norm: norm(&mut loader, format!("{root}norm.weight"))?,
            head,
            d2t: load_d2t(device, &config, checkpoint)?,
            cos_sin: Tensor::uninit(device, DType::F32, &[0, config.head_dim])?,
            buffers: None,
            device: device.clone(),
            dtype: float_type.into(),
            config,
        };
        checkpoint.finish()?;
        Ok(drafter)
    }

    /// The layer itself; `features` holds the input features and receives the outputs.
    fn forward(&self, pass: &Pass, kv: &KvCache, features: &Tensor) -> Result<Tensor> {
        let buffers = self.buffers.as_ref().expect("prepare comes before forward");
        let (device, rows, eps) = (&self.device, 0..pass.num_rows(), self.config.rms_norm_eps);
        let hidden = self.config.hidden_size;
        let [embedded, pair, normed, delta] =
            [&buffers.embedded, &buffers.pair, &buffers.normed, &buffers.delta].map(|b| b.rows(rows.clone()));
        let norm = |residual: &Tensor, delta: Option<&Tensor>, weight: &Tensor, out: &Tensor| {
            rmsnorm(device, RmsNormArgs { residual, delta, weight, out, tap: None, eps })
        };
        embedding(device, EmbeddingArgs { tokens: &pass.tokens(), table: &self.embedding, out: &embedded })?;
        norm(&embedded, None, &self.input_norm, &pair.columns(0..hidden))?;
        let normed_feature = pair.columns(hidden..2 * hidden);
        norm(features, None, &self.hidden_norm, &normed_feature)?;
        if self.config.norm_before_residual {
            norm(features, None, &self.hidden_norm, &normed)?;
            features.copy_from(&normed)?;
        }
        attend(pass, &pair, &self.attention, &self.cos_sin, (kv, 0), &buffers.scratch, &delta)?;
        norm(features, Some(&delta), &self.post_norm, &normed)?;
        self.mlp.forward(device, &normed, &buffers.scratch, &delta)?;
        norm(features, Some(&delta), &self.final_norm, &normed)?;
        let wanted = pass.num_logit_rows();
        let (head_in, logits) = (buffers.head_in.rows(0..wanted), buffers.logits.rows(0..wanted));
        if wanted > 0 {
            gather_rows(device, GatherRowsArgs { src: &normed, index: &pass.logit_rows(), out: &head_in })?;
            let workspace = &buffers.scratch.workspace;
            linear(
                device,
                LinearArgs { x: &head_in, weight: &self.head, bias: None, out: &logits, workspace },
            )?;
        }
        Ok(logits)
    }
}

impl Drafter for Eagle3 {
    fn prepare(&mut self, max_rows: usize, max_round_rows: usize, max_positions: usize) -> Result<()> {
        let config = &self.config;
        let (hidden, shape) = (config.hidden_size, attention_shape(config));
        let buffer = |rows: usize, cols: usize| Tensor::uninit(&self.device, self.dtype, &[rows, cols]);
        let size = ScratchSize {
            max_rows,
            max_kv_len: max_positions,
            shape,
            intermediate: config.intermediate_size,
            hidden,
            attention_input: 2 * hidden,
            others: vec![(hidden, self.fc.dim(1)), (config.draft_vocab_size, hidden)],
            dtype: self.dtype,
        };
        self.buffers = Some(Buffers {
            features: FeatureStore::new(&self.device, self.dtype, max_round_rows, hidden)?,
            taps: buffer(max_rows, self.fc.dim(1))?,
            embedded: buffer(max_rows, hidden)?,
            pair: buffer(max_rows, 2 * hidden)?,
            normed: buffer(max_rows, hidden)?,
            delta: buffer(max_rows, hidden)?,
            head_in: buffer(max_rows, hidden)?,
            logits: Tensor::uninit(&self.device, DType::F32, &[max_rows, config.draft_vocab_size])?,
            scratch: Scratch::new(&self.device, &size)?,
        });
        let table = config.rope.cos_sin_table(max_positions, config.head_dim);
        self.cos_sin = Tensor::from_slice(&self.device, &table, &[max_positions, config.head_dim])?;
        Ok(())
    }

    fn extend(&mut self, pass: &Pass, kv: &KvCache, taps: &Tensor) -> Result<Tensor> {
        let buffers = self.buffers.as_mut().expect("prepare comes before extend");
        let (features, x) = (buffers.features.begin(pass.num_rows()), buffers.taps.rows(0..pass.num_rows()));
        gather_rows(&self.device, GatherRowsArgs { src: taps, index: &pass.links(), out: &x })?;
        let workspace = &buffers.scratch.workspace;
        linear(&self.device, LinearArgs { x: &x, weight: &self.fc, bias: None, out: &features, workspace })?;
        self.forward(pass, kv, &features)
    }

    fn step(&mut self, pass: &Pass, kv: &KvCache) -> Result<Tensor> {
        let store = &mut self.buffers.as_mut().expect("prepare comes before step").features;
        let features = store.push(pass.num_rows());
        let args = GatherRowsArgs { src: store.all(), index: &pass.links(), out: &features };
        gather_rows(&self.device, args)?;
        self.forward(pass, kv, &features)
    }

    fn tap_layers(&self) -> &[usize] {
        &self.config.tap_layers
    }

    fn tap_width(&self) -> usize {
        self.fc.dim(1)
    }

    fn free_feature_rows(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| buffers.features.free_rows())
    }

    fn next_feature_row(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| buffers.features.next_row())
    }

    fn d2t(&self) -> Option<&Tensor> {
        self.d2t.as_ref()
    }

    fn kv_shape(&self) -> KvShape {
        let Eagle3Config { num_kv_heads, head_dim, .. } = self.config;
        KvShape { num_layers: 1, num_kv_heads, head_dim, dtype: self.dtype }
    }
}

fn attention_shape(config: &Eagle3Config) -> AttentionShape {
    let Eagle3Config { num_q_heads, num_kv_heads, head_dim, .. } = *config;
    AttentionShape { num_q_heads, num_kv_heads, head_dim }
}

/// The target's head, for drafters that bring none.
fn shared_head(config: &Eagle3Config, target: &Decoder) -> Result<Tensor> {
    let head = target.head();
    if head.shape() == [config.draft_vocab_size, config.hidden_size] {
        return Ok(head.clone());
    }
    Err(Error::Input(format!(
        "the drafter has no lm_head.weight, and the target's head {:?} does not fit its [{}, {}]",
        head.shape(),
        config.draft_vocab_size,
        config.hidden_size
    )))
}

/// The offset table, checked to lead into the target's vocabulary.
fn load_d2t(device: &Device, config: &Eagle3Config, checkpoint: &Checkpoint) -> Result<Option<Tensor>> {
    checkpoint.ignore("t2d");
    let Some(view) = checkpoint.find("d2t") else {
        return if config.draft_vocab_size == config.vocab_size {
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
        let id = offset.checked_add(draft_id as i64).filter(|id| (0..config.vocab_size as i64).contains(id));
        if id.is_none() {
            return Err(view.error(format!(
                "maps draft id {draft_id} outside the target's vocabulary of {}",
                config.vocab_size
            )));
        }
        table.push(offset as i32);
    }
    Ok(Some(Tensor::from_slice(device, &table, &[table.len()])?))
}
