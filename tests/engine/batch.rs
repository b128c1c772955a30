//! Several sequences at once: nobody's tokens depend on who else is being served.

use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::engine::{Engine, Request};
use smart_run::sampling::SamplingParams;

use crate::fixtures::{demo, demo_prompts, greedy, repository, run};

fn batched(policy: Policy, max_sequences: usize) -> Engine {
    Engine::builder(repository("assets/demo/target"))
        .drafter(repository("assets/demo/drafter"))
        .float_type(FloatType::Bf16)
        .policy(policy)
        .max_sequences(max_sequences)
        .max_context(384)
        .build()
        .unwrap()
}

fn requests() -> Vec<Request> {
    let sampling = |i: usize| SamplingParams {
        temperature: if i.is_multiple_of(2) { 0.0 } else { 0.8 },
        seed: i as u64,
        ..SamplingParams::default()
    };
    let prompts = demo_prompts(5, 150);
    prompts
        .iter()
        .enumerate()
        .map(|(i, p)| Request { sampling: sampling(i), weight: 1.0 + i as f32, ..greedy(p, 20 + 3 * i) })
        .collect()
}

#[test]
fn a_sequence_is_the_same_alone_and_in_a_batch() {
    let mut alone = demo(FloatType::Bf16, Policy::Plain);
    let wanted: Vec<Vec<i32>> = requests().into_iter().map(|request| run(&mut alone, request)).collect();
    for policy in ["plain", "smart", "eagle2:10,5,60", "chain:3"] {
        // Three places for five requests: they join and leave while others are running.
        let mut engine = batched(policy.parse().unwrap(), 3);
        let (mut waiting, mut running) = (requests().into_iter().enumerate().collect::<Vec<_>>(), Vec::new());
        waiting.reverse();
        let mut got = vec![Vec::new(); wanted.len()];
        while !waiting.is_empty() || !running.is_empty() {
            while running.len() < 3 {
                let Some((index, request)) = waiting.pop() else { break };
                running.push((engine.submit(request).unwrap(), index));
            }
            for emission in engine.step().unwrap() {
                let place = running.iter().position(|(id, _)| *id == emission.sequence).unwrap();
                got[running[place].1].extend(emission.tokens);
                if emission.finished.is_some() {
                    running.remove(place);
                }
            }
        }
        assert_eq!(got, wanted, "{policy}");
    }
}

#[test]
fn a_floor_holds_for_every_controller_of_an_engine() {
    let mut engine = Engine::builder(repository("assets/demo/target"))
        .drafter(repository("assets/demo/drafter"))
        .policy(Policy::Chain(1))
        .floor(3)
        .max_context(64)
        .build()
        .unwrap();
    assert_eq!(engine.controller().config().floor, 3);
    assert_eq!(engine.new_controller(Policy::Chain(2)).unwrap().config().floor, 3);
}

#[test]
fn weights_reach_the_controller_and_senseless_ones_are_refused() {
    let mut engine = batched(Policy::Smart, 3);
    for request in requests().into_iter().take(3) {
        engine.submit(request).unwrap();
    }
    engine.step().unwrap();
    engine.step().unwrap();
    let weights: Vec<f32> = engine.controller().views().iter().map(|view| view.weight).collect();
    assert_eq!(weights, [1.0, 2.0, 3.0]);
    for weight in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let refused = engine.submit(Request { weight, ..requests()[0].clone() }).unwrap_err();
        assert!(refused.is_input() && refused.to_string().contains("weight"), "{refused}");
    }
}

#[test]
fn a_cancelled_sequence_leaves_its_place_to_the_next() {
    let mut engine = batched(Policy::Smart, 1);
    let requests = requests();
    for _ in 0..20 {
        let id = engine.submit(requests[0].clone()).unwrap();
        let waiting = engine.submit(requests[1].clone()).unwrap();
        engine.step().unwrap();
        engine.step().unwrap();
        assert_eq!(engine.running().collect::<Vec<_>>(), [id], "one place only");
        assert!(engine.cancel(waiting) && engine.cancel(id));
        assert!(engine.is_idle());
        assert_eq!(engine.page_counts().used, 0);
    }
    let wanted = run(&mut demo(FloatType::Bf16, Policy::Plain), requests[0].clone());
    assert_eq!(run(&mut engine, requests[0].clone()), wanted);
}
