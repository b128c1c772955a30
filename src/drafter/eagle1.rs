//! The EAGLE-1 drafter, whose weights EAGLE-2 uses too (Li et al., *EAGLE*, arXiv 2401.15077, *EAGLE-2*, arXiv 2406.16858, and their
//! published checkpoints): one decoder layer that guesses the target's next feature, which the target's own head reads.
//!
//! MSD (*Speculative Decoding Reimagined for Multimodal Large Language Models*, arXiv 2505.14260) is the same drafter for targets that see
//! pictures, with pictures and text decoupled: where a pair's token is a picture's, the picture's embedding stands for the whole pair, and
//! `fc` and the feature are left out. An EAGLE-1 drafter beside such a target joins the picture's embedding with the feature as it does a
//! token's.
//!
//! The feature is the target's hidden state behind its final norm. `fc` joins a token's embedding with it; the layer has no norm
//! before its attention (but for MSD's with Qwen's layer), and none follows it. Of a large head it may read the rows of frequent tokens only
//! ([`DraftVocabulary`](super::DraftVocabulary)).

use crate::config::Eagle1Config;
use crate::device::Tensor;
use crate::drafter::layer::{Buffers, DraftLayer, Ends, LayerBiases};
use crate::drafter::{Drafter, HotTokens, Scores};
use crate::error::{Error, Result};
use crate::kernels::gather_norm::GatherNormPart;
use crate::kv_cache::KvCache;
use crate::model::{Decoder, Pass, WeightLoader};

/// An EAGLE-1 drafter on a device.
pub struct Eagle1 {
    /// The one tapped stream: the target's final norm.
    tap_layers: [usize; 1],
    /// `[hidden, 2 hidden]`: embedding, then feature.
    fc: Tensor,
    fc_bias: Option<Tensor>,
    /// `[hidden]`: before the layer's attention.
    input_norm: Option<Tensor>,
    is_msd: bool,
    layer: DraftLayer,
    /// Offset from draft id to target id, i32 `[draft vocab]`; `None` when both vocabularies are one.
    d2t: Option<Tensor>,
}

impl Eagle1 {
    /// Loads a drafter in the published layout (`layers.0.` names, with or without a `model.` prefix).
    pub fn load(
        loader: &mut WeightLoader,
        config: Eagle1Config,
        target: &Decoder,
        hot: Option<&HotTokens>,
    ) -> Result<Self> {
        let Eagle1Config { geometry, fc_bias, qkv_bias, o_bias, mlp_bias, is_msd } = config;
        let hidden = geometry.hidden_size;
        let (device, checkpoint) = (loader.device, loader.checkpoint);
        let root = if checkpoint.contains("model.fc.weight") { "model." } else { "" };
        let bias_name = format!("{root}fc.bias");
        let has_bias = checkpoint.contains(&bias_name);
        if let Some(said) = fc_bias.filter(|&said| said != has_bias) {
            return Err(Error::Input(format!(
                "the drafter's config.json says bias = {said}, but its checkpoint has {} {bias_name}",
                if has_bias { "a" } else { "no" }
            )));
        }
        let embedding_name = format!("{root}embed_tokens.weight");
        let embedding = match checkpoint.contains(&embedding_name) {
            true => loader.matrix(&embedding_name, geometry.vocab_size, hidden)?,
            false => target.embedding().clone(),
        };
        let norm_name = format!("{root}layers.0.input_layernorm.weight");
        let has_norm = is_msd && checkpoint.contains(&norm_name);
        let head = match hot {
            Some(tokens) => tokens.cut(device, target.head(), checkpoint)?,
            None => target.head().clone(),
        };
        Ok(Self {
            is_msd,
            d2t: hot.map(|tokens| tokens.d2t(device)).transpose()?,
            input_norm: if has_norm { Some(loader.vector(&[&norm_name], &[hidden])?) } else { None },
            tap_layers: [target.config().geometry.num_layers],
            fc: loader.matrix(&format!("{root}fc.weight"), hidden, 2 * hidden)?,
            fc_bias: if has_bias { Some(loader.vector(&[&bias_name], &[hidden])?) } else { None },
            layer: DraftLayer::load(
                loader,
                (&format!("{root}layers.0"), &[]),
                geometry,
                hidden,
                LayerBiases { qkv: qkv_bias, o: o_bias, mlp: mlp_bias },
                Ends { embedding, final_norm: None, head },
            )?,
        })
    }

    /// A pass: the feature of row i is row `pass.links()[i]` of `features`.
    fn forward(&self, pass: &Pass, kv: &KvCache, features: &Tensor) -> Result<Scores> {
        let (layer, hidden) = (&self.layer, self.layer.geometry.hidden_size);
        let Buffers { pair, stream, normed, .. } = layer.buffers();
        let [pair, out, normed] = &[pair, stream, normed].map(|buffer| buffer.rows(0..pass.width()));
        let embeddings = pair.columns(0..hidden);
        let gathered = pair.columns(hidden..2 * hidden);
        let (tokens, links) = (&pass.tokens(), &pass.links());
        layer.gather_norm(&[
            layer.embeddings(tokens, None, &embeddings),
            GatherNormPart { src: features, index: Some(links), weight: None, out: &gathered, copy: None },
        ])?;
        if !self.is_msd {
            pass.overlay_pictures(&embeddings)?;
        }
        layer.linear(pair, &self.fc, self.fc_bias.as_ref(), out)?;
        if self.is_msd {
            pass.overlay_pictures(out)?;
        }
        let Some(weight) = &self.input_norm else { return layer.run(pass, kv, out) };
        layer.norm(out, None, weight, normed)?;
        layer.run(pass, kv, normed)
    }
}

impl Drafter for Eagle1 {
    fn layer(&self) -> &DraftLayer {
        &self.layer
    }

    fn layer_mut(&mut self) -> &mut DraftLayer {
        &mut self.layer
    }

    fn prepare(&mut self, max_rows: usize, max_round_rows: usize, max_positions: usize) -> Result<()> {
        self.layer.prepare(max_rows, max_round_rows, max_positions, Some(&self.fc))
    }

    fn first_weight(&self, _extends: bool) -> &Tensor {
        &self.fc
    }

    fn extend(&self, pass: &Pass, kv: &KvCache, taps: &Tensor) -> Result<Scores> {
        self.forward(pass, kv, taps)
    }

    fn step(&self, pass: &Pass, kv: &KvCache) -> Result<Scores> {
        self.forward(pass, kv, &self.layer.buffers().features)
    }

    fn tap_layers(&self) -> &[usize] {
        &self.tap_layers
    }

    fn tap_width(&self) -> usize {
        self.layer.geometry.hidden_size
    }

    fn d2t(&self) -> Option<&Tensor> {
        self.d2t.as_ref()
    }
}
