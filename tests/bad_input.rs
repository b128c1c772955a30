//! Bad input: each fault of a file or a flag is one clear sentence, at once; never a panic.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smart_run::config::{Eagle3Config, FloatType, ModelConfig, ModelSource};
use smart_run::text::Tokenizer;
use smart_run::weights::Checkpoint;
use smart_run::{Error, Result};

#[path = "common/program.rs"]
mod program;
#[allow(dead_code)]
#[path = "common/tiny_model.rs"]
mod tiny_model;

use program::program;
use tiny_model::Folder;

/// A fault must be reported within a second; the rest is slack for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Reads all of a target as a loader does.
fn load(source: &ModelSource) -> Result<()> {
    ModelConfig::from_hf(source)?;
    let checkpoint = Checkpoint::open(source)?;
    for (name, shape) in tiny_model::tensors() {
        let view = checkpoint.get(&name)?.with_shape(&shape)?;
        view.copy_converted(FloatType::F16, &mut vec![0; view.num_elements() * 2])?;
    }
    checkpoint.finish()?;
    Tokenizer::open(source)?;
    Ok(())
}

/// The sentence for `error`, which must blame the input and read as one line.
fn sentence(case: &str, error: Error) -> String {
    assert!(error.is_input(), "{case}: {error:?} would exit with 1");
    let sentence = error.to_string();
    assert!(!sentence.contains('\n'), "{case}: {sentence}");
    assert!(sentence.chars().count() < 500, "{case}: {sentence}");
    sentence
}

fn assert_contains(case: &str, sentence: &str, expected: &[&str]) {
    for part in expected {
        assert!(sentence.contains(part), "{case}: {part:?} is not in {sentence:?}");
    }
}

/// A name, what spoils a sound folder, and what the sentence must contain.
type FolderCase = (&'static str, fn(&Folder), &'static [&'static str]);

#[rustfmt::skip]
const FOLDER_CASES: &[FolderCase] = &[
    ("no_config", |f| f.remove("config.json"), &["no config.json here"]),
    ("config_is_a_folder", |f| { f.remove("config.json"); std::fs::create_dir(f.file("config.json")).unwrap() }, &["config.json"]),
    ("config_cut", |f| f.write("config.json", br#"{"architectures": ["#), &["config.json", "not valid JSON"]),
    ("config_empty", |f| f.write("config.json", b""), &["config.json", "not valid JSON"]),
    ("config_not_text", |f| f.write("config.json", &[0xFF, 0xFE, 0]), &["config.json", "not valid JSON"]),
    ("config_not_an_object", |f| f.write("config.json", b"[1]"), &["config.json", "JSON object"]),
    ("config_nested_too_deep", |f| f.write("config.json", "[".repeat(100_000).as_bytes()), &["config.json", "not valid JSON"]),
    ("generation_config_cut", |f| f.write("generation_config.json", b"{"), &["generation_config.json", "not valid JSON"]),
    ("eos_outside_the_vocabulary", |f| f.write_json("generation_config.json", &json!({"eos_token_id": [1, 40]})),
        &["generation_config.json", "`eos_token_id`", "below 40"]),

    ("no_weights", |f| f.remove("model.safetensors"), &["no model.safetensors"]),
    ("torch_weights_cut", |f| { f.remove("model.safetensors"); f.write("pytorch_model.bin", b"PK\x03\x04") }, &["pytorch_model.bin", "truncated"]),
    ("torch_weights_empty", |f| { f.remove("model.safetensors"); f.write("pytorch_model.bin", b"") }, &["pytorch_model.bin", "truncated"]),
    ("torch_weights_are_a_web_page", |f| { f.remove("model.safetensors"); f.write("pytorch_model.bin", b"<!DOCTYPE html>") }, &["pytorch_model.bin", "neither a zip file nor a pickle"]),
    ("torch_weights_call_a_function", |f| { f.remove("model.safetensors"); f.write("pytorch_model.bin", b"\x80\x02cos\nsystem\n.") }, &["pytorch_model.bin", "names os.system"]),
    ("torch_index_leaves_the_folder", |f| { f.remove("model.safetensors"); f.write_json("pytorch_model.bin.index.json", &json!({"weight_map": {"a": "../x.bin"}})) },
        &["pytorch_model.bin.index.json", "../x.bin"]),
    ("weights_empty", |f| f.write("model.safetensors", b""), &["model.safetensors", "truncated"]),
    ("weights_cut_in_the_length", |f| f.write("model.safetensors", &[1, 2, 3]), &["model.safetensors", "truncated"]),
    ("weights_cut_in_the_header", |f| f.write("model.safetensors", &f.read("model.safetensors")[..100]), &["model.safetensors", "truncated"]),
    ("weights_cut_in_the_data", |f| { let w = f.read("model.safetensors"); f.write("model.safetensors", &w[..w.len() - 1]) },
        &["model.safetensors", "tensor model.layers.3.mlp.down_proj.weight", "truncated"]),
    ("weights_too_long", |f| f.write("model.safetensors", &[f.read("model.safetensors"), vec![0]].concat()), &["model.safetensors", "the tensors end at byte"]),
    ("header_impossibly_long", |f| f.write("model.safetensors", &[0xFF; 64]), &["model.safetensors", "no safetensors file"]),
    ("header_no_json", |f| f.write("model.safetensors", &tiny_model::with_header(b"{\"a\":")), &["model.safetensors", "not valid JSON"]),
    ("weights_are_a_folder", |f| { f.remove("model.safetensors"); std::fs::create_dir(f.file("model.safetensors")).unwrap() }, &["model.safetensors"]),
    ("weights_are_a_web_page", |f| f.write("model.safetensors", b"<!DOCTYPE html><html></html>"), &["model.safetensors", "no safetensors file"]),
    ("weights_are_a_pointer_file", |f| f.write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        &["model.safetensors", "no safetensors file"]),
    ("integer_weights", |f| f.write("model.safetensors", &tiny_model::safetensors(&tiny_model::tensors(), "I32", 4)), &["tensor model.embed_tokens.weight", "I32"]),
    ("fp8_weights", |f| f.write("model.safetensors", &tiny_model::safetensors(&tiny_model::tensors(), "F8_E4M3", 1)), &["tensor model.embed_tokens.weight", "F8_E4M3"]),
    ("unknown_dtype", |f| f.write("model.safetensors", &tiny_model::safetensors(&tiny_model::tensors(), "F17", 4)), &["tensor model", "F17"]),
    ("wrong_shape", |f| spoil_tensors(f, |t| t[1].1 = vec![tiny_model::HIDDEN + 1]), &["tensor model.norm.weight", "[65]", "[64]"]),
    ("transposed", |f| spoil_tensors(f, |t| t[10].1.reverse()), &["tensor model.layers.0.mlp.down_proj.weight", "[96, 64]", "[64, 96]"]),
    ("tensor_missing", |f| spoil_tensors(f, |t| { t.remove(1); }), &["tensor model.norm.weight is missing"]),
    ("tensor_under_another_prefix", |f| spoil_tensors(f, |t| t[1].0 = "transformer.model.norm.weight".into()), &["model.norm.weight is missing", "nearest name is transformer.model.norm.weight"]),
    ("tensor_too_many", |f| spoil_tensors(f, |t| t.push(("lm_head.bias".into(), vec![1]))), &["model.safetensors", "lm_head.bias"]),
    ("values_beyond_f16", |f| { let mut w = f.read("model.safetensors"); let at = w.len() - 4; w[at..].copy_from_slice(&1e6f32.to_le_bytes()); f.write("model.safetensors", &w) },
        &["tensor model.layers.3.mlp.down_proj.weight", "--dtype bf16"]),

    ("index_cut", |f| { f.shard(); f.write("model.safetensors.index.json", b"{\"weight_map\":") }, &["index.json", "not a valid index"]),
    ("index_without_map", |f| { f.shard(); f.write("model.safetensors.index.json", b"{}") }, &["index.json", "weight_map"]),
    ("index_map_of_numbers", |f| { f.shard(); f.write_json("model.safetensors.index.json", &json!({"weight_map": {"a": 1}})) }, &["index.json", "not a valid index"]),
    ("index_leaves_the_folder", |f| { f.shard(); f.write_json("model.safetensors.index.json", &json!({"weight_map": {"a": "../x.safetensors"}})) }, &["index.json", "../x.safetensors"]),
    ("index_absolute_path", |f| { f.shard(); f.write_json("model.safetensors.index.json", &json!({"weight_map": {"a": "/dev/zero"}})) }, &["index.json", "/dev/zero"]),
    ("index_empty", |f| { f.shard(); f.write_json("model.safetensors.index.json", &json!({"weight_map": {}})) }, &["is missing"]),
    ("shard_missing", |f| { f.shard(); f.remove("model-00002-of-00002.safetensors") }, &["model-00002-of-00002.safetensors"]),
    ("shard_lacks_a_tensor", |f| { f.shard(); f.write("model-00001-of-00002.safetensors", &tiny_model::safetensors(&tiny_model::tensors()[..1], "F32", 4)) },
        &["index.json", "model-00001-of-00002.safetensors does not hold tensor"]),
    ("tensor_in_two_shards", |f| { f.shard(); f.write("model-00002-of-00002.safetensors", &tiny_model::safetensors(&tiny_model::tensors(), "F32", 4)) },
        &["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors as well"]),

    ("tokenizer_cut", |f| f.write("tokenizer.json", b"{\"version\":"), &["tokenizer.json", "not valid JSON"]),
    ("tokenizer_without_model", |f| f.write("tokenizer.json", b"{\"version\":\"1.0\"}"), &["tokenizer.json", "not usable"]),
    ("tokenizer_merge_leaves_the_vocabulary", |f| spoil_tokenizer(f, |t| t["model"]["merges"] = json!([["a", "c"]])), &["tokenizer.json", r#""a" + "c""#]),
    ("tokenizer_merge_longer_than_any_token", |f| spoil_tokenizer(f, |t| t["model"]["merges"] = json!([["abc", "abc"]])), &["tokenizer.json", r#""abc" + "abc""#]),
    ("tokenizer_template_names_no_token", |f| spoil_tokenizer(f, |t| t["post_processor"]["special_tokens"] = json!({})), &["tokenizer.json", "not usable"]),
    ("tokenizer_bad_pattern", |f| spoil_tokenizer(f, |t| t["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({"Regex": "("})), &["tokenizer.json", "not usable"]),
];

fn spoil_tensors(folder: &Folder, spoil: fn(&mut Vec<(String, Vec<usize>)>)) {
    let mut tensors = tiny_model::tensors();
    spoil(&mut tensors);
    folder.write("model.safetensors", &tiny_model::safetensors(&tensors, "F32", 4));
}

fn spoil_tokenizer(folder: &Folder, spoil: fn(&mut Value)) {
    let mut tokenizer = tiny_model::tokenizer();
    spoil(&mut tokenizer);
    folder.write_json("tokenizer.json", &tokenizer);
}

#[test]
fn the_sound_folder_loads() {
    let folder = Folder::target();
    load(&folder.source()).unwrap();
    folder.shard();
    load(&folder.source()).unwrap();
    let tokenizer = Tokenizer::open(&folder.source()).unwrap().unwrap();
    assert_eq!(tokenizer.encode("abc ab", true).unwrap(), [0, 29, 27, 28]);
    assert_eq!(tokenizer.num_ids(), 31);
    folder.remove("tokenizer.json");
    load(&folder.source()).unwrap();
    assert!(Tokenizer::open(&folder.source()).unwrap().is_none());
}

#[test]
fn a_spoiled_folder_is_one_sentence() {
    for (case, spoil, expected) in FOLDER_CASES {
        let folder = Folder::target();
        spoil(&folder);
        let start = Instant::now();
        let error = load(&folder.source()).expect_err(case);
        assert!(start.elapsed() < AT_ONCE, "{case} took {:?}", start.elapsed());
        assert_contains(case, &sentence(case, error), expected);
    }
}

#[test]
fn a_missing_folder_or_a_file_in_its_place_is_named() {
    let folder = Folder::target();
    let missing = ModelSource::Dir(folder.file("nowhere"));
    assert_contains(
        "missing",
        &sentence("missing", load(&missing).unwrap_err()),
        &["nowhere", "no such model folder"],
    );
    assert!(Checkpoint::open(&missing).is_err());
    let file = ModelSource::Dir(folder.file("config.json"));
    assert_contains(
        "file",
        &sentence("file", load(&file).unwrap_err()),
        &["config.json", "give the model's folder"],
    );
}

/// A field, a value that it must not have, and what the sentence must contain beside file and field.
const TARGET_CASES: &[(&str, &str, &str)] = &[
    ("architectures", r#"["GPT2LMHeadModel"]"#, "GPT2LMHeadModel"),
    ("architectures", r#"["GemmaForCausalLM"]"#, "not supported; those that are: LlamaForCausalLM, Mistral"),
    ("architectures", r#"[]"#, "one name"),
    ("architectures", r#""LlamaForCausalLM""#, "one name"),
    ("architectures", "null", "is missing"),
    ("vocab_size", "null", "is missing"),
    ("vocab_size", "0", "is 0"),
    ("vocab_size", "1e30", "from 1 to"),
    ("hidden_size", "null", "is missing"),
    ("hidden_size", "-64", "is -64"),
    ("hidden_size", "\"64\"", "from 1 to"),
    ("hidden_size", "64.5", "is 64.5"),
    ("intermediate_size", "null", "is missing"),
    ("intermediate_size", "18446744073709551615", "from 1 to"),
    ("num_hidden_layers", "null", "is missing"),
    ("num_hidden_layers", "0", "is 0"),
    ("num_hidden_layers", "1000000000000", "is 1000000000000"),
    ("num_attention_heads", "null", "is missing"),
    ("num_attention_heads", "0", "is 0"),
    ("num_attention_heads", "3", "divide `hidden_size`, 64"),
    ("num_key_value_heads", "0", "is 0"),
    ("num_key_value_heads", "3", "divide `num_attention_heads`, 2"),
    ("head_dim", "48", "only [32, 64, 96, 128]"),
    ("rms_norm_eps", "null", "is missing"),
    ("rms_norm_eps", "-1e-5", "is -0.00001"),
    ("rms_norm_eps", "1e400", "not valid JSON"),
    ("max_position_embeddings", "null", "is missing"),
    ("max_position_embeddings", "0", "is 0"),
    ("hidden_act", "\"gelu\"", "only \"silu\""),
    ("sliding_window", "4096", "Llama layers have no sliding-window attention"),
    ("layer_types", "7", "a list of strings"),
    ("layer_types", r#"["full_attention", 1]"#, "a list of strings"),
    ("layer_types", r#"["full_attention", "sliding_attention"]"#, "holds \"sliding_attention\""),
    ("quantization_config", r#"{"quant_method": "awq"}"#, "awq"),
    ("tie_word_embeddings", "1", "true or false"),
    ("attention_bias", "\"no\"", "true or false"),
    ("torch_dtype", "\"float64\"", "only bfloat16, float16 and float32"),
    ("dtype", "7", "should be a string"),
    ("eos_token_id", "-1", "below 40"),
    ("eos_token_id", "[1, \"two\"]", "below 40"),
    ("bos_token_id", "99999999999", "below 40"),
    ("rope_theta", "0", "is 0"),
    ("rope_theta", "\"big\"", "should be a number"),
    ("partial_rotary_factor", "0.5", "partial rotation"),
    ("rope_scaling", "2", "should be an object"),
    (
        "rope_scaling",
        r#"{"rope_type": "longrope", "factor": 2.0}"#,
        "`rope_scaling.rope_type` is \"longrope\"",
    ),
    ("rope_scaling", r#"{"type": "dynamic"}"#, "`rope_scaling.factor` is missing"),
    ("rope_scaling", r#"{"type": "yarn"}"#, "`rope_scaling.factor` is missing"),
    ("rope_scaling", r#"{"type": "yarn", "factor": 0}"#, "`rope_scaling.factor` is 0"),
    ("rope_scaling", r#"{"type": "yarn", "factor": 2.0, "beta_fast": 1}"#, "below `beta_fast`, 1"),
    ("rope_scaling", r#"{"type": "yarn", "factor": 2.0, "truncate": 1}"#, "`rope_scaling.truncate` is 1"),
    (
        "rope_scaling",
        r#"{"type": "yarn", "factor": 2.0, "attention_factor": 0}"#,
        "`rope_scaling.attention_factor` is 0",
    ),
    (
        "rope_scaling",
        r#"{"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}"#,
        "`rope_scaling.original_max_position_embeddings` is 0",
    ),
    (
        "rope_parameters",
        r#"{"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}"#,
        "`rope_parameters.rope_theta` is 1",
    ),
    ("rope_scaling", r#"{"factor": 2.0}"#, "`rope_scaling.rope_type` is missing"),
    ("rope_scaling", r#"{"type": "linear"}"#, "`rope_scaling.factor` is missing"),
    ("rope_scaling", r#"{"type": "linear", "factor": 0}"#, "`rope_scaling.factor` is 0"),
    (
        "rope_parameters",
        r#"{"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4, "original_max_position_embeddings": 64}"#,
        "below `high_freq_factor`",
    ),
    (
        "rope_parameters",
        r#"{"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}"#,
        "`rope_parameters.original_max_position_embeddings` is missing",
    ),
    ("rope_parameters", r#"{"full_attention": {"rope_type": "default"}}"#, "by layer type"),
];

/// A JSON config with `field` set to `value`, which need not be valid JSON.
fn with_field(mut config: Value, field: &str, value: &str) -> String {
    const MARK: &str = "THE VALUE";
    config[field] = json!(MARK);
    config.to_string().replace(&format!("\"{MARK}\""), value)
}

#[test]
fn an_absurd_field_of_a_target_is_named() {
    let folder = Folder::target();
    for (field, value, expected) in TARGET_CASES {
        let case = format!("{field} = {value}");
        folder.write("config.json", with_field(tiny_model::config(), field, value).as_bytes());
        let sentence = sentence(&case, ModelConfig::from_hf(&folder.source()).expect_err(&case));
        assert_contains(&case, &sentence, &["config.json", expected]);
        if !expected.contains("valid JSON") {
            assert_contains(&case, &sentence, &[field]);
        }
    }
}

/// An architecture, a field of it, a value that it must not have, and what the sentence must contain beside file and field.
const ARCHITECTURE_CASES: &[(&str, &str, &str, &str)] = &[
    ("MistralForCausalLM", "num_key_value_heads", "null", "is missing"),
    ("MistralForCausalLM", "sliding_window", "0", "is 0"),
    ("MistralForCausalLM", "sliding_window", "\"wide\"", "from 1 to"),
    ("MistralForCausalLM", "layer_types", "[\"full_attention\"]", "all of one type"),
    ("Qwen2ForCausalLM", "num_key_value_heads", "null", "is missing"),
    ("Qwen2ForCausalLM", "use_sliding_window", "1", "true or false"),
    ("Qwen2ForCausalLM", "max_window_layers", "-1", "is -1"),
    ("Qwen2ForCausalLM", "layer_types", "[\"full_attention\"]", "holds 1 types: `num_hidden_layers` is 4"),
    ("Qwen2ForCausalLM", "layer_types", SLIDING, "no `sliding_window` in use"),
    ("Qwen3ForCausalLM", "layer_types", LINEAR, "holds \"linear_attention\""),
    ("Qwen3ForCausalLM", "head_dim", "null", "is missing"),
    ("Qwen3ForCausalLM", "head_dim", "80", "only [32, 64, 96, 128]"),
    (
        "Qwen2ForCausalLM",
        "rope_scaling",
        r#"{"type": "mrope", "mrope_section": [16, 24, 24]}"#,
        "has a `mrope_section` of [16, 24, 24]",
    ),
];

const SLIDING: &str = r#"["full_attention", "full_attention", "full_attention", "sliding_attention"]"#;
const LINEAR: &str = r#"["full_attention", "linear_attention", "full_attention", "full_attention"]"#;

#[test]
fn an_absurd_field_of_an_architecture_is_named() {
    let folder = Folder::target();
    for (architecture, field, value, expected) in ARCHITECTURE_CASES {
        let case = format!("{architecture}: {field} = {value}");
        let mut config = tiny_model::config();
        config["architectures"] = json!([architecture]);
        config["head_dim"] = json!(32);
        folder.write("config.json", with_field(config, field, value).as_bytes());
        let sentence = sentence(&case, ModelConfig::from_hf(&folder.source()).expect_err(&case));
        assert_contains(&case, &sentence, &["config.json", field, expected]);
    }
}

/// As [`TARGET_CASES`], for a drafter.
const DRAFTER_CASES: &[(&str, &str, &str)] = &[
    ("architectures", r#"["MedusaModel"]"#, "an EAGLE-3 drafter is one of"),
    ("num_hidden_layers", "0", "`num_hidden_layers` is 0"),
    ("draft_vocab_size", "0", "`draft_vocab_size` is 0"),
    ("draft_vocab_size", "41", "from 1 to 40"),
    ("vocab_size", "39", "it expects a vocabulary of 39, the target has 40"),
    ("target_hidden_size", "128", "it expects features of width 128, the target has 64"),
    ("hidden_size", "128", "it expects features of width 128, the target has 64"),
    ("fc_norm", "1", "`fc_norm` is 1: it should be true or false"),
    ("norm_output", r#""yes""#, "`norm_output` is \"yes\": it should be true or false"),
    ("eagle_config", r#"{"use_aux_hidden_state": 0}"#, "`eagle_config.use_aux_hidden_state` is 0"),
    (
        "eagle_config",
        r#"{"use_aux_hidden_state": false, "norm_before_fc": true}"#,
        "`eagle_config.norm_before_fc` is true, and `eagle_config.use_aux_hidden_state` false",
    ),
    ("eagle_config", r#"{"eagle_aux_hidden_state_layer_ids": [0, 3]}"#, "an integer below 3"),
    ("eagle_config", r#"{"eagle_aux_hidden_state_layer_ids": []}"#, "holds 0 layers"),
    ("eagle_config", r#"{"eagle_aux_hidden_state_layer_ids": [-1]}"#, "an integer below 4"),
    ("eagle_aux_hidden_state_layer_ids", "[2, 4]", "an integer below 4"),
    (
        "rope_scaling",
        r#"{"type": "mrope", "mrope_section": [16, 24, 24]}"#,
        "`rope_scaling` has a `mrope_section` of [16, 24, 24]: they should be the 16 pairs",
    ),
    ("transformer_layer_config", "[]", "should be an object"),
];

#[test]
fn a_drafter_that_does_not_fit_is_refused() {
    let target = ModelConfig::from_hf(&Folder::target().source()).unwrap();
    let folder = Folder::drafter();
    Eagle3Config::from_hf(&folder.source(), &target).unwrap();
    for (field, value, expected) in DRAFTER_CASES {
        let case = format!("{field} = {value}");
        folder.write("config.json", with_field(tiny_model::drafter_config(), field, value).as_bytes());
        let error = Eagle3Config::from_hf(&folder.source(), &target).expect_err(&case);
        assert_contains(&case, &sentence(&case, error), &["config.json", expected]);
    }
}

/// Command lines that are wrong in themselves, and what the sentence must contain.
const COMMAND_LINES: &[(&[&str], &str)] = &[
    (&["complete"], "complete"),
    (&["generate"], "--prompt"),
    (&["generate", "--prompt", ""], "--prompt is empty"),
    (&["generate", "--prompt", "x", "--prompt-ids", "1"], "several prompts"),
    (&["generate", "--prompt-ids", "1,x"], "--prompt-ids"),
    (&["generate", "--prompt", "x", "--temperature", "-1"], "--temperature"),
    (&["generate", "--prompt", "x", "--top-p", "0"], "--top-p"),
    (&["generate", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
    (&["generate", "--prompt", "x", "--policy", "chain:0"], "--policy"),
    (&["generate", "--prompt", "x", "--policy", "eagle2:99,5,60"], "--policy"),
    (&["generate", "--prompt", "x", "--device", "tpu"], "--device"),
    (&["generate", "--prompt", "x", "--image", "cat.png"], "--image"),
    (&["inspect"], "<DIR>"),
    (&["inspect", "/nowhere"], "/nowhere: there is no such model folder"),
    (&["inspect", "/dev/null"], "/dev/null: this is a file; give the model's folder"),
    (&["convert", "/nowhere"], "--out"),
    (&["convert", "/nowhere", "--out", "out"], "/nowhere: there is no such model folder"),
    (&["convert", "/nowhere", "--out", "/nowhere/else/out"], "/nowhere/else: no such folder"),
    (&["convert", "/nowhere", "--out", "/dev/null"], "/dev/null: this is a file"),
    (&["convert", "/nowhere", "--out", "/dev"], "/dev: this folder is not empty"),
    (&["convert", "/nowhere", "--out", "out", "--max-shard-size", "much"], "--max-shard-size"),
    (&["convert", "/nowhere", "--out", "out", "--dtype", "i8"], "--dtype"),
];

#[test]
fn a_wrong_command_line_exits_with_2_and_one_sentence() {
    for (arguments, expected) in COMMAND_LINES {
        let case = arguments.join(" ");
        let start = Instant::now();
        let output = program().args(*arguments).output().unwrap();
        assert!(start.elapsed() < AT_ONCE, "{case} took {:?}", start.elapsed());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{case}: {stderr}");
        assert!(output.stdout.is_empty(), "{case} printed to stdout");
        assert_eq!(stderr.lines().count(), 1, "{case}: {stderr}");
        assert_contains(&case, &stderr, &[expected]);
    }
}

// ---- faults seen by the whole program

/// What spoils the folder, more arguments, exit code, and what the sentence must contain.
type RunCase = (&'static str, fn(&Folder), &'static [&'static str], i32, &'static str);

const RUN_CASES: &[RunCase] = &[
    ("no_config", |f| f.remove("config.json"), &["--prompt-ids", "1"], 2, "no config.json here"),
    (
        "weights_cut",
        |f| f.write("model.safetensors", &f.read("model.safetensors")[..100]),
        &["--prompt-ids", "1"],
        2,
        "truncated",
    ),
    (
        "wrong_shape",
        |f| spoil_tensors(f, |t| t[1].1 = vec![65]),
        &["--prompt-ids", "1"],
        2,
        "tensor model.norm.weight",
    ),
    (
        "tensor_missing",
        |f| {
            spoil_tensors(f, |t| {
                t.remove(1);
            })
        },
        &["--prompt-ids", "1"],
        2,
        "model.norm.weight is missing",
    ),
    (
        "tensor_too_many",
        |f| spoil_tensors(f, |t| t.push(("lm_head.bias".into(), vec![1]))),
        &["--prompt-ids", "1"],
        2,
        "lm_head.bias",
    ),
    ("no_tokenizer_for_text", |f| f.remove("tokenizer.json"), &["--prompt", "a"], 2, "tokenizer.json"),
    ("id_outside_the_vocabulary", |_| (), &["--prompt-ids", "1,40"], 2, "40"),
    ("prompt_longer_than_the_context", short_context, &["--prompt-ids", "1,1,1,1,1"], 2, "context of 4"),
    ("prompt_file_missing", |_| (), &["--prompt-file", "/nowhere/prompt"], 2, "/nowhere/prompt"),
    ("drafter_missing", |_| (), &["--prompt-ids", "1", "--draft", "/nowhere/draft"], 2, "/nowhere/draft"),
    (
        "draft_vocabulary_alone",
        |_| (),
        &["--prompt-ids", "1", "--draft-vocab", "20"],
        2,
        "for a drafter with weights",
    ),
    ("trace_not_writable", |_| (), &["--prompt-ids", "1", "--trace", "/nowhere/trace"], 2, "/nowhere/trace"),
    // Only where there is no GPU.
    ("no_gpu", |_| (), &["--prompt-ids", "1", "--device", "cuda:0"], 1, "cuda:0"),
];

fn short_context(folder: &Folder) {
    let mut config = tiny_model::config();
    config["max_position_embeddings"] = 4.into();
    folder.write_json("config.json", &config);
}

#[test]
fn a_fault_is_one_sentence_of_the_program() {
    for (case, spoil, arguments, code, expected) in RUN_CASES {
        let folder = Folder::target();
        spoil(&folder);
        let mut command = program();
        command.args(["generate", "--model"]).arg(folder.path());
        if *case != "no_gpu" {
            command.args(["--device", "host"]);
        }
        let output = command.args(*arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(*code), "{case}: {stderr}");
        assert!(output.stdout.is_empty(), "{case} printed to stdout");
        assert_eq!(stderr.lines().count(), 1, "{case}: {stderr}");
        assert_contains(case, &stderr, &[expected]);
    }
}

/// Families by name, and parts that are left out, give the same text; anything else is one sentence.
#[test]
fn variables_change_no_text_and_take_nothing_that_they_do_not_know() {
    let folder = Folder::target();
    let families = [("SMART_LINEAR", "mma or wgmma"), ("SMART_ATTENTION", "mma or wgmma")];
    let parts = ["SMART_GRAPHS", "SMART_OVERLAP", "SMART_AHEAD", "SMART_CLUSTERS"].map(|it| (it, "0 or 1"));
    for (variable, known) in families.into_iter().chain(parts) {
        let run = |value: &str| {
            let mut command = program();
            command.args(["generate", "--device", "host", "--prompt-ids", "1", "--max-new-tokens", "4"]);
            command.arg("--model").arg(folder.path()).env(variable, value).output().unwrap()
        };
        let outputs: Vec<_> = std::iter::once("").chain(known.split(" or ")).map(run).collect();
        for output in &outputs {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(output.stdout, outputs[0].stdout);
        }
        let refused = run("tensor");
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert_contains(variable, &stderr, &[&format!("{variable}=tensor: expected {known}")]);
    }
}
