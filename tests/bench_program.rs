//! `smart-run bench` as a program: what it measures under modelled time, what it draws, and what it refuses.

use std::process::Output;

use serde_json::Value;

#[path = "common/program.rs"]
mod program;

use program::program;

fn bench(arguments: &[&str], clock: Option<&str>) -> Output {
    let mut command = program();
    command.arg("bench").args(arguments);
    if let Some(table) = clock {
        command.env("SIMT_CLOCK", table);
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Every launch takes 10 us however many rows it has, so speculation pays, and how much it pays follows from counts alone.
#[test]
fn under_modelled_time_all_numbers_add_up_and_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("clock.json"), r#"{"rules": [], "default_us": 10.0, "copy_us": 0.0}"#).unwrap();
    let prompts = "{\"turns\": [\"def main(args):\\n\", \"not this one\"]}\n{\"prompt\": \"import os\\n\"}\n";
    std::fs::write(file("turns.jsonl"), prompts).unwrap();
    let arguments = [
        "--device",
        "host",
        "--prompts",
        &file("turns.jsonl"),
        "--requests",
        "1",
        "--max-new-tokens",
        "16",
        "--batch",
        "1,2",
        "--temperature",
        "0,0.8",
        "--policy",
        "smart",
        "--policy",
        "chain:2",
        "--policy",
        "eagle2:4,2,8",
        "--repetitions",
        "2",
        "--ignore-eos",
        "--format",
        "json",
        "--out",
        &file("b.html"),
    ];
    let measured = bench(&arguments, Some(&file("clock.json")));
    assert!(measured.status.success(), "{}", text(&measured.stderr));
    let again = bench(&arguments, Some(&file("clock.json")));
    assert_eq!(text(&measured.stdout), text(&again.stdout), "modelled time is deterministic");

    let report: Value = serde_json::from_slice(&measured.stdout).unwrap();
    assert_eq!(report["modelled_time"], true);
    let texts = report["texts"].as_array().unwrap();
    assert_eq!(
        texts.iter().map(|text| &text["name"]).collect::<Vec<_>>(),
        ["turns, T = 0", "turns, T = 0.8"]
    );
    assert_eq!((&texts[0]["sequences"], &texts[1]["sampled"]), (&4.into(), &true.into()));
    // Plain decoding's first passes set the texts: those of 2 requests at batch 1, of 2 more at batch 2.
    let passes = 3 * 4 * (2 + 4);
    assert_eq!(report["texts_compared"], 2 * (passes - 2 - 2));
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2 * 2 * 5, "four policies, and the best static tree once more");
    for cells in cells.chunks(5) {
        let players: Vec<&str> = cells.iter().map(|cell| cell["player"].as_str().unwrap()).collect();
        assert_eq!(players[..4], ["smart", "chain:2", "eagle2:4,2,8", "plain"]);
        let plain = &cells[3];
        assert_eq!(plain["outcome"]["plain_rounds"], plain["outcome"]["rounds"]);
        assert!((number(&plain["speedup"]["mean"]) - 1.0).abs() < 1e-9);
        let tree = &cells[4];
        assert_eq!(tree["role"], "best-static");
        let best =
            cells[1..3].iter().map(|cell| number(&cell["tokens_per_second"]["mean"])).fold(0.0, f64::max);
        assert_eq!(number(&tree["tokens_per_second"]["mean"]), best);
        for cell in cells {
            let outcome = &cell["outcome"];
            let us = number(&outcome["us"]);
            let speed = number(&outcome["tokens"]) / us * 1e6;
            let told = &cell["tokens_per_second"];
            assert!(
                number(&told["least"]) <= speed + 1e-6 && speed <= number(&told["most"]) + 1e-6,
                "{cell}"
            );
            assert!((number(&outcome["draft_us"]) + number(&outcome["verify_us"]) - us).abs() < 1e-6 * us);
            assert!(
                (number(&cell["speedup"]["mean"]) / number(&cell["against_best_static"]["mean"])
                    - number(&tree["speedup"]["mean"]))
                .abs()
                    < 1e-6
            );
            let sequences = number(&outcome["sequence_rounds"]) / number(&outcome["rounds"]);
            assert_eq!(sequences, number(&cell["batch"]), "only rounds of the full batch count");
            assert_eq!(outcome["predictions"].as_array().unwrap().len() as f64, number(&outcome["rounds"]));
        }
        assert!(number(&cells[0]["speedup"]["mean"]) > 1.2, "rows are free, so trees pay: {}", cells[0]);
    }
    let page = std::fs::read_to_string(file("b.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 2 * 6);
    for part in [
        "Speed against plain decoding",
        "Size of trees",
        "Acceptance by depth",
        "Where the time",
        "Rounds of smart",
    ] {
        assert!(page.contains(part), "{part:?} is not in the page");
    }
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http://") && !outside.contains("https://"), "the page needs nothing else");
}

#[test]
fn the_demo_pair_brings_its_prompts_and_the_table_is_for_people() {
    let arguments = ["--device", "host", "--requests", "2", "--max-new-tokens", "6", "--batch", "1"];
    let more = ["--temperature", "0", "--policy", "chain:1", "--repetitions", "1", "--cold"];
    let output = bench(&[&arguments[..], &more].concat(), None);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    for part in ["demo prompts, T = 0", "best static: chain:1", "starts cold", "chain:1: geometric mean"] {
        assert!(printed.contains(part), "{part:?} is not in {printed}");
    }
}

/// `--draft ngram` is a drafter, with the demo target as with any other.
#[test]
fn ngrams_are_benched_against_plain_decoding() {
    let arguments =
        ["--device", "host", "--draft", "ngram", "--requests", "2", "--max-new-tokens", "24", "--batch", "1"];
    let more = ["--temperature", "0", "--policy", "chain:2", "--repetitions", "1", "--format", "json"];
    let output = bench(&[&arguments[..], &more].concat(), None);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["drafter"], "n-grams");
    let outcome = &report["cells"][0]["outcome"];
    assert!(number(&outcome["drafted_nodes"]) > 0.0, "{outcome}");
}

#[test]
fn every_fault_is_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("empty.jsonl"), "\n").unwrap();
    std::fs::write(file("broken.jsonl"), "{\"prompt\": \"a\"}\n{\"prompt\": 3}\n").unwrap();
    std::fs::write(file("wide.jsonl"), "{\"prompt_token_ids\": [1, 70000]}\n").unwrap();
    for (arguments, says) in [
        (vec!["--batch", "0"], "--batch"),
        (vec!["--batch", "1,x"], "--batch"),
        (vec!["--temperature", "-1"], "--temperature"),
        (vec!["--repetitions", "0"], "--repetitions"),
        (vec!["--requests", "0"], "--requests"),
        (vec!["--policy", "smrt"], "unknown policy"),
        (vec!["--out", "p.png"], ".html or .svg"),
        (vec!["--out", "/nowhere/p.html"], "/nowhere: no such folder"),
        (vec!["--model", "m"], "--prompts"),
        (vec!["--draft", "no/such/drafter"], "no/such/drafter"),
        (vec!["--model", "m", "--prompts", "p", "--policy", "smart"], "needs a drafter"),
        (vec!["--model", "no/such/folder", "--prompts", "p"], "no such model folder"),
        (vec!["--prompts", "/nowhere/p.jsonl"], "/nowhere/p.jsonl"),
        (vec!["--prompts", &file("empty.jsonl")], "no prompts"),
        (vec!["--prompts", &file("broken.jsonl")], "line 2"),
        (vec!["--device", "host", "--prompts", &file("wide.jsonl")], "70000"),
        (vec!["--device", "host", "--max-new-tokens", "1", "--policy", "plain"], "--max-new-tokens"),
    ] {
        let output = bench(&arguments, None);
        let sentence = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {sentence}");
        assert!(sentence.contains(says), "{arguments:?}: {sentence}");
        assert_eq!(sentence.trim_end().lines().count(), 1, "{arguments:?}: {sentence}");
        assert!(output.stdout.is_empty());
    }
}

/// An empty variable is one that is not set, and no path at all is meant from where the program happens to be started.
#[test]
fn costs_are_kept_where_the_shell_says() {
    for (cache, kept_in) in [("", ".cache"), ("beside", ".cache"), ("/whole", "whole")] {
        let home = tempfile::tempdir().unwrap();
        let cache = cache.replace('/', &format!("{}/", home.path().display()));
        let output = program()
            .args("generate --device host --policy smart --prompt def --max-new-tokens 2".split(' '))
            .current_dir(home.path())
            .env("HOME", home.path())
            .env("XDG_CACHE_HOME", &cache)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(home.path().join(kept_in).join("smart-run/costs.json").is_file(), "{cache}");
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "{cache}");
    }
}
