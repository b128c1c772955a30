//! Passes taken apart: every launch is found, and nothing is left behind.

use serde_json::Value;
use smart_run::Error;
use smart_run::config::FloatType;
use smart_run::control::SweepKind;
use smart_run::engine::{Engine, PassBreakdown};

use crate::fixtures::{demo_builder, demo_prompts, greedy, repository, run};

fn engine(tread: usize) -> Engine {
    let builder = demo_builder(FloatType::Bf16, "smart".parse().unwrap());
    builder.max_context(300).pass_tread(tread).build().unwrap()
}

/// Launches of kernels whose names begin so.
fn launches(breakdown: &PassBreakdown, kernel: &str) -> usize {
    let parts = breakdown.parts.iter().filter(|part| part.launch.kernel.starts_with(kernel));
    parts.map(|part| part.count).sum()
}

fn num_layers(network: &str) -> usize {
    let config = std::fs::read(repository("assets/demo").join(network).join("config.json")).unwrap();
    serde_json::from_slice::<Value>(&config).unwrap()["num_hidden_layers"].as_u64().unwrap() as usize
}

#[test]
fn every_launch_of_both_networks_is_found() {
    for tread in [1, 8] {
        let passes = engine(tread).break_down_passes(5).unwrap();
        let [target, drafter] = &passes[..] else { panic!("{} passes", passes.len()) };
        for (pass, network, kind) in
            [(target, "target", SweepKind::Verify), (drafter, "drafter", SweepKind::Draft)]
        {
            assert_eq!((pass.kind, pass.rows, pass.context), (kind, 5, 299));
            let layers = num_layers(network);
            assert_eq!(launches(pass, "rope_kv_write"), layers, "{network}");
            assert!(launches(pass, "linear") > 3 * layers, "{network}: {:?}", pass.parts);
            assert!(pass.start_us >= 0.0 && pass.parts.iter().all(|part| part.us >= 0.0), "{pass:?}");
            assert!(pass.total_us() > pass.start_us, "{pass:?}");
            let first = &pass.parts[0].launch;
            assert!(first.grid.iter().chain(&first.block).all(|&side| side > 0), "{first:?}");
        }
        assert_eq!(launches(target, "draft"), 0);
        assert_eq!([launches(drafter, "draft_frontier"), launches(drafter, "draft_topk")], [1, 1]);
    }
}

#[test]
fn the_engine_goes_on_as_before() {
    let prompt = &demo_prompts(1, 100)[0];
    let wanted = run(&mut engine(8), greedy(prompt, 40));
    let mut engine = engine(8);
    for rows in [1, 65] {
        let passes = engine.break_down_passes(rows).unwrap();
        assert_eq!(passes.len(), if rows <= 64 { 2 } else { 1 }, "{rows} rows");
        assert_eq!(run(&mut engine, greedy(prompt, 40)), wanted, "behind {rows} rows");
    }
}

#[test]
fn passes_without_rows_and_busy_engines_are_refused() {
    let mut engine = engine(1);
    for rows in [0, 257] {
        assert!(matches!(engine.break_down_passes(rows), Err(Error::Input(_))), "{rows} rows");
    }
    engine.submit(greedy(&[1, 2, 3], 8)).unwrap();
    assert!(matches!(engine.break_down_passes(1), Err(Error::Input(_))));
}
