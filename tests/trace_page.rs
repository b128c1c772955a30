//! `smart-run trace` as a process: the page holds what the trace holds, and each fault of a trace is one sentence.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use smart_run::control::trace::{TraceReader, TraceRecord};

#[path = "common/program.rs"]
mod program;
#[allow(dead_code)]
#[path = "common/tiny_model.rs"]
mod tiny_model;

use program::program;
use tiny_model::Folder;

fn smart_run(arguments: &[&str], folder: &Path) -> Output {
    program().args(arguments).current_dir(folder).env("XDG_CACHE_HOME", folder).output().unwrap()
}

/// Runs `trace` in `folder`, which must succeed; returns what it printed.
fn page(arguments: &[&str], folder: &Path) -> (String, String) {
    let output = smart_run(&[&["trace"], arguments].concat(), folder);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{arguments:?}: {err}");
    (out, err)
}

/// The sentence that `trace` refuses with.
fn refusal(arguments: &[&str], folder: &Path) -> String {
    let output = smart_run(&[&["trace"], arguments].concat(), folder);
    let sentence = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {sentence}");
    assert!(output.stdout.is_empty(), "{arguments:?} printed to stdout");
    assert_eq!(sentence.lines().count(), 1, "{arguments:?}: {sentence}");
    sentence
}

/// The JSON of the script elements that open with `opening`, as a browser takes it from the page.
fn embedded(page: &str, opening: &str) -> Vec<Value> {
    let elements = page.split(opening).skip(1);
    elements.map(|rest| serde_json::from_str(&rest[..rest.find("</script").unwrap()]).unwrap()).collect()
}

fn rounds(page: &str) -> Vec<Value> {
    embedded(page, r#"<script type="application/json" class="round">"#)
}

fn summary(page: &str) -> Value {
    embedded(page, r#"<script type="application/json" id="summary">"#).remove(0)
}

/// A trace of one round, two sequences each; `text` is a token id in both trees.
fn two_sequences() -> Vec<Value> {
    let sequence = |number: u64, accepted: Value| {
        json!({"round": 0, "batch": 2, "sequence": number, "position": 9,
            "tree": {"tokens": [2, 3, 4], "parents": [-1, 0, 1], "logprob": [0.0, -0.5, null], "q": [1.0, 0.5, 0.25],
                     "path_prob": [1.0, 0.5, 0.125], "ratio": [null, 2.0, 0.5], "expanded": [true, true, false],
                     "verified": [true, true, false]},
            "accepted": accepted, "bonus_token": 28, "speedup": 1.5})
    };
    let times = json!({"draft": 1.0, "verify": 2.0, "total": 3.5});
    vec![
        json!({"version": 1, "model": "m", "drafter": null, "device": "d", "policy": "smart", "seed": 1, "temperature": 0.5}),
        sequence(0, json!([1])),
        sequence(7, json!([])),
        json!({"round": 0, "predicted_us": times, "measured_us": times}),
    ]
}

fn write_trace(folder: &Path, lines: &[Value]) -> PathBuf {
    let path = folder.join("t.jsonl");
    std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    path
}

#[test]
fn a_page_holds_the_trace_of_a_generation() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let generation = [
        "generate",
        "--prompt",
        "def main(",
        "--max-new-tokens",
        "24",
        "--temperature",
        "0.7",
        "--seed",
        "1",
        "--policy",
        "eagle2:4,2,8",
        "--ignore-eos",
        "--device",
        "host",
        "--format",
        "json",
        "--trace",
        "t.jsonl",
    ];
    let output = smart_run(&generation, at);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let generated: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (out, err) = page(&["t.jsonl"], at);
    assert!(out.starts_with("t.html: ") && out.lines().count() == 1 && err.is_empty(), "{out}{err}");
    let html = std::fs::read_to_string(at.join("t.html")).unwrap();
    let (rounds, summary) = (rounds(&html), summary(&html));

    let mut sequences = rounds.iter().flat_map(|round| round.as_array().unwrap());
    let (mut drafted, mut accepted, mut seen) = (0, 0, 0);
    for record in TraceReader::open(&at.join("t.jsonl")).unwrap() {
        let TraceRecord::Sequence(record) = record.unwrap() else { continue };
        let shown = sequences.next().unwrap();
        assert_eq!(shown["tokens"], json!(record.tree.tokens));
        assert_eq!(shown["parents"], json!(record.tree.parents));
        assert_eq!(shown["accepted"], json!(record.accepted));
        assert_eq!(shown["bonus_token"], json!(record.bonus_token));
        for (number, q) in shown["q"].as_array().unwrap().iter().zip(&record.tree.q) {
            assert!((number.as_f64().unwrap() - f64::from(*q)).abs() <= f64::from(*q) * 1e-4);
        }
        let ones = |column: &Value| column.as_array().unwrap().iter().map(|bit| bit == 1).collect::<Vec<_>>();
        assert_eq!(ones(&shown["verified"]), record.tree.verified);
        assert_eq!(ones(&shown["expanded"]), record.tree.expanded);
        drafted += record.tree.tokens.len();
        accepted += record.accepted.len();
        seen += 1;
    }
    assert!(sequences.next().is_none() && drafted > 8 * seen && accepted > 0, "{drafted} {accepted}");
    let totals = &summary["totals"];
    assert_eq!((&totals["rounds"], &totals["drafted"]), (&json!(seen), &json!(drafted)));
    assert_eq!((&totals["accepted"], &totals["emitted"]), (&json!(accepted), &json!(accepted + seen)));
    assert_eq!(summary["rounds"].as_array().unwrap().len(), rounds.len());
    // What the engine counted itself.
    assert_eq!(generated["stats"]["rounds"], json!(seen));
    let mean = generated["stats"]["mean_accepted_len"].as_f64().unwrap();
    assert!((mean - accepted as f64 / seen as f64).abs() < 1e-6, "{mean}");
    // The demo pair's own tokenizer says what its tokens read: the root of the first round is the first token drawn.
    let root = rounds[0][0]["tokens"][0].to_string();
    let text = summary["tokens"][root].as_str().unwrap();
    assert!(generated["text"].as_str().unwrap().starts_with(text), "{text:?}");
}

#[test]
fn token_texts_come_from_the_folder_and_end_no_element() {
    let model = Folder::target();
    let mut tokenizer = tiny_model::tokenizer();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    added.push(json!({"id": 31, "content": "</script><!--<script>", "special": false, "single_word": false, "lstrip": false,
                      "rstrip": false, "normalized": false}));
    model.write_json("tokenizer.json", &tokenizer);
    let folder = tempfile::tempdir().unwrap();
    let mut lines = two_sequences();
    lines[1]["tree"]["tokens"][1] = json!(31);
    let trace = write_trace(folder.path(), &lines);
    let dir = model.path().to_str().unwrap();
    let (html, err) = page(&["t.jsonl", "--tokenizer", dir, "--out", "-"], folder.path());
    assert!(err.starts_with("standard output: 1 round, 6 nodes drafted, 4 verified, 1 accepted"), "{err}");
    assert!(!folder.path().join("t.html").exists());
    assert_eq!(summary(&html)["tokens"]["31"], "</script><!--<script>");
    assert_eq!(html.matches("<!--").count(), 0, "a comment would swallow the rest");
    assert_eq!(html.matches("<script").count(), html.matches("</script").count());
    assert_eq!(rounds(&html)[0].as_array().unwrap().len(), 2);

    // The header's model is that folder: no flag is needed. Another model is not here: ids alone.
    lines[0]["model"] = json!(dir);
    write_trace(folder.path(), &lines);
    let (by_header, _) = page(&["t.jsonl", "--out", "-"], folder.path());
    assert_eq!(summary(&by_header)["tokens"], summary(&html)["tokens"]);
    lines[0]["model"] = json!("/nowhere");
    write_trace(folder.path(), &lines);
    assert_eq!(summary(&page(&["t.jsonl", "--out", "-"], folder.path()).0)["tokens"], json!({}));
    assert!(
        refusal(&[trace.to_str().unwrap(), "--tokenizer", "."], folder.path()).contains("no tokenizer.json")
    );
}

#[test]
fn a_trace_without_rounds_is_a_page_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    write_trace(folder.path(), &two_sequences()[..1]);
    let (out, _) = page(&["t.jsonl", "--out", "p.html"], folder.path());
    assert_eq!(out, "p.html: a trace without rounds\n");
    let html = std::fs::read_to_string(folder.path().join("p.html")).unwrap();
    assert_eq!((rounds(&html).len(), &summary(&html)["totals"]["rounds"]), (0, &json!(0)));
}

/// What spoils a trace's lines, and what the sentence must contain.
type Case = (&'static str, fn(&mut Vec<Value>), &'static str);

const CASES: &[Case] = &[
    ("another_header", |l| l[0] = json!({"config": 1}), "no trace"),
    ("header_gone", |l| drop(l.remove(0)), "no trace"),
    ("another_version", |l| l[0]["version"] = json!(2), "version 2"),
    ("field_missing", |l| drop(l[1].as_object_mut().unwrap().remove("bonus_token")), "line 2: damaged"),
    ("not_a_number", |l| l[2]["tree"]["q"][1] = json!("half"), "line 3: damaged"),
    (
        "column_shorter",
        |l| drop(l[2]["tree"]["q"].as_array_mut().unwrap().pop()),
        "line 3: `tree.q` holds 2 nodes",
    ),
    (
        "parent_after_child",
        |l| l[1]["tree"]["parents"] = json!([-1, 2, 0]),
        "line 2: `tree.parents` holds 2 for node 1",
    ),
    ("parent_out_of_range", |l| l[1]["tree"]["parents"][2] = json!(99), "line 2: `tree.parents` holds 99"),
    ("accepted_out_of_range", |l| l[1]["accepted"] = json!([3]), "line 2: `accepted` holds 3"),
    ("accepted_not_verified", |l| l[1]["accepted"] = json!([1, 2]), "line 2: `accepted` holds 2"),
    ("sequence_missing", |l| drop(l.remove(2)), "line 3: damaged"),
    ("ends_within_a_round", |l| drop(l.pop()), "ends within round 0"),
    ("round_missing", |l| l[1]["round"] = json!(4), "line 2: `round` is 4 where round 0 should be"),
];

#[test]
fn a_spoiled_trace_is_one_sentence_and_leaves_no_page() {
    let folder = tempfile::tempdir().unwrap();
    for (case, spoil, expected) in CASES {
        let mut lines = two_sequences();
        spoil(&mut lines);
        write_trace(folder.path(), &lines);
        let sentence = refusal(&["t.jsonl"], folder.path());
        assert!(sentence.contains("t.jsonl") && sentence.contains(expected), "{case}: {sentence}");
        assert!(!folder.path().join("t.html").exists(), "{case}");
    }
}

#[test]
fn files_and_flags_that_do_not_serve_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let trace = write_trace(at, &two_sequences());
    let whole = std::fs::read(&trace).unwrap();
    for (arguments, expected) in [
        (&["nowhere.jsonl"][..], "nowhere.jsonl"),
        (&["."], ".: "),
        (&[], "<FILE>"),
        (&["t.jsonl", "--out", "t.jsonl"], "the trace itself"),
        (&["t.jsonl", "--out", "./t.jsonl"], "the trace itself"),
        (&["t.jsonl", "--out", "nowhere/p.html"], "nowhere/p.html"),
        (&["t.jsonl", "--tokenizer", "nowhere"], "nowhere"),
        (&["t.jsonl", "--rounds", "1..2"], "--rounds 1..2: t.jsonl has 1 rounds"),
        (&["t.jsonl", "--rounds", "2..2"], "--rounds"),
        (&["t.jsonl", "--rounds", "5"], "as in 100..200"),
    ] {
        let sentence = refusal(arguments, at);
        assert!(sentence.contains(expected), "{arguments:?}: {sentence}");
    }
    assert_eq!(std::fs::read(&trace).unwrap(), whole, "the trace is untouched");
    for (cut, expected) in [(whole.len() - 9, "line 4 is cut off"), (0, "the file is empty")] {
        std::fs::write(&trace, &whole[..cut]).unwrap();
        let sentence = refusal(&["t.jsonl"], at);
        assert!(sentence.contains(expected), "{sentence}");
    }
    std::fs::write(at.join("t.html"), &whole).unwrap();
    assert!(refusal(&["t.html"], at).contains("the trace itself"));
}
