//! Random EAGLE-3 drafters for the tiny targets of `tests/golden`: their drafts are bad, their trees as good as any.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;
use smart_run::config::{ModelConfig, ModelSource};
use tempfile::TempDir;

/// Heads and width of the drafter's layer.
const HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const INTERMEDIATE: usize = 64;

/// A folder with a random drafter for `target`, with biased attention if asked. It taps three layers, brings no embedding and
/// no head, and is deleted with the value.
pub fn random_drafter(target: &Path, attention_bias: bool) -> TempDir {
    let target = ModelConfig::from_hf(&ModelSource::from(target)).unwrap();
    let hidden = target.geometry.hidden_size;
    let config = json!({
        "architectures": ["LlamaForCausalLMEagle3"],
        "vocab_size": target.geometry.vocab_size,
        "draft_vocab_size": target.geometry.vocab_size,
        "hidden_size": hidden,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": attention_bias,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 0, target.geometry.num_layers - 2]},
    });
    let mut shapes = vec![
        ("fc.weight", vec![hidden, 3 * hidden]),
        ("norm.weight", vec![hidden]),
        ("midlayer.input_layernorm.weight", vec![hidden]),
        ("midlayer.hidden_norm.weight", vec![hidden]),
        ("midlayer.post_attention_layernorm.weight", vec![hidden]),
        ("midlayer.self_attn.q_proj.weight", vec![HEADS * HEAD_DIM, 2 * hidden]),
        ("midlayer.self_attn.k_proj.weight", vec![HEAD_DIM, 2 * hidden]),
        ("midlayer.self_attn.v_proj.weight", vec![HEAD_DIM, 2 * hidden]),
        ("midlayer.self_attn.o_proj.weight", vec![hidden, HEADS * HEAD_DIM]),
        ("midlayer.mlp.gate_proj.weight", vec![INTERMEDIATE, hidden]),
        ("midlayer.mlp.up_proj.weight", vec![INTERMEDIATE, hidden]),
        ("midlayer.mlp.down_proj.weight", vec![hidden, INTERMEDIATE]),
    ];
    if attention_bias {
        shapes.extend([
            ("midlayer.self_attn.q_proj.bias", vec![HEADS * HEAD_DIM]),
            ("midlayer.self_attn.k_proj.bias", vec![HEAD_DIM]),
            ("midlayer.self_attn.v_proj.bias", vec![HEAD_DIM]),
            ("midlayer.self_attn.o_proj.bias", vec![hidden]),
        ]);
    }
    let mut state = 9u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let tensors: Vec<(&str, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            // Norms around 1; matrices that keep the size of what they multiply.
            let (offset, gain) = match shape.as_slice() {
                [_] if name.ends_with("bias") => (0.0, 0.5),
                [_] => (1.0, 0.2),
                dims => (0.0, (3.0 / dims[1] as f32).sqrt()),
            };
            let values = (0..shape.iter().product()).map(|_| offset + gain * uniform());
            (name, shape, values.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}
