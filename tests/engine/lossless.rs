//! Speculation changes speed only: whatever grows the tree, the tokens are those of plain decoding.

use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::engine::{Engine, Request};
use smart_run::sampling::SamplingParams;
use smart_run::tree::DraftTree;

use crate::fixtures::{demo, demo_prompts, greedy, run, soak, tiny};

const POLICIES: [&str; 8] =
    ["chain:1", "chain:4", "eagle1", "eagle2:10,5,60", "eagle2:4,3,16", "auto-n", "smart-paper", "smart"];
/// Controllers that others have published.
const PUBLISHED: [&str; 9] = [
    "opt-tree:20",
    "sequoia:16",
    "goodput",
    "ddd",
    "svip",
    "specdec++:0.9",
    "disco:0.1",
    "tapout",
    "tapout:thompson",
];

/// Greedy, and two ways of sampling.
fn samplings() -> [SamplingParams; 3] {
    let base = SamplingParams::default();
    [
        base,
        SamplingParams { temperature: 0.7, top_p: 0.9, seed: 11, ..base },
        SamplingParams { temperature: 1.0, top_p: 0.95, seed: 12, ..base },
    ]
}

fn request(prompt: &[i32], max_new_tokens: usize, sampling: SamplingParams) -> Request {
    Request { sampling, ..greedy(prompt, max_new_tokens) }
}

/// Runs `policies` over the prompts, one sampling a prompt in turn, against `plain`. Where the pair `pays`, every policy must
/// have drafted; else the cost-aware ones may rightly refuse.
fn every_policy(
    policies: &[&str],
    build: fn(FloatType, Policy) -> Engine,
    float_type: FloatType,
    prompts: &[Vec<i32>],
    new_tokens: usize,
    pays: bool,
) {
    let requests: Vec<Request> = prompts
        .iter()
        .zip(samplings().into_iter().cycle())
        .map(|(prompt, sampling)| request(prompt, new_tokens, sampling))
        .collect();
    let mut plain = build(float_type, Policy::Plain);
    let wanted: Vec<Vec<i32>> = requests.iter().map(|r| run(&mut plain, r.clone())).collect();
    for policy in policies {
        let mut engine = build(float_type, policy.parse().unwrap());
        for (i, (request, wanted)) in requests.iter().zip(&wanted).enumerate() {
            assert_eq!(run(&mut engine, request.clone()), *wanted, "{policy}, {float_type:?}, prompt {i}");
        }
        let may_refuse = !pays && {
            use Policy::{Goodput, Smart, SmartPaper};
            matches!(engine.controller().policy(), Smart | SmartPaper | Goodput { .. })
        };
        assert!(
            may_refuse || engine.stats().mean_nodes() > 1.0,
            "{policy} never drafted: the comparison says nothing"
        );
    }
}

#[test]
fn every_policy_gives_the_plain_text_bf16() {
    every_policy(
        &POLICIES,
        demo,
        FloatType::Bf16,
        &demo_prompts(100, if soak() { 400 } else { 150 }),
        24,
        true,
    );
}

#[test]
fn every_policy_gives_the_plain_text_f32() {
    every_policy(
        &POLICIES,
        demo,
        FloatType::F32,
        &demo_prompts(if soak() { 100 } else { 20 }, 120),
        24,
        true,
    );
}

#[test]
fn every_policy_gives_the_plain_text_f16() {
    every_policy(&POLICIES, demo, FloatType::F16, &demo_prompts(if soak() { 100 } else { 9 }, 120), 24, true);
}

#[test]
fn every_policy_gives_the_plain_text_on_a_tiny_pair() {
    let prompts: Vec<Vec<i32>> =
        (0..12).map(|i| (0..1 + 5 * i).map(|t| (t * 37 + i * 11) % 160).collect()).collect();
    for float_type in [FloatType::F32, FloatType::Bf16] {
        every_policy(&POLICIES, tiny, float_type, &prompts, 12, false);
    }
}

#[test]
fn every_published_controller_gives_the_plain_text() {
    every_policy(
        &PUBLISHED,
        demo,
        FloatType::Bf16,
        &demo_prompts(if soak() { 100 } else { 3 }, 120),
        24,
        true,
    );
}

/// A tree of up to `size` nodes that mixes the true continuation with wrong tokens, siblings in any order.
fn random_tree(truth: &[i32], size: usize, vocab: i32, state: &mut u64) -> DraftTree {
    let mut next = move |bound: usize| {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 33) as usize % bound
    };
    let mut tree = DraftTree::new(truth[0]);
    while tree.num_nodes() < size {
        let parent = next(tree.num_nodes());
        let on_path =
            tree.path(parent).iter().zip(&truth[1..]).all(|(&node, &token)| tree.token(node) == token);
        let following = truth.get(tree.depth(parent) + 1).filter(|_| on_path && next(2) == 0);
        let token = following.copied().unwrap_or(next(vocab as usize) as i32);
        if tree.child_with_token(parent, token).is_none() {
            tree.push(parent, token);
        }
    }
    tree
}

#[test]
fn random_trees_give_the_plain_text() {
    let mut state = 1u64;
    for float_type in [FloatType::Bf16, FloatType::F32] {
        let mut engine = demo(float_type, Policy::Plain);
        let mut accepted = 0;
        for (prompt, sampling) in demo_prompts(6, 90).iter().zip(samplings().into_iter().cycle()) {
            let request = request(prompt, 40, sampling);
            let truth = run(&mut engine, request.clone());
            engine.submit(request).unwrap();
            let mut tokens = engine.step().unwrap().remove(0).tokens;
            while tokens.len() < truth.len() {
                let size = 1 + (tokens.len() * 7) % 61;
                let tree = random_tree(&truth[tokens.len() - 1..], size, 4096, &mut state);
                let emission = engine.step_with(&[tree]).unwrap().remove(0);
                accepted += emission.tokens.len() - 1;
                tokens.extend(emission.tokens);
            }
            assert_eq!(tokens, truth);
        }
        assert!(accepted > 50, "random trees hardly ever contained the truth: {accepted}");
    }
}
