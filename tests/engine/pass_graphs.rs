//! Passes that are filled up to few shapes and run as graphs: the same texts, and the same trees.

use smart_run::config::FloatType;
use smart_run::engine::{Engine, EngineBuilder, Request};
use smart_run::sampling::SamplingParams;

use crate::fixtures::{demo_builder, demo_prompts, greedy};

fn builder(policy: &str) -> EngineBuilder<'static> {
    demo_builder(FloatType::Bf16, policy.parse().unwrap())
        .max_sequences(3)
        .max_context(400)
        .prefill_tokens(90)
}

/// Texts of five requests that share three places, and the draft tokens verified and accepted for each: a drafter that reads anything
/// wrong has fewer accepted.
fn serve(engine: &mut Engine, requests: &[Request]) -> Vec<(Vec<i32>, [u64; 2])> {
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut texts = vec![(Vec::new(), [0; 2]); ids.len()];
    while !engine.is_idle() {
        for emission in engine.step().unwrap() {
            let place = ids.iter().position(|id| *id == emission.sequence).unwrap();
            texts[place].0.extend(emission.tokens);
            texts[place].1 = [emission.stats.drafted_tokens, emission.stats.accepted_tokens];
        }
    }
    texts
}

#[test]
fn graphs_change_neither_texts_nor_trees() {
    let prompts = demo_prompts(5, 120);
    let requests: Vec<Request> = (0..5)
        .map(|i| Request {
            sampling: SamplingParams {
                temperature: 0.5 * (i % 2) as f32,
                seed: i,
                ..SamplingParams::default()
            },
            logprobs: (i == 1).then_some(2),
            ..greedy(&prompts[i as usize], 70)
        })
        .collect();
    for policy in ["plain", "eagle2:4,3,14"] {
        let wanted = serve(&mut builder(policy).build().unwrap(), &requests);
        // The second time every shape is known.
        let mut engine = builder(policy).pass_tread(8).build().unwrap();
        for time in 0..2 {
            assert!(serve(&mut engine, &requests) == wanted, "{policy}, time {time}");
        }
        let (target, drafter) = engine.pass_graphs();
        assert!((2..=96).contains(&target), "{policy}: {target} shapes of target passes are graphs");
        let drafts = policy != "plain";
        assert!(
            (2 * usize::from(drafts)..=96).contains(&drafter),
            "{policy}: {drafter} shapes of drafter passes are graphs"
        );
        assert!(drafts || drafter == 0);
    }
}

/// Under a policy that looks at times trees may differ; texts do not.
#[test]
fn a_graph_is_good_for_every_pass_of_its_shape() {
    let prompts = demo_prompts(4, 300);
    let requests: Vec<Request> = prompts.iter().map(|prompt| greedy(prompt, 60)).collect();
    let wanted = serve(&mut builder("plain").build().unwrap(), &requests);
    let mut engine = builder("smart").pass_tread(8).build().unwrap();
    for _ in 0..2 {
        for ((got, _), (wanted, _)) in serve(&mut engine, &requests).iter().zip(&wanted) {
            assert_eq!(got, wanted);
        }
    }
    assert!(engine.pass_graphs().0 > 0);
}
