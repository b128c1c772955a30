//! The two halves of a decoder layer, shared by targets and drafters: attention over the paged cache, and the MLP.

use crate::config::Geometry;
use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use crate::kernels::linear::{
    GATE_ROWS, LinearArgs, LinearWorkspace, TunedLayer, TunedSums, linear, linear_swiglu,
};
use crate::kernels::rope::{HeadNorm, RopeArgs, rope_kv_write};
use crate::kernels::tree_attention::{self, TreeAttentionArgs, tree_attention};
use crate::kv_cache::KvCache;
use crate::model::{Pass, WeightLoader};

/// Head geometry of an attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    pub num_q_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
}

impl AttentionShape {
    pub fn of(geometry: &Geometry) -> Self {
        let Geometry { num_q_heads, num_kv_heads, head_dim, .. } = *geometry;
        Self { num_q_heads, num_kv_heads, head_dim }
    }

    pub fn q_dim(&self) -> usize {
        self.num_q_heads * self.head_dim
    }

    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    pub fn qkv_dim(&self) -> usize {
        self.q_dim() + 2 * self.kv_dim()
    }
}

/// What one attention is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionKind {
    pub shape: AttentionShape,
    /// Width of what it projects.
    pub input: usize,
    /// Width of what it adds to.
    pub hidden: usize,
    pub qkv_bias: bool,
    pub o_bias: bool,
    /// Epsilon of the norm of every query and key head, if there is one.
    pub norm_eps: Option<f32>,
    /// Keys that a row sees at most, its own included; `None` is all.
    pub window: Option<usize>,
}

/// Weights of one attention.
pub(crate) struct AttentionWeights {
    kind: AttentionKind,
    /// `[q_dim + 2 kv_dim, input]`: queries, keys, values.
    qkv: Tensor,
    qkv_bias: Option<Tensor>,
    /// `[hidden, q_dim]`.
    o: Tensor,
    o_bias: Option<Tensor>,
    /// `[head_dim]` each: of query and of key heads.
    norms: Option<[Tensor; 2]>,
}

impl AttentionWeights {
    /// What is read first of them.
    pub fn first_weight(&self) -> &Tensor {
        &self.qkv
    }

    pub fn load(loader: &mut WeightLoader, prefix: &str, kind: AttentionKind) -> Result<Self> {
        let AttentionKind { shape, input, hidden, .. } = kind;
        let name = |projection: &str, kind: &str| format!("{prefix}.{projection}_proj.{kind}");
        let (q, k, v) = (name("q", "weight"), name("k", "weight"), name("v", "weight"));
        let rows = [shape.q_dim(), shape.kv_dim(), shape.kv_dim()];
        let qkv = loader.stacked(&[&q, &k, &v], &rows, input)?;
        let o = loader.matrix(&name("o", "weight"), hidden, shape.q_dim())?;
        let (mut qkv_bias, mut o_bias, mut norms) = (None, None, None);
        if kind.qkv_bias {
            let (q, k, v) = (name("q", "bias"), name("k", "bias"), name("v", "bias"));
            qkv_bias = Some(loader.vector(&[&q, &k, &v], &rows)?);
        }
        if kind.o_bias {
            o_bias = Some(loader.vector(&[&name("o", "bias")], &[hidden])?);
        }
        if kind.norm_eps.is_some() {
            let mut norm =
                |head: &str| loader.vector(&[&format!("{prefix}.{head}_norm.weight")], &[shape.head_dim]);
            norms = Some([norm("q")?, norm("k")?]);
        }
        Ok(Self { kind, qkv, qkv_bias, o, o_bias, norms })
    }
}

/// Gated MLP: `down(silu(gate(x)) * up(x))`.
pub(crate) struct Mlp {
    /// `[2 intermediate, hidden]`: rows of gate and up in turns, as [`linear_swiglu`] has them.
    gate_up: Tensor,
    gate_up_bias: Option<Tensor>,
    /// `[hidden, intermediate]`.
    down: Tensor,
    down_bias: Option<Tensor>,
}

impl Mlp {
    pub fn load(
        loader: &mut WeightLoader,
        prefix: &str,
        hidden: usize,
        intermediate: usize,
        bias: bool,
    ) -> Result<Self> {
        let name = |projection: &str, kind: &str| format!("{prefix}.{projection}_proj.{kind}");
        let mut gate_up = |kind: &str, shape: &[usize]| {
            loader.in_turns([&name("gate", kind), &name("up", kind)], GATE_ROWS, shape)
        };
        let gate_up_weight = gate_up("weight", &[intermediate, hidden])?;
        let gate_up_bias = if bias { Some(gate_up("bias", &[intermediate])?) } else { None };
        let down = loader.matrix(&name("down", "weight"), hidden, intermediate)?;
        let down_bias = if bias { Some(loader.vector(&[&name("down", "bias")], &[hidden])?) } else { None };
        Ok(Self { gate_up: gate_up_weight, gate_up_bias, down, down_bias })
    }

    /// `out[T, hidden] = mlp(x[T, hidden])`.
    pub fn forward(&self, device: &Device, x: &Tensor, scratch: &Scratch, out: &Tensor) -> Result<()> {
        let num_rows = x.dim(0);
        let (act, workspace) = (scratch.act.rows(0..num_rows), &scratch.workspace);
        linear_swiglu(
            device,
            LinearArgs { x, weight: &self.gate_up, bias: self.gate_up_bias.as_ref(), out: &act, workspace },
        )?;
        linear(
            device,
            LinearArgs { x: &act, weight: &self.down, bias: self.down_bias.as_ref(), out, workspace },
        )
    }
}

/// Activations that live within one layer, and the kernels' workspace. Sized once, reused by every layer.
pub(crate) struct Scratch {
    qkv: Tensor,
    q: Tensor,
    attended: Tensor,
    act: Tensor,
    /// Rotations by position, f32 `[positions, head_dim]`.
    cos_sin: Tensor,
    /// Of the linear layers; attention has its partial states in the same place.
    pub workspace: LinearWorkspace,
}

impl Scratch {
    /// What [`LinearWorkspace::tune`] measures of decoder layers: their weights, by kind, with what attention reads, `attended` `[rows, input]`, what
    /// the MLP reads, `x` `[rows, hidden]`, and `out` `[rows, hidden]` beside the activations here.
    pub fn tuned_layers<'a>(
        &self,
        layers: impl Iterator<Item = (&'a AttentionWeights, &'a Mlp)> + Clone,
        (attended, x, out): (&Tensor, &Tensor, &Tensor),
    ) -> Vec<TunedLayer<'a>> {
        let kind = |name, sums, weights, x: &Tensor, out: &Tensor| TunedLayer {
            name,
            weights,
            sums,
            x: x.clone(),
            out: out.clone(),
        };
        vec![
            kind(
                "qkv",
                TunedSums::Plain,
                layers.clone().map(|(attention, _)| &attention.qkv).collect(),
                attended,
                &self.qkv,
            ),
            kind(
                "o",
                TunedSums::Plain,
                layers.clone().map(|(attention, _)| &attention.o).collect(),
                &self.attended,
                out,
            ),
            kind(
                "gate_up",
                TunedSums::Gated,
                layers.clone().map(|(_, mlp)| &mlp.gate_up).collect(),
                x,
                &self.act,
            ),
            kind("down", TunedSums::Plain, layers.map(|(_, mlp)| &mlp.down).collect(), &self.act, out),
        ]
    }
}

/// What [`Scratch`] has to hold.
pub(crate) struct ScratchSize<'a> {
    pub max_rows: usize,
    /// Longest context.
    pub max_positions: usize,
    pub geometry: &'a Geometry,
    /// Width of what the attention projects: `hidden`, or more for a drafter.
    pub attention_input: usize,
    /// `(outputs, inputs)` of the linear layers outside the decoder layer: the head, a drafter's fc.
    pub others: Vec<(usize, usize)>,
    pub dtype: DType,
}

impl Scratch {
    pub fn new(device: &Device, size: &ScratchSize) -> Result<Self> {
        let ScratchSize { max_rows: rows, max_positions, geometry, .. } = *size;
        let (shape, hidden) = (AttentionShape::of(geometry), geometry.hidden_size);
        let intermediate = geometry.intermediate_size;
        let layer = [
            (shape.qkv_dim(), size.attention_input),
            (hidden, shape.q_dim()),
            (2 * intermediate, hidden),
            (hidden, intermediate),
        ];
        let linears = layer.iter().chain(&size.others).copied();
        let attention_len =
            tree_attention::workspace_len(rows, shape.num_q_heads, shape.head_dim, max_positions);
        let buffer = |cols: usize| Tensor::uninit(device, size.dtype, &[rows, cols]);
        let rotations = geometry.rope.cos_sin_table(max_positions, shape.head_dim);
        Ok(Self {
            qkv: buffer(shape.qkv_dim())?,
            q: buffer(shape.q_dim())?,
            attended: buffer(shape.q_dim())?,
            act: buffer(intermediate)?,
            cos_sin: Tensor::from_slice(device, &rotations, &[max_positions, shape.head_dim])?,
            workspace: LinearWorkspace::new(device, rows, linears, attention_len)?,
        })
    }
}

/// `out[T, hidden] = attention(x[T, input])` for the rows of `pass`, writing their keys and values to `layer` of `kv`.
pub(crate) fn attend(
    pass: &Pass,
    x: &Tensor,
    weights: &AttentionWeights,
    (kv, layer): (&KvCache, usize),
    scratch: &Scratch,
    out: &Tensor,
) -> Result<()> {
    let (device, num_rows) = (pass.device(), pass.width());
    let AttentionKind { shape, norm_eps, window, .. } = weights.kind;
    let AttentionShape { num_q_heads, num_kv_heads, head_dim } = shape;
    let norm = weights.norms.as_ref().zip(norm_eps).map(|([q, k], eps)| HeadNorm { q, k, eps });
    let [qkv, q, attended] =
        [&scratch.qkv, &scratch.q, &scratch.attended].map(|buffer| buffer.rows(0..num_rows));
    let (k_cache, v_cache) = kv.layer(layer);
    let workspace = &scratch.workspace;
    linear(
        device,
        LinearArgs { x, weight: &weights.qkv, bias: weights.qkv_bias.as_ref(), out: &qkv, workspace },
    )?;
    rope_kv_write(
        device,
        RopeArgs {
            qkv: &qkv,
            q_out: &q,
            k_cache: &k_cache,
            v_cache: &v_cache,
            cos_sin: &scratch.cos_sin,
            positions: &pass.positions(),
            sections: pass.rope_sections(),
            slots: &pass.slots(),
            num_q_heads,
            num_kv_heads,
            head_dim,
            norm,
        },
    )?;
    tree_attention(
        device,
        TreeAttentionArgs {
            q: &q,
            k_cache: &k_cache,
            v_cache: &v_cache,
            page_table: &kv.page_table(pass.num_sequences()),
            seq_start: &pass.seq_start(),
            prefix_len: &pass.prefix_len(),
            ancestors: &pass.ancestors(),
            out: &attended,
            workspace: &workspace.partial,
            // Until the window hides a key of the pass, the kernels without one give the same bits.
            window: window.filter(|&keys| keys < pass.max_kv_len()),
            sm_scale: (head_dim as f32).sqrt().recip(),
            num_q_heads,
            num_kv_heads,
            head_dim,
            max_kv_len: pass.max_kv_len(),
            max_rows: pass.max_rows_per_sequence(),
        },
    )?;
    linear(
        device,
        LinearArgs { x: &attended, weight: &weights.o, bias: weights.o_bias.as_ref(), out, workspace },
    )
}
