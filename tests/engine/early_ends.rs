//! Least lengths: no text ends before its time, by whatever tokens could end it, and trees change nothing.

use smart_run::config::{FloatType, ModelSource};
use smart_run::control::Policy;
use smart_run::engine::{Engine, Request};
use smart_run::sampling::SamplingParams;
use smart_run::text::{GrammarCompiler, GrammarSpec, Tokenizer};

use crate::fixtures::{demo, demo_prompts, greedy, repository};

const LEAST: usize = 14;

/// The text token by token: scored, masked and drawn on the host.
fn by_hand(scorer: &mut Engine, request: &Request) -> Vec<i32> {
    let vocab_size = scorer.model_config().geometry.vocab_size;
    let ends = [scorer.model_config().eos_token_ids.clone(), request.stop_tokens.clone()].concat();
    let mut grammar = request.grammar.clone();
    let mut text = request.prompt.clone();
    loop {
        let emitted = text.len() - request.prompt.len();
        let is_complete = grammar.as_ref().is_some_and(|grammar| grammar.is_complete());
        if emitted == request.max_new_tokens || is_complete {
            break;
        }
        let mut mask = vec![u32::MAX; vocab_size.div_ceil(32)];
        if let Some(grammar) = &mut grammar {
            grammar.allowed(&mut mask).unwrap();
        }
        if emitted < request.min_new_tokens {
            let mut stricter = mask.clone();
            ends.iter().for_each(|&id| stricter[id as usize / 32] &= !(1 << (id % 32)));
            if stricter.iter().any(|&bits| bits != 0) {
                mask = stricter;
            }
        }
        let logits = scorer.score(&text, &[]).unwrap();
        let masked = smart_run::reference::token_mask::token_mask(
            &logits[(text.len() - 1) * vocab_size..],
            &mask,
            None,
        );
        let token = smart_run::reference::sampler::sample(&masked, &request.sampling, text.len() as i32);
        if ends.contains(&token) {
            break;
        }
        if let Some(grammar) = &mut grammar {
            grammar.push(token).unwrap();
        }
        text.push(token);
    }
    text.split_off(request.prompt.len())
}

#[test]
fn no_text_ends_before_its_time_and_trees_change_nothing() {
    let mut scorer = demo(FloatType::Bf16, Policy::Plain);
    let tokenizer = Tokenizer::open(&ModelSource::from(repository("assets/demo/target"))).unwrap().unwrap();
    let config = scorer.model_config();
    let compiler =
        GrammarCompiler::new(&tokenizer, config.geometry.vocab_size, &config.eos_token_ids).unwrap();
    let prompts = demo_prompts(3, 40);
    let mut requests: Vec<Request> = Vec::new();
    for (place, temperature) in [(0, 0.0), (1, 0.9), (2, 0.0)] {
        let sampling = SamplingParams { temperature, seed: place as u64, ..SamplingParams::default() };
        let free = Request { sampling, ignore_eos: false, ..greedy(&prompts[place], 32) };
        // What it would say by itself ends it.
        let said = by_hand(&mut scorer, &free);
        requests.push(Request { stop_tokens: vec![said[1], said[4]], min_new_tokens: LEAST, ..free });
    }
    // A grammar whose end would come first goes before, and one that goes on does not end early.
    for regex in ["[a-z]{3}", "([a-z]{2} )*"] {
        let grammar = compiler.compile(&GrammarSpec::Regex(regex.into())).unwrap();
        requests.push(Request {
            grammar: Some(grammar),
            min_new_tokens: LEAST,
            ignore_eos: false,
            ..greedy(&prompts[0], 32)
        });
    }
    let wanted: Vec<Vec<i32>> = requests.iter().map(|request| by_hand(&mut scorer, request)).collect();
    for place in [0, 1, 2, 4] {
        assert!(wanted[place].len() >= LEAST, "{place}: {:?}", wanted[place]);
    }
    assert!(wanted[3].len() <= 3);
    for request in &requests[..3] {
        let early = Request { min_new_tokens: 0, ..request.clone() };
        assert!(by_hand(&mut scorer, &early).len() < LEAST, "the bans matter");
    }
    for policy in ["plain", "chain:4", "eagle2:10,5,60"] {
        let mut engine = Engine::builder(repository("assets/demo/target"))
            .drafter(repository("assets/demo/drafter"))
            .float_type(FloatType::Bf16)
            .policy(policy.parse().unwrap())
            .max_sequences(3)
            .max_context(256)
            .build()
            .unwrap();
        let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        let mut texts = vec![Vec::new(); ids.len()];
        while !engine.is_idle() {
            for emission in engine.step().unwrap() {
                assert_eq!(emission.failure, None);
                let place = ids.iter().position(|id| *id == emission.sequence).unwrap();
                texts[place].extend(emission.tokens);
            }
        }
        assert_eq!(texts, wanted, "{policy}");
    }
}
