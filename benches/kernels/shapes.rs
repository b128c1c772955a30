//! The shapes worth a row. Linear layers and attention have lists that are longer than the time of a run; ranks say what comes
//! first.

/// A weight `[n, k]` of a model.
pub struct LinearShape {
    pub model: &'static str,
    pub layer: &'static str,
    pub n: usize,
    pub k: usize,
    /// Of its rows at the usual widths; at all others two more.
    pub rank: u8,
    /// Whether it writes f32, as heads do.
    pub f32_out: bool,
}

const fn layer(model: &'static str, layer: &'static str, [n, k]: [usize; 2], rank: u8) -> LinearShape {
    LinearShape { model, layer, n, k, rank, f32_out: false }
}

const fn head(model: &'static str, layer: &'static str, [n, k]: [usize; 2], rank: u8) -> LinearShape {
    LinearShape { model, layer, n, k, rank, f32_out: true }
}

const LLAMA: &str = "Llama-3.1-8B";
const QWEN: &str = "Qwen2-VL-7B";
const LLAVA: &str = "LLaVA-1.5-7B";

pub const LINEARS: &[LinearShape] = &[
    layer(LLAMA, "qkv", [6144, 4096], 0),
    layer(LLAMA, "o", [4096, 4096], 0),
    layer(LLAMA, "gate_up", [28672, 4096], 0),
    layer(LLAMA, "down", [4096, 14336], 0),
    head(LLAMA, "head", [128_256, 4096], 0),
    layer("EAGLE-1/2", "fc", [4096, 8192], 1),
    layer("EAGLE-3", "fc", [4096, 12288], 1),
    layer("EAGLE-3", "qkv", [6144, 8192], 1),
    head("EAGLE-3", "head", [32_000, 4096], 1),
    layer(QWEN, "qkv", [4608, 3584], 1),
    layer(QWEN, "o", [3584, 3584], 1),
    layer(QWEN, "gate_up", [37888, 3584], 1),
    layer(QWEN, "down", [3584, 18944], 1),
    head(QWEN, "head", [152_064, 3584], 1),
    layer(QWEN, "EAGLE-1/2 fc", [3584, 7168], 2),
    layer(QWEN, "EAGLE-3 fc", [3584, 10752], 2),
    layer(LLAVA, "qkv", [12288, 4096], 1),
    layer(LLAVA, "gate_up", [22016, 4096], 1),
    layer(LLAVA, "down", [4096, 11008], 1),
    head(LLAVA, "head", [32_064, 4096], 2),
];

pub const DEMO_LINEARS: &[LinearShape] = &[
    layer("demo", "qkv", [768, 256], 0),
    layer("demo", "down", [256, 896], 0),
    head("demo", "head", [4096, 256], 0),
    layer("demo", "EAGLE-3 fc", [256, 768], 1),
];

/// 1, 2, 4, then steps of 8 to 64, of 16 to 256, and two that are wider than any round.
pub const STEPS: &[usize] = &[
    1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 384,
    512,
];

/// Everything that attention is combined of.
pub struct AttentionGrid {
    pub sequences: &'static [usize],
    pub contexts: &'static [usize],
    pub nodes: &'static [usize],
    /// Query and K/V heads; the first is the model's own and is measured first.
    pub heads: &'static [(usize, usize)],
    pub page_sizes: &'static [usize],
    /// Combinations of sequences, context and nodes that come first.
    pub first: &'static [[usize; 3]],
    /// The most K/V positions of a launch with the first heads: more would not fit beside a model of that shape, nor twice into the
    /// pool. With more K/V heads fewer.
    pub most_keys: usize,
}

pub const ATTENTION: AttentionGrid = AttentionGrid {
    sequences: &[1, 4, 16, 64],
    contexts: &[128, 1024, 4096, 16384, 65536],
    nodes: &[1, 4, 8, 16, 32, 60, 128],
    heads: &[(32, 8), (28, 4), (32, 32)],
    page_sizes: &[16, 64],
    first: &[
        [1, 1024, 1],
        [1, 1024, 60],
        [1, 16384, 1],
        [1, 16384, 60],
        [4, 4096, 32],
        [16, 1024, 1],
        [16, 1024, 16],
        [16, 4096, 1],
        [16, 4096, 60],
        [64, 1024, 1],
        [64, 1024, 8],
    ],
    most_keys: 300_000,
};

pub const DEMO_ATTENTION: AttentionGrid = AttentionGrid {
    sequences: &[1, 4],
    contexts: &[200, 500],
    nodes: &[1, 16],
    heads: &[(4, 1), (4, 4)],
    page_sizes: &[16, 64],
    first: &[[1, 200, 1], [4, 500, 16]],
    most_keys: 3000,
};

/// How the nodes of a tree hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeForm {
    /// Each below the one before it: what a prompt's chunk is.
    Chain,
    /// All below the root.
    Star,
    /// As EAGLE-2's trees: a long likeliest path, ever fewer nodes beside it, depth 6.
    Eagle,
}

impl TreeForm {
    /// Parent of each of `nodes` nodes, -1 for the root; parents come first.
    pub fn parents(self, nodes: usize) -> Vec<i32> {
        let mut parents = vec![-1];
        match self {
            Self::Chain => parents.extend(0..nodes as i32 - 1),
            Self::Star => parents.resize(nodes, 0),
            Self::Eagle => {
                // Levels hold shares of 10, 13, 12, 10, 8 and 6 nodes out of 59, dealt out to the first nodes of the level above.
                const SHARES: [usize; 6] = [10, 13, 12, 10, 8, 6];
                let (mut above, mut left) = (0..1, nodes - 1);
                for (level, share) in SHARES.into_iter().enumerate() {
                    let count = match level {
                        5 => left,
                        _ => (share * (nodes - 1)).div_ceil(59).min(left),
                    };
                    let first = parents.len();
                    let likely = above.len().div_ceil(3).max(1);
                    parents.extend((0..count).map(|i| (above.start + i % likely) as i32));
                    left -= count;
                    if count > 0 {
                        above = first..first + count;
                    }
                }
            }
        }
        parents
    }

    /// Ancestor words of every node: its own bit and those of the nodes above it.
    pub fn ancestors(self, nodes: usize) -> Vec<[u64; 4]> {
        let mut words: Vec<[u64; 4]> = Vec::new();
        for (node, parent) in self.parents(nodes).into_iter().enumerate() {
            let mut own = usize::try_from(parent).map_or([0; 4], |parent| words[parent]);
            own[node / 64] |= 1 << (node % 64);
            words.push(own);
        }
        words
    }
}
