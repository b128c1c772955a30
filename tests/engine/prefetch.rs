//! Weights that are brought into the device's cache while the host thinks.

use smart_run::config::FloatType;
use smart_run::engine::Engine;

use crate::common::device::{device, plan_host_failure};
use crate::fixtures::{demo_builder, demo_prompts, greedy, repository, run};

fn engine(policy: &str, bytes: usize) -> Engine {
    let builder = demo_builder(FloatType::Bf16, policy.parse().unwrap());
    builder.max_context(300).prefetch_bytes(bytes).build().unwrap()
}

/// More than the smallest weights have, less than the largest.
const BYTES: usize = 5000;

#[test]
fn texts_are_those_without() {
    // A failure that another test plans is for whoever comes.
    let _alone = device();
    let prompt = &demo_prompts(1, 100)[0];
    for policy in ["plain", "eagle2:3,2,8", "smart"] {
        let [wanted, got] = [0, BYTES].map(|bytes| run(&mut engine(policy, bytes), greedy(prompt, 40)));
        assert_eq!(got, wanted, "{policy}");
    }
    let heads = |bytes| {
        let builder = Engine::builder(repository("assets/demo/target"))
            .drafter(repository("tests/golden/medusa_demo/drafter"))
            .policy("eagle2:3,2,8".parse().unwrap());
        run(&mut builder.max_context(300).prefetch_bytes(bytes).build().unwrap(), greedy(prompt, 40))
    };
    assert_eq!(heads(BYTES), heads(0));
}

/// Behind every target pass, and behind every level of a drafter: a launch that is made to fail says which round it was in.
#[test]
fn every_pass_is_followed_by_one() {
    let device = device();
    if !device.is_host() {
        eprintln!("skipped: failures can be planned on the host driver alone");
        return;
    }
    let prompt = &demo_prompts(1, 60)[0];
    // A round drafts three levels: that of the root, then two.
    for (policy, a_round) in [("plain", 1), ("eagle2:3,2,8", 4)] {
        for failing_round in [1, 3] {
            let mut engine = engine(policy, BYTES);
            engine.submit(greedy(prompt, 60)).unwrap();
            plan_host_failure(c"prefetch", 1 + (failing_round - 1) * a_round, 1);
            let mut failed = None;
            for round in 1..6 {
                if let Err(error) = engine.step() {
                    failed = Some((round, error.to_string()));
                    break;
                }
            }
            let (round, error) = failed.expect("a launch failed");
            assert!(error.contains("prefetch"), "{error}");
            // The first step reads the prompt alone.
            assert_eq!(round, failing_round + 1, "{policy}");
        }
    }
}

#[test]
fn profiles_tell_what_it_is_worth() {
    let _alone = device();
    let level = |policy, bytes| engine(policy, bytes).measure_costs().unwrap().idle_level;
    let level_of_some = level("eagle2:3,2,8", BYTES).expect("a drafter, and something is brought");
    assert!(level_of_some.us > 0.0 && level_of_some.prefetched_us > 0.0, "{level_of_some:?}");
    assert_eq!(level("eagle2:3,2,8", 0), None);
}
