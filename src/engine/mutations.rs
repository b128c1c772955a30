//! Tests of the losslessness tests: with a bug planted in the round, the text must no longer be that of plain decoding.

use std::path::Path;

use crate::control::Policy;
use crate::engine::{Bug, Engine, Request};
use crate::sampling::SamplingParams;

/// Prompts that need no tokenizer: what the demo model makes of them does not matter, only that it is the same.
fn prompts() -> [Vec<i32>; 3] {
    [vec![0, 300, 301, 302], vec![0, 1000, 17, 90, 12, 9], (0..40).map(|i| (i * 97) % 4096).collect()]
}

fn texts(policy: Policy, planted: Option<Bug>) -> (Vec<Vec<i32>>, u64) {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let mut engine = Engine::builder(demo.join("target"))
        .drafter(demo.join("drafter"))
        .policy(policy)
        .max_context(256)
        .build()
        .expect("the demo pair loads");
    engine.planted = planted;
    let texts = prompts()
        .into_iter()
        .enumerate()
        .map(|(i, prompt)| {
            let sampling =
                SamplingParams { temperature: 0.7 * i as f32, seed: 5, ..SamplingParams::default() };
            let request = Request { sampling, ignore_eos: true, ..Request::new(prompt, 40) };
            engine
                .generate(request)
                .expect("a sound request")
                .flat_map(|tokens| tokens.expect("a round"))
                .collect()
        })
        .collect();
    (texts, engine.stats().accepted_tokens)
}

#[test]
fn planted_bugs_change_the_text() {
    let tree = Policy::Eagle2 { top_k: 4, depth: 3, total: 16 };
    let (plain, _) = texts(Policy::Plain, None);
    let (sound, accepted) = texts(tree, None);
    assert_eq!(sound, plain, "without a bug");
    assert!(accepted > 20, "too little is accepted to test anything: {accepted}");
    let bugs = [
        ("stale keys and values", Bug::StaleKv),
        ("wrong sibling", Bug::WrongSibling),
        ("late position", Bug::LatePosition),
        ("siblings seen", Bug::SeesSiblings),
    ];
    for (name, bug) in bugs {
        assert_ne!(texts(tree, Some(bug)).0, plain, "{name} went unnoticed");
    }
}
