//! `smart-run profile` as a program: pictures, tables and sentences.

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smart_run::control::{CostSource, CostTable, SweepPoint, Treads};

#[path = "common/program.rs"]
mod program;

use program::program;

fn profile(arguments: &[&str]) -> Output {
    program().arg("profile").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_named_table_is_shown_drawn_and_saved_without_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let name = "l40s/qwen2-vl-7b/eagle3";
    let shown = profile(&["--costs", name, "--out", &file("p.html"), "--save-table", &file("t.json")]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let printed = text(&shown.stdout);
    for part in [name, "Qwen2-VL-7B", "computed", "treads of 8", "tiles of 2 nodes", "Drafter pass"] {
        assert!(printed.contains(part), "{part:?} is not in {printed}");
    }
    let page = std::fs::read_to_string(file("p.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 5);
    assert!(page.contains("fitted, context 128") && page.contains("computed, context 2048"));
    assert!(CostTable::read(file("t.json").as_ref()).unwrap() == CostTable::open(name).unwrap());

    // The file stands for the name.
    let again = profile(&["--costs", &file("t.json"), "--format", "json", "--out", &file("p.svg")]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    let answer: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(answer["table"]["name"], name);
    assert_eq!(answer["observed_tread"], 8);
    assert_eq!(
        answer["fitted_us"].as_array().unwrap().len(),
        answer["table"]["points"].as_array().unwrap().len()
    );
    assert_eq!(std::fs::read_to_string(file("p.svg")).unwrap().matches("<svg").count(), 1);
}

#[test]
fn the_demo_pair_is_measured_and_its_table_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("here.json").to_str().unwrap().to_owned();
    let mut arguments = vec!["--device", "host", "--max-sequences", "2", "--format", "json"];
    arguments.extend(["--save-table", &table, "--breakdown", "2"]);
    let measured = profile(&arguments);
    assert!(measured.status.success(), "{}", text(&measured.stderr));
    assert!(measured.stderr.is_empty(), "no noise about a missing GPU: {}", text(&measured.stderr));
    let answer: Value = serde_json::from_slice(&measured.stdout).unwrap();
    let table = CostTable::read(table.as_ref()).unwrap();
    assert_eq!(table.source, CostSource::Measured);
    assert_eq!((table.driver.as_str(), table.conditions.as_ref()), ("host driver", None));
    assert!(!table.commit.is_empty());
    assert_eq!(serde_json::to_value(&table).unwrap(), answer["table"]);
    assert_eq!(answer["sweep"]["measured"].as_u64().unwrap(), table.points.len() as u64);
    let breakdowns = answer["breakdowns"].as_array().unwrap();
    assert_eq!(breakdowns.iter().map(|pass| &pass["kind"]).collect::<Vec<_>>(), ["verify", "draft"]);
    for pass in breakdowns {
        assert_eq!((pass["rows"].as_u64(), pass["context"].as_u64()), (Some(2), Some(1024)));
        let parts = pass["parts"].as_array().unwrap();
        let us = parts
            .iter()
            .chain([&json!({ "us": pass["start_us"] })])
            .map(|part| part["us"].as_f64().unwrap())
            .sum::<f64>();
        let total = pass["total_us"].as_f64().unwrap();
        assert!((us / total - 1.0).abs() < 1e-9, "{us} of {total} us");
    }
}

/// The largest and oddest table that is accepted: every point at a context of its own, passes as wide as allowed.
#[test]
fn a_huge_table_is_drawn_in_bounded_time_and_space() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut table = CostTable::open("h200/llama-3.1-8b/eagle3").unwrap();
    let point = table.points[0];
    table.treads = Treads { tokens: 1, nodes: 1 };
    table.points = (0..4096)
        .map(|i| SweepPoint { tokens: 65536 - i % 100, context: i, us: 1.0 + i as f64, ..point })
        .collect();
    table.write(file("huge.json").as_ref()).unwrap();
    let start = Instant::now();
    let output = profile(&["--costs", &file("huge.json"), "--out", &file("huge.html")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
    assert!(std::fs::metadata(file("huge.html")).unwrap().len() < 2 << 20);
}

#[test]
fn bad_input_is_one_sentence_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.json").to_str().unwrap().to_owned();
    std::fs::write(&broken, "{\"version\":1,").unwrap();
    let nowhere = folder.path().join("nowhere/p.html").to_str().unwrap().to_owned();
    for (arguments, expected) in [
        (vec!["--costs", "h200/llama-3.1-8b/medusa"], "eagle3, eagle1"),
        (vec!["--costs", "nothing"], "CARD/MODEL/DRAFTER"),
        (vec!["--costs", &broken], "broken.json"),
        (vec!["--costs", "h200/llama-3.1-8b/eagle3", "--out", &nowhere], "no such folder"),
        (vec!["--out", "p.pdf"], ".html or .svg"),
        (vec!["--breakdown", "8,300"], "1 to 256"),
        (vec!["--breakdown", "8", "--costs", "h200/llama-3.1-8b/eagle3"], "cannot be used with"),
        (vec!["--model", "no/such/folder"], "no such model folder"),
    ] {
        let output = profile(&arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?} printed to stdout");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}
