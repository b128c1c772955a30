//! Targets against Hugging Face transformers: logits and greedy tokens of tiny random-weight models of every architecture.

use std::path::PathBuf;

use smart_run::control::Policy;

use crate::fixtures::{assert_close, builder, expected, expected_tensor, greedy, ids, repository, run};

/// Float32 end to end; the goldens themselves are within 3e-6.
const LOGIT_LIMIT: f32 = 1e-4;

fn check(case: &str, folder: PathBuf) {
    let mut engine = builder(&folder).policy(Policy::Plain).build().unwrap();
    for prompt in expected(case)["prompts"].as_array().unwrap() {
        let (length, prompt_ids) = (prompt["length"].as_u64().unwrap(), ids(&prompt["prompt_ids"]));
        let logits = engine.score(&prompt_ids, &[]).unwrap();
        let vocab = engine.model_config().geometry.vocab_size;
        let last = expected_tensor(case, &format!("last_logits.{length}"));
        assert_close(
            &format!("{case}, prompt of {length}"),
            &logits[logits.len() - vocab..],
            &last,
            LOGIT_LIMIT,
        );
        if length == 33 {
            assert_close(case, &logits, &expected_tensor(case, "all_logits.33"), LOGIT_LIMIT);
        }
        let tokens = run(&mut engine, greedy(&prompt_ids, 48));
        assert_eq!(tokens, ids(&prompt["greedy_ids"]), "{case}, prompt of {length}");
    }
}

/// The folder `case` with its transformers-4 config under the name that loaders look for.
fn transformers4(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(repository("tests/golden").join(case)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let name = match name.as_str() {
            "config.json" => continue,
            "config.transformers4.json" => "config.json",
            other => other,
        };
        std::os::unix::fs::symlink(&path, folder.path().join(name)).unwrap();
    }
    folder
}

macro_rules! target {
    ($($case:ident),*) => { $(
        #[test]
        fn $case() {
            let case = stringify!($case);
            check(case, repository("tests/golden").join(case));
            let older = transformers4(case);
            check(case, older.path().to_owned());
        }
    )* };
}
target!(llama2_mha, llama31_gqa, tied_head, head_dim128, vicuna_16k, llama32_tied);
target!(qwen2, qwen2_yarn, qwen3, qwen3_windows, mistral_window);

/// Under dynamic scaling the numbers are those without any up to the original length, and longer texts are refused.
#[test]
fn dynamic_scaling_is_none_up_to_its_length() {
    let case = "llama2_mha";
    let folder = transformers4(case);
    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["rope_scaling"] = serde_json::json!({"type": "dynamic", "factor": 4.0});
    config["max_position_embeddings"] = 200.into();
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    check(case, folder.path().to_owned());
    let mut engine = builder(folder.path()).build().unwrap();
    assert_eq!(engine.max_context(), 200);
    let error = engine.submit(greedy(&[1; 201], 4)).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("no room in the context of 200"), "{error}");
}

#[test]
fn an_end_of_sequence_token_ends_the_text_before_itself() {
    let case = "llama31_gqa";
    let prompt = &expected(case)["prompts"][1];
    let (prompt_ids, tokens) = (ids(&prompt["prompt_ids"]), ids(&prompt["greedy_ids"]));
    let folder = transformers4(case);
    let end = tokens[20];
    std::fs::write(folder.path().join("generation_config.json"), format!("{{\"eos_token_id\": [{end}]}}"))
        .unwrap();
    let mut engine = builder(folder.path()).build().unwrap();
    let mut request = greedy(&prompt_ids, 48);
    request.ignore_eos = false;
    let expected = &tokens[..tokens.iter().position(|&t| t == end).unwrap()];
    assert_eq!(run(&mut engine, request), expected);
    assert_eq!(run(&mut engine, greedy(&prompt_ids, 48)), tokens, "with --ignore-eos");
}
