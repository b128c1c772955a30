//! The EAGLE-3 drafter (Li et al., *EAGLE-3*, arXiv 2503.01840, and its published checkpoints): a decoder layer that
//! reads a token's embedding beside a feature of the position before it.
//!
//! The feature of a committed token is `fc` of three tapped residual streams of the target. Later drafters norm these streams before `fc`
//! and feed back outputs behind the final norm (EAGLE-3.1), read the target's last hidden state without an `fc`, or have plain
//! layers behind the first.

use crate::config::{Eagle3Config, FeatureKind};
use crate::device::Tensor;
use crate::drafter::layer::{DraftLayer, Ends, FinalNorm, LayerBiases};
use crate::drafter::{Drafter, HotTokens, Scores};
use crate::error::{Error, Result};
use crate::kernels::gather_norm::{GatherNormPart, RowCopy};
use crate::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use crate::kv_cache::KvCache;
use crate::model::{Decoder, Pass, WeightLoader};
use crate::weights::Checkpoint;

/// An EAGLE-3 drafter on a device.
pub struct Eagle3 {
    tap_layers: Vec<usize>,
    norm_before_residual: bool,
    /// Without it the one tapped stream is the feature.
    fc: Option<Fc>,
    /// Norm of the token embedding.
    input_norm: Tensor,
    /// Norm of the feature.
    hidden_norm: Tensor,
    layer: DraftLayer,
    /// Offset from draft id to target id, i32 `[draft vocab]`; `None` when both vocabularies are one.
    d2t: Option<Tensor>,
    buffers: Option<Buffers>,
}

/// What joins the tapped streams, side by side, to a feature.
struct Fc {
    /// `[hidden, taps * target hidden]`.
    weight: Tensor,
    /// RMSNorms before it, each over the columns that follow the last one's: none, one a stream, or one over all.
    norms: Vec<Tensor>,
}

struct Buffers {
    /// The target's streams of one pass, gathered, `[rows, tap width]`.
    taps: Tensor,
    /// The same behind the norms of `fc`, if it has any.
    normed_taps: Option<Tensor>,
    embedded: Tensor,
}

impl Eagle3 {
    /// Loads a drafter in the published layout (`midlayer.` or `layers.0.` names, `layers.1.` and so on for those behind it, with or
    /// without a `model.` prefix).
    pub fn load(
        loader: &mut WeightLoader,
        mut config: Eagle3Config,
        target: &Decoder,
        hot: Option<&HotTokens>,
    ) -> Result<Self> {
        let hidden = config.geometry.hidden_size;
        let (device, checkpoint) = (loader.device, loader.checkpoint);
        let LayerNames { root, first, mut later } = LayerNames::of(checkpoint, config.geometry.num_layers);
        // A drafter's config may repeat its target's number of layers (EAGLE3-Vicuna1.3-13B's): the authors' code builds one.
        let repeats_target = config.geometry.num_layers == target.config().geometry.num_layers;
        if repeats_target && !later.first().is_some_and(|name| has_layer(checkpoint, name)) {
            config.geometry.num_layers = 1;
            later.clear();
        }
        let fc = load_fc(loader, root, &config)?;
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
        let own_head =
            ["lm_head.weight", "model.lm_head.weight"].into_iter().find(|name| checkpoint.contains(name));
        // Published drafters have one.
        let head = match own_head.or(checkpoint.is_dummy().then_some("lm_head.weight")) {
            Some(name) => loader.matrix(name, config.draft_vocab_size, hidden)?,
            None => shared_head(&config, target)?,
        };
        let (head, d2t) = match (hot, load_d2t(&config, checkpoint)?) {
            (Some(tokens), offsets) => {
                tokens.check(config.draft_vocab_size, offsets.as_deref())?;
                (tokens.cut(device, &head, checkpoint)?, Some(tokens.d2t(device)?))
            }
            (None, Some(table)) => (head, Some(Tensor::from_slice(device, &table, &[table.len()])?)),
            (None, None) => (head, None),
        };
        let mut norm = |name: String| loader.vector(&[&name], &[hidden]);
        let input_norm = norm(format!("{first}.input_layernorm.weight"))?;
        let hidden_norm = norm(format!("{first}.hidden_norm.weight"))?;
        let final_norm =
            FinalNorm { weight: norm(format!("{root}norm.weight"))?, makes_features: config.norm_output };
        let bias = config.attention_bias;
        Ok(Self {
            d2t,
            fc,
            input_norm,
            hidden_norm,
            layer: DraftLayer::load(
                loader,
                (&first, &later),
                config.geometry,
                2 * hidden,
                LayerBiases { qkv: bias, o: bias, mlp: config.mlp_bias },
                Ends { embedding, final_norm: Some(final_norm), head },
            )?,
            tap_layers: config.tap_layers,
            norm_before_residual: config.norm_before_residual,
            buffers: None,
        })
    }

    /// Writes what the target's streams at row `pass.links()[i]` of `taps` make of row i to `features`.
    fn first_features(&self, pass: &Pass, taps: &Tensor, features: &Tensor) -> Result<()> {
        let (layer, buffers, rows) = (&self.layer, self.buffers(), 0..pass.width());
        let gather = |out: &Tensor| {
            gather_rows(&layer.device, GatherRowsArgs { src: taps, index: &pass.links(), out })
        };
        let Some(fc) = &self.fc else { return gather(features) };
        let taps = buffers.taps.rows(rows.clone());
        gather(&taps)?;
        let Some(normed) = &buffers.normed_taps else {
            return layer.linear(&taps, &fc.weight, None, features);
        };
        let normed = normed.rows(rows);
        let mut start = 0;
        for norm in &fc.norms {
            let columns = start..start + norm.dim(0);
            start = columns.end;
            layer.norm(&taps.columns(columns.clone()), None, norm, &normed.columns(columns))?;
        }
        layer.linear(&normed, &fc.weight, None, features)
    }

    /// Where the features of committed rows are before [`Eagle3::forward`].
    fn features(&self, pass: &Pass) -> Tensor {
        let buffers = self.layer.buffers();
        let features = if self.norm_before_residual { &buffers.normed } else { &buffers.stream };
        features.rows(0..pass.width())
    }

    /// A pass over its rows, of which row i has the feature in row `index[i]` of `features`, or in row i.
    fn forward(
        &self,
        pass: &Pass,
        kv: &KvCache,
        (features, index): (&Tensor, Option<&Tensor>),
    ) -> Result<Scores> {
        let (layer, hidden, rows) = (&self.layer, self.layer.geometry.hidden_size, 0..pass.width());
        let [pair, stream] =
            [&layer.buffers().pair, &layer.buffers().stream].map(|buffer| buffer.rows(rows.clone()));
        let [left, right] = [0..hidden, hidden..2 * hidden].map(|columns| pair.columns(columns));
        let (tokens, embedded) = (&pass.tokens(), &self.buffers().embedded.rows(rows));
        let embedding = if pass.has_pictures() {
            layer.embed(pass, embedded)?;
            pass.overlay_pictures(embedded)?;
            let weight = Some(&self.input_norm);
            GatherNormPart { src: embedded, index: None, weight, out: &left, copy: None }
        } else {
            layer.embeddings(tokens, Some(&self.input_norm), &left)
        };
        let copy = match self.norm_before_residual {
            true => Some(RowCopy::Normed(&stream)),
            // Without an index they are there.
            false => index.map(|_| RowCopy::Gathered(&stream)),
        };
        let weight = Some(&self.hidden_norm);
        layer
            .gather_norm(&[embedding, GatherNormPart { src: features, index, weight, out: &right, copy }])?;
        layer.run(pass, kv, &pair)
    }

    fn buffers(&self) -> &Buffers {
        self.buffers.as_ref().expect("prepare comes before passes")
    }
}

impl Drafter for Eagle3 {
    fn layer(&self) -> &DraftLayer {
        &self.layer
    }

    fn layer_mut(&mut self) -> &mut DraftLayer {
        &mut self.layer
    }

    fn prepare(&mut self, max_rows: usize, max_round_rows: usize, max_positions: usize) -> Result<()> {
        let (tap_width, hidden) = (self.tap_width(), self.layer.geometry.hidden_size);
        let layer = &mut self.layer;
        layer.prepare(max_rows, max_round_rows, max_positions, self.fc.as_ref().map(|fc| &fc.weight))?;
        let buffer = |cols: usize| Tensor::uninit(&layer.device, layer.dtype, &[max_rows, cols]);
        let has_norms = self.fc.as_ref().is_some_and(|fc| !fc.norms.is_empty());
        self.buffers = Some(Buffers {
            taps: buffer(tap_width)?,
            normed_taps: if has_norms { Some(buffer(tap_width)?) } else { None },
            embedded: buffer(hidden)?,
        });
        Ok(())
    }

    fn first_weight(&self, extends: bool) -> &Tensor {
        let fc = self.fc.as_ref().filter(|_| extends);
        fc.map_or_else(|| self.layer.first_weight(), |fc| &fc.weight)
    }

    fn extend(&self, pass: &Pass, kv: &KvCache, taps: &Tensor) -> Result<Scores> {
        let features = &self.features(pass);
        self.first_features(pass, taps, features)?;
        self.forward(pass, kv, (features, None))
    }

    fn step(&self, pass: &Pass, kv: &KvCache) -> Result<Scores> {
        self.forward(pass, kv, (&self.layer.buffers().features, Some(&pass.links())))
    }

    fn tap_layers(&self) -> &[usize] {
        &self.tap_layers
    }

    fn tap_width(&self) -> usize {
        match &self.fc {
            Some(fc) => fc.weight.dim(1),
            None => self.layer.geometry.hidden_size,
        }
    }

    fn d2t(&self) -> Option<&Tensor> {
        self.d2t.as_ref()
    }
}

/// How a checkpoint names its layers.
struct LayerNames {
    /// Before the names of what belongs to no layer.
    root: &'static str,
    first: String,
    /// Those of the plain layers that should follow.
    later: Vec<String>,
}

impl LayerNames {
    fn of(checkpoint: &Checkpoint, num_layers: usize) -> Self {
        let (root, name) = ["", "model."]
            .into_iter()
            .flat_map(|root| ["midlayer", "layers.0"].map(|name| (root, name)))
            .find(|(root, name)| has_layer(checkpoint, &format!("{root}{name}")))
            .unwrap_or(("", "midlayer"));
        let later = (1..num_layers).map(|layer| format!("{root}layers.{layer}")).collect();
        Self { root, first: format!("{root}{name}"), later }
    }
}

fn has_layer(checkpoint: &Checkpoint, prefix: &str) -> bool {
    checkpoint.contains(&format!("{prefix}.self_attn.q_proj.weight"))
}

/// What the config says to join the tapped streams with.
fn load_fc(loader: &mut WeightLoader, root: &str, config: &Eagle3Config) -> Result<Option<Fc>> {
    let (num_taps, width) = (config.tap_layers.len(), config.target_hidden_size);
    let norms = match config.feature {
        FeatureKind::LastHiddenState => return Ok(None),
        FeatureKind::Taps => Vec::new(),
        FeatureKind::NormedTaps => (0..num_taps)
            .map(|tap| loader.vector(&[&format!("{root}fc_norm.{tap}.weight")], &[width]))
            .collect::<Result<_>>()?,
        FeatureKind::JointlyNormedTaps => {
            vec![loader.vector(&[&format!("{root}input_norm.weight")], &[num_taps * width])?]
        }
    };
    let (name, hidden) = (format!("{root}fc.weight"), config.geometry.hidden_size);
    Ok(Some(Fc { weight: loader.matrix(&name, hidden, num_taps * width)?, norms }))
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
fn load_d2t(config: &Eagle3Config, checkpoint: &Checkpoint) -> Result<Option<Vec<i32>>> {
    checkpoint.ignore("t2d");
    let Some(view) = checkpoint.find("d2t") else {
        if checkpoint.is_dummy() {
            let reduced = config.draft_vocab_size < config.geometry.vocab_size;
            return Ok(reduced.then(|| vec![0; config.draft_vocab_size]));
        }
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
    Ok(Some(table))
}
