//! Costs measured on demand: what is measured is usable, and measuring changes nothing for those who are served.

use smart_run::config::FloatType;
use smart_run::control::{CostModel, Policy, SweepKind};
use smart_run::engine::{DraftSource, Engine};

use crate::fixtures::{builder, demo, demo_prompts, greedy, paying_costs, repository, run, tiny};

fn batched(max_sequences: usize) -> Engine {
    Engine::builder(repository("assets/demo/target"))
        .drafter(repository("assets/demo/drafter"))
        .float_type(FloatType::Bf16)
        .policy(Policy::Plain)
        .max_sequences(max_sequences)
        .max_context(256)
        .build()
        .unwrap()
}

#[test]
fn a_batch_is_measured_with_passes_of_several_sequences_within_the_time() {
    let mut engine = batched(4);
    let costs = engine.measure_costs().unwrap();
    // The limit is 1.5 s and a pass that may overrun it; the rest is slack for a busy machine.
    assert!(costs.sweep_time.as_secs_f64() < 4.0, "{:?}", costs.sweep_time);
    assert!(costs.points.len() <= costs.planned_points);
    let first: Vec<_> = costs.points.iter().take(2).map(|point| (point.kind, point.tokens)).collect();
    assert_eq!(
        first,
        [(SweepKind::Verify, 1), (SweepKind::Draft, 1)],
        "what every decision needs comes first"
    );
    for point in &costs.points {
        assert!(point.tokens % point.sequences == 0 && point.sequences <= 4, "{point:?}");
        assert!(point.us.is_finite() && point.us > 0.0, "{point:?}");
    }
    // A sweep that was not cut off has it all.
    if costs.points.len() == costs.planned_points {
        for (kind, sequences) in [(SweepKind::Plain, 1), (SweepKind::Plain, 4), (SweepKind::Draft, 4)] {
            let found = costs.points.iter().any(|p| (p.kind, p.sequences) == (kind, sequences));
            assert!(found, "{kind:?} of {sequences} sequences is missing");
        }
    }
    // Plain rounds that run ahead have nothing outside of their passes.
    let least = if engine.device().is_host() { f64::MIN_POSITIVE } else { 0.0 };
    assert!(costs.overhead_us > 0.0 && costs.plain_overhead_us >= least, "{costs:?}");
    CostModel::from_sweep(&costs.points, costs.treads).unwrap();
    if engine.device().is_host() {
        assert_eq!(costs.conditions, None, "the CPU's clocks are not a GPU's");
    }
}

#[test]
fn measuring_changes_neither_tokens_nor_statistics_nor_what_is_known() {
    let prompt = &demo_prompts(1, 60)[0];
    let wanted = run(&mut demo(FloatType::Bf16, Policy::Plain), greedy(prompt, 24));
    let mut engine = demo(FloatType::Bf16, "eagle2:4,2,8".parse().unwrap());
    assert_eq!(run(&mut engine, greedy(prompt, 24)), wanted);
    let (stats, cost) = (engine.stats().clone(), engine.controller().cost().clone());
    engine.measure_costs().unwrap();
    assert_eq!(engine.stats(), &stats);
    assert!(engine.controller().cost() == &cost, "the controller learned from the measurement");
    assert!(engine.is_idle());
    assert_eq!(run(&mut engine, greedy(prompt, 24)), wanted);
    engine.submit(greedy(prompt, 24)).unwrap();
    let error = engine.measure_costs().unwrap_err();
    assert!(error.is_input() && error.to_string().contains("are running"), "{error}");
    assert!(!engine.is_idle(), "a refused measurement cancels nobody");
}

#[test]
fn without_a_drafter_there_are_no_drafter_passes() {
    let mut engine = builder(&repository("tests/golden/llama31_gqa")).max_context(64).build().unwrap();
    let costs = engine.measure_costs().unwrap();
    assert!(costs.points.len() > 2 && costs.points.iter().all(|point| point.kind != SweepKind::Draft));
    // A context with room for a single token still has costs.
    let mut engine = builder(&repository("tests/golden/llama31_gqa")).max_context(1).build().unwrap();
    assert!(engine.measure_costs().unwrap().points.iter().all(|point| point.context == 0));
    assert!(!tiny(FloatType::F32, Policy::Plain).measure_costs().unwrap().points.is_empty());
}

/// Costs of one drafter say nothing of another's, for the same target; nor do those of passes that are filled up of others.
#[test]
fn costs_on_disk_are_kept_apart_by_drafter_and_kind_of_pass() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("costs.json");
    let start_with = |drafter: DraftSource, tread: usize| {
        let target = repository("assets/demo/target");
        let builder = Engine::builder(target).drafter(drafter).policy(Policy::Smart).max_context(128);
        let engine = builder.cost_cache(&cache).pass_tread(tread).build().unwrap();
        (engine.controller().cost().clone(), std::fs::read(&cache).unwrap())
    };
    let start = |drafter: DraftSource| start_with(drafter, 1);
    let weights = || DraftSource::from(repository("assets/demo/drafter"));
    let ((_, first), (_, second)) = (start(weights()), start(weights()));
    assert_ne!(first, second, "the second start measures, too: the first may have had a bad moment");
    let (settled, kept) = start(weights());
    let (again, kept_again) = start(weights());
    assert!(settled == again && kept == kept_again, "from the fourth start on the file is read, not written");
    let (ngrams, _) = start(DraftSource::Ngrams);
    assert!(ngrams != settled, "n-grams started with the costs of a network");
    let (filled_up, _) = start_with(weights(), 8);
    assert!(filled_up != settled, "passes that are filled up started with the costs of others");
    assert!(start(weights()).0 == settled, "the file forgot the network for the n-grams");
}

/// Given costs are taken as they are: nothing is measured, and no file is asked or written.
#[test]
fn given_costs_stand_in_for_a_measurement() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("costs.json");
    let mut engine = Engine::builder(repository("assets/demo/target"))
        .drafter(repository("assets/demo/drafter"))
        .max_context(128)
        .cost_cache(&cache)
        .costs(paying_costs())
        .build()
        .unwrap();
    assert!(engine.controller().cost() == &paying_costs());
    assert!(engine.new_controller(Policy::SmartPaper).unwrap().cost() == &paying_costs());
    assert!(!cache.exists());
}
