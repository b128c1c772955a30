//! `smart-run inspect` and `smart-run convert` as programs: what they say of folders, and that no weight changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use smart_run::config::{FloatType, ModelSource};
use smart_run::weights::{Checkpoint, StoredType};

#[path = "common/program.rs"]
mod program;
#[allow(dead_code)]
#[path = "common/tiny_model.rs"]
mod tiny_model;
#[allow(dead_code)]
#[path = "common/torch_zip.rs"]
mod torch_zip;

use program::program;
use tiny_model::Folder;

fn smart_run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = smart_run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Fails with exit code 2, one sentence, which is returned, and nothing on standard output.
fn is_refused(arguments: &[&str]) -> String {
    let output = smart_run(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty() && said.lines().count() == 1, "{arguments:?}: {said}");
    said
}

fn inspected(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeeds(&[&["inspect"], arguments, &["--format", "json"]].concat())).unwrap()
}

fn in_repository(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).to_str().unwrap().to_owned()
}

fn path_of(folder: &Folder) -> &str {
    folder.path().to_str().unwrap()
}

fn open(folder: impl AsRef<Path>) -> Checkpoint {
    Checkpoint::open(&ModelSource::from(folder.as_ref())).unwrap()
}

/// The name of every file in `folder`.
fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A model of the repository with its weights as pytorch_model.bin, below `folder`.
fn as_torch(folder: &Path, model: &str) -> PathBuf {
    let source = PathBuf::from(in_repository(model));
    let made = folder.join(source.file_name().unwrap());
    fs::create_dir(&made).unwrap();
    for name in files(&source).iter().filter(|name| name.ends_with(".json")) {
        fs::copy(source.join(name), made.join(name)).unwrap();
    }
    let checkpoint = open(&source);
    let class = |dtype: StoredType| match dtype {
        StoredType::BF16 => "BFloat16Storage",
        StoredType::I64 => "LongStorage",
        StoredType::BOOL => "BoolStorage",
        other => panic!("{other:?}"),
    };
    let views: Vec<_> = checkpoint.names().map(|name| checkpoint.get(name).unwrap()).collect();
    let tensors: Vec<_> =
        views.iter().map(|view| (view.name, class(view.dtype), view.shape.to_vec(), view.bytes)).collect();
    fs::write(made.join("pytorch_model.bin"), torch_zip::torch_file(&tensors)).unwrap();
    made
}

/// The demo pair says the same from safetensors, from PyTorch files, and from what `convert` makes of those.
#[test]
fn the_demo_pair_says_the_same_from_any_file() {
    let folder = tempfile::tempdir().unwrap();
    let demo = ["assets/demo/target", "assets/demo/drafter"];
    let torch = demo.map(|model| as_torch(folder.path(), model).to_str().unwrap().to_owned());
    let converted =
        ["new_target", "new_drafter"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    for (from, to) in torch.iter().zip(&converted) {
        let said = succeeds(&["convert", from, "--out", to]);
        assert!(said.contains("in 1 file of safetensors"), "{said}");
    }
    let generate = |pair: &[String; 2]| {
        let [target, drafter] = pair;
        let flags =
            ["generate", "--model", target, "--draft", drafter, "--device", "host", "--format", "json"];
        let request =
            ["--prompt", "def main(", "--max-new-tokens", "24", "--temperature", "0.7", "--seed", "3"];
        let answer: Value = serde_json::from_str(&succeeds(&[&flags[..], &request].concat())).unwrap();
        answer["token_ids"].clone()
    };
    let expected = generate(&demo.map(in_repository));
    assert_eq!(expected.as_array().unwrap().len(), 24);
    assert_eq!(generate(&torch), expected);
    assert_eq!(generate(&converted), expected);

    for (model, converted) in demo.iter().zip(&converted) {
        let (before, after) = (open(in_repository(model)), open(converted));
        assert!(before.names().eq(after.names()));
        for name in before.names() {
            let (before, after) = (before.get(name).unwrap(), after.get(name).unwrap());
            assert!(before.dtype == after.dtype && before.bytes == after.bytes, "{name}");
        }
    }
    let copied = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(files(Path::new(&converted[0])), copied);
    assert_eq!(inspected(&[&torch[1], "--target", &converted[0]])["target"]["fits"], true);
}

#[test]
fn convert_shards_and_rounds() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("f32").to_str().unwrap().to_owned();
    let drafter = in_repository("assets/demo/drafter");
    fs::create_dir(&out).unwrap(); // an empty folder may be there
    succeeds(&["convert", &drafter, "--out", &out, "--dtype", "f32", "--max-shard-size", "2MiB"]);
    let (before, after) = (open(&drafter), open(&out));
    assert!(after.files().count() > 2 && after.files().all(|(_, _, bytes)| bytes < (2 << 20) + 4096));
    let index: Value =
        serde_json::from_slice(&fs::read(Path::new(&out).join("model.safetensors.index.json")).unwrap())
            .unwrap();
    assert_eq!(index["metadata"]["total_size"], after.total_bytes());
    let (first, _, _) = after.files().next().unwrap();
    let header = fs::read(first).unwrap();
    assert!(text(&header[8..60]).starts_with(r#"{"__metadata__":{"format":"pt"}"#));
    for name in before.names() {
        let (before, after) = (before.get(name).unwrap(), after.get(name).unwrap());
        assert_eq!(before.shape, after.shape, "{name}");
        if before.dtype == StoredType::BF16 {
            let mut widened = vec![0; before.num_elements() * 4];
            before.copy_converted(FloatType::F32, &mut widened).unwrap();
            assert!(after.dtype == StoredType::F32 && after.bytes == widened, "{name}");
        } else {
            assert!(after.dtype == before.dtype && after.bytes == before.bytes, "{name}: tables stay");
        }
    }
    let config: Value =
        serde_json::from_slice(&fs::read(Path::new(&out).join("config.json")).unwrap()).unwrap();
    assert!([&config["dtype"], &config["torch_dtype"]].contains(&&json!("float32")), "{config}");

    // Back again: every value of bf16 is one of f32.
    let back = folder.path().join("bf16").to_str().unwrap().to_owned();
    succeeds(&["convert", &out, "--out", &back, "--dtype", "bf16"]);
    let back = open(&back);
    before.names().for_each(|name| assert!(back.get(name).unwrap().bytes == before.get(name).unwrap().bytes));
}

/// Strided, shared, empty and scalar tensors of every type come out as torch itself would write them.
#[test]
fn what_torch_saved_is_converted_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::copy(in_repository("tests/golden/torch/legacy_protocol2.bin"), model.join("pytorch_model.bin"))
        .unwrap();
    for (name, content) in
        [("LICENSE", "x"), ("tokenizer.model", "y"), ("training_args.bin", "z"), (".hidden.json", "{}")]
    {
        fs::write(model.join(name), content).unwrap();
    }
    let out = folder.path().join("out").to_str().unwrap().to_owned();
    succeeds(&["convert", model.to_str().unwrap(), "--out", &out]);
    let twin = fs::read(in_repository("tests/golden/torch/twin.safetensors")).unwrap().leak();
    let (expected, got) = (Checkpoint::from_static("twin", twin).unwrap(), open(&out));
    for name in got.names() {
        let (expected, got) = (expected.get(name).unwrap(), got.get(name).unwrap());
        assert_eq!(
            (got.dtype, got.shape, got.bytes),
            (expected.dtype, expected.shape, expected.bytes),
            "{name}"
        );
    }
    assert_eq!(got.names().count(), expected.names().filter(|name| !name.starts_with("untyped.")).count());
    assert_eq!(files(Path::new(&out)), ["LICENSE", "model.safetensors", "tokenizer.model"]);
}

/// A failure leaves neither the folder nor a part of it.
#[test]
fn a_failed_conversion_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out").to_str().unwrap().to_owned();
    let folder = Folder::target();
    let weights = folder.read("model.safetensors");
    let mut large = weights.clone();
    let at = large.len() - 4;
    large[at..].copy_from_slice(&1e6f32.to_le_bytes());
    folder.write("model.safetensors", &large);
    let said = is_refused(&["convert", path_of(&folder), "--out", &out, "--dtype", "f16"]);
    assert!(said.contains("down_proj.weight holds values too large for f16"), "{said}");
    folder.write("model.safetensors", &weights);
    folder.write("config.json", b"{");
    let said = is_refused(&["convert", path_of(&folder), "--out", &out, "--dtype", "f16"]);
    assert!(said.contains("config.json: this is not valid JSON"), "{said}");
    folder.write("model.safetensors", &weights[..100]);
    is_refused(&["convert", path_of(&folder), "--out", &out]);
    folder.remove("model.safetensors");
    folder.write(
        "pytorch_model.bin",
        &torch_zip::torch_file(&[("__metadata__", "ByteStorage", vec![1], b"x")]),
    );
    let said = is_refused(&["convert", path_of(&folder), "--out", &out]);
    assert!(said.contains("tensor __metadata__ has a name that safetensors files keep"), "{said}");
    assert!(files(parent.path()).is_empty(), "{:?}", files(parent.path()));

    let kept = Folder::drafter();
    let said = is_refused(&["convert", path_of(&folder), "--out", path_of(&kept)]);
    assert!(said.contains("not empty"), "{said}");
    assert_eq!(files(kept.path()), ["config.json"]);
}

#[test]
fn the_demo_pair_is_described() {
    let [target, drafter] = ["assets/demo/target", "assets/demo/drafter"].map(in_repository);
    let said = succeeds(&["inspect", &target]);
    for part in [
        "target (LlamaForCausalLM)",
        "runs           yes\n",
        "9.18 million as bf16 (74 tensors)",
        "17.52 MiB in model.safetensors (safetensors)",
        "4096 tokens",
        "8 layers of width 256",
        "2048 tokens",
        "4096 bytes per token in bf16",
        "tokenizer.json, 4096 ids",
        "    model.layers.{0..7}.mlp.up_proj.weight [896, 256] bf16\n",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    let answer = inspected(&[&drafter, "--target", &target]);
    let expected = json!({"folder": target, "fits": true, "mismatches": []});
    assert_eq!(
        (&answer["kind"], &answer["runs"], &answer["target"]),
        (&json!("eagle3"), &json!(true), &expected)
    );
    assert_eq!((&answer["draft_vocab_size"], &answer["kv_bytes_per_token"]), (&json!(1024), &json!(512)));
    let tensors = answer["tensors"].as_array().unwrap();
    assert!(tensors.contains(&json!({"name": "d2t", "shape": [1024], "dtype": "i64", "bytes": 8192})));
    let bytes: u64 = tensors.iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    assert_eq!(answer["bytes"], bytes);
}

/// What is wrong with a target, as loading it would say.
#[test]
fn a_target_that_cannot_run_says_why() {
    type Case = (fn(&Folder), &'static str);
    let cases: [Case; 7] = [
        (
            |f| {
                f.write_json(
                    "config.json",
                    &with(tiny_model::config(), "architectures", json!(["GPT2LMHeadModel"])),
                )
            },
            "GPT2LMHeadModel",
        ),
        (
            |f| f.write_json("config.json", &with(tiny_model::config(), "num_hidden_layers", json!(5))),
            "tensor model.layers.4.",
        ),
        (
            |f| f.write_json("config.json", &with(tiny_model::config(), "num_hidden_layers", json!(3))),
            "model.layers.3.input_layernorm.weight",
        ),
        (
            |f| f.write_json("config.json", &with(tiny_model::config(), "intermediate_size", json!(97))),
            "[96, 64], but the config asks for [97, 64]",
        ),
        (
            |f| f.write_json("config.json", &with(tiny_model::config(), "tie_word_embeddings", json!(false))),
            "tensor lm_head.weight is missing",
        ),
        (|f| f.write("model.safetensors", &tiny_model::safetensors(&tiny_model::tensors(), "I32", 4)), "I32"),
        (|f| f.write("tokenizer.json", b"{"), "tokenizer.json"),
    ];
    let sound = Folder::target();
    assert_eq!(inspected(&[path_of(&sound)])["runs"], true);
    for (spoil, expected) in cases {
        let folder = Folder::target();
        spoil(&folder);
        let answer = inspected(&[path_of(&folder)]);
        assert_eq!((&answer["runs"], &answer["kind"]), (&json!(false), &json!("target")), "{expected}");
        let reason = answer["reason"].as_str().unwrap();
        assert!(reason.contains(expected), "{expected:?} is not in {reason:?}");
    }
}

fn with(mut config: Value, field: &str, value: Value) -> Value {
    config[field] = value;
    config
}

/// A drafter of the golden pair whose config or table is not its target's.
#[test]
fn a_drafter_that_does_not_fit_says_where() {
    let target = in_repository("tests/golden/llama31_gqa");
    let drafter = PathBuf::from(in_repository("tests/golden/eagle3_random/drafter"));
    let folder = tempfile::tempdir().unwrap();
    let made = |field: &str, value: Value, d2t: i64| {
        let config: Value = serde_json::from_slice(&fs::read(drafter.join("config.json")).unwrap()).unwrap();
        fs::write(folder.path().join("config.json"), with(config, field, value).to_string()).unwrap();
        let mut weights = fs::read(drafter.join("model.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
        let fields: Value = serde_json::from_slice(&weights[8..header]).unwrap();
        let last = header + fields["d2t"]["data_offsets"][1].as_u64().unwrap() as usize - 8;
        if d2t != 0 {
            weights[last..last + 8].copy_from_slice(&d2t.to_le_bytes());
        }
        fs::write(folder.path().join("model.safetensors"), weights).unwrap();
        let answer = inspected(&[folder.path().to_str().unwrap(), "--target", &target]);
        let mismatches: Vec<String> = serde_json::from_value(answer["target"]["mismatches"].clone()).unwrap();
        assert_eq!(answer["target"]["fits"], mismatches.is_empty());
        assert_eq!(answer["runs"], true, "{answer}");
        mismatches.join("; ")
    };
    assert_eq!(made("note", json!("sound"), 0), "");
    let taps = |ids: Value| made("eagle_config", json!({"eagle_aux_hidden_state_layer_ids": ids}), 0);
    assert_eq!(taps(json!([0, 2, 5])), "");
    for (got, expected) in [
        (made("vocab_size", json!(161), 0), "it expects a vocabulary of 161, the target has 160"),
        (made("target_hidden_size", json!(64), 0), "it expects features of width 64, the target has 48"),
        (taps(json!([0, 2, 6])), "holds 6: it should be an integer below 6"),
        (taps(json!([0, 2])), "tensor fc.weight has the shape [48, 144], but the config asks for [48, 96]"),
        (made("note", json!(""), 65), "tensor d2t maps draft id 95 outside the target's vocabulary of 160"),
        (made("draft_vocab_size", json!(95), 0), "lm_head.weight has the shape [96, 48]"),
    ] {
        assert!(got.contains(expected), "{expected:?} is not in {got:?}");
    }
    // A target that cannot run is not the drafter's fault.
    let broken = Folder::target();
    for (file, content) in
        [("config.json", fs::read(format!("{target}/config.json")).unwrap()), ("model.safetensors", vec![])]
    {
        broken.write(file, &content);
    }
    let answer = inspected(&[drafter.to_str().unwrap(), "--target", path_of(&broken)]);
    let said = answer["target"]["mismatches"][0].as_str().unwrap();
    assert!(said.starts_with("the target itself cannot run: ") && said.contains("truncated"), "{said}");
    // Faults of the drafter alone need no target.
    let config = with(tiny_model::drafter_config(), "fc_norm", json!(true));
    let config = with(config, "norm_before_fc", json!(true));
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let answer = inspected(&[folder.path().to_str().unwrap()]);
    assert_eq!(answer["runs"], false);
    assert!(answer["reason"].as_str().unwrap().contains("a drafter has one of the two"), "{answer}");
}

/// Families that are known, some of them not run yet; nothing is known of the last.
#[test]
fn other_families_are_told_apart() {
    let eagle: &[(&str, &[usize])] = &[
        ("embed_tokens.weight", &[40, 64]),
        ("fc.weight", &[64, 128]),
        ("layers.0.self_attn.q_proj.weight", &[64, 64]),
    ];
    let folder = Folder::drafter();
    let write = |tensors: &[(&str, &[usize])]| {
        let tensors: Vec<_> =
            tensors.iter().map(|&(name, shape)| (name.to_string(), shape.to_vec())).collect();
        folder.write("model.safetensors", &tiny_model::safetensors(&tensors, "BF16", 2));
    };
    write(eagle);
    let target = Folder::target();
    let answer = inspected(&[path_of(&folder), "--target", path_of(&target)]);
    // The config is an EAGLE-3 drafter's, so the sizes fit and it does not run.
    assert_eq!((&answer["kind"], &answer["runs"]), (&json!("eagle1"), &json!(false)));
    assert_eq!(answer["target"]["fits"], true, "{answer}");
    let (whole, its_target) =
        (in_repository("tests/golden/eagle1_random/drafter"), in_repository("tests/golden/llama31_gqa"));
    let answer = inspected(&[&whole, "--target", &its_target]);
    assert_eq!((&answer["kind"], &answer["runs"]), (&json!("eagle1"), &json!(true)));
    assert_eq!(answer["target"]["fits"], true, "{answer}");
    folder.write_json("config.json", &with(tiny_model::drafter_config(), "model_type", json!("qwen2_vl")));
    assert_eq!(inspected(&[path_of(&folder)])["kind"], "msd");
    write(&[("encoder.weight", &[2])]);
    let answer = inspected(&[path_of(&folder)]);
    assert_eq!((&answer["kind"], &answer["runs"]), (&Value::Null, &json!(false)));

    let medusa = in_repository("tests/golden/torch/medusa");
    let answer = inspected(&[&medusa, "--target", path_of(&target)]);
    assert_eq!(
        (&answer["kind"], &answer["dtype"], &answer["parameters"]),
        (&json!("medusa"), &json!("f16"), &json!(336))
    );
    let expected = [
        "it expects features of width 8, the target has 64",
        "it expects a vocabulary of 12, the target has 40",
    ];
    assert_eq!(answer["target"]["mismatches"], json!(expected));
    assert_eq!(answer["runs"], true, "heads for some other target");
    let heads = in_repository("tests/golden/medusa_random/drafter");
    let out = tempfile::tempdir().unwrap();
    let converted = out.path().join("converted").to_str().unwrap().to_owned();
    succeeds(&["convert", &heads, "--out", &converted]);
    for folder in [&heads, &converted, &in_repository("tests/golden/medusa_random/drafter_safetensors")] {
        let answer = inspected(&[folder, "--target", &its_target]);
        assert_eq!((&answer["kind"], &answer["runs"]), (&json!("medusa"), &json!(true)), "{folder}");
        assert_eq!(answer["target"]["fits"], true, "{answer}");
    }
    std::fs::write(Path::new(&converted).join("config.json"), r#"{"medusa_num_layers": 3}"#).unwrap();
    let answer = inspected(&[&converted]);
    assert_eq!((&answer["kind"], &answer["runs"]), (&json!("medusa"), &json!(false)));
    let reason = answer["reason"].as_str().unwrap();
    assert!(reason.contains("medusa_num_layers") && reason.contains("0.3.weight"), "{reason}");
    let said = is_refused(&["inspect", path_of(&target), "--target", path_of(&target)]);
    assert!(said.contains("--target goes with a drafter"), "{said}");
}

/// What `inspect` says of a context is what the engine goes by, also where a config has two lengths.
#[test]
fn a_stretched_context_is_the_one_that_counts() {
    let folder = Folder::target();
    folder.write_json("config.json", &with(tiny_model::config(), "max_sequence_length", json!(4096)));
    assert_eq!(inspected(&[path_of(&folder)])["context"], 4096);
}

#[test]
fn chat_templates_are_found_where_models_keep_them() {
    let folder = Folder::target();
    let found = || inspected(&[path_of(&folder)])["chat_template"].clone();
    folder.write_json("tokenizer_config.json", &json!({"chat_template": null}));
    assert_eq!(found(), Value::Null);
    folder.write_json("tokenizer_config.json", &json!({"chat_template": "{{ messages }}"}));
    assert_eq!(found(), "tokenizer_config.json");
    folder.write("chat_template.jinja", b"{{ messages }}");
    assert_eq!(found(), "chat_template.jinja");
    folder.remove("chat_template.jinja");
    folder.write("tokenizer_config.json", b"{");
    assert!(is_refused(&["inspect", path_of(&folder)]).contains("tokenizer_config.json"));
}

/// A pickle that asks for a function is refused by either command, and the function is named.
#[test]
fn hostile_weights_are_named_by_either_command() {
    let folder = Folder::target();
    folder.remove("model.safetensors");
    let pickle = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.";
    folder.write("pytorch_model.bin", &torch_zip::Zip::default().entry("x/data.pkl", pickle).file());
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out").to_str().unwrap().to_owned();
    for arguments in [vec!["inspect", path_of(&folder)], vec!["convert", path_of(&folder), "--out", &out]] {
        assert!(is_refused(&arguments).contains("pytorch_model.bin: its pickle names os.system"));
    }
    assert!(files(parent.path()).is_empty());
}
