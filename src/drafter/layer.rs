//! [`DraftLayer`]: the decoder layer that an EAGLE drafter is, the plain ones that may follow it, embedding and head, and the
//! activations of its passes. What enters the first layer is each drafter's own.

use std::time::Instant;

use crate::config::Geometry;
use crate::device::{DType, Device, Tensor};
use crate::drafter::Scores;
use crate::error::Result;
use crate::kernels::copy_rows::{CopyRowsArgs, copy_rows};
use crate::kernels::embedding::{EmbeddingArgs, embedding};
use crate::kernels::gather_norm::{GatherNormPart, gather_norm};
use crate::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use crate::kernels::linear::{LinearArgs, TunedLaunch, TunedLayer, TunedSums, head, linear};
use crate::kernels::rmsnorm::{RmsNormArgs, rmsnorm};
use crate::kv_cache::{KvCache, KvShape};
use crate::model::{
    AttentionKind, AttentionShape, AttentionWeights, Mlp, Pass, Scratch, ScratchSize, WeightLoader, attend,
};

/// What a layer has beyond its sizes.
pub struct LayerBiases {
    /// The query, key and value projections have a bias.
    pub qkv: bool,
    /// The output projection of attention has one.
    pub o: bool,
    /// The MLP projections have one.
    pub mlp: bool,
}

/// The weights around a layer.
pub struct Ends {
    /// `[vocab, hidden]`.
    pub embedding: Tensor,
    /// Before the head.
    pub final_norm: Option<FinalNorm>,
    /// `[draft vocab, hidden]`.
    pub head: Tensor,
}

/// The norm behind the last layer.
pub struct FinalNorm {
    /// `[hidden]`.
    pub weight: Tensor,
    /// Whether what is behind it, instead of what enters it, is the feature that later passes of the round read.
    pub makes_features: bool,
}

/// A drafter's layer, and those behind it, on a device.
pub struct DraftLayer {
    pub device: Device,
    pub dtype: DType,
    pub geometry: Geometry,
    /// Width of what the first layer's attention reads.
    attention_input: usize,
    first: Halves,
    /// The layers behind the first.
    later: Vec<LaterLayer>,
    ends: Ends,
    buffers: Option<Buffers>,
}

/// The two halves of a decoder layer, and the norm between them.
struct Halves {
    attention: AttentionWeights,
    post_norm: Tensor,
    mlp: Mlp,
}

/// A plain decoder layer.
struct LaterLayer {
    input_norm: Tensor,
    halves: Halves,
}

/// Activations of a pass, and of a round.
pub struct Buffers {
    /// `[round rows, hidden]`: outputs of the last layer, on either side of the final norm, where [`Pass::outputs`] had them kept: the
    /// features of later passes of the round.
    pub features: Tensor,
    /// `[rows, hidden]`: the residual stream of a pass.
    pub stream: Tensor,
    /// `[rows, 2 hidden]`: what stands for the embedding beside what stands for the feature.
    pub pair: Tensor,
    pub normed: Tensor,
    delta: Tensor,
    head_in: Tensor,
    scores: Scores,
    pub scratch: Scratch,
}

impl DraftLayer {
    /// Loads the layer under the name `prefix`, whose attention reads rows of `attention_input` columns, and those under the names
    /// `later`, plain ones.
    pub fn load(
        loader: &mut WeightLoader,
        (prefix, later): (&str, &[String]),
        geometry: Geometry,
        attention_input: usize,
        biases: LayerBiases,
        ends: Ends,
    ) -> Result<Self> {
        let hidden = geometry.hidden_size;
        let first = Halves::load(loader, prefix, &geometry, attention_input, &biases)?;
        let mut layers = Vec::with_capacity(later.len());
        for prefix in later {
            // vLLM's name, or SGLang's, which keeps that of the first layer's norm of the feature.
            let names = ["input_layernorm", "hidden_norm"].map(|norm| format!("{prefix}.{norm}.weight"));
            let name = names.iter().find(|name| loader.checkpoint.contains(name)).unwrap_or(&names[0]);
            layers.push(LaterLayer {
                input_norm: loader.vector(&[name], &[hidden])?,
                halves: Halves::load(loader, prefix, &geometry, hidden, &biases)?,
            });
        }
        Ok(Self {
            first,
            later: layers,
            buffers: None,
            device: loader.device.clone(),
            dtype: loader.float_type.into(),
            attention_input,
            geometry,
            ends,
        })
    }

    /// As [`Drafter::prepare`](super::Drafter::prepare); `fc` is the weight of the linear layer before this one,
    /// if there is one.
    pub fn prepare(
        &mut self,
        max_rows: usize,
        max_round_rows: usize,
        max_positions: usize,
        fc: Option<&Tensor>,
    ) -> Result<()> {
        let geometry = &self.geometry;
        let (hidden, draft_vocab_size) = (geometry.hidden_size, self.draft_vocab_size());
        let later_qkv = self.later.first().map(|_| (AttentionShape::of(geometry).qkv_dim(), hidden));
        let fc = fc.map(|fc| (fc.dim(0), fc.dim(1)));
        let buffer = |cols: usize| Tensor::uninit(&self.device, self.dtype, &[max_rows, cols]);
        let size = ScratchSize {
            max_rows,
            max_positions,
            geometry,
            attention_input: self.attention_input,
            others: [(draft_vocab_size, hidden)].into_iter().chain(fc).chain(later_qkv).collect(),
            dtype: self.dtype,
        };
        self.buffers = Some(Buffers {
            features: Tensor::uninit(&self.device, self.dtype, &[max_round_rows, hidden])?,
            stream: buffer(hidden)?,
            pair: buffer(2 * hidden)?,
            normed: buffer(hidden)?,
            delta: buffer(hidden)?,
            head_in: buffer(hidden)?,
            scores: Scores::new(&self.device, max_rows, draft_vocab_size)?,
            scratch: Scratch::new(&self.device, &size)?,
        });
        Ok(())
    }

    /// As [`Decoder::tune`](crate::model::Decoder::tune): the first layer and the head. What comes before, and layers behind it, run by rule or as
    /// their like in the first.
    pub fn tune(&mut self, deadline: Instant) -> Result<()> {
        let Self { first, ends, device, attention_input, geometry, buffers, .. } = self;
        let Some(Buffers { pair, normed, delta, head_in, scores, scratch, .. }) = buffers else {
            return Ok(());
        };
        let attended = if *attention_input == geometry.hidden_size { &*normed } else { &*pair };
        let layers = std::iter::once((&first.attention, &first.mlp));
        let mut kinds = scratch.tuned_layers(layers, (attended, normed, delta));
        let (x, out, sums) =
            (head_in.clone(), scores.logits.clone(), TunedSums::Head(scores.digests.clone()));
        kinds.push(TunedLayer { name: "head", weights: vec![&ends.head], sums, x, out });
        scratch.workspace.tune(device, &kinds, deadline)
    }

    /// Launches of linear layers that have been measured, and how they run.
    pub fn tuned(&self) -> &[TunedLaunch] {
        self.buffers.as_ref().map_or(&[], |buffers| buffers.scratch.workspace.tuned())
    }

    /// The activations.
    pub fn buffers(&self) -> &Buffers {
        self.buffers.as_ref().expect("prepare comes before passes")
    }

    /// What [`gather_norm`] is to make of the pass's tokens: their embeddings, normed if there is a `weight`, to `out`, `[rows, hidden]`, a column
    /// view perhaps.
    pub fn embeddings<'a>(
        &'a self,
        tokens: &'a Tensor,
        weight: Option<&'a Tensor>,
        out: &'a Tensor,
    ) -> GatherNormPart<'a> {
        GatherNormPart { src: &self.ends.embedding, index: Some(tokens), weight, out, copy: None }
    }

    /// Runs [`gather_norm`] with the drafter's epsilon.
    pub fn gather_norm(&self, parts: &[GatherNormPart]) -> Result<()> {
        gather_norm(&self.device, parts, self.geometry.rms_norm_eps)
    }

    /// Writes the embeddings of the pass's tokens to `out`, `[rows, hidden]`, a column view perhaps.
    pub fn embed(&self, pass: &Pass, out: &Tensor) -> Result<()> {
        let table = &self.ends.embedding;
        embedding(&self.device, EmbeddingArgs { tokens: &pass.tokens(), table, out })
    }

    /// `out[T, ..] = x weight^T + bias`.
    pub fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, out: &Tensor) -> Result<()> {
        let workspace = &self.buffers().scratch.workspace;
        linear(&self.device, LinearArgs { x, weight, bias, out, workspace })
    }

    /// `residual += delta`, then `out = norm(residual) * weight`.
    pub fn norm(
        &self,
        residual: &Tensor,
        delta: Option<&Tensor>,
        weight: &Tensor,
        out: &Tensor,
    ) -> Result<()> {
        let eps = self.geometry.rms_norm_eps;
        rmsnorm(&self.device, RmsNormArgs { residual, delta, weight, out, tap: None, eps })
    }

    /// The layers over the residual stream, with `attended` as what the first one's attention reads. Gives the
    /// scores `[logit width, ..]` of the rows that want them; [`DraftLayer::keep_outputs`] comes behind.
    pub fn run(&self, pass: &Pass, kv: &KvCache, attended: &Tensor) -> Result<Scores> {
        let buffers = self.buffers();
        let rows = 0..pass.width();
        let [stream, normed, delta] =
            &[&buffers.stream, &buffers.normed, &buffers.delta].map(|buffer| buffer.rows(rows.clone()));
        self.run_halves(&self.first, pass, (kv, 0), stream, attended)?;
        for (i, layer) in self.later.iter().enumerate() {
            self.norm(stream, Some(delta), &layer.input_norm, normed)?;
            self.run_halves(&layer.halves, pass, (kv, i + 1), stream, normed)?;
        }
        // Without a final norm for the sum alone: nothing reads what is behind it.
        let final_norm = self.ends.final_norm.as_ref();
        let weight = final_norm.map_or(&self.first.post_norm, |norm| &norm.weight);
        self.norm(stream, Some(delta), weight, normed)?;
        let wanted = pass.logit_width();
        let scores = buffers.scores.rows(0..wanted);
        if wanted > 0 {
            let src = if final_norm.is_some() { normed } else { stream };
            let x = if pass.all_want_logits() {
                src.rows(0..wanted)
            } else {
                let out = buffers.head_in.rows(0..wanted);
                gather_rows(&self.device, GatherRowsArgs { src, index: &pass.logit_rows(), out: &out })?;
                out
            };
            let (weight, out, workspace) = (&self.ends.head, &scores.logits, &buffers.scratch.workspace);
            head(&self.device, LinearArgs { x: &x, weight, bias: None, out, workspace }, &scores.digests)?;
        }
        Ok(scores)
    }

    /// Keeps the outputs of a pass that has been run, as [`Pass::outputs`] says. Apart from that, so that what the host waits for need not
    /// wait for it.
    pub fn keep_outputs(&self, pass: &Pass) -> Result<()> {
        let buffers = self.buffers();
        let makes_features = self.ends.final_norm.as_ref().is_some_and(|norm| norm.makes_features);
        let src = if makes_features { &buffers.normed } else { &buffers.stream };
        let (src, moves, out) = (&src.rows(0..pass.width()), &pass.outputs(), &buffers.features);
        copy_rows(&self.device, CopyRowsArgs { src, moves, out })
    }

    /// A layer over `stream`, but for what its MLP adds, which is left in `delta`.
    fn run_halves(
        &self,
        halves: &Halves,
        pass: &Pass,
        kv_layer: (&KvCache, usize),
        stream: &Tensor,
        attended: &Tensor,
    ) -> Result<()> {
        let buffers = self.buffers();
        let rows = 0..pass.width();
        let [normed, delta] = [&buffers.normed, &buffers.delta].map(|buffer| buffer.rows(rows.clone()));
        attend(pass, attended, &halves.attention, kv_layer, &buffers.scratch, &delta)?;
        self.norm(stream, Some(&delta), &halves.post_norm, &normed)?;
        halves.mlp.forward(&self.device, &normed, &buffers.scratch, &delta)
    }

    /// The weight that the layers read first.
    pub fn first_weight(&self) -> &Tensor {
        self.first.attention.first_weight()
    }

    /// Logits of a row.
    pub fn draft_vocab_size(&self) -> usize {
        self.ends.head.dim(0)
    }

    /// Geometry of the key/value cache it needs.
    pub fn kv_shape(&self) -> KvShape {
        KvShape::of(&self.geometry, self.dtype)
    }
}

impl Halves {
    /// The layer under the name `prefix`, whose attention reads rows of `input` columns.
    fn load(
        loader: &mut WeightLoader,
        prefix: &str,
        geometry: &Geometry,
        input: usize,
        biases: &LayerBiases,
    ) -> Result<Self> {
        let Geometry { hidden_size: hidden, intermediate_size: intermediate, .. } = *geometry;
        let attention = AttentionKind {
            shape: AttentionShape::of(geometry),
            input,
            hidden,
            qkv_bias: biases.qkv,
            o_bias: biases.o,
            norm_eps: None,
            window: None,
        };
        Ok(Self {
            attention: AttentionWeights::load(loader, &format!("{prefix}.self_attn"), attention)?,
            post_norm: loader.vector(&[&format!("{prefix}.post_attention_layernorm.weight")], &[hidden])?,
            mlp: Mlp::load(loader, &format!("{prefix}.mlp"), hidden, intermediate, biases.mlp)?,
        })
    }
}
