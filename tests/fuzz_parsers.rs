//! Fuzzing of everything that reads a file: random damage to sound files never panics, never hangs, and what is accepted
//! keeps its promises.
//!
//! Bounded: [`CASES`] per parser, or `PROPTEST_CASES`.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use smart_run::config::{Eagle3Config, FeatureKind, FloatType, HEAD_DIMS, ModelConfig};
use smart_run::control::trace::{TraceReader, TraceRecord};
use smart_run::control::{CostTable, SweepKind, SweepPoint, roofline};
use smart_run::text::{ChatTemplate, Message, Tokenizer};
use smart_run::weights::Checkpoint;

#[allow(dead_code)]
#[path = "common/tiny_model.rs"]
mod tiny_model;

#[allow(dead_code)]
#[path = "common/torch_zip.rs"]
mod torch_zip;

use tiny_model::Folder;

/// Damaged files per parser.
const CASES: u32 = 512;
/// A damaged file must be accepted or refused within this; it takes some 100 us.
const NO_HANG: Duration = Duration::from_secs(2);

/// Damage to bytes.
#[derive(Debug, Clone)]
enum ByteDamage {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Truncate(Index),
    Repeat(Index, usize),
}

fn byte_damage() -> impl Strategy<Value = Vec<ByteDamage>> {
    let bytes = || {
        prop_oneof![any::<u8>(), prop::sample::select(b"0123456789-+.eE\"\\{}[],: \0\xFFnulltrue".to_vec())]
    };
    let damage = prop_oneof![
        (any::<Index>(), bytes()).prop_map(|(at, byte)| ByteDamage::Set(at, byte)),
        (any::<Index>(), 0..8u8).prop_map(|(at, bit)| ByteDamage::Flip(at, bit)),
        (any::<Index>(), prop::collection::vec(bytes(), 1..9))
            .prop_map(|(at, bytes)| ByteDamage::Insert(at, bytes)),
        (any::<Index>(), 1..64usize).prop_map(|(at, len)| ByteDamage::Remove(at, len)),
        any::<Index>().prop_map(ByteDamage::Truncate),
        (any::<Index>(), 1..64usize).prop_map(|(at, len)| ByteDamage::Repeat(at, len)),
    ];
    prop::collection::vec(damage, 1..5)
}

fn damage_bytes(mut file: Vec<u8>, damage: &[ByteDamage]) -> Vec<u8> {
    for one in damage {
        if file.is_empty() {
            return file;
        }
        let len = file.len();
        let span = |at: &Index, length: usize| at.index(len)..(at.index(len) + length).min(len);
        match one {
            ByteDamage::Set(at, byte) => file[at.index(len)] = *byte,
            ByteDamage::Flip(at, bit) => file[at.index(len)] ^= 1 << bit,
            ByteDamage::Insert(at, bytes) => drop(file.splice(span(at, 0), bytes.iter().copied())),
            ByteDamage::Remove(at, length) => drop(file.drain(span(at, *length))),
            ByteDamage::Truncate(at) => file.truncate(at.index(len)),
            ByteDamage::Repeat(at, length) => {
                let repeated = file[span(at, *length)].to_vec();
                file.splice(span(at, 0), repeated);
            }
        }
    }
    file
}

/// Damage to a JSON document that leaves it JSON: a node is replaced, removed, or overwritten by another one.
#[derive(Debug, Clone)]
enum NodeDamage {
    Replace(Index, Value),
    Remove(Index),
    Copy(Index, Index),
}

fn node_damage() -> impl Strategy<Value = Vec<NodeDamage>> {
    let value = prop::sample::select(vec![
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(1_000_000_000_000u64),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(4_294_967_295u64),
        json!(4_294_967_296u64),
        json!(0.5),
        json!(1e300),
        json!(""),
        json!("a"),
        json!("ab"),
        json!("é"),
        json!("Ġ"),
        json!("▁"),
        json!("##"),
        json!("BPE"),
        json!("Unigram"),
        json!("WordPiece"),
        json!("WordLevel"),
        json!("ByteLevel"),
        json!("Metaspace"),
        json!("Sequence"),
        json!("Left"),
        json!("F32"),
        json!("F4"),
        json!("(?:"),
        json!("(a*)*$"),
        json!("linear"),
        json!([]),
        json!({}),
        json!([0, 0]),
        json!([[]]),
        json!({"a": 1}),
    ]);
    let damage = prop_oneof![
        4 => (any::<Index>(), value).prop_map(|(at, value)| NodeDamage::Replace(at, value)),
        2 => any::<Index>().prop_map(NodeDamage::Remove),
        2 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| NodeDamage::Copy(from, to)),
    ];
    prop::collection::vec(damage, 1..5)
}

/// JSON pointers of all nodes below the root.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(object) => {
            let escape = |name: &String| name.replace('~', "~0").replace('/', "~1");
            object.iter().map(|(name, child)| (escape(name), child)).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, child)| (index.to_string(), child)).collect()
        }
        _ => Vec::new(),
    };
    for (name, child) in children {
        let pointer = format!("{at}/{name}");
        pointers(child, &pointer, found);
        found.push(pointer);
    }
}

fn damage_nodes(mut document: Value, damage: &[NodeDamage]) -> Value {
    for one in damage {
        let mut nodes = Vec::new();
        pointers(&document, "", &mut nodes);
        if nodes.is_empty() {
            return document;
        }
        let pointer = |at: &Index| at.get(&nodes).clone();
        match one {
            NodeDamage::Replace(at, value) => *document.pointer_mut(&pointer(at)).unwrap() = value.clone(),
            NodeDamage::Copy(from, to) => {
                let copy = document.pointer(&pointer(from)).unwrap().clone();
                *document.pointer_mut(&pointer(to)).unwrap() = copy;
            }
            NodeDamage::Remove(at) => {
                let pointer = pointer(at);
                let (parent, name) = pointer.rsplit_once('/').unwrap();
                match document.pointer_mut(parent).unwrap() {
                    Value::Object(object) => drop(object.remove(&name.replace("~1", "/").replace("~0", "~"))),
                    Value::Array(items) => drop(items.remove(name.parse().unwrap())),
                    _ => unreachable!("only objects and arrays have children"),
                }
            }
        }
    }
    document
}

fn within_time<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    assert!(start.elapsed() < NO_HANG, "took {:?}", start.elapsed());
    result
}

/// Reads `config` as a target's; what is accepted must hold what the types promise.
fn check_config(folder: &Folder, config: &[u8]) {
    folder.write("config.json", config);
    if let Ok(config) = within_time(|| ModelConfig::from_hf(&folder.source())) {
        assert_eq!(config.geometry.num_q_heads % config.geometry.num_kv_heads, 0);
        assert!(HEAD_DIMS.contains(&config.geometry.head_dim));
        assert!(
            config.geometry.num_layers > 0
                && config.geometry.vocab_size > 0
                && config.geometry.rms_norm_eps > 0.0
        );
        let special = config.eos_token_ids.iter().chain(&config.bos_token_id);
        special.for_each(|&id| assert!((0..config.geometry.vocab_size as i32).contains(&id)));
        let table = config.geometry.rope.cos_sin_table(3, config.geometry.head_dim);
        assert!(table.iter().all(|value| (-1.0..=1.0).contains(value)), "{:?}", config.geometry.rope);
    }
}

/// Opens the checkpoint in `folder` and reads all of it.
fn check_checkpoint(folder: &Folder) {
    let Ok(checkpoint) = within_time(|| Checkpoint::open(&folder.source())) else { return };
    for name in checkpoint.names() {
        let view = checkpoint.get(name).unwrap();
        let mut converted = vec![0; view.num_elements() * 4];
        if view.float_type().is_ok() {
            view.copy_converted(FloatType::F32, &mut converted).unwrap();
        }
        let _ = view.to_i64_vec();
    }
    let _ = checkpoint.float_type();
    checkpoint.finish().unwrap();
}

/// Uses the tokenizer that `json` describes, if it is accepted.
fn check_tokenizer(json: &[u8]) {
    within_time(|| {
        let Ok(tokenizer) = Tokenizer::from_json("tokenizer.json", json) else { return };
        let _ = tokenizer.num_ids();
        let mut ids: Vec<i32> = (0..40).chain([i32::MAX, -1]).collect();
        for text in ["", "abc ab", "  a é\u{1F600}\n", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa!", "<s>a<s>"] {
            ids.extend(tokenizer.encode(text, true).unwrap_or_default());
            let _ = tokenizer.encode(text, false);
        }
        let _ = tokenizer.decode(&ids);
        let mut stream = tokenizer.stream();
        for id in ids {
            let _ = stream.push(id);
        }
        let _ = stream.finish();
    });
}

/// Renders a conversation with the chat template of `folder`: within a bounded time and length, or refused in one sentence.
fn check_chat_template(folder: &Folder, messages: &[Message], tools: &Value) {
    let rendered = within_time(|| match ChatTemplate::open(&folder.source()) {
        Ok(Some(template)) => template.render(messages, Some(tools), true).map(|text| text.len()),
        Ok(None) => Ok(0),
        Err(error) => Err(error),
    });
    match rendered {
        Ok(bytes) => assert!(bytes < 64 << 20, "{bytes} bytes"),
        Err(error) => assert!(error.is_input() && !error.to_string().contains('\n'), "{error}"),
    }
}

/// Reads a trace; every record that is handed out must be a tree with a verified path.
fn check_trace(file: &[u8]) {
    within_time(|| {
        let Ok(reader) = TraceReader::new(file, "trace.jsonl") else { return };
        let mut expected = 0;
        for record in reader.map_while(|record| record.ok()) {
            match record {
                TraceRecord::Round(times) => {
                    assert_eq!(times.round, expected);
                    expected += 1;
                }
                TraceRecord::Sequence(sequence) => {
                    assert_eq!(sequence.round, expected);
                    let (tree, mut last) = (&sequence.tree, 0);
                    let lengths = [tree.q.len(), tree.ratio.len(), tree.verified.len(), tree.parents.len()];
                    assert_eq!(lengths, [tree.tokens.len(); 4]);
                    let parents = tree.parents.iter().enumerate().skip(1);
                    parents.for_each(|(node, &parent)| assert!((0..node as i32).contains(&parent)));
                    for &node in &sequence.accepted {
                        assert_eq!((tree.parents[node as usize], tree.verified[node as usize]), (last, true));
                        last = node as i32;
                    }
                }
            }
        }
    });
}

/// A trace of a round of two sequences, and of a plain one.
fn small_trace() -> Vec<Value> {
    let sequence = |round: u64, number: u64, batch: u64| {
        json!({"round": round, "batch": batch, "sequence": number, "position": 9,
            "tree": {"tokens": [2, 3, 4], "parents": [-1, 0, 1], "logprob": [0.0, -0.5, null], "q": [1.0, 0.5, 0.25],
                     "path_prob": [1.0, 0.5, 0.125], "ratio": [null, 2.0, 0.5], "expanded": [true, true, false],
                     "verified": [true, true, false]},
            "accepted": [1], "bonus_token": 28, "speedup": 1.5})
    };
    let phases = json!({"draft": null, "verify": 2.0, "total": 3.5});
    let times = |round: u64| json!({"round": round, "predicted_us": phases, "measured_us": phases});
    let header = json!({"version": 1, "model": "m", "drafter": "d", "device": "d", "policy": "smart", "seed": 1, "temperature": 0.5});
    vec![header, sequence(0, 0, 2), sequence(0, 1, 2), times(0), sequence(1, 1, 1), times(1)]
}

fn json_lines(lines: &[Value]) -> Vec<u8> {
    lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes()
}

/// A small checkpoint with several dtypes.
fn small_header() -> Value {
    json!({
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "c": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
        "d": {"dtype": "F4", "shape": [16], "data_offsets": [40, 48]},
        "e": {"dtype": "BOOL", "shape": [0, 7], "data_offsets": [48, 48]},
    })
}

fn small_file(header: &Value) -> Vec<u8> {
    [tiny_model::with_header(header.to_string().as_bytes()), vec![0; 48]].concat()
}

/// A tokenizer as SentencePiece models are converted to.
fn sentence_piece() -> Value {
    let mut tokenizer = tiny_model::tokenizer();
    tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    tokenizer["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 1}]});
    tokenizer["model"] = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": true,
        "vocab": [["<s>", 0.0], ["a", -1.0], ["ab", -2.0], ["▁a", -1.5], ["<0xC3>", -9.0]]});
    tokenizer
}

/// Runs `check` on [`CASES`] random values of `strategy`.
fn fuzz<S: Strategy>(strategy: S, check: impl Fn(S::Value)) {
    smart_run::text::silence_fenced_panics();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&strategy, |damage| {
        check(damage);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn config_bytes() {
    let folder = Folder::target();
    let config = tiny_model::config().to_string();
    fuzz(byte_damage(), |damage| check_config(&folder, &damage_bytes(config.clone().into(), &damage)));
}

#[test]
fn config_fields() {
    let folder = Folder::target();
    let mut config = tiny_model::config();
    config["rope_parameters"] = json!({"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                                       "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    fuzz(node_damage(), |damage| {
        check_config(&folder, damage_nodes(config.clone(), &damage).to_string().as_bytes())
    });
}

#[test]
fn drafter_fields() {
    let folder = Folder::drafter();
    let target = ModelConfig::from_hf(&Folder::target().source()).unwrap();
    let mut config = tiny_model::drafter_config();
    config["eagle_config"] =
        json!({"eagle_aux_hidden_state_layer_ids": [0, 1, 2], "use_aux_hidden_state": true});
    (config["fc_norm"], config["norm_before_fc"], config["norm_output"]) =
        (json!(true), json!(false), json!(true));
    config["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
    fuzz(node_damage(), |damage| {
        folder.write_json("config.json", &damage_nodes(config.clone(), &damage));
        if let Ok(drafter) = within_time(|| Eagle3Config::from_hf(&folder.source(), &target)) {
            let num_layers = target.geometry.num_layers;
            match drafter.feature {
                FeatureKind::LastHiddenState => assert_eq!(drafter.tap_layers, [num_layers]),
                _ => assert!(drafter.tap_layers.iter().all(|&layer| layer < num_layers)),
            }
            assert!(drafter.draft_vocab_size <= target.geometry.vocab_size);
            drafter.fits_target(&target).unwrap();
        }
    });
}

#[test]
fn index_bytes() {
    let folder = Folder::target();
    folder.shard();
    let index = folder.read("model.safetensors.index.json");
    fuzz(byte_damage(), |damage| {
        folder.write("model.safetensors.index.json", &damage_bytes(index.clone(), &damage));
        check_checkpoint(&folder);
    });
}

#[test]
fn safetensors_bytes() {
    let folder = Folder::target();
    fuzz(byte_damage(), |damage| {
        folder.write("model.safetensors", &damage_bytes(small_file(&small_header()), &damage));
        check_checkpoint(&folder);
    });
}

#[test]
fn safetensors_header() {
    let folder = Folder::target();
    fuzz(node_damage(), |damage| {
        folder.write("model.safetensors", &small_file(&damage_nodes(small_header(), &damage)));
        check_checkpoint(&folder);
    });
}

/// The files of torch that the goldens hold, damaged anywhere: directory, pickle, lengths, storages.
#[test]
fn torch_bytes() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch");
    let folder = Folder::target();
    folder.remove("model.safetensors");
    for case in ["zip_protocol2", "zip_protocol5", "legacy_protocol2", "legacy_protocol5"] {
        let file = std::fs::read(golden.join(case).with_extension("bin")).unwrap();
        fuzz(byte_damage(), |damage| {
            folder.write("pytorch_model.bin", &damage_bytes(file.clone(), &damage));
            check_checkpoint(&folder);
        });
    }
}

/// Damage to the pickle alone, inside a sound zip file.
#[test]
fn torch_pickles() {
    let pickle = torch_zip::state_dict_pickle("w", "FloatStorage", "0", 12, 1, &[2, 3], &[1, 4]);
    let folder = Folder::target();
    folder.remove("model.safetensors");
    let write = |pickle: &[u8]| {
        let zip = torch_zip::Zip::default().entry("x/data.pkl", pickle).entry("x/data/0", &[1; 48]);
        folder.write("pytorch_model.bin", &zip.file());
    };
    write(&pickle);
    assert_eq!(Checkpoint::open(&folder.source()).unwrap().get("w").unwrap().shape, [2, 3]);
    fuzz(byte_damage(), |damage| {
        write(&damage_bytes(pickle.clone(), &damage));
        check_checkpoint(&folder);
    });
    // Programs of opcodes at random: every one of the machine's, with short operands.
    let opcodes = b"\x80\x95(teuas N\x88\x89KMJ\x8A\x8BG\x8CUXT\x8DCB\x8E)\x85\x86\x87]}qr\x94hjc\x93RbQ.\0\x01\x02\xFF".to_vec();
    fuzz(prop::collection::vec(prop::sample::select(opcodes), 0..200), |program| {
        write(&[b"\x80\x02", &program[..], b"."].concat());
        check_checkpoint(&folder);
    });
}

#[test]
fn tokenizer_bytes() {
    fuzz(byte_damage(), |damage| {
        check_tokenizer(&damage_bytes(tiny_model::tokenizer().to_string().into(), &damage))
    });
}

#[test]
fn tokenizer_nodes() {
    for tokenizer in [tiny_model::tokenizer(), sentence_piece()] {
        assert!(Tokenizer::from_json("tokenizer.json", tokenizer.to_string().as_bytes()).is_ok());
        fuzz(node_damage(), |damage| {
            check_tokenizer(damage_nodes(tokenizer.clone(), &damage).to_string().as_bytes())
        });
    }
}

/// A cost table of a few passes, as JSON.
fn cost_table() -> Value {
    let mut table = CostTable::of_roofline(&roofline::named("h200/llama-3.1-8b/eagle3").unwrap());
    table.points.truncate(8);
    let plain = SweepPoint { kind: SweepKind::Plain, tokens: 4, sequences: 4, context: 9, us: 5e3 };
    table.points.push(plain);
    serde_json::to_value(table).unwrap()
}

/// Reads `json` as a cost table; what is accepted gives finite costs.
fn check_cost_table(folder: &Folder, json: &[u8]) {
    folder.write("costs.json", json);
    within_time(|| match CostTable::read(&folder.file("costs.json")) {
        Err(error) => assert!(error.is_input() && !error.to_string().contains('\n'), "{error}"),
        Ok(table) => {
            let cost = table.cost_model().unwrap();
            for tokens in [1, 8, 100, 5000] {
                let us = cost.verify_us(tokens, [(tokens.min(64), 4096)]) + cost.draft_us(tokens, 4096);
                assert!(us.is_finite() && us > 0.0, "{tokens} tokens: {us}");
            }
        }
    });
}

#[test]
fn cost_table_bytes() {
    let folder = Folder::target();
    let table = cost_table().to_string();
    fuzz(byte_damage(), |damage| check_cost_table(&folder, &damage_bytes(table.clone().into(), &damage)));
}

#[test]
fn cost_table_fields() {
    let folder = Folder::target();
    let table = cost_table();
    check_cost_table(&folder, table.to_string().as_bytes());
    fuzz(node_damage(), |damage| {
        check_cost_table(&folder, damage_nodes(table.clone(), &damage).to_string().as_bytes())
    });
}

#[test]
fn trace_bytes() {
    let file = json_lines(&small_trace());
    assert_eq!(
        TraceReader::new(&file[..], "trace.jsonl").unwrap().filter(|record| record.is_ok()).count(),
        5
    );
    fuzz(byte_damage(), |damage| check_trace(&damage_bytes(file.clone(), &damage)));
}

#[test]
fn trace_fields() {
    fuzz(node_damage(), |damage| {
        let damaged = damage_nodes(Value::Array(small_trace()), &damage);
        check_trace(&json_lines(damaged.as_array().unwrap()));
    });
}

/// The golden templates, damaged, with a conversation that has everything.
#[test]
fn chat_template_bytes() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat");
    let expected: Value =
        serde_json::from_slice(&std::fs::read(golden.join("expected.json")).unwrap()).unwrap();
    let folder = Folder::target();
    for (name, format) in expected["formats"].as_object().unwrap() {
        folder.write_json("tokenizer_config.json", &format["special_tokens"]);
        let template = std::fs::read(golden.join(name).with_extension("jinja")).unwrap();
        let cases = format["cases"].as_array().unwrap();
        let read = |case: &Value| serde_json::from_value::<Vec<Message>>(case["messages"].clone()).unwrap();
        let (messages, tools) = (read(&cases[16]), json!([{"type": "function", "function": {"name": "f"}}]));
        fuzz((byte_damage(), any::<Index>()), |(damage, other)| {
            folder.write("chat_template.jinja", &damage_bytes(template.clone(), &damage));
            check_chat_template(&folder, &messages, &tools);
            check_chat_template(&folder, &read(other.get(cases)), &Value::Null);
        });
    }
}

/// Programs of Jinja's words at random.
#[test]
fn chat_template_words() {
    let words = "{% for x in|messages|%}|{% endfor %}|{% if|{% endif %}|{{|}}|loop|(|)|[|]|:|.|,|range|10**9|*|~|+|-1|'a'|x|=|{% set|ns|\
                 namespace(x=x)|ns.x|is string|not|and|tojson|strip()|split('a')|items()|join|map('string')|list|sort|raise_exception|\
                 {% macro m(x) %}|{% endmacro %}|m(x)|strftime_now('%c')|{% generation %}|{% endgeneration %}|{#|#}|{% raw %}|%}|{%|\
                 {% break %}|{% continue %}|recursive|else|elif|{% with %}|{% endwith %}|{'a': x}|[x, x]|x[:]|x[::-1]|\"|é|\n| | ||";
    let words: Vec<&str> = words.split('|').collect();
    let folder = Folder::target();
    let messages = [Message::new("user", "a b"), Message::new("assistant", "c")];
    let program = prop::collection::vec(prop::sample::select(words), 0..60);
    fuzz(program, |program| {
        folder.write("chat_template.jinja", program.join(" ").as_bytes());
        check_chat_template(&folder, &messages, &json!([{"name": "f"}]));
    });
}

/// The configurations that a template and its tokens may be in.
#[test]
fn chat_template_fields() {
    let folder = Folder::target();
    let messages = [Message::new("user", "a")];
    let config = json!({"chat_template": [{"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"},
                                          {"name": "tool_use", "template": "{{ tools|tojson }}"}],
                        "bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>", "pad_token": null});
    fuzz(node_damage(), |damage| {
        folder.write_json("tokenizer_config.json", &damage_nodes(config.clone(), &damage));
        check_chat_template(&folder, &messages, &json!([]));
    });
}
