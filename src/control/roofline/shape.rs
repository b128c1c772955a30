//! [`Shape`]: what the passes of a target and its drafter move and multiply, counted from their published configurations.
#![forbid(unsafe_code)]

use crate::control::cost::Treads;

/// Rows that a tensor-core tile multiplies at once.
pub(super) const TOKENS_PER_TREAD: usize = 8;
/// Query rows of an attention tile (`mma.m16n8k16`, as `kernels/tree_attention.cu` uses it).
pub(super) const ROWS_PER_TILE: usize = 16;

/// What a pass of a target and its drafter must move and multiply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Target parameters streamed per pass, 2 bytes each (the input embedding is gathered, not streamed).
    pub target_params: f64,
    /// Drafter parameters streamed per pass.
    pub drafter_params: f64,
    /// Drafter parameters streamed once a round: EAGLE-3's projection of the tapped features.
    pub projection_params: f64,
    /// Target layers.
    pub num_layers: usize,
    /// Query heads of a layer.
    pub num_q_heads: usize,
    /// K/V heads of a layer.
    pub num_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

/// Dimensions of a target's language model, from its `config.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TargetDims {
    /// Decoder layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the SwiGLU.
    pub intermediate: usize,
    /// Query heads.
    pub num_q_heads: usize,
    /// K/V heads.
    pub num_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Rows of the output head.
    pub vocab: usize,
}

/// Drafters by what they read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// EAGLE-1, EAGLE-2 and MSD: a projection of (embedding, feature) to the hidden width in every pass, one layer, the target's
    /// whole output head (`SafeAILab/EAGLE`, `eagle/model/cnets1.py`).
    Eagle1,
    /// The same over the 32768 most frequent tokens (FR-Spec, arXiv 2502.14856).
    Eagle1Hot,
    /// EAGLE-3: one layer whose q, k and v read (embedding, feature) directly, an output head over at most 32000 tokens; three tapped
    /// features are projected once a round (`SafeAILab/EAGLE`, `eagle/model/cnets.py`).
    Eagle3,
}

/// Rows of EAGLE-3's output head (`draft_vocab_size` of the published heads).
const EAGLE3_VOCAB: usize = 32000;
/// Rows that FR-Spec keeps of a large output head (`freq_32768.pt`).
const HOT_VOCAB: usize = 32768;
/// Tapped features that EAGLE-3 projects.
const EAGLE3_TAPS: usize = 3;

impl TargetDims {
    /// Llama-3.1-8B.
    pub const LLAMA_3_1_8B: TargetDims = TargetDims {
        num_layers: 32,
        hidden: 4096,
        intermediate: 14336,
        num_q_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        vocab: 128256,
    };

    /// The language model of Qwen2-VL-7B.
    pub const QWEN2_VL_7B: TargetDims = TargetDims {
        num_layers: 28,
        hidden: 3584,
        intermediate: 18944,
        num_q_heads: 28,
        num_kv_heads: 4,
        head_dim: 128,
        vocab: 152064,
    };

    /// The language model of LLaVA-1.5-7B (Vicuna-7B, its vocabulary padded).
    pub const LLAVA_1_5_7B: TargetDims = TargetDims {
        num_layers: 32,
        hidden: 4096,
        intermediate: 11008,
        num_q_heads: 32,
        num_kv_heads: 32,
        head_dim: 128,
        vocab: 32064,
    };

    /// What this target moves with a drafter of kind `head`, one layer of the target's own dimensions.
    pub const fn with(self, head: Head) -> Shape {
        let layer = self.qkv(self.hidden) + self.layer_rest();
        let lm_head = self.hidden * self.vocab;
        let fc = 2 * self.hidden * self.hidden;
        let (drafter, projection) = match head {
            Head::Eagle1 => (fc + layer + lm_head, 0),
            Head::Eagle1Hot => (fc + layer + self.hidden * self.at_most(HOT_VOCAB), 0),
            Head::Eagle3 => {
                let layer = self.qkv(2 * self.hidden) + self.layer_rest();
                (layer + self.hidden * self.at_most(EAGLE3_VOCAB), EAGLE3_TAPS * self.hidden * self.hidden)
            }
        };
        Shape {
            target_params: (self.num_layers * layer + lm_head) as f64,
            drafter_params: drafter as f64,
            projection_params: projection as f64,
            num_layers: self.num_layers,
            num_q_heads: self.num_q_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// Rows of a drafter's head over `tokens`, or all where there are fewer.
    const fn at_most(self, tokens: usize) -> usize {
        if self.vocab < tokens { self.vocab } else { tokens }
    }

    /// Parameters of q, k and v that read `width` channels.
    const fn qkv(self, width: usize) -> usize {
        width * (self.num_q_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Parameters of a layer behind its attention.
    const fn layer_rest(self) -> usize {
        self.num_q_heads * self.head_dim * self.hidden + 3 * self.hidden * self.intermediate
    }
}

impl Shape {
    /// Llama-3.1-8B with its EAGLE-3 head, bf16.
    pub const LLAMA_8B_EAGLE3: Shape = TargetDims::LLAMA_3_1_8B.with(Head::Eagle3);

    /// Cached bytes of one token in one layer.
    pub(super) fn kv_bytes(&self) -> f64 {
        (2 * 2 * self.num_kv_heads * self.head_dim) as f64
    }

    /// Granularity of this shape's kernels: nodes of a sequence times query heads per K/V head fill attention tiles of 16 rows, so 4
    /// nodes for Llama-3.1, 2 for Qwen2-VL (16 / 7, rounded down) and 16 for LLaVA. (Attention by `wgmma`, whose tiles have 64 rows, has
    /// treads of 16, 9 and 64 nodes; it is not the default.)
    pub fn treads(&self) -> Treads {
        let group = self.num_q_heads / self.num_kv_heads;
        Treads { tokens: TOKENS_PER_TREAD, nodes: (ROWS_PER_TILE / group).max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters streamed and cached bytes, from the design notes on performance.
    #[test]
    fn parameters_are_those_of_the_published_models() {
        for (target, params, eagle1, hot, eagle3, kv_kib, tile) in [
            (TargetDims::LLAMA_3_1_8B, 7.505e9, 777e6, 386e6, 374e6, 128.0, 4),
            (TargetDims::QWEN2_VL_7B, 7.070e9, 804e6, 376.2e6, 364e6, 56.0, 2),
            (TargetDims::LLAVA_1_5_7B, 6.607e9, 367e6, 367e6, 384e6, 512.0, 16),
        ] {
            let (first, third) = (target.with(Head::Eagle1), target.with(Head::Eagle3));
            for (got, want) in [
                (first.target_params, params),
                (first.drafter_params, eagle1),
                (target.with(Head::Eagle1Hot).drafter_params, hot),
                (third.drafter_params, eagle3),
            ] {
                assert!((got / want - 1.0).abs() < 1e-3, "{got} parameters against {want}");
            }
            assert_eq!(first.kv_bytes() * first.num_layers as f64 / 1024.0, kv_kib);
            assert_eq!(first.treads(), Treads { tokens: 8, nodes: tile });
        }
    }
}
