//! Controllers change between sequences: what runs under one is what an engine of its own would run, and rounds are counted right.

use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::engine::{Engine, Request};
use smart_run::replay::Outcome;

use crate::fixtures::{demo, demo_prompts, greedy, run};

/// Generates to the end, counting every round.
fn counted(engine: &mut Engine, request: Request) -> (Vec<i32>, Outcome) {
    let (mut tokens, mut outcome) = (Vec::new(), Outcome::default());
    engine.submit(request).unwrap();
    while !engine.is_idle() {
        tokens.extend(engine.step().unwrap().into_iter().flat_map(|emission| emission.tokens));
        engine.count_round(&mut outcome);
    }
    (tokens, outcome)
}

/// The drafter of an engine that was built for plain decoding has to see all features once a policy drafts.
#[test]
fn a_controller_that_is_put_in_runs_the_rounds_of_an_engine_of_its_own() {
    let request = greedy(&demo_prompts(1, 60)[0], 40);
    let policy: Policy = "eagle2:4,3,12".parse().unwrap();
    let mut own = demo(FloatType::Bf16, policy);
    let expected = run(&mut own, request.clone());

    let mut engine = demo(FloatType::Bf16, Policy::Plain);
    assert_eq!(run(&mut engine, request.clone()), expected);
    let drafting = engine.new_controller(policy).unwrap();
    let plain = engine.set_controller(drafting).unwrap();
    engine.reset_stats();
    let (tokens, outcome) = counted(&mut engine, request.clone());
    assert_eq!(tokens, expected);
    let stats = engine.stats().clone();
    assert_eq!((stats.rounds, stats.nodes), (own.stats().rounds, own.stats().nodes));
    assert_eq!(stats.accepted_tokens, own.stats().accepted_tokens);

    assert_eq!((outcome.rounds, outcome.nodes), (stats.rounds, stats.nodes));
    assert_eq!((outcome.tokens, outcome.accepted), (stats.emitted_tokens, stats.accepted_tokens));
    assert!((outcome.us - 1e3 * stats.decode_ms).abs() < 1.0, "{} us, {} ms", outcome.us, stats.decode_ms);
    assert!((outcome.control_us - 1e3 * stats.control_ms).abs() < 1.0);
    let parts = outcome.draft_us + outcome.verify_us + outcome.control_us;
    assert!(outcome.draft_us > 0.0 && outcome.verify_us > 0.0 && parts < outcome.us * 1.001);
    let first = outcome.accepted_by_depth[0];
    assert!(first.1 <= first.0 && first.0 <= outcome.rounds);
    let accepted: u64 = outcome.accepted_by_depth.iter().map(|(_, accepted)| accepted).sum();
    assert_eq!(accepted, outcome.accepted);

    // Back again: what the plain controller did before is what it does now, and drafting leaves nothing behind.
    engine.set_controller(plain).unwrap();
    let (tokens, outcome) = counted(&mut engine, request);
    assert_eq!(tokens, expected);
    assert_eq!((outcome.plain_rounds, outcome.rounds), (39, 39), "the prompt's pass draws the first token");
    assert_eq!((outcome.draft_us, outcome.levels), (0.0, 0));
}

#[test]
fn a_running_sequence_keeps_its_controller() {
    let mut engine = demo(FloatType::Bf16, Policy::Plain);
    let controller = engine.new_controller(Policy::Chain(2)).unwrap();
    engine.submit(greedy(&demo_prompts(1, 20)[0], 4)).unwrap();
    let refused = engine.set_controller(controller).unwrap_err();
    assert!(refused.is_input() && refused.to_string().contains("running"), "{refused}");
    assert!(engine.new_controller(Policy::Smart).is_err());
}

#[test]
fn a_policy_that_drafts_needs_a_drafter() {
    let target = crate::fixtures::repository("assets/demo/target");
    let mut engine = crate::fixtures::builder(&target).max_context(64).build().unwrap();
    let refused = engine.new_controller(Policy::Chain(2)).unwrap_err();
    assert!(refused.is_input() && refused.to_string().contains("needs a drafter"), "{refused}");
}
