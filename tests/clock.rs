//! SMART on an H200, measured on any machine: the engine runs for real, its time is modelled by a cost table.
//!
//! The table prices every launch of the demo pair as a piece of Llama-3.1-8B with its EAGLE-3 head at the roofline of one
//! H200 (4.3 TB/s, 790 TFLOP/s, treads of 8 rows): each of the demo's 8 layers stands for 4 of 32.

use serde_json::{Value, json};

#[path = "common/program.rs"]
mod program;

use program::program;

const BANDWIDTH: f64 = 4.3e12;
const MATMUL: f64 = 790e12;

/// Microseconds of a linear layer of `params` weights by rows, up to 64 trees of 256 nodes: what lies beyond the last point costs as much as it,
/// and a controller finds out.
fn staircase(params: f64) -> Vec<(usize, f64)> {
    let us = |rows: usize| (2.0 * params / BANDWIDTH).max(2.0 * params * rows as f64 / MATMUL) * 1e6;
    let treads = (1..=64).map(|tread| 8 * tread);
    treads.chain((9..=256).map(|wide| 64 * wide)).map(|rows| (rows, us(rows))).collect()
}

fn h200_table() -> Value {
    let (hidden, intermediate, qkv) = (4096.0, 14336.0, 6144.0);
    let (o, gate_up, down) = (hidden * hidden, 2.0 * intermediate * hidden, intermediate * hidden);
    // Target and drafter share the shapes of o, gate_up and down: these cost one layer, and the target's qkv projection,
    // a shape of its own, carries what is missing to four.
    let linears = [
        ((768, 256), 4.0 * qkv * hidden + 3.0 * (o + gate_up + down)),
        ((256, 512), o),
        ((1792, 256), gate_up),
        ((256, 896), down),
        ((4096, 256), 128256.0 * hidden),
        ((256, 768), hidden * 3.0 * hidden),
        ((768, 512), qkv * 2.0 * hidden),
        ((1024, 256), 32000.0 * hidden),
    ];
    let mut rules = Vec::new();
    for tile in ["t8", "t16", "t32", "t32_w128", "t64", "t64_w128", "t128"] {
        for ((n, k), params) in linears {
            let kernel = if n == 1792 { "linear_swiglu" } else { "linear" };
            rules.push(json!({
                "kernel": format!("{kernel}_bf16_{tile}"), "where": {"6": n, "7": k}, "by": 5,
                "points": staircase(params), "interpolation": "step",
            }));
        }
    }
    rules.push(json!({"kernel": "draft_topk_f32", "us": 20.0}));
    rules.push(json!({"kernel": "draft_noise_f32", "us": 5.0}));
    rules.push(json!({"kernel": "verify_walk", "us": 25.0}));
    json!({"rules": rules, "default_us": 0.0, "copy_us": 0.0})
}

/// Tokens per second and token ids of one generation under modelled time.
fn generate(table: &std::path::Path, policy: &str, new_tokens: usize) -> (f64, Value) {
    generate_ahead(table, policy, new_tokens, false)
}

/// The same with plain rounds that do not wait for the host, or with none.
fn generate_ahead(table: &std::path::Path, policy: &str, new_tokens: usize, ahead: bool) -> (f64, Value) {
    let output = program()
        .env("SMART_AHEAD", if ahead { "1" } else { "0" })
        .args([
            "generate",
            "--device",
            "host",
            "--policy",
            policy,
            "--temperature",
            "0.7",
            "--seed",
            "3",
            "--ignore-eos",
        ])
        .args(["--format", "json", "--max-new-tokens", &new_tokens.to_string()])
        .args(["--prompt", "class Parser:\n    def __init__(self, text):\n"])
        .env("SIMT_CLOCK", table)
        .output()
        .unwrap();
    assert!(output.status.success(), "{policy}: {}", String::from_utf8_lossy(&output.stderr));
    let mut answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let speed = answer["stats"]["tokens_per_second"].as_f64().unwrap();
    eprintln!(
        "{policy:16} {speed:8.1} tokens/s, {:.2} accepted, {:.1} nodes",
        answer["stats"]["mean_accepted_len"].as_f64().unwrap(),
        answer["stats"]["mean_nodes"].as_f64().unwrap()
    );
    (speed, answer["token_ids"].take())
}

#[test]
fn smart_on_an_h200_is_at_least_the_best_fixed_policy() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("h200.json");
    std::fs::write(&table, h200_table().to_string()).unwrap();
    let soak = std::env::var("SMART_SOAK").is_ok_and(|v| v == "1");
    let new_tokens = if soak { 1500 } else { 600 };
    let (smart, tokens) = generate(&table, "smart", new_tokens);
    let (again, _) = generate(&table, "smart", new_tokens);
    assert_eq!(smart, again, "modelled time is deterministic");
    let chains = (1..=8).map(|k| format!("chain:{k}"));
    let trees = [8, 16, 24, 32, 48, 60].map(|n| format!("eagle2:10,5,{n}"));
    let mut best = (0.0, String::new());
    for policy in chains.chain(trees).chain(["plain".to_owned()]) {
        let (speed, fixed_tokens) = generate(&table, &policy, new_tokens);
        assert_eq!(fixed_tokens, tokens, "{policy} changed the text");
        if speed > best.0 {
            best = (speed, policy);
        }
    }
    assert!(smart >= best.0, "smart: {smart:.1} tokens/s, {}: {:.1}", best.1, best.0);
}

/// The host takes no modelled time, so what runs ahead of it has nothing to gain; and it must not lose.
#[test]
fn rounds_that_run_ahead_take_no_more_of_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("h200.json");
    std::fs::write(&table, h200_table().to_string()).unwrap();
    for policy in ["plain", "smart"] {
        let [(waiting, text), (ahead, same_text)] =
            [false, true].map(|ahead| generate_ahead(&table, policy, 250, ahead));
        assert_eq!(text, same_text, "{policy}");
        assert!(ahead / waiting > 0.995, "{policy}: {ahead} tokens/s ahead, {waiting} without");
    }
}

/// Fixed trees that may be the best for a batch, the likeliest first.
fn trees_for(batch: usize) -> &'static [&'static str] {
    match batch {
        1..=2 => &["eagle2:10,5,32", "eagle2:10,5,60", "chain:5", "eagle2:10,3,16", "chain:3"],
        3..=8 => &["eagle2:10,4,24", "eagle2:10,3,10", "chain:3", "eagle2:10,5,32", "eagle2:10,3,16"],
        9..=16 => &["eagle2:10,2,8", "eagle2:10,3,10", "chain:3", "chain:2", "eagle2:10,4,16"],
        _ => &["eagle2:10,1,4", "eagle2:10,2,4", "chain:2", "chain:1", "eagle2:10,2,8"],
    }
}

/// Whole batches through the scheduler: requests join and leave, prompts are read beside rounds, one pass verifies the trees of all. Each
/// batch size is held against the tree that is best for it.
#[test]
fn smart_serves_batches_on_an_h200_at_least_as_fast_as_the_best_static_tree() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("h200.json");
    std::fs::write(&table, h200_table().to_string()).unwrap();
    let soak = std::env::var("SMART_SOAK").is_ok_and(|v| v == "1");
    let batches: &[usize] = if soak { &[1, 2, 4, 8, 16, 32, 64] } else { &[1, 4, 16] };
    let (requests, new_tokens, rivals) = if soak { ("32", "128", 5) } else { ("16", "64", 3) };
    let mut product = 1.0;
    let mut count = 0;
    for &batch in batches {
        let mut command = program();
        command.args(["bench", "--device", "host", "--ignore-eos", "--format", "json", "--repetitions", "1"]);
        command.args(["--batch", &batch.to_string(), "--requests", requests]);
        command.args(["--max-new-tokens", new_tokens, "--policy", "smart"]);
        for tree in &trees_for(batch)[..rivals] {
            command.args(["--policy", tree]);
        }
        let output = command.env("SIMT_CLOCK", &table).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let cells = || report["cells"].as_array().unwrap().iter();
        for cell in cells().filter(|cell| cell["player"] == "smart") {
            let mean = |field: &str| cell[field]["mean"].as_f64().unwrap();
            let (over_plain, over_best) = (mean("speedup"), mean("against_best_static"));
            let best = cells()
                .find(|other| other["role"] == "best-static" && other["text"] == cell["text"])
                .map_or("", |best| best["player"].as_str().unwrap());
            let text = cell["text"].as_str().unwrap();
            eprintln!("batch {batch}, {text}: {over_plain:.3} of plain, {over_best:.3} of {best}");
            assert!(over_plain >= 1.0 && over_best >= 0.99, "batch {batch}, {text}: {over_best} of {best}");
            product *= over_best;
            count += 1;
        }
    }
    // Greedy and sampled.
    assert_eq!(count, 2 * batches.len());
    let mean = product.powf(1.0 / count as f64);
    eprintln!("geometric mean {mean:.3}");
    assert!(mean >= 1.03, "geometric mean of {count}: {mean:.3}");
}

/// The whole way of a cost: kernel times, events, sweep, fit. What comes out is the staircase that went in.
#[test]
fn a_profile_under_modelled_time_shows_the_staircase_of_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("h200.json");
    std::fs::write(&table, h200_table().to_string()).unwrap();
    let profile = |arguments: &[&str]| {
        let mut program = program();
        program.args(["profile", "--device", "host"]).args(arguments).env("SIMT_CLOCK", &table);
        program.output().unwrap()
    };
    let output = profile(&["--max-sequences", "4", "--format", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let refused = profile(&["--breakdown", "1"]);
    assert_eq!(refused.status.code(), Some(2), "the table prices passes, not their parts");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["observed_tread"], 8);
    assert_eq!(answer["sweep"]["measured"], answer["sweep"]["planned"], "modelled time has no limit");
    let points = answer["table"]["points"].as_array().unwrap();
    let us = |kind: &str, tokens: u64, sequences: u64| {
        let is_it = |p: &&Value| p["kind"] == kind && p["tokens"] == tokens && p["sequences"] == sequences;
        points.iter().find(is_it).unwrap_or_else(|| panic!("no {kind} pass of {tokens} rows"))["us"]
            .as_f64()
            .unwrap()
    };
    // 15.0 GB at 4.3 TB/s and the fixed 25 us; 256 rows are multiplied for longer than the weights take to stream.
    let (stream, multiply) = (2.0 * 7.505e9 / BANDWIDTH * 1e6, 2.0 * 7.505e9 * 256.0 / MATMUL * 1e6);
    for (kind, tokens, sequences, expected) in [
        ("verify", 1, 1, stream + 25.0),
        ("verify", 64, 1, stream + 25.0),
        ("plain", 4, 4, stream + 25.0),
        ("verify", 256, 4, multiply + 25.0),
    ] {
        let got = us(kind, tokens, sequences);
        assert!(
            (got / expected - 1.0).abs() < 0.01,
            "{kind} of {tokens} rows: {got:.0} us against {expected:.0}"
        );
    }
    let drafter = 2.0 * 374e6 / BANDWIDTH * 1e6 + 20.0;
    assert!((us("draft", 10, 1) / drafter - 1.0).abs() < 0.02, "{} us against {drafter}", us("draft", 10, 1));
}
