//! Configs and checkpoints as Hugging Face writes them, read into our words.

use std::path::Path;
use std::sync::LazyLock;

use smart_run::config::{
    Architecture, Eagle3Config, EmbeddedModel, FeatureKind, FloatType, Geometry, ModelConfig, ModelSource,
    RopeConfig, RopeScaling,
};
use smart_run::text::Tokenizer;
use smart_run::weights::Checkpoint;

#[allow(dead_code)]
#[path = "common/golden.rs"]
mod golden;
#[allow(dead_code)]
#[path = "common/tiny_model.rs"]
mod tiny_model;

use serde_json::json;
use tiny_model::Folder;

fn in_repository(path: &str) -> ModelSource {
    ModelSource::from(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
}

#[test]
fn the_demo_target_is_what_its_card_says() {
    let config = ModelConfig::from_hf(&in_repository("assets/demo/target")).unwrap();
    let expected = ModelConfig {
        architecture: Architecture::Llama,
        geometry: Geometry {
            vocab_size: 4096,
            hidden_size: 256,
            intermediate_size: 896,
            num_layers: 8,
            num_q_heads: 4,
            num_kv_heads: 1,
            head_dim: 128,
            rms_norm_eps: 3.2e-4,
            rope: RopeConfig { theta: 500_000.0, scaling: RopeScaling::None, sections: None },
        },
        max_position: 2048,
        tie_word_embeddings: true,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        windows: vec![None; 8],
        vision: None,
        dtype: Some(FloatType::Bf16),
        bos_token_id: Some(0),
        eos_token_ids: vec![1],
    };
    assert_eq!(config, expected);
}

#[test]
fn the_demo_drafter_fits_and_taps_the_published_layers() {
    let target = ModelConfig::from_hf(&in_repository("assets/demo/target")).unwrap();
    let drafter = Eagle3Config::from_hf(&in_repository("assets/demo/drafter"), &target).unwrap();
    assert_eq!(drafter.tap_layers, [2, 4, 5]);
    assert_eq!((drafter.geometry.vocab_size, drafter.draft_vocab_size), (4096, 1024));
    assert_eq!((drafter.geometry.hidden_size, drafter.target_hidden_size), (256, 256));
}

/// The goldens hold each config twice: as transformers 4 and as transformers 5 write it.
#[test]
fn transformers_4_and_5_say_the_same() {
    for case in golden::TARGET_CASES {
        let source = in_repository("tests/golden").path(case);
        let folder = Folder::target();
        folder.remove("tokenizer.json");
        let [four, five] = ["config.transformers4.json", "config.json"].map(|file| {
            folder.write("config.json", &std::fs::read(source.join(file)).unwrap());
            ModelConfig::from_hf(&folder.source()).unwrap()
        });
        assert_eq!(four, five, "{case}");
        assert_eq!(five.dtype, Some(FloatType::F32), "{case}");
    }
}

#[test]
fn rope_scaling_is_read_from_either_spelling() {
    let scaling_of = |case: &str| {
        ModelConfig::from_hf(&in_repository(&format!("tests/golden/{case}"))).unwrap().geometry.rope.scaling
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 64,
    };
    assert_eq!(scaling_of("llama2_mha"), RopeScaling::None);
    assert_eq!(scaling_of("llama31_gqa"), llama3);
    assert!(matches!(scaling_of("tied_head"), RopeScaling::Linear { .. }));
}

#[test]
fn generation_config_decides_the_special_tokens() {
    let folder = Folder::target();
    let config = ModelConfig::from_hf(&folder.source()).unwrap();
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(0), vec![1, 2]));
    folder.write_json("generation_config.json", &json!({"eos_token_id": 7}));
    let config = ModelConfig::from_hf(&folder.source()).unwrap();
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(0), vec![7]));
}

#[test]
fn what_a_config_leaves_out_is_what_hugging_face_assumes() {
    let folder = Folder::target();
    let mut config = tiny_model::config();
    for field in
        ["num_key_value_heads", "rope_theta", "rope_scaling", "hidden_act", "torch_dtype", "eos_token_id"]
    {
        config.as_object_mut().unwrap().remove(field);
    }
    config.as_object_mut().unwrap().remove("tie_word_embeddings");
    folder.write_json("config.json", &config);
    let config = ModelConfig::from_hf(&folder.source()).unwrap();
    assert_eq!(
        (config.geometry.num_q_heads, config.geometry.num_kv_heads, config.geometry.head_dim),
        (2, 2, 32)
    );
    assert_eq!(
        config.geometry.rope,
        RopeConfig { theta: 10_000.0, scaling: RopeScaling::None, sections: None }
    );
    assert_eq!((config.dtype, config.tie_word_embeddings), (None, false));
    assert!(config.eos_token_ids.is_empty());
}

/// A tiny target's config with these fields changed; `null` removes one.
fn changed(changes: serde_json::Value) -> smart_run::Result<ModelConfig> {
    let mut config = tiny_model::config();
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    let folder = Folder::target();
    folder.write_json("config.json", &config);
    ModelConfig::from_hf(&folder.source())
}

/// What each architecture adds to the common layer, as published configs (cut to the tiny model's size) say it.
#[test]
fn architectures_differ_in_biases_norms_and_windows() {
    let llama = changed(json!({"attention_bias": true, "mlp_bias": true})).unwrap();
    assert_eq!((llama.qkv_bias, llama.o_bias, llama.mlp_bias, llama.qk_norm), (true, true, true, false));

    // Qwen2.5-7B-Instruct and DeepSeek-R1-Distill-Qwen-7B: a window that is not used.
    let published = json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "sliding_window": 131,
        "use_sliding_window": false, "max_window_layers": 28, "use_mrope": false, "rope_theta": 1e6});
    let qwen2 = changed(published).unwrap();
    assert_eq!(qwen2.architecture, Architecture::Qwen2);
    assert_eq!((qwen2.qkv_bias, qwen2.o_bias, qwen2.mlp_bias, qwen2.qk_norm), (true, false, false, false));
    assert_eq!(qwen2.windows, [None; 4]);

    // Qwen3-8B.
    let published = json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": false,
        "head_dim": 128, "max_window_layers": 36, "sliding_window": null, "use_sliding_window": false});
    let qwen3 = changed(published).unwrap();
    assert_eq!((qwen3.architecture, qwen3.geometry.head_dim), (Architecture::Qwen3, 128));
    assert_eq!((qwen3.qkv_bias, qwen3.o_bias, qwen3.qk_norm), (false, false, true));
    assert_eq!(qwen3.windows, [None; 4]);

    // Mistral-7B-v0.1 has a window, v0.3 has none; Nemo says its head_dim.
    let mistral = |window: serde_json::Value| {
        changed(json!({"architectures": ["MistralForCausalLM"], "head_dim": 64, "sliding_window": window}))
            .unwrap()
    };
    assert_eq!(mistral(json!(100)).windows, [Some(100); 4]);
    assert_eq!(mistral(json!(null)).windows, [None; 4]);
    assert_eq!(mistral(json!(256)).windows, [None; 4], "no shorter than the longest context");
    assert_eq!((mistral(json!(1)).geometry.head_dim, mistral(json!(1)).qk_norm), (64, false));
    let silent =
        changed(json!({"architectures": ["MistralForCausalLM"], "max_position_embeddings": 8192})).unwrap();
    assert_eq!(silent.windows, [Some(4096); 4], "transformers' default");
}

#[test]
fn qwen_windows_are_those_of_the_upper_layers_or_of_the_layer_types() {
    let windows = |changes: serde_json::Value| {
        let mut config =
            json!({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": true, "sliding_window": 32});
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        changed(config).unwrap().windows
    };
    let window = Some(32);
    assert_eq!(windows(json!({"max_window_layers": 3})), [None, None, None, window]);
    assert_eq!(windows(json!({})), [None; 4]);
    let (full, sliding) = ("full_attention", "sliding_attention");
    let types = json!({"layer_types": [sliding, full, sliding, full], "max_window_layers": 0});
    assert_eq!(windows(types), [window, None, window, None]);
}

#[test]
fn vicuna_of_16k_says_its_context_beside_the_one_before_stretching() {
    let config = changed(json!({"max_position_embeddings": 4096, "max_sequence_length": 16384,
        "rope_scaling": {"factor": 4.0, "type": "linear"}}))
    .unwrap();
    assert_eq!(config.max_position, 16384);
    assert_eq!(config.geometry.rope.scaling, RopeScaling::Linear { factor: 4.0 });
}

/// Some exporters keep the language model's fields one level down, as multimodal configs do.
#[test]
fn fields_may_stand_in_a_text_config() {
    let mut inner = tiny_model::config();
    let outer_fields = ["architectures", "torch_dtype", "tie_word_embeddings"];
    let mut outer: serde_json::Map<_, _> =
        outer_fields.iter().map(|&field| (field.to_owned(), inner[field].take())).collect();
    outer.insert("text_config".into(), inner);
    let folder = Folder::target();
    let plain = ModelConfig::from_hf(&folder.source()).unwrap();
    folder.write_json("config.json", &serde_json::Value::Object(outer));
    assert_eq!(ModelConfig::from_hf(&folder.source()).unwrap(), plain);
}

#[test]
fn drafter_configs_come_in_several_dialects() {
    let folder = Folder::target();
    let target = ModelConfig::from_hf(&folder.source()).unwrap();
    let read = |config: serde_json::Value| {
        let folder = Folder::drafter();
        folder.write_json("config.json", &config);
        Eagle3Config::from_hf(&folder.source(), &target).unwrap()
    };

    // The authors': few fields, a rotary base of its own.
    let mut config = tiny_model::drafter_config();
    config["architectures"] = json!(["LlamaForCausalLM"]);
    config.as_object_mut().unwrap().remove("rope_theta");
    config.as_object_mut().unwrap().remove("draft_vocab_size");
    let authors = read(config);
    assert_eq!((authors.draft_vocab_size, authors.geometry.rope.theta), (tiny_model::VOCAB, 10_000.0));
    assert_eq!(authors.tap_layers, [2, 2, 1]);

    // SpecForge's: tapped layers are listed by their outputs.
    let mut config = tiny_model::drafter_config();
    config["eagle_config"] =
        json!({"use_aux_hidden_state": true, "eagle_aux_hidden_state_layer_ids": [0, 1, 2]});
    assert_eq!(read(config).tap_layers, [1, 2, 3]);

    // vLLM's speculators: layers listed by their inputs, the drafter's own in an object apart.
    let mut config = tiny_model::drafter_config();
    config["eagle_aux_hidden_state_layer_ids"] = json!([2, 2, 3]);
    assert_eq!(read(config).tap_layers, [2, 2, 3]);
    let config = json!({
        "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": 8,
        "norm_before_residual": true,
        "target_hidden_size": null,
        "transformer_layer_config": tiny_model::drafter_config(),
    });
    let speculators = read(config);
    assert!(speculators.norm_before_residual && !speculators.norm_output);
    assert_eq!(speculators.feature, FeatureKind::Taps);
    assert_eq!((speculators.draft_vocab_size, speculators.geometry.hidden_size), (8, tiny_model::HIDDEN));
}

#[test]
fn drafters_come_in_several_kinds() {
    let target = ModelConfig::from_hf(&Folder::target().source()).unwrap();
    let read = |fields: serde_json::Value| {
        let (folder, mut config) = (Folder::drafter(), tiny_model::drafter_config());
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        folder.write_json("config.json", &config);
        Eagle3Config::from_hf(&folder.source(), &target).unwrap()
    };
    // EAGLE-3.1.
    let config = read(json!({"fc_norm": true, "norm_output": true, "norm_before_fc": false}));
    assert_eq!((config.feature, config.norm_output), (FeatureKind::NormedTaps, true));
    // vLLM's speculators, and NVIDIA's, which say it one level down.
    for fields in [json!({"norm_before_fc": true}), json!({"eagle_config": {"norm_before_fc": true}})] {
        let config = read(fields);
        assert_eq!((config.feature, config.norm_output), (FeatureKind::JointlyNormedTaps, false));
    }
    // Layers that are listed all the same are not read.
    for ids in [json!([]), json!([0, 9])] {
        let eagle = json!({"use_aux_hidden_state": false, "eagle_aux_hidden_state_layer_ids": ids});
        let config = read(json!({"eagle_config": eagle}));
        assert_eq!((config.feature, config.tap_layers), (FeatureKind::LastHiddenState, vec![4]));
    }
    assert_eq!(read(json!({"num_hidden_layers": 3})).geometry.num_layers, 3);

    // Without an fc nothing makes a wide feature narrow.
    let (folder, mut config) = (Folder::drafter(), tiny_model::drafter_config());
    config["eagle_config"] = json!({"use_aux_hidden_state": false});
    config["hidden_size"] = json!(2 * tiny_model::HIDDEN);
    config["target_hidden_size"] = json!(tiny_model::HIDDEN);
    folder.write_json("config.json", &config);
    let error = Eagle3Config::from_hf(&folder.source(), &target).unwrap_err();
    assert!(
        error.is_input() && error.to_string().contains("`target_hidden_size` is 64: without an fc"),
        "{error}"
    );
}

#[test]
fn a_checkpoint_gives_the_same_tensors_from_one_file_and_from_shards() {
    let folder = Folder::target();
    let single = Checkpoint::open(&folder.source()).unwrap();
    let names: Vec<String> = single.names().map(String::from).collect();
    assert_eq!(names.len(), tiny_model::tensors().len());
    folder.shard();
    let sharded = Checkpoint::open(&folder.source()).unwrap();
    assert!(sharded.names().eq(&names));
    assert_eq!(sharded.total_bytes(), single.total_bytes());
    assert_eq!(sharded.float_type().unwrap(), FloatType::F32);
    for (name, shape) in tiny_model::tensors() {
        assert_eq!(
            sharded.get(&name).unwrap().with_shape(&shape).unwrap().bytes,
            single.get(&name).unwrap().bytes
        );
    }
    sharded.finish().unwrap();
}

#[test]
fn an_embedded_model_reads_as_its_folder_does() {
    static EMBEDDED: LazyLock<EmbeddedModel> = LazyLock::new(|| EmbeddedModel {
        name: "tiny",
        config: tiny_model::config().to_string().leak(),
        generation_config: Some(r#"{"eos_token_id": 3}"#),
        tokenizer: Some(tiny_model::tokenizer().to_string().leak().as_bytes()),
        weights: tiny_model::safetensors(&tiny_model::tensors(), "BF16", 2).leak(),
    });
    let source = ModelSource::Embedded(&EMBEDDED);
    assert_eq!(ModelConfig::from_hf(&source).unwrap().eos_token_ids, [3]);
    let checkpoint = Checkpoint::open(&source).unwrap();
    assert_eq!(checkpoint.names().count(), tiny_model::tensors().len());
    assert!(
        checkpoint.get("lm_head.weight").unwrap_err().to_string().starts_with("tiny/model.safetensors: ")
    );
    let tokenizer = Tokenizer::open(&source).unwrap().unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode("abc", true).unwrap()).unwrap(), "abc");
}

#[test]
fn finish_names_what_nobody_asked_for() {
    let mut tensors = tiny_model::tensors();
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![16]));
    tensors.push(("lm_head.weight".into(), vec![1]));
    let folder = Folder::target();
    folder.write("model.safetensors", &tiny_model::safetensors(&tensors, "F32", 4));
    let checkpoint = Checkpoint::open(&folder.source()).unwrap();
    for (name, _) in tiny_model::tensors() {
        checkpoint.get(&name).unwrap();
    }
    assert_eq!(checkpoint.unused(), ["lm_head.weight"]);
    assert!(checkpoint.finish().unwrap_err().to_string().contains("lm_head.weight"));
    checkpoint.ignore("lm_head.weight");
    checkpoint.finish().unwrap();
}
