//! The EAGLE-1 drafter, whose weights EAGLE-2 uses too (Li et al., *EAGLE*, arXiv 2401.15077, *EAGLE-2*, arXiv 2406.16858, and their
//! published checkpoints): one decoder layer that guesses the target's next feature, which the target's own head reads.
//!
//! The feature is the target's hidden state behind its final norm. `fc` joins a token's embedding with it; the layer has no norm
//! before its attention, and none follows it.

use crate::config::{Eagle1Config, FloatType};
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
    AttentionKind, AttentionShape, AttentionWeights, Decoder, Mlp, Pass, Progress, Scratch, ScratchSize,
    WeightLoader, attend,
};
use crate::weights::Checkpoint;

/// An EAGLE-1 drafter on a device.
pub struct Eagle1 {
    config: Eagle1Config,
    device: Device,
    dtype: DType,
    /// The one tapped stream: the target's final norm.
    tap_layers: [usize; 1],
    /// `[vocab, hidden]`, the checkpoint's or the target's.
    embedding: Tensor,
    /// `[hidden, 2 hidden]`: embedding, then feature.
    fc: Tensor,
    fc_bias: Option<Tensor>,
    attention: AttentionWeights,
    post_norm: Tensor,
    mlp: Mlp,
    /// `[vocab, hidden]`, the target's.
    head: Tensor,
    cos_sin: Tensor,
    buffers: Option<Buffers>,
}

struct Buffers {
    /// Outputs of the layer.
    features: FeatureStore,
    /// `[rows, 2 hidden]`: embedding beside feature.
    pair: Tensor,
    normed: Tensor,
    delta: Tensor,
    head_in: Tensor,
    logits: Tensor,
    scratch: Scratch,
}

impl Eagle1 {
    /// Loads a drafter in the published layout (`layers.0.` names, with or without a `model.` prefix).
    pub fn load(
        device: &Device,
        config: Eagle1Config,
        checkpoint: &Checkpoint,
        float_type: FloatType,
        target: &Decoder,
        progress: Progress,
    ) -> Result<Self> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let mut loader = WeightLoader { device, checkpoint, float_type, progress, loaded_bytes: 0 };
        let root = if checkpoint.contains("model.fc.weight") { "model." } else { "" };
        let bias_name = format!("{root}fc.bias");
        let has_bias = checkpoint.contains(&bias_name);
        if let Some(said) = config.fc_bias.filter(|&said| said != has_bias) {
            return Err(Error::Input(format!(
                "the drafter's config.json says bias = {said}, but its checkpoint has {} {bias_name}",
                if has_bias { "a" } else { "no" }
            )));
        }
        let layer = format!("{root}layers.0");
        let embedding_name = format!("{root}embed_tokens.weight");
        let embedding = match checkpoint.contains(&embedding_name) {
            true => loader.matrix(&embedding_name, config.vocab_size, hidden)?,
            false => target.embedding().clone(),
        };
        let drafter = Self {
            fc: loader.matrix(&format!("{root}fc.weight"), hidden, 2 * hidden)?,
            fc_bias: if has_bias { Some(loader.vector(&[&bias_name], &[hidden])?) } else { None },
            embedding,
            attention: AttentionWeights::load(
                &mut loader,
                &format!("{layer}.self_attn"),
                AttentionKind {
                    shape: attention_shape(&config),
                    input: hidden,
                    hidden,
                    qkv_bias: config.qkv_bias,
                    o_bias: config.o_bias,
                    norm_eps: None,
                    window: None,
                },
            )?,
            post_norm: loader.vector(&[&format!("{layer}.post_attention_layernorm.weight")], &[hidden])?,
            mlp: Mlp::load(&mut loader, &format!("{layer}.mlp"), hidden, intermediate, config.mlp_bias)?,
            head: target.head().clone(),
            cos_sin: Tensor::uninit(device, DType::F32, &[0, config.head_dim])?,
            buffers: None,
            device: device.clone(),
            dtype: float_type.into(),
            tap_layers: [config.num_target_layers],
            config,
        };
        checkpoint.finish()?;
        Ok(drafter)
    }

    /// The layer; `pair` holds embeddings and features of the pass, `out` receives the new features.
    fn forward(&self, pass: &Pass, kv: &KvCache, out: &Tensor) -> Result<Tensor> {
        let buffers = self.buffers.as_ref().expect("prepare comes before forward");
        let (device, rows, eps) = (&self.device, 0..pass.num_rows(), self.config.rms_norm_eps);
        let [pair, normed, delta] =
            [&buffers.pair, &buffers.normed, &buffers.delta].map(|buffer| buffer.rows(rows.clone()));
        let workspace = &buffers.scratch.workspace;
        linear(
            device,
            LinearArgs { x: &pair, weight: &self.fc, bias: self.fc_bias.as_ref(), out, workspace },
        )?;
        let add = |delta: &Tensor| {
            let (residual, delta, weight) = (out, Some(delta), &self.post_norm);
            rmsnorm(device, RmsNormArgs { residual, delta, weight, out: &normed, tap: None, eps })
        };
        attend(pass, out, &self.attention, &self.cos_sin, (kv, 0), &buffers.scratch, &delta)?;
        add(&delta)?;
        self.mlp.forward(device, &normed, &buffers.scratch, &delta)?;
        // For the sum alone: nothing reads the norm behind it.
        add(&delta)?;
        let wanted = pass.num_logit_rows();
        let (head_in, logits) = (buffers.head_in.rows(0..wanted), buffers.logits.rows(0..wanted));
        if wanted > 0 {
            gather_rows(device, GatherRowsArgs { src: out, index: &pass.logit_rows(), out: &head_in })?;
            linear(
                device,
                LinearArgs { x: &head_in, weight: &self.head, bias: None, out: &logits, workspace },
            )?;
        }
        Ok(logits)
    }

    /// Columns of the pair that hold the features of `pass`; its embeddings are looked up.
    fn fill_pair(&self, pass: &Pass) -> Result<Tensor> {
        let buffers = self.buffers.as_ref().expect("prepare comes before passes");
        let (pair, hidden) = (buffers.pair.rows(0..pass.num_rows()), self.config.hidden_size);
        embedding(
            &self.device,
            EmbeddingArgs { tokens: &pass.tokens(), table: &self.embedding, out: &pair.columns(0..hidden) },
        )?;
        Ok(pair.columns(hidden..2 * hidden))
    }
}

impl Drafter for Eagle1 {
    fn prepare(&mut self, max_rows: usize, max_round_rows: usize, max_positions: usize) -> Result<()> {
        let config = &self.config;
        let hidden = config.hidden_size;
        let buffer = |cols: usize| Tensor::uninit(&self.device, self.dtype, &[max_rows, cols]);
        let size = ScratchSize {
            max_rows,
            max_kv_len: max_positions,
            shape: attention_shape(config),
            intermediate: config.intermediate_size,
            hidden,
            attention_input: hidden,
            others: vec![(hidden, 2 * hidden), (config.vocab_size, hidden)],
            dtype: self.dtype,
        };
        self.buffers = Some(Buffers {
            features: FeatureStore::new(&self.device, self.dtype, max_round_rows, hidden)?,
            pair: buffer(2 * hidden)?,
            normed: buffer(hidden)?,
            delta: buffer(hidden)?,
            head_in: buffer(hidden)?,
            logits: Tensor::uninit(&self.device, DType::F32, &[max_rows, config.vocab_size])?,
            scratch: Scratch::new(&self.device, &size)?,
        });
        let table = config.rope.cos_sin_table(max_positions, config.head_dim);
        self.cos_sin = Tensor::from_slice(&self.device, &table, &[max_positions, config.head_dim])?;
        Ok(())
    }

    fn extend(&mut self, pass: &Pass, kv: &KvCache, taps: &Tensor) -> Result<Tensor> {
        let features = self.fill_pair(pass)?;
        gather_rows(&self.device, GatherRowsArgs { src: taps, index: &pass.links(), out: &features })?;
        let buffers = self.buffers.as_mut().expect("prepare comes before extend");
        let out = buffers.features.begin(pass.num_rows());
        self.forward(pass, kv, &out)
    }

    fn step(&mut self, pass: &Pass, kv: &KvCache) -> Result<Tensor> {
        let features = self.fill_pair(pass)?;
        let buffers = self.buffers.as_mut().expect("prepare comes before step");
        let src = buffers.features.all();
        gather_rows(&self.device, GatherRowsArgs { src, index: &pass.links(), out: &features })?;
        let out = buffers.features.push(pass.num_rows());
        self.forward(pass, kv, &out)
    }

    fn tap_layers(&self) -> &[usize] {
        &self.tap_layers
    }

    fn tap_width(&self) -> usize {
        self.config.hidden_size
    }

    fn free_feature_rows(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| buffers.features.free_rows())
    }

    fn next_feature_row(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| buffers.features.next_row())
    }

    fn d2t(&self) -> Option<&Tensor> {
        None
    }

    fn kv_shape(&self) -> KvShape {
        let Eagle1Config { num_kv_heads, head_dim, .. } = self.config;
        KvShape { num_layers: 1, num_kv_heads, head_dim, dtype: self.dtype }
    }
}

fn attention_shape(config: &Eagle1Config) -> AttentionShape {
    let Eagle1Config { num_q_heads, num_kv_heads, head_dim, .. } = *config;
    AttentionShape { num_q_heads, num_kv_heads, head_dim }
}
