//! Reader of tests/golden: what transformers and the references of drafters computed. Format: tests/golden/README.md.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The cases of targets.
pub const TARGET_CASES: [&str; 11] = [
    "llama2_mha",
    "llama31_gqa",
    "tied_head",
    "head_dim128",
    "vicuna_16k",
    "llama32_tied",
    "qwen2",
    "qwen2_yarn",
    "qwen3",
    "qwen3_windows",
    "mistral_window",
];
/// The EAGLE-3, EAGLE-1 and Medusa cases.
pub const DRAFTER_CASES: [&str; 10] = [
    "eagle3_random",
    "eagle3_demo",
    "eagle3_fc_norm",
    "eagle3_norm_output",
    "eagle3_single_feature",
    "eagle3_two_layers",
    "eagle1_random",
    "eagle1_demo",
    "medusa_random",
    "medusa_demo",
];

/// A prompt and the target's greedy continuation.
#[derive(Debug, Deserialize)]
pub struct TargetPrompt {
    pub length: usize,
    pub prompt_ids: Vec<i32>,
    pub greedy_ids: Vec<i32>,
}

/// `expected.json` of a target's case.
#[derive(Debug, Deserialize)]
pub struct TargetGolden {
    pub prompts: Vec<TargetPrompt>,
}

/// The tree of a first round. Node 0 is the root, whose parent is -1.
#[derive(Debug, Deserialize)]
pub struct GoldenTree {
    pub tokens: Vec<i32>,
    pub parents: Vec<i32>,
    pub flat_ids: Vec<i32>,
    pub logprobs: Vec<f32>,
    pub path_logprobs: Vec<f32>,
}

/// The nodes that one drafter pass ran, best first.
#[derive(Debug, Deserialize)]
pub struct GoldenLevel {
    pub tokens: Vec<i32>,
    pub path_logprobs: Vec<f32>,
}

/// A prompt, its greedy continuation, the first round's tree and what every round accepted.
#[derive(Debug, Deserialize)]
pub struct DrafterPrompt {
    /// Line of assets/demo/prompts.jsonl.
    pub prompt_id: Option<usize>,
    pub prompt_ids: Vec<i32>,
    pub greedy_ids: Vec<i32>,
    pub accepted_lens: Vec<usize>,
    pub tree: GoldenTree,
    pub levels: Vec<GoldenLevel>,
}

/// `expected.json` of a drafter's case.
#[derive(Debug, Deserialize)]
pub struct DrafterGolden {
    pub target: PathBuf,
    pub drafters: Vec<PathBuf>,
    pub policy: String,
    pub new_tokens: usize,
    pub prompts: Vec<DrafterPrompt>,
}

/// The folder of a case: for a target's case a checkpoint, for a drafter's case what its paths start from.
pub fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

/// `expected.json` of a case.
pub fn expected<T: DeserializeOwned>(case: &str) -> T {
    let path = folder(case).join("expected.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A float32 tensor of a case's `expected.safetensors`, with its shape.
pub fn tensor(case: &str, name: &str) -> (Vec<f32>, Vec<usize>) {
    let path = folder(case).join("expected.safetensors");
    let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let view = file.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", path.display()));
    assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    (values.collect(), view.shape().to_vec())
}

/// max |got - want| / max |want|, the error of the contracts.
pub fn relative_error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
    got.iter().zip(want).fold(0.0f32, |worst, (g, w)| {
        let error = (g - w).abs();
        if error.is_nan() { f32::INFINITY } else { worst.max(error) }
    }) / largest
}
