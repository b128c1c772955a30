//! Later kinds of EAGLE-3 drafters than the authors': norms around `fc` and behind the output, a single feature, several layers.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::serialize_to_file;
use serde_json::{Value, json};
use smart_run::config::{FloatType, ModelConfig};
use smart_run::engine::{Engine, EngineBuilder, Request};
use tempfile::TempDir;

use crate::drafters::{check, check_drafter, gives_the_plain_text};
use crate::fixtures::{greedy, paying_costs, repository, run};

/// EAGLE-3.1's norms before `fc`; a config that spells out that outputs are fed back bare.
#[test]
fn a_norm_for_each_tapped_stream() {
    check("eagle3_fc_norm", usize::MAX);
    gives_the_plain_text("eagle3_fc_norm", &[FloatType::F32, FloatType::Bf16]);
}

/// vLLM's speculators, in their dialect: a norm over all taps, a residual behind its norm, outputs fed back behind theirs.
#[test]
fn outputs_fed_back_behind_the_final_norm() {
    check("eagle3_norm_output", usize::MAX);
    gives_the_plain_text("eagle3_norm_output", &[FloatType::F32, FloatType::F16]);
}

/// No `fc`: the target's last hidden state is the feature.
#[test]
fn a_single_feature() {
    check("eagle3_single_feature", usize::MAX);
    gives_the_plain_text("eagle3_single_feature", &[FloatType::F32, FloatType::Bf16]);
}

/// A plain layer behind the first, with keys and values of its own.
#[test]
fn two_layers() {
    check("eagle3_two_layers", usize::MAX);
    gives_the_plain_text("eagle3_two_layers", &[FloatType::F32, FloatType::Bf16]);
}

/// SGLang keeps the name of the first layer's norm of the feature; the authors call the first layer `midlayer`.
#[test]
fn two_layers_under_other_names() {
    let folder = changed(
        "eagle3_two_layers",
        |_| {},
        |name| {
            name.replace("layers.0.", "midlayer.").replace("layers.1.input_layernorm", "layers.1.hidden_norm")
        },
    );
    check_drafter("eagle3_two_layers", folder.path(), 1);
    let folder = changed(
        "eagle3_two_layers",
        |_| {},
        |name| match name {
            "lm_head.weight" | "d2t" | "t2d" => name.into(),
            _ => format!("model.{name}"),
        },
    );
    check_drafter("eagle3_two_layers", folder.path(), 1);
}

/// As `EAGLE3-Vicuna1.3-13B`'s does, whose target has 40 layers.
#[test]
fn a_config_may_repeat_its_targets_number_of_layers() {
    let target = ModelConfig::from_hf(&repository("tests/golden/llama31_gqa").into()).unwrap();
    let repeat = |config: &mut Value| config["num_hidden_layers"] = json!(target.geometry.num_layers);
    let folder = changed("eagle3_random", repeat, str::to_owned);
    check_drafter("eagle3_random", folder.path(), 1);
}

/// Sequences of a batch share the pages of both layers, and places are taken again.
#[test]
fn two_layers_in_a_batch() {
    let golden = repository("tests/golden");
    let build = |policy: &str| {
        let builder =
            Engine::builder(golden.join("llama31_gqa")).drafter(golden.join("eagle3_two_layers/drafter"));
        let builder =
            builder.float_type(FloatType::Bf16).policy(policy.parse().unwrap()).costs(paying_costs());
        builder.max_sequences(3).max_context(256).build().unwrap()
    };
    let requests: Vec<Request> = (0..5)
        .map(|i| {
            greedy(
                &(0..3 + 20 * i).map(|t| (t * 29 + i * 7) % 160).collect::<Vec<i32>>(),
                20 + 4 * i as usize,
            )
        })
        .collect();
    let mut plain = build("plain");
    let wanted: Vec<Vec<i32>> = requests.iter().map(|request| run(&mut plain, request.clone())).collect();
    let mut engine = build("eagle2:4,3,16");
    // Five for three places: two wait and take places again.
    let ids: Vec<_> = requests.into_iter().map(|request| engine.submit(request).unwrap()).collect();
    let mut got = vec![Vec::new(); wanted.len()];
    while !engine.is_idle() {
        for emission in engine.step().unwrap() {
            let place = ids.iter().position(|id| *id == emission.sequence).unwrap();
            got[place].extend(emission.tokens);
        }
    }
    assert_eq!(got, wanted);
    assert!(
        engine.stats().mean_accepted_len() > 0.1,
        "next to nothing was accepted: the comparison says little"
    );
}

/// The rehearsal says what loading would.
#[test]
fn a_checkpoint_and_its_config_must_agree() {
    let cases: [(&str, &str, Value, &str); 10] = [
        ("eagle3_random", "fc_norm", json!(true), "tensor fc_norm.0.weight is missing"),
        ("eagle3_random", "norm_before_fc", json!(true), "tensor input_norm.weight is missing"),
        ("eagle3_random", "num_hidden_layers", json!(2), "tensor layers.1."),
        ("eagle3_random", "eagle_config", json!({"use_aux_hidden_state": false}), "fc.weight"),
        ("eagle3_fc_norm", "fc_norm", json!(false), "fc_norm.0.weight, fc_norm.1.weight"),
        ("eagle3_fc_norm", "norm_before_fc", json!(true), "a drafter has one of the two"),
        ("eagle3_norm_output", "norm_before_fc", json!(false), "input_norm.weight"),
        ("eagle3_single_feature", "eagle_config", json!(null), "tensor fc.weight is missing"),
        ("eagle3_single_feature", "fc_norm", json!(true), "there is nothing to norm"),
        ("eagle3_two_layers", "num_hidden_layers", json!(1), "layers.1.input_layernorm.weight"),
    ];
    for (case, field, value, says) in cases {
        let what = format!("{case}, {field} = {value}");
        let folder = changed(case, |config| config[field] = value, str::to_owned);
        let error = beside_its_target(folder.path()).check().expect_err(&what);
        assert!(error.is_input() && error.to_string().contains(says), "{what}: {error}");
        let built = beside_its_target(folder.path()).build().err().expect(&what);
        assert_eq!(built.to_string(), error.to_string(), "{what}");
    }
    for case in ["eagle3_fc_norm", "eagle3_norm_output", "eagle3_single_feature", "eagle3_two_layers"] {
        beside_its_target(&repository("tests/golden").join(case).join("drafter")).check().unwrap();
    }
}

fn beside_its_target(drafter: &Path) -> EngineBuilder<'static> {
    Engine::builder(repository("tests/golden/llama31_gqa")).drafter(drafter)
}

/// The drafter of a case with its config and the names of its tensors changed.
fn changed(case: &str, config: impl FnOnce(&mut Value), name: impl Fn(&str) -> String) -> TempDir {
    let drafter = repository("tests/golden").join(case).join("drafter");
    let folder = tempfile::tempdir().unwrap();
    let mut fields = serde_json::from_slice(&std::fs::read(drafter.join("config.json")).unwrap()).unwrap();
    config(&mut fields);
    std::fs::write(folder.path().join("config.json"), fields.to_string()).unwrap();
    let bytes = std::fs::read(drafter.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = tensors.iter().map(|(old, view)| (name(old), view));
    serialize_to_file(renamed, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}
