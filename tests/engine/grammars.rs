//! Grammars: every text keeps to its own, and trees change nothing.

use smart_run::config::{FloatType, ModelSource};
use smart_run::control::Policy;
use smart_run::engine::{DraftSource, Engine, FinishReason, Request};
use smart_run::sampling::SamplingParams;
use smart_run::text::{Grammar, GrammarCompiler, GrammarSpec, Tokenizer};

use crate::fixtures::{demo, demo_builder, demo_prompts, greedy, repository};

fn compiler(engine: &Engine) -> (Tokenizer, GrammarCompiler) {
    let tokenizer = Tokenizer::open(&ModelSource::from(repository("assets/demo/target"))).unwrap().unwrap();
    let config = engine.model_config();
    let compiler =
        GrammarCompiler::new(&tokenizer, config.geometry.vocab_size, &config.eos_token_ids).unwrap();
    (tokenizer, compiler)
}

fn complete(engine: &mut Engine, requests: &[Request]) -> Vec<(Vec<i32>, FinishReason)> {
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut texts = vec![(Vec::new(), None); ids.len()];
    while !engine.is_idle() {
        for emission in engine.step().unwrap() {
            let place = ids.iter().position(|id| *id == emission.sequence).unwrap();
            texts[place].0.extend(emission.tokens);
            assert_eq!(emission.failure, None);
            texts[place].1 = emission.finished;
        }
    }
    texts.into_iter().map(|(text, finished)| (text, finished.unwrap())).collect()
}

/// The text token by token: scored, masked and drawn on the host.
fn by_hand(scorer: &mut Engine, request: &Request) -> Vec<i32> {
    let vocab_size = scorer.model_config().geometry.vocab_size;
    let eos = scorer.model_config().eos_token_ids.clone();
    let mut grammar: Grammar = request.grammar.clone().unwrap();
    let mut text = request.prompt.clone();
    let mut mask = vec![0; vocab_size.div_ceil(32)];
    while text.len() - request.prompt.len() < request.max_new_tokens && !grammar.is_complete() {
        let logits = scorer.score(&text, &[]).unwrap();
        grammar.allowed(&mut mask).unwrap();
        let row = &logits[(text.len() - 1) * vocab_size..];
        let masked = smart_run::reference::token_mask::token_mask(row, &mask, None);
        let token = smart_run::reference::sampler::sample(&masked, &request.sampling, text.len() as i32);
        if eos.contains(&token) {
            break;
        }
        grammar.push(token).unwrap();
        text.push(token);
    }
    text.split_off(request.prompt.len())
}

#[test]
fn texts_keep_to_their_grammars_and_trees_change_nothing() {
    let mut scorer = demo(FloatType::Bf16, Policy::Plain);
    let (tokenizer, compiler) = compiler(&scorer);
    let schema = serde_json::json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}, "ok": {"type": "boolean"}},
        "required": ["name", "count", "ok"],
        "additionalProperties": false
    });
    let specs = [
        GrammarSpec::JsonSchema(schema),
        GrammarSpec::Regex("(import [a-z]{2,8}\\n){3}".into()),
        GrammarSpec::JsonObject,
    ];
    let prompts = demo_prompts(3, 40);
    let requests: Vec<Request> = specs
        .iter()
        .enumerate()
        .flat_map(|(i, spec)| [(i, spec, 0.0), (i, spec, 0.9)])
        .map(|(i, spec, temperature)| Request {
            grammar: Some(compiler.compile(spec).unwrap()),
            sampling: SamplingParams { temperature, seed: i as u64, ..SamplingParams::default() },
            ignore_eos: false,
            ..greedy(&prompts[i], 60)
        })
        .collect();
    let wanted: Vec<Vec<i32>> = requests.iter().map(|request| by_hand(&mut scorer, request)).collect();
    for (place, tokens) in wanted.iter().enumerate() {
        let text = tokenizer.decode(tokens).unwrap();
        eprintln!("{place}: {text:?}");
    }
    for policy in ["plain", "chain:4", "eagle2:10,5,60", "smart"] {
        let mut engine = demo_builder(FloatType::Bf16, policy.parse().unwrap())
            .max_sequences(4)
            .max_context(256)
            .build()
            .unwrap();
        let got = complete(&mut engine, &requests);
        for (place, (text, finished)) in got.iter().enumerate() {
            assert_eq!(text, &wanted[place], "{policy}, request {place}");
            if *finished == FinishReason::Eos && place < 2 {
                let value: serde_json::Value =
                    serde_json::from_str(&tokenizer.decode(text).unwrap()).unwrap();
                assert!(value["name"].is_string() && value["count"].is_i64() && value["ok"].is_boolean());
            }
        }
        assert!(got[2].1 == FinishReason::Eos, "three lines, then the end");
    }
}

#[test]
fn a_grammar_is_its_requests_own() {
    let mut engine = demo(FloatType::Bf16, "eagle2:10,5,60".parse().unwrap());
    let (tokenizer, compiler) = compiler(&engine);
    let prompt = demo_prompts(1, 40).remove(0);
    let free = complete(&mut engine, &[greedy(&prompt, 20)]).remove(0);
    let digits = compiler.compile(&GrammarSpec::Regex("[0-9]{4}".into())).unwrap();
    let bound = Request { grammar: Some(digits), ignore_eos: false, ..greedy(&prompt, 20) };
    for _ in 0..2 {
        let (text, finished) = complete(&mut engine, std::slice::from_ref(&bound)).remove(0);
        let text = tokenizer.decode(&text).unwrap();
        assert!(text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit()), "{text:?}");
        assert_eq!(finished, FinishReason::Eos);
        assert_eq!(complete(&mut engine, &[greedy(&prompt, 20)]).remove(0), free);
    }
}

/// A grammar that compiles, but has more ways to begin than its parser follows at once.
fn overwhelming() -> GrammarSpec {
    let option = |i: usize| serde_json::json!({"type": "object", "properties": {format!("a{i}"): {"type": "null"}}, "required": [format!("a{i}")]});
    GrammarSpec::JsonSchema(serde_json::json!({"anyOf": (0..2500).map(option).collect::<Vec<_>>()}))
}

#[test]
fn a_grammar_that_gives_up_fails_its_own_request_and_no_other() {
    let prompt = demo_prompts(1, 40).remove(0);
    let good = greedy(&prompt, 40);
    let wanted = complete(&mut demo(FloatType::Bf16, Policy::Plain), std::slice::from_ref(&good)).remove(0);
    let mut engine = demo_builder(FloatType::Bf16, "eagle2:4,3,12".parse().unwrap())
        .max_sequences(2)
        .max_context(256)
        .build()
        .unwrap();
    let (_, compiler) = compiler(&engine);
    let grammar = Some(compiler.compile(&overwhelming()).unwrap());
    for _ in 0..2 {
        let good_id = engine.submit(good.clone()).unwrap();
        let bad_id = engine
            .submit(Request { grammar: grammar.clone(), ignore_eos: false, ..greedy(&prompt, 40) })
            .unwrap();
        let (mut text, mut failure) = (Vec::new(), None);
        while !engine.is_idle() {
            for emission in engine.step().unwrap() {
                match emission.sequence == good_id {
                    true => text.extend(emission.tokens),
                    false => {
                        assert_eq!(emission.sequence, bad_id);
                        failure = emission.failure.or(failure);
                    }
                }
            }
        }
        assert_eq!(text, wanted.0);
        let failure = failure.expect("no text keeps to that grammar here");
        assert!(!failure.to_string().contains("no token can be drawn"), "the grammar says why: {failure}");
        assert_eq!(engine.page_counts().used, 0);
    }
}

/// Runs `request` alone and holds every verified draft token that was not ruled out against its grammar; draft tokens verified and accepted.
fn drafted_and_accepted(engine: &mut Engine, request: &Request) -> (u64, u64) {
    let mut grammar: Grammar = request.grammar.clone().unwrap();
    let id = engine.submit(request.clone()).unwrap();
    let mut stats = None;
    while !engine.is_idle() {
        let emissions = engine.step().unwrap();
        if let Some(trace) = engine.round_trace(id) {
            let tree = &trace.tree;
            for node in (1..tree.tokens.len()).filter(|&node| tree.verified[node]) {
                let (mut path, mut ruled_out, mut at) = (Vec::new(), false, node);
                while at > 0 {
                    path.push(tree.tokens[at]);
                    ruled_out |= tree.logprob[at].is_none();
                    at = tree.parents[at] as usize;
                }
                if ruled_out {
                    continue;
                }
                for (depth, &token) in path.iter().rev().enumerate() {
                    let pushed = grammar.push(token);
                    assert!(pushed.is_ok(), "node {node}, at depth {depth}: {pushed:?}");
                }
                grammar.pop(path.len()).unwrap();
            }
        }
        for emission in emissions {
            emission.tokens.iter().for_each(|&token| grammar.push(token).unwrap());
            stats = Some(emission.stats);
        }
    }
    let stats = stats.unwrap();
    (stats.drafted_tokens, stats.accepted_tokens)
}

#[test]
fn drafts_keep_to_the_grammar_as_well() {
    let prompt = demo_prompts(1, 40).remove(0);
    // Drafters on the device draw from masked logits; heads and n-grams know nothing of the grammar, and lose what it does not allow.
    // Policies that draft whatever the pace of the machine.
    let drafters: [(&str, DraftSource, &str, u64); 3] = [
        ("EAGLE-3", repository("assets/demo/drafter").into(), "eagle2:4,3,12", 60),
        ("Medusa", repository("tests/golden/medusa_demo/drafter").into(), "chain:3", 0),
        ("n-grams", DraftSource::Ngrams, "chain:4", 20),
    ];
    for (name, drafter, policy, least) in drafters {
        let mut engine = Engine::builder(repository("assets/demo/target"))
            .drafter(drafter)
            .float_type(FloatType::Bf16)
            .costs(crate::fixtures::paying_costs())
            .policy(policy.parse().unwrap())
            .max_context(256)
            .build()
            .unwrap();
        let (_, compiler) = compiler(&engine);
        // What the drafter would never say by itself, three times over.
        let spec = GrammarSpec::Regex("(quick brown zebras jump over hedgehogs; ){3}".into());
        let grammar = Some(compiler.compile(&spec).unwrap());
        let bound = Request { grammar, ignore_eos: false, ..greedy(&prompt, 120) };
        let (drafted, accepted) = drafted_and_accepted(&mut engine, &bound);
        eprintln!("{name}: {accepted} of {drafted}");
        assert!(accepted >= least, "{name}: {accepted} of {drafted} drafted tokens accepted");
    }
}
