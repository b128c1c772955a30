//! Speculation changes speed only: whatever grows the tree, the tokens are those of plain decoding.

use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::engine::{Engine, Request};
use smart_run::sampling::SamplingParams;
use smart_run::tree::DraftTree;

use crate::fixtures::{demo, demo_prompts, greedy, repository, run, soak, tiny};
use crate::random_drafters::random_drafter;

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
    build: impl Fn(FloatType, Policy) -> Engine,
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
        // Whoever watches over the tests takes one that says nothing for long for one that hangs.
        println!("{policy}, {float_type:?}: {} texts", prompts.len());
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
    let prompts = tiny_prompts((0..12).map(|i| 1 + 5 * i));
    for float_type in [FloatType::F32, FloatType::Bf16] {
        every_policy(&POLICIES, tiny, float_type, &prompts, 12, false);
    }
}

/// Prompts of these lengths, of tokens below 160.
fn tiny_prompts(lengths: impl Iterator<Item = i32>) -> Vec<Vec<i32>> {
    lengths.enumerate().map(|(i, len)| (0..len).map(|t| (t * 37 + i as i32 * 11) % 160).collect()).collect()
}

/// A tiny target that is not Llama's, with or without a drafter.
fn tiny_target(
    case: &str,
    float_type: FloatType,
    drafter: Option<&std::path::Path>,
    policy: Policy,
) -> Engine {
    let builder =
        Engine::builder(repository("tests/golden").join(case)).float_type(float_type).policy(policy);
    let builder = builder.max_context(256);
    match drafter {
        Some(drafter) => builder.drafter(drafter).build().unwrap(),
        None => builder.build().unwrap(),
    }
}

/// Biased projections, normalised heads, a window in all layers and in some; a biased drafter for one of them.
const TINY_TARGETS: [&str; 4] = ["qwen2", "qwen3", "qwen3_windows", "mistral_window"];

#[test]
fn every_architecture_gives_the_plain_text_on_tiny_pairs() {
    // Short, and so long that windows of 24 and 40 keys move past the prompt's end and its beginning.
    let prompts = tiny_prompts([5, 21, 47].into_iter());
    for case in TINY_TARGETS {
        let drafter = random_drafter(&repository("tests/golden").join(case), case == "qwen2");
        let build = |float_type, policy| tiny_target(case, float_type, Some(drafter.path()), policy);
        for float_type in [FloatType::F32, FloatType::Bf16] {
            every_policy(&["chain:4", "eagle2:4,3,16", "smart"], build, float_type, &prompts, 12, false);
        }
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

/// Random trees that often hold the true continuation, against plain decoding; returns the accepted nodes of all prompts.
fn random_trees(engine: &mut Engine, prompts: &[Vec<i32>], new_tokens: usize, what: &str) -> usize {
    let vocab = engine.model_config().geometry.vocab_size as i32;
    let mut state = 1u64;
    let mut accepted = 0;
    for (prompt, sampling) in prompts.iter().zip(samplings().into_iter().cycle()) {
        let request = request(prompt, new_tokens, sampling);
        let truth = run(engine, request.clone());
        engine.submit(request).unwrap();
        let mut tokens = engine.step().unwrap().remove(0).tokens;
        while tokens.len() < truth.len() {
            let size = 1 + (tokens.len() * 7) % 61;
            let tree = random_tree(&truth[tokens.len() - 1..], size, vocab, &mut state);
            let emission = engine.step_with(&[tree]).unwrap().remove(0);
            accepted += emission.tokens.len() - 1;
            tokens.extend(emission.tokens);
        }
        assert_eq!(tokens, truth, "{what}, prompt of {}", prompt.len());
    }
    accepted
}

#[test]
fn random_trees_give_the_plain_text() {
    for float_type in [FloatType::Bf16, FloatType::F32] {
        let mut engine = demo(float_type, Policy::Plain);
        let accepted = random_trees(&mut engine, &demo_prompts(6, 90), 40, "demo");
        assert!(accepted > 50, "random trees hardly ever contained the truth: {accepted}");
    }
}

#[test]
fn random_trees_give_the_plain_text_of_every_architecture() {
    let prompts = tiny_prompts([3, 17, 40].into_iter());
    for case in TINY_TARGETS {
        for float_type in [FloatType::Bf16, FloatType::F32] {
            let mut engine = tiny_target(case, float_type, None, Policy::Plain);
            let accepted = random_trees(&mut engine, &prompts, 40, case);
            assert!(accepted > 25, "{case}: random trees hardly ever contained the truth: {accepted}");
        }
    }
}
