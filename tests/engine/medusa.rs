//! Medusa heads in rounds: without loss, with states that are never stale, and told apart from heads for other targets. Their numbers
//! against PyTorch are in `drafters` and in `src/drafter/medusa.rs`.

use std::path::Path;

use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::engine::{Engine, Request};
use smart_run::sampling::SamplingParams;
use smart_run::tree::DraftTree;

use crate::fixtures::{demo_prompts, greedy, paying_costs, repository, run};

/// Four random heads of a block each.
fn random(float_type: FloatType, policy: Policy, max_sequences: usize) -> Engine {
    let golden = repository("tests/golden");
    Engine::builder(golden.join("llama31_gqa"))
        .drafter(golden.join("medusa_random/drafter"))
        .float_type(float_type)
        .policy(policy)
        .costs(paying_costs())
        .max_sequences(max_sequences)
        .max_context(256)
        .build()
        .unwrap()
}

/// Three trained heads of two blocks each.
fn demo(float_type: FloatType, policy: Policy) -> Engine {
    Engine::builder(repository("assets/demo/target"))
        .drafter(repository("tests/golden/medusa_demo/drafter"))
        .float_type(float_type)
        .policy(policy)
        .costs(paying_costs())
        .max_context(384)
        .build()
        .unwrap()
}

fn sampling(i: usize) -> SamplingParams {
    let base = SamplingParams { seed: 5 + i as u64, ..SamplingParams::default() };
    [
        base,
        SamplingParams { temperature: 0.8, ..base },
        SamplingParams { temperature: 1.0, top_p: 0.9, ..base },
    ][i % 3]
}

fn requests(prompts: &[Vec<i32>], new_tokens: usize) -> Vec<Request> {
    let of =
        |(i, prompt): (usize, &Vec<i32>)| Request { sampling: sampling(i), ..greedy(prompt, new_tokens + i) };
    prompts.iter().enumerate().map(of).collect()
}

fn random_prompts() -> Vec<Vec<i32>> {
    (0..6).map(|i| (0..1 + 30 * i).map(|t| (t * 37 + i * 11) % 160).collect()).collect()
}

/// All requests together, as places become free.
fn run_together(engine: &mut Engine, requests: &[Request], places: usize) -> Vec<Vec<i32>> {
    let mut waiting: Vec<_> = requests.iter().cloned().enumerate().rev().collect();
    let (mut running, mut got) = (Vec::new(), vec![Vec::new(); requests.len()]);
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < places {
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
    got
}

#[test]
fn random_heads_give_the_plain_text_alone_and_in_a_batch() {
    let requests = requests(&random_prompts(), 24);
    let all = [
        "chain:1",
        "chain:6",
        "eagle1",
        "medusa",
        "eagle2:10,5,60",
        "sequoia:16",
        "goodput",
        "svip",
        "smart",
    ];
    for (float_type, policies) in
        [(FloatType::Bf16, &all[..]), (FloatType::F32, &["medusa", "smart"]), (FloatType::F16, &["chain:6"])]
    {
        let mut plain = random(float_type, Policy::Plain, 1);
        let wanted: Vec<_> = requests.iter().map(|request| run(&mut plain, request.clone())).collect();
        for policy in policies {
            let policy: Policy = policy.parse().unwrap();
            let mut engine = random(float_type, policy, 3);
            assert_eq!(run_together(&mut engine, &requests, 3), wanted, "{policy}, {float_type:?}");
            assert!(engine.stats().mean_nodes() > 1.0, "{policy} never drafted: the comparison says nothing");
        }
    }
}

#[test]
fn trained_heads_give_the_plain_text_and_are_accepted() {
    let requests = requests(&demo_prompts(3, 80), 30);
    for float_type in [FloatType::F32, FloatType::Bf16] {
        let mut plain = demo(float_type, Policy::Plain);
        let wanted: Vec<_> = requests.iter().map(|request| run(&mut plain, request.clone())).collect();
        for policy in ["medusa", "smart"] {
            let mut engine = demo(float_type, policy.parse().unwrap());
            let (mut drafted_rounds, mut accepted) = (0, 0);
            for (request, wanted) in requests.iter().zip(&wanted) {
                engine.submit(request.clone()).unwrap();
                let (mut text, mut drafted) = (Vec::new(), 0);
                while !engine.is_idle() {
                    for emission in engine.step().unwrap() {
                        text.extend(emission.tokens);
                        // How often `smart` drafts depends on what rounds take on this machine; what it gains then, on the heads.
                        drafted_rounds += u64::from(emission.stats.drafted_tokens > drafted);
                        drafted = emission.stats.drafted_tokens;
                        accepted +=
                            if emission.finished.is_some() { emission.stats.accepted_tokens } else { 0 };
                    }
                }
                assert_eq!(text, *wanted, "{policy}, {float_type:?}");
            }
            let accepted = accepted as f64 / drafted_rounds as f64;
            assert!(accepted > 0.3, "{policy}, {float_type:?}: {accepted:.2} accepted a drafted round");
        }
    }
}

/// The heads read the state at the token before the root, however it came to be there: by a prompt's last chunk, by plain rounds or at the
/// end of an accepted path; also where a sequence took the place of another.
#[test]
fn the_first_tree_after_a_text_does_not_depend_on_how_it_came_about() {
    let tree: Policy = "eagle2:10,5,60".parse().unwrap();
    let drafted = |engine: &Engine| -> Vec<(i32, u32, u32)> {
        let nodes = engine.controller().round().pool(0).nodes();
        nodes.iter().map(|node| (node.token, node.parent, node.logp.to_bits())).collect()
    };
    let prompt: Vec<i32> = (0..300).map(|t| t * 53 % 160).take(140).collect();
    let mut by_rounds = random(FloatType::F32, tree, 1);
    run(&mut by_rounds, greedy(&[5, 6, 7], 9));
    by_rounds.submit(greedy(&prompt, 100)).unwrap();
    let mut text = prompt.clone();
    text.extend(&by_rounds.step().unwrap()[0].tokens);
    for _ in 0..12 {
        text.extend(&by_rounds.step().unwrap()[0].tokens);
    }
    assert!(text.len() > prompt.len() + 13, "a path was accepted");
    let mut by_plain_rounds = random(FloatType::F32, tree, 1);
    by_plain_rounds.submit(greedy(&prompt, 100)).unwrap();
    let mut plain = prompt.clone();
    plain.extend(&by_plain_rounds.step().unwrap()[0].tokens);
    while plain.len() < text.len() {
        let root = DraftTree::new(plain[plain.len() - 1]);
        plain.extend(&by_plain_rounds.step_with(&[root]).unwrap()[0].tokens);
    }
    assert_eq!(plain, text);
    // Its first token is the root that the others have; drawing it is not part of what is compared.
    let mut by_prompt = random(FloatType::F32, tree, 1);
    by_prompt.submit(greedy(&text[..text.len() - 1], 100)).unwrap();
    assert_eq!(by_prompt.step().unwrap()[0].tokens, text[text.len() - 1..]);
    let trees = [&mut by_rounds, &mut by_plain_rounds, &mut by_prompt].map(|engine| {
        engine.step().unwrap();
        drafted(engine)
    });
    assert!(trees[0].len() > 200, "four levels");
    assert_eq!(trees[0], trees[1], "after plain rounds");
    assert_eq!(trees[0], trees[2], "after a prompt");
}

fn with_config(drafter: &Path, config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["medusa_lm_head.pt", "model.safetensors"] {
        if drafter.join(file).exists() {
            std::fs::copy(drafter.join(file), folder.path().join(file)).unwrap();
        }
    }
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    folder
}

#[test]
fn heads_that_do_not_fit_are_named_in_one_sentence() {
    let golden = repository("tests/golden");
    let build = |target: &Path, drafter: &Path| Engine::builder(target).drafter(drafter).build();
    let random = golden.join("medusa_random/drafter");
    let target = golden.join("llama31_gqa");
    for (target, says) in [
        // 192 tokens of width 64; 160 of width 64.
        (golden.join("llama2_mha"), "it expects a vocabulary of 160, the target has 192"),
        (golden.join("qwen2"), "it expects features of width 48, the target has 64"),
    ] {
        let error = build(&target, &random).err().expect("heads for another target were accepted");
        assert!(error.is_input() && error.to_string().contains(says), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    for (config, says) in [
        (
            r#"{"medusa_num_layers": 2}"#,
            "`medusa_num_layers` is 2, but the weights hold no matrix 0.2.weight",
        ),
        (r#"{"medusa_num_layers": 0}"#, "`medusa_num_layers` is 0"),
        (r#"{"medusa_num_layers": "one"}"#, "`medusa_num_layers` is \"one\""),
    ] {
        let folder = with_config(&random, config);
        let error = build(&target, folder.path()).err().expect("a broken config was accepted");
        assert!(error.is_input() && error.to_string().contains(says), "{config}: {error}");
    }
    // The number of heads is what the weights say, with or without a config that says something else.
    for config in ["{}", r#"{"medusa_num_heads": 9}"#] {
        let folder = with_config(&golden.join("medusa_random/drafter_safetensors"), config);
        let mut engine = Engine::builder(target.as_path())
            .drafter(folder.path())
            .float_type(FloatType::F32)
            .policy("chain:9".parse().unwrap())
            .build()
            .unwrap();
        engine.submit(greedy(&[1, 2, 3], 40)).unwrap();
        engine.step().unwrap();
        engine.step().unwrap();
        assert_eq!(engine.controller().round().selected()[0].tree.num_draft_tokens(), 4, "{config}");
    }
}

/// A record would price every level as a pass.
#[test]
fn heads_are_not_recorded() {
    use smart_run::replay::{RECORD_VERSION, RecordHeader, RecordShape};
    let mut engine = random(FloatType::F32, "chain:2".parse().unwrap(), 1);
    let header = RecordHeader {
        record_version: RECORD_VERSION,
        shape: RecordShape::DEFAULT,
        model: String::new(),
        drafter: String::new(),
        device: String::new(),
        dtype: String::new(),
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        seed: 0,
    };
    let error = engine.set_record(std::io::sink(), &header).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("Medusa heads"), "{error}");
}

/// The start-up sweep times one pass a batch, so that `smart` starts with a price.
#[test]
fn the_sweep_prices_a_pass_of_heads() {
    let golden = repository("tests/golden");
    let mut engine = Engine::builder(golden.join("llama31_gqa"))
        .drafter(golden.join("medusa_random/drafter"))
        .policy("smart".parse().unwrap())
        .max_sequences(2)
        .max_context(256)
        .build()
        .unwrap();
    let costs = engine.measure_costs().unwrap();
    use smart_run::control::SweepKind;
    let drafts: Vec<_> = costs
        .points
        .iter()
        .filter(|point| point.kind == SweepKind::Draft)
        .map(|point| point.tokens)
        .collect();
    assert!(drafts.contains(&1) && drafts.iter().all(|&tokens| tokens <= 2), "{drafts:?}");
    run(&mut engine, greedy(&[1, 2, 3], 30));
}
