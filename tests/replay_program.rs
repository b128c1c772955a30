//! `smart-run generate --record` and `smart-run replay` as programs: what they print and what they refuse.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

#[path = "common/program.rs"]
mod program;

use program::program;

fn smart_run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Records a few greedy tokens of the demo pair at `path`.
fn record(path: &Path, temperature: &str) {
    let output = smart_run(&[
        "generate",
        "--device",
        "host",
        "--prompt",
        "def main(",
        "--max-new-tokens",
        "12",
        "--ignore-eos",
        "--temperature",
        temperature,
        "--record",
        path.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_recorded_text_is_replayed_against_the_best_tree() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    record(&folder.path().join("r.jsonl"), "0");
    let arguments = [
        "replay",
        &file("r.jsonl"),
        "--policy",
        "smart",
        "--policy",
        "chain:2",
        "--batch",
        "1,2",
        "--tokens",
        "22",
        "--repetitions",
        "2",
        "--rivals",
        "--format",
        "json",
        "--out",
        &file("r.html"),
    ];
    let played = smart_run(&arguments);
    assert!(played.status.success(), "{}", text(&played.stderr));
    assert_eq!(text(&played.stdout), text(&smart_run(&arguments).stdout), "the same seeds, the same bytes");
    let report: Value = serde_json::from_slice(&played.stdout).unwrap();
    assert_eq!(report["texts"][0]["positions"], 11);
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2 * 3, "two policies and the best static tree at two batch sizes");
    for cell in cells {
        let best = &cell["against_best_static"]["mean"];
        assert!(best.as_f64().unwrap() > 0.3, "{cell}");
        assert_eq!(cell["outcome"]["expected_tokens"], Value::Null, "greedy draws have no chance in them");
    }
    let page = std::fs::read_to_string(file("r.html")).unwrap();
    assert!(page.matches("<svg").count() >= 5 && page.contains("Reliability"));
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http://") && !outside.contains("https://"), "the page needs nothing else");

    let shown =
        smart_run(&["replay", &file("r.jsonl"), "--batch", "1", "--tokens", "11", "--repetitions", "1"]);
    assert!(text(&shown.stdout).contains("smart: geometric mean"), "{}", text(&shown.stdout));
}

#[test]
fn every_fault_is_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    record(&folder.path().join("greedy.jsonl"), "0");
    let whole = std::fs::read_to_string(file("greedy.jsonl")).unwrap();
    let write = |name: &str, content: &str| std::fs::write(file(name), content).unwrap();
    write("cut.jsonl", &whole[..whole.len() - 40]);
    write("later.jsonl", &whole.replacen("\"record_version\":1", "\"record_version\":9", 1));
    write("trace.jsonl", "{\"version\":1}\n");
    write("empty.jsonl", "");
    write("costs.json", "{\"version\":1}");
    let negative =
        smart_run(&["profile", "--costs", "h200/llama-3.1-8b/eagle3", "--save-table", &file("t.json")]);
    assert!(negative.status.success());
    let table = std::fs::read_to_string(file("t.json")).unwrap();
    let mut table: Value = serde_json::from_str(&table).unwrap();
    table["points"][0]["us"] = (-1.0).into();
    write("negative.json", &table.to_string());
    for (arguments, says) in [
        (vec!["replay"], "nothing to replay"),
        (vec!["replay", "/nowhere/r.jsonl"], "/nowhere/r.jsonl"),
        (vec!["replay", &file("cut.jsonl")], "cut off"),
        (vec!["replay", &file("later.jsonl")], "record version 9"),
        (vec!["replay", &file("trace.jsonl")], "no record"),
        (vec!["replay", &file("empty.jsonl")], "empty"),
        (vec!["replay", &file("greedy.jsonl"), "--oracle"], "--oracle"),
        (vec!["replay", &file("greedy.jsonl"), "--true-probabilities"], "--true-probabilities"),
        (vec!["replay", &file("greedy.jsonl"), "--belief", "h300/x/y"], "h300"),
        (vec!["replay", &file("greedy.jsonl"), "--policy", "smrt"], "unknown policy"),
        (vec!["replay", &file("greedy.jsonl"), "--policy", "eagle2:16,1,20"], "16 children"),
        (vec!["replay", &file("greedy.jsonl"), "--batch", "0"], "--batch"),
        (vec!["replay", &file("greedy.jsonl"), "--noise", "2"], "--noise"),
        (vec!["replay", &file("greedy.jsonl"), "--repetitions", "0"], "--repetitions"),
        (vec!["replay", &file("greedy.jsonl"), "--costs", "h300/x/y"], "h300"),
        (vec!["replay", &file("greedy.jsonl"), "--costs", &file("costs.json")], "costs.json"),
        (vec!["replay", &file("greedy.jsonl"), "--costs", &file("negative.json")], "negative.json"),
        (vec!["replay", &file("greedy.jsonl"), "--out", "/nowhere/p.html"], "/nowhere: no such folder"),
        (vec!["replay", &file("greedy.jsonl"), "--out", "p.png"], ".html or .svg"),
        (vec!["replay", "--synthetic", "nothing"], "--synthetic"),
        (vec!["generate", "--prompt", "x", "--record", "/nowhere/r"], "/nowhere/r"),
        (vec!["generate", "--prompt", "x", "--record", "r", "--policy", "smart"], "--record"),
        (vec!["generate", "--prompt", "x", "--record", "r", "--trace", "t"], "--record"),
        (vec!["generate", "--model", "m", "--prompt", "x", "--record", "r"], "--draft"),
    ] {
        let output = smart_run(&arguments);
        let sentence = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {sentence}");
        assert!(sentence.contains(says), "{arguments:?}: {sentence}");
        assert_eq!(sentence.trim_end().lines().count(), 1, "{arguments:?}: {sentence}");
    }
}
