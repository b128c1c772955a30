//! Drafts under the noise of the draws that they foresee: more of them are accepted, and texts are what they were.

use smart_run::config::{FloatType, ModelSource};
use smart_run::control::Policy;
use smart_run::engine::{Engine, EngineBuilder, Request};
use smart_run::sampling::SamplingParams;
use smart_run::text::{GrammarCompiler, GrammarSpec, Tokenizer};

use crate::fixtures::{demo_builder, demo_prompts, greedy, paying_costs, repository, run};

const HOT: SamplingParams = SamplingParams { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: 0 };

fn pair(policy: &str) -> EngineBuilder<'static> {
    demo_builder(FloatType::Bf16, policy.parse().unwrap()).max_context(512)
}

fn heads() -> EngineBuilder<'static> {
    Engine::builder(repository("assets/demo/target"))
        .drafter(repository("tests/golden/medusa_demo/drafter"))
        .float_type(FloatType::Bf16)
        .policy(Policy::Medusa)
        .costs(paying_costs())
        .max_context(512)
}

fn requests(count: usize, new_tokens: usize, sampling: impl Fn(usize) -> SamplingParams) -> Vec<Request> {
    let prompts = demo_prompts(count, 60);
    let request =
        |(i, prompt): (usize, &Vec<i32>)| Request { sampling: sampling(i), ..greedy(prompt, new_tokens) };
    prompts.iter().enumerate().map(request).collect()
}

/// The texts one by one, and how many drafts were accepted a round.
fn one_by_one(builder: EngineBuilder<'static>, requests: &[Request]) -> (Vec<Vec<i32>>, f64) {
    let mut engine = builder.build().unwrap();
    let texts = requests.iter().map(|request| run(&mut engine, request.clone())).collect();
    (texts, engine.stats().mean_accepted_len())
}

/// The texts are those of plain decoding, and the drafts accepted at least `factor` times as many as without the noise.
fn gains(name: &str, build: impl Fn() -> EngineBuilder<'static>, requests: &[Request], factor: f64) {
    let (plain, _) = one_by_one(build().policy(Policy::Plain), requests);
    let (coupled, accepted) = one_by_one(build(), requests);
    let (uncoupled, accepted_without) = one_by_one(build().uncoupled(), requests);
    assert_eq!(coupled, plain, "{name}");
    assert_eq!(uncoupled, plain, "{name}, without noise");
    println!("{name}: {accepted:.2} accepted a round, {accepted_without:.2} without noise");
    assert!(
        accepted >= factor * accepted_without,
        "{name}: {accepted} accepted a round, {accepted_without} without noise"
    );
}

/// Of the demo pair's trees 2.45 drafts a round are accepted at temperature 1, 1.32 without noise.
#[test]
fn drafts_foresee_draws() {
    let hot = requests(10, 40, |i| SamplingParams { seed: i as u64, ..HOT });
    gains("a tree", || pair("eagle2:10,5,60"), &hot, 1.5);
    gains("a chain", || pair("chain:3"), &hot, 1.4);
    gains("heads", heads, &hot, 1.3);
    // Rows that fill a pass up, and graphs.
    gains("a tree in passes of eight", || pair("eagle2:10,5,60").pass_tread(8), &hot, 1.5);
}

/// Filters leave less to chance, so there is less to foresee.
#[test]
fn filtered_draws_are_foreseen_too() {
    for (name, params, factor) in [
        ("top-p", SamplingParams { top_p: 0.9, ..HOT }, 1.3),
        ("top-k", SamplingParams { top_k: 20, ..HOT }, 1.15),
        ("min-p", SamplingParams { min_p: 0.1, ..HOT }, 1.1),
        ("cool", SamplingParams { temperature: 0.6, top_p: 0.95, ..HOT }, 1.1),
        ("greedy", SamplingParams { temperature: 0.0, ..HOT }, 1.0),
    ] {
        let requests = requests(10, 40, |i| SamplingParams { seed: i as u64, ..params });
        gains(name, || pair("eagle2:10,5,60"), &requests, factor);
    }
}

/// Each row has the noise of its own text: company changes no draft, and greedy texts have none.
#[test]
fn company_does_not_change_what_is_drafted() {
    let mixed = requests(6, 30, |i| match i % 3 {
        0 => SamplingParams { temperature: 0.0, ..HOT },
        1 => SamplingParams { seed: i as u64, ..HOT },
        _ => SamplingParams { temperature: 0.7, top_p: 0.9, seed: i as u64, ..HOT },
    });
    for build in [|| pair("eagle2:10,5,60"), heads] {
        let mut alone = build().build().unwrap();
        let texts: Vec<Vec<i32>> = mixed.iter().map(|request| run(&mut alone, request.clone())).collect();
        let mut together = build().max_sequences(4).build().unwrap();
        let ids: Vec<_> = mixed.iter().map(|request| together.submit(request.clone()).unwrap()).collect();
        let mut got = vec![Vec::new(); ids.len()];
        while !together.is_idle() {
            for emission in together.step().unwrap() {
                got[ids.iter().position(|&id| id == emission.sequence).unwrap()].extend(emission.tokens);
            }
        }
        assert_eq!(got, texts);
        let (alone, together) = (alone.stats(), together.stats());
        assert_eq!(alone.accepted_tokens, together.accepted_tokens);
        assert_eq!((alone.sequence_rounds, alone.nodes), (together.sequence_rounds, together.nodes));
    }
}

/// Noise comes over what a grammar has left.
#[test]
fn draws_under_a_grammar_are_foreseen() {
    let tokenizer = Tokenizer::open(&ModelSource::from(repository("assets/demo/target"))).unwrap().unwrap();
    let engine = pair("plain").build().unwrap();
    let config = engine.model_config();
    let compiler =
        GrammarCompiler::new(&tokenizer, config.geometry.vocab_size, &config.eos_token_ids).unwrap();
    let lines = compiler.compile(&GrammarSpec::Regex("([a-z_ ]{3,20}\\n){30}".into())).unwrap();
    let guided: Vec<Request> = requests(6, 40, |i| SamplingParams { seed: i as u64, ..HOT })
        .into_iter()
        .map(|request| Request { grammar: Some(lines.clone()), ..request })
        .collect();
    gains("a grammar", || pair("eagle2:10,5,60"), &guided, 1.2);
}
