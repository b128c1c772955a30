//! Weights that are made up: a folder needs a config and nothing else, and an engine of them keeps its promises.

use std::path::Path;

use smart_run::config::FloatType;
use smart_run::device::DeviceChoice;
use smart_run::engine::{Engine, EngineBuilder};
use tempfile::TempDir;

use crate::fixtures::{greedy, paying_costs, repository, run};

/// A folder with the config of another alone.
fn config_of(folder: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(repository(folder).join("config.json"), copy.path().join("config.json")).unwrap();
    copy
}

fn builder(target: &Path, drafter: &Path) -> EngineBuilder<'static> {
    let builder = Engine::builder(target).drafter(drafter).device(DeviceChoice::Auto);
    builder.max_context(300).costs(paying_costs())
}

#[test]
fn a_config_is_enough() {
    let (target, drafter) = (config_of("assets/demo/target"), config_of("assets/demo/drafter"));
    let builder = || builder(target.path(), drafter.path());
    let error = builder().build().err().expect("no weights are here").to_string();
    assert!(error.contains("no model.safetensors"), "{error}");
    builder().dummy_weights().check().unwrap();
    for float_type in FloatType::ALL {
        let mut texts = Vec::new();
        for policy in ["plain", "smart", "eagle2:4,2,8"] {
            let builder = builder().dummy_weights().float_type(float_type).policy(policy.parse().unwrap());
            let mut engine = builder.build().unwrap();
            texts.push(run(&mut engine, greedy(&[5, 600, 7, 80], 24)));
        }
        let different: std::collections::BTreeSet<_> = texts[0].iter().collect();
        assert!(different.len() > 3, "numbers that mean nothing still differ: {texts:?}");
        assert!(texts.iter().all(|text| *text == texts[0]), "{}: {texts:?}", float_type.name());
    }
}

#[test]
fn pictures_are_beyond_them() {
    let (target, drafter) = (config_of("tests/golden/llava"), config_of("assets/demo/drafter"));
    let error = builder(target.path(), drafter.path()).dummy_weights().check().unwrap_err();
    assert!(error.is_input() && error.to_string().contains("sees pictures"), "{error}");
}
