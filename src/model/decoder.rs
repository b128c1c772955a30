//! A decoder-only target: pre-norm layers with grouped-query attention, rotary positions and a gated MLP. What its
//! architecture adds (biases, normalised heads, sliding windows) the config says and `AttentionWeights` holds.

use std::time::Instant;

use crate::config::{FloatType, Geometry, ModelConfig};
use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use crate::kernels::embedding::{EmbeddingArgs, embedding};
use crate::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use crate::kernels::linear::{LinearArgs, TunedLaunch, TunedLayer, TunedSums, linear};
use crate::kernels::rmsnorm::{RmsNormArgs, rmsnorm};
use crate::kv_cache::{KvCache, KvShape};
use crate::model::{
    AttentionKind, AttentionShape, AttentionWeights, Mlp, Pass, Progress, Scratch, ScratchSize, WeightLoader,
    attend,
};
use crate::weights::Checkpoint;

/// A target on a device.
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    dtype: DType,
    embedding: Tensor,
    layers: Vec<Layer>,
    final_norm: Tensor,
    /// `[vocab, hidden]`; the embedding itself when tied.
    head: Tensor,
    buffers: Option<Buffers>,
}

struct Layer {
    input_norm: Tensor,
    attention: AttentionWeights,
    post_norm: Tensor,
    mlp: Mlp,
}

/// Activations of a pass.
struct Buffers {
    /// The residual stream, `[rows, hidden]`.
    residual: Tensor,
    normed: Tensor,
    /// What the last half-layer adds to the residual stream.
    delta: Tensor,
    /// Rows whose logits are wanted, residual then delta, `[rows, hidden]`.
    head_in: Tensor,
    head_delta: Tensor,
    /// f32 `[rows, vocab]`.
    logits: Tensor,
    scratch: Scratch,
}

/// Which streams a drafter wants to see: `columns(i * hidden..)` of `out` receives the residual stream that enters layer
/// `layers[i]`, or where that is the number of layers, what the final norm makes of the stream behind the last one.
#[derive(Clone, Copy)]
pub struct Taps<'a> {
    /// Layer indices.
    pub layers: &'a [usize],
    /// `[rows, layers.len() * hidden]`.
    pub out: &'a Tensor,
}

impl Decoder {
    /// Loads the decoder's weights of `checkpoint` as `float_type`.
    pub fn load(
        device: &Device,
        config: ModelConfig,
        checkpoint: &Checkpoint,
        float_type: FloatType,
        progress: Progress,
    ) -> Result<Self> {
        let Geometry { hidden_size: hidden, vocab_size: vocab, intermediate_size: intermediate, .. } =
            config.geometry;
        let mut loader = WeightLoader::new(device, checkpoint, float_type, progress);
        let shape = AttentionShape::of(&config.geometry);
        let Names { body, head } = Names::of(checkpoint);
        let embedding = loader.matrix(&format!("{body}embed_tokens.weight"), vocab, hidden)?;
        let mut layers = Vec::with_capacity(config.geometry.num_layers);
        for i in 0..config.geometry.num_layers {
            let prefix = format!("{body}layers.{i}");
            layers.push(Layer {
                input_norm: loader.vector(&[&format!("{prefix}.input_layernorm.weight")], &[hidden])?,
                attention: AttentionWeights::load(
                    &mut loader,
                    &format!("{prefix}.self_attn"),
                    AttentionKind {
                        shape,
                        input: hidden,
                        hidden,
                        qkv_bias: config.qkv_bias,
                        o_bias: config.o_bias,
                        norm_eps: config.qk_norm.then_some(config.geometry.rms_norm_eps),
                        window: config.windows[i],
                    },
                )?,
                post_norm: loader
                    .vector(&[&format!("{prefix}.post_attention_layernorm.weight")], &[hidden])?,
                mlp: Mlp::load(&mut loader, &format!("{prefix}.mlp"), hidden, intermediate, config.mlp_bias)?,
            });
        }
        let final_norm = loader.vector(&[&format!("{body}norm.weight")], &[hidden])?;
        let head = if config.tie_word_embeddings {
            checkpoint.ignore(head);
            embedding.clone()
        } else {
            loader.matrix(head, vocab, hidden)?
        };
        Ok(Self {
            device: device.clone(),
            dtype: float_type.into(),
            embedding,
            layers,
            final_norm,
            head,
            buffers: None,
            config,
        })
    }

    /// Sizes the activations for passes of `max_rows` rows, `max_logit_rows` of which want logits, over contexts of at
    /// most `max_positions`.
    pub fn prepare(&mut self, max_rows: usize, max_logit_rows: usize, max_positions: usize) -> Result<()> {
        let config = &self.config;
        let hidden = config.geometry.hidden_size;
        let buffer = |rows: usize| Tensor::uninit(&self.device, self.dtype, &[rows, hidden]);
        let size = ScratchSize {
            max_rows,
            max_positions,
            geometry: &config.geometry,
            attention_input: hidden,
            others: vec![(config.geometry.vocab_size, hidden)],
            dtype: self.dtype,
        };
        self.buffers = Some(Buffers {
            residual: buffer(max_rows)?,
            normed: buffer(max_rows)?,
            delta: buffer(max_rows)?,
            head_in: buffer(max_logit_rows)?,
            head_delta: buffer(max_logit_rows)?,
            logits: Tensor::uninit(&self.device, DType::F32, &[max_logit_rows, config.geometry.vocab_size])?,
            scratch: Scratch::new(&self.device, &size)?,
        });
        Ok(())
    }

    /// Measures in which of several ways linear layers run fastest here; passes then run so, to the same bits. No measurement is begun after
    /// `deadline`. What it came to is [`Decoder::tuned`].
    ///
    /// # Errors
    /// A failure of the driver.
    pub fn tune(&mut self, deadline: Instant) -> Result<()> {
        let Self { layers, head, device, buffers, .. } = self;
        let Some(Buffers { normed, delta, head_in, logits, scratch, .. }) = buffers else { return Ok(()) };
        let decoder_layers = layers.iter().map(|layer| (&layer.attention, &layer.mlp));
        let mut kinds = scratch.tuned_layers(decoder_layers, (normed, normed, delta));
        let (x, out) = (head_in.clone(), logits.clone());
        kinds.push(TunedLayer { name: "head", weights: vec![&*head], sums: TunedSums::Plain, x, out });
        scratch.workspace.tune(device, &kinds, deadline)
    }

    /// Launches of linear layers that have been measured, and how they run.
    pub fn tuned(&self) -> &[TunedLaunch] {
        self.buffers.as_ref().map_or(&[], |buffers| buffers.scratch.workspace.tuned())
    }

    /// Runs the rows of `pass` through all layers, writing their keys and values to `kv`, and returns the f32 logits
    /// `[logit width, vocab]` of the rows that want them.
    pub fn forward(&self, pass: &Pass, kv: &KvCache, taps: Option<Taps>) -> Result<Tensor> {
        let buffers = self.buffers.as_ref().expect("prepare comes before forward");
        let (device, rows, eps) = (&self.device, 0..pass.width(), self.config.geometry.rms_norm_eps);
        let [residual, normed, delta] =
            [&buffers.residual, &buffers.normed, &buffers.delta].map(|b| b.rows(rows.clone()));
        let (scratch, hidden) = (&buffers.scratch, self.config.geometry.hidden_size);
        embedding(device, EmbeddingArgs { tokens: &pass.tokens(), table: &self.embedding, out: &residual })?;
        pass.overlay_pictures(&residual)?;
        for (i, layer) in self.layers.iter().enumerate() {
            // A drafter may read one stream twice (small targets): the norm is repeated for the second copy.
            let mut incoming = (i > 0).then_some(&delta);
            let mut chunks = tapped_chunks(&taps, i, hidden).map(Some).collect::<Vec<_>>();
            chunks.resize(chunks.len().max(1), None);
            for chunk in &chunks {
                let tap = chunk.as_ref().map(|chunk| chunk.rows(rows.clone()));
                let (weight, delta) = (&layer.input_norm, incoming.take());
                rmsnorm(
                    device,
                    RmsNormArgs { residual: &residual, delta, weight, out: &normed, tap: tap.as_ref(), eps },
                )?;
            }
            attend(pass, &normed, &layer.attention, (kv, i), scratch, &delta)?;
            rmsnorm(
                device,
                RmsNormArgs {
                    residual: &residual,
                    delta: Some(&delta),
                    weight: &layer.post_norm,
                    out: &normed,
                    tap: None,
                    eps,
                },
            )?;
            layer.mlp.forward(device, &normed, scratch, &delta)?;
        }
        let final_norm = |residual: &Tensor, delta: Option<&Tensor>, out: &Tensor| {
            rmsnorm(device, RmsNormArgs { residual, delta, weight: &self.final_norm, out, tap: None, eps })
        };
        // The first norm adds the last half-layer's delta to the stream; later ones find it there.
        let (mut incoming, mut tapped) = (Some(&delta), None);
        for chunk in tapped_chunks(&taps, self.layers.len(), hidden) {
            let out = chunk.rows(rows.clone());
            final_norm(&residual, incoming.take(), &out)?;
            tapped = Some(out);
        }
        let wanted = pass.logit_width();
        let logits = buffers.logits.rows(0..wanted);
        if wanted > 0 {
            let gather = |src: &Tensor, buffer: &Tensor| {
                let out = buffer.rows(0..wanted);
                if pass.all_want_logits() {
                    return Ok(src.clone());
                }
                gather_rows(device, GatherRowsArgs { src, index: &pass.logit_rows(), out: &out })?;
                Ok(out)
            };
            let x = match tapped {
                Some(tapped) => gather(&tapped, &normed)?,
                None => {
                    let residual = gather(&residual, &buffers.head_in)?;
                    let delta = gather(&delta, &buffers.head_delta)?;
                    let normed = normed.rows(0..wanted);
                    final_norm(&residual, Some(&delta), &normed)?;
                    normed
                }
            };
            let (weight, workspace) = (&self.head, &scratch.workspace);
            linear(device, LinearArgs { x: &x, weight, bias: None, out: &logits, workspace })?;
        }
        Ok(logits)
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The weight that a pass reads first; none without layers.
    pub(crate) fn first_weight(&self) -> Option<&Tensor> {
        self.layers.first().map(|layer| layer.attention.first_weight())
    }

    /// Token embeddings, `[vocab, hidden]`.
    pub fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// The output head, `[vocab, hidden]`.
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// Geometry of the key/value cache this model needs.
    pub fn kv_shape(&self) -> KvShape {
        KvShape::of(&self.config.geometry, self.dtype)
    }
}

/// How a checkpoint names the decoder's tensors.
struct Names {
    /// Before those of embedding, layers and final norm.
    body: &'static str,
    head: &'static str,
}

impl Names {
    /// Models that see pictures keep the language model beside the tower: transformers 4 under one name (LLaVA) or none of its own
    /// (Qwen2-VL), transformers 5 under another.
    fn of(checkpoint: &Checkpoint) -> Self {
        let bodies = ["model.", "model.language_model.", "language_model.model."];
        let has = |body: &&str| checkpoint.contains(&format!("{body}embed_tokens.weight"));
        let body = bodies.into_iter().find(has).unwrap_or(bodies[0]);
        let head = if body == bodies[2] { "language_model.lm_head.weight" } else { "lm_head.weight" };
        Self { body, head }
    }
}

/// Where the stream that enters `layer` goes: one chunk of columns for each time the drafter asks for it.
fn tapped_chunks(taps: &Option<Taps>, layer: usize, hidden: usize) -> impl Iterator<Item = Tensor> {
    let taps = taps
        .iter()
        .flat_map(|taps| taps.layers.iter().enumerate().map(|(chunk, &tapped)| (chunk, tapped, taps.out)));
    taps.filter(move |&(_, tapped, _)| tapped == layer)
        .map(move |(chunk, _, out)| out.columns(chunk * hidden..(chunk + 1) * hidden))
}
