//! `--image` in `generate`, as a program: the tokens are transformers', and what cannot be shown is one sentence.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

#[path = "common/program.rs"]
mod program;

use program::program;

fn in_repository(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).to_str().unwrap().to_owned()
}

fn smart_run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn joined(ids: &Value) -> String {
    ids.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",")
}

fn golden(case: &str) -> Value {
    let path = in_repository(&format!("tests/golden/{case}/expected.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn prompt<'a>(golden: &'a Value, name: &str) -> &'a Value {
    golden["prompts"].as_array().unwrap().iter().find(|prompt| prompt["name"] == name).unwrap()
}

#[test]
fn pictures_are_shown_in_the_order_of_their_flags() {
    for (case, drafter) in [("llava", None), ("qwen2_vl", Some("tests/golden/msd_qwen2_vl/drafter"))] {
        let (model, expected) = (in_repository(&format!("tests/golden/{case}")), golden(case));
        let two = prompt(&expected, "two");
        let files =
            two["pictures"].as_array().unwrap().iter().map(|picture| {
                in_repository(&format!("tests/golden/{case}/{}.png", picture.as_str().unwrap()))
            });
        let files: Vec<String> = files.collect();
        let ids = joined(&two["prompt_ids"]);
        let mut arguments = vec![
            "generate",
            "--model",
            &model,
            "--prompt-ids",
            &ids,
            "--max-new-tokens",
            "48",
            "--ignore-eos",
            "--dtype",
            "f32",
            "--format",
            "json",
        ];
        arguments.extend(files.iter().flat_map(|file| ["--image", file]));
        let drafter = drafter.map(in_repository);
        if let Some(drafter) = &drafter {
            arguments.extend(["--draft", drafter, "--policy", "eagle2:4,3,12"]);
        }
        let output = smart_run(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["token_ids"], two["greedy_ids"], "{case}");
        assert_eq!(answer["prompt_token_ids"], two["expanded_ids"], "{case}: the prompt as it was served");
    }
}

#[test]
fn what_cannot_be_shown_is_one_sentence() {
    let (llava, text) = (in_repository("tests/golden/llava"), in_repository("tests/golden/llama2_mha"));
    let (picture, config) = (format!("{llava}/exact.png"), format!("{llava}/config.json"));
    let cases: [(&[&str], &str); 6] = [
        (&["--model", &text, "--prompt-ids", "1", "--image", &picture], "reads text alone"),
        (&["--model", &llava, "--prompt-ids", "1,120", "--image", "/nowhere.png"], "/nowhere.png"),
        (&["--model", &llava, "--prompt-ids", "1,120", "--image", &config], "config.json"),
        (&["--model", &llava, "--prompt-ids", "1,2", "--image", &picture], "0 place(s) for pictures"),
        (&["--model", &llava, "--prompt-ids", "1,120"], "and 0 picture(s) are given"),
        (&["--model", &llava, "--prompt-ids", "1,120,120", "--image", &picture], "a run of 2 placeholders"),
    ];
    for (flags, expected) in cases {
        let output = smart_run(&[&["generate"], flags].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(output.stdout.is_empty() && said.lines().count() == 1, "{flags:?}: {said}");
        assert!(said.contains(expected), "{flags:?}: {said}");
    }
}

#[test]
fn inspect_knows_targets_that_see_and_their_drafters() {
    let inspected = |arguments: &[&str]| -> Value {
        let output = smart_run(&[&["inspect"], arguments, &["--format", "json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap()
    };
    for case in ["llava", "llava_next", "llava_interleave", "qwen2_vl"] {
        let answer = inspected(&[&in_repository(&format!("tests/golden/{case}"))]);
        assert_eq!(
            (answer["kind"].as_str(), answer["runs"].as_bool()),
            (Some("target"), Some(true)),
            "{answer}"
        );
    }
    let drafter = in_repository("tests/golden/msd_qwen2_vl/drafter");
    let answer = inspected(&[&drafter, "--target", &in_repository("tests/golden/qwen2_vl")]);
    assert_eq!((answer["kind"].as_str(), answer["runs"].as_bool()), (Some("msd"), Some(true)), "{answer}");
    assert_eq!(answer["target"]["fits"], true, "{answer}");
    let blind = inspected(&[&drafter, "--target", &in_repository("tests/golden/qwen2")]);
    assert_eq!(blind["target"]["fits"], false, "{blind}");
}
