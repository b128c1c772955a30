//! A tiny Llama folder, written to a temporary directory so that tests can spoil it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use smart_run::config::ModelSource;

/// Vocabulary of the model and of its tokenizer.
pub const VOCAB: usize = 40;
pub const HIDDEN: usize = 64;
pub const INTERMEDIATE: usize = 96;
pub const LAYERS: usize = 4;
pub const Q_HEADS: usize = 2;
pub const KV_HEADS: usize = 1;
pub const HEAD_DIM: usize = 32;

/// `config.json` as transformers 4 writes it.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": Q_HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": null,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "bos_token_id": 0,
        "eos_token_id": [1, 2],
        "torch_dtype": "float32",
    })
}

/// `config.json` of a drafter that fits.
pub fn drafter_config() -> Value {
    let mut config = config();
    config["architectures"] = json!(["LlamaForCausalLMEagle3"]);
    config["num_hidden_layers"] = json!(1);
    config["draft_vocab_size"] = json!(16);
    config
}

/// `tokenizer.json`: a byte-level BPE over a few letters.
pub fn tokenizer() -> Value {
    let mut vocab = serde_json::Map::new();
    vocab.insert("<s>".into(), 0.into());
    for (index, letter) in ('a'..='z').enumerate() {
        vocab.insert(letter.into(), (index + 1).into());
    }
    for (index, token) in ["Ġ", "ab", "abc", "Ġa"].iter().enumerate() {
        vocab.insert(token.to_string(), (index + 27).into());
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": " ?[a-z]+|\\s+(?!\\S)|\\s+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["a", "b"], ["ab", "c"], ["Ġ", "a"]]},
    })
}

/// Names and shapes of the target's tensors.
pub fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_string(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let of_layer = [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![Q_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.k_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, Q_HEADS * HEAD_DIM]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ];
        tensors.extend(of_layer.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    tensors
}

/// A safetensors file of zeros, of one dtype.
pub fn safetensors(tensors: &[(String, Vec<usize>)], dtype: &str, element_bytes: usize) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<usize>() * element_bytes;
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}));
    }
    let mut file = with_header(Value::Object(header).to_string().as_bytes());
    file.resize(file.len() + end, 0);
    file
}

/// A safetensors file with this header and no data.
pub fn with_header(header: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header].concat()
}

/// A model folder that is deleted with this value.
pub struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    /// A complete target: config, weights in one file, tokenizer.
    pub fn target() -> Self {
        let folder = Folder { dir: tempfile::tempdir().expect("a temporary directory") };
        folder.write_json("config.json", &config());
        folder.write_json("tokenizer.json", &tokenizer());
        folder.write("model.safetensors", &safetensors(&tensors(), "F32", 4));
        folder
    }

    /// The config of a drafter for [`Folder::target`].
    pub fn drafter() -> Self {
        let folder = Folder { dir: tempfile::tempdir().expect("a temporary directory") };
        folder.write_json("config.json", &drafter_config());
        folder
    }

    /// Moves the tensors of `model.safetensors` to two files with an index.
    pub fn shard(&self) {
        let tensors = tensors();
        let (first, second) = tensors.split_at(tensors.len() / 2);
        let mut weight_map = serde_json::Map::new();
        for (file, part) in
            [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)]
        {
            self.write(file, &safetensors(part, "F32", 4));
            weight_map.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
        }
        self.write_json("model.safetensors.index.json", &json!({"metadata": {}, "weight_map": weight_map}));
        self.remove("model.safetensors");
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn source(&self) -> ModelSource {
        ModelSource::from(self.path())
    }

    pub fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.file(name), content).expect("the temporary directory is writable");
    }

    pub fn write_json(&self, name: &str, content: &Value) {
        self.write(name, content.to_string().as_bytes());
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).expect("the file is there")
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).expect("the file is there");
    }
}
