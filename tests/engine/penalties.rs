//! Penalties, biases and log-probabilities: computed once more from the logits of a plain scoring pass, and the same under every policy.

use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::engine::{Emission, Engine, Request, TokenLogprobs};
use smart_run::reference::{penalties::penalise, sampler::sample};
use smart_run::sampling::{Penalties, SamplingParams};

use crate::fixtures::{demo, demo_prompts, greedy};

const POLICIES: [&str; 4] = ["plain", "chain:4", "eagle2:10,5,60", "smart"];

/// The text and log-probabilities of a request.
fn complete(engine: &mut Engine, request: Request) -> (Vec<i32>, Vec<TokenLogprobs>) {
    engine.submit(request).unwrap();
    let mut all = (Vec::new(), Vec::new());
    while !engine.is_idle() {
        for Emission { tokens, logprobs, .. } in engine.step().unwrap() {
            all.0.extend(tokens);
            all.1.extend(logprobs);
        }
    }
    all
}

/// The text of a request token by token: scored, penalised and drawn on the host.
fn by_hand(engine: &mut Engine, request: &Request) -> Vec<i32> {
    let vocab_size = engine.model_config().geometry.vocab_size;
    let (mut text, prompt_len) = (request.prompt.clone(), request.prompt.len());
    for _ in 0..request.max_new_tokens {
        let logits = engine.score(&text, &[]).unwrap();
        let last = &logits[(text.len() - 1) * vocab_size..];
        let (prompt, emitted) = text.split_at(prompt_len);
        let changed = penalise(last, &request.penalties, prompt, emitted, &request.logit_bias);
        text.push(sample(&changed, &request.sampling, text.len() as i32));
    }
    text.split_off(prompt_len)
}

fn requests() -> Vec<Request> {
    let prompts = demo_prompts(2, 40);
    let none = Penalties::default();
    let penalties = [
        Penalties { repetition: 1.4, ..none },
        Penalties { presence: 1.5, frequency: 0.4, ..none },
        Penalties { frequency: -2.0, ..none },
        none,
    ];
    let request = |(i, penalties): (usize, Penalties)| Request {
        penalties,
        sampling: SamplingParams {
            temperature: if i % 2 == 0 { 0.0 } else { 0.9 },
            top_p: 0.95,
            seed: i as u64,
            ..SamplingParams::default()
        },
        logit_bias: if i == 3 { vec![(15, f32::NEG_INFINITY), (271, 2.5)] } else { Vec::new() },
        ..greedy(&prompts[i % 2], 28)
    };
    penalties.into_iter().enumerate().map(request).collect()
}

#[test]
fn penalties_go_by_the_path_of_every_node_and_policies_change_nothing() {
    let mut scorer = demo(FloatType::Bf16, Policy::Plain);
    for (i, request) in requests().into_iter().enumerate() {
        let wanted = by_hand(&mut scorer, &request);
        let bare = Request { penalties: Penalties::default(), logit_bias: Vec::new(), ..request.clone() };
        let (unpenalised, _) = complete(&mut scorer, bare);
        assert_ne!(unpenalised, wanted, "request {i}: the penalties change nothing, nor would their lack");
        for policy in POLICIES {
            let mut engine = demo(FloatType::Bf16, policy.parse().unwrap());
            assert_eq!(complete(&mut engine, request.clone()).0, wanted, "request {i}, {policy}");
        }
    }
}

#[test]
fn penalties_are_a_sequences_own_and_survive_an_interruption() {
    let all = requests();
    let mut plain = demo(FloatType::Bf16, Policy::Plain);
    let wanted: Vec<Vec<i32>> = all.iter().map(|r| complete(&mut plain, r.clone()).0).collect();
    let mut engine = Engine::builder(crate::fixtures::repository("assets/demo/target"))
        .drafter(crate::fixtures::repository("assets/demo/drafter"))
        .float_type(FloatType::Bf16)
        .policy("eagle2:10,5,60".parse().unwrap())
        .max_sequences(3)
        .max_context(384)
        .build()
        .unwrap();
    // Slots are taken again by requests without penalties.
    let order = [0, 1, 2, 3, 0, 3, 1];
    let ids: Vec<_> = order.iter().map(|&i| engine.submit(all[i].clone()).unwrap()).collect();
    let mut texts = vec![Vec::new(); order.len()];
    for round in 0.. {
        if engine.is_idle() {
            break;
        }
        for emission in engine.step().unwrap() {
            let place = ids.iter().position(|id| *id == emission.sequence).unwrap();
            texts[place].extend(emission.tokens);
        }
        if round == 4 {
            engine.restart_running();
        }
    }
    for (place, &i) in order.iter().enumerate() {
        assert_eq!(texts[place], wanted[i], "place {place}");
    }
}

#[test]
fn log_probabilities_are_the_targets_and_the_same_bits_under_every_policy() {
    let prompt = demo_prompts(1, 40).remove(0);
    let request = |temperature: f32, top: usize| Request {
        logprobs: Some(top),
        sampling: SamplingParams { temperature, seed: 3, ..SamplingParams::default() },
        ..greedy(&prompt, 40)
    };
    let mut plain = demo(FloatType::Bf16, Policy::Plain);
    for (temperature, top) in [(0.0, 5), (0.8, 20), (0.8, 0)] {
        let (text, wanted) = complete(&mut plain, request(temperature, top));
        assert_eq!(text.len(), wanted.len());
        let all = [&prompt[..], &text].concat();
        let logits = plain.score(&all, &[]).unwrap();
        let vocab_size = plain.model_config().geometry.vocab_size;
        for (i, (&token, entry)) in text.iter().zip(&wanted).enumerate() {
            let row = &logits[(prompt.len() + i - 1) * vocab_size..][..vocab_size];
            let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|&logit| f64::from(logit - greatest).exp()).sum();
            let logp = |token: i32| f64::from(row[token as usize] - greatest) - sum.ln();
            assert!((f64::from(entry.logprob) - logp(token)).abs() < 2e-5, "token {i}");
            assert_eq!(entry.top.len(), top);
            assert!(entry.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            assert!(entry.top.iter().all(|&(token, p)| (f64::from(p) - logp(token)).abs() < 2e-5));
            // Where the drawn token is among the likeliest, both say the same.
            let listed = entry.top.iter().find(|(listed, _)| *listed == token);
            assert!(listed.is_none_or(|&(_, p)| p == entry.logprob));
            assert!(temperature > 0.0 || entry.top[0].0 == token);
        }
        for policy in &POLICIES[1..] {
            let mut engine = demo(FloatType::Bf16, policy.parse().unwrap());
            assert!(
                complete(&mut engine, request(temperature, top)) == (text.clone(), wanted.clone()),
                "{policy}"
            );
        }
    }
}

#[test]
fn a_token_that_is_banned_does_not_come_and_one_that_is_favoured_does() {
    let prompt = demo_prompts(1, 30).remove(0);
    let mut engine = demo(FloatType::Bf16, "eagle2:10,5,60".parse().unwrap());
    let (text, _) = complete(&mut engine, greedy(&prompt, 30));
    let banned = text[3];
    let bias = Request { logit_bias: vec![(banned, f32::NEG_INFINITY)], ..greedy(&prompt, 30) };
    assert!(!complete(&mut engine, bias).0.contains(&banned));
    let bias = Request { logit_bias: vec![(banned, 1e4)], ..greedy(&prompt, 30) };
    assert_eq!(complete(&mut engine, bias).0, vec![banned; 30]);
    // Nothing is left of it for who comes next.
    assert_eq!(complete(&mut engine, greedy(&prompt, 30)).0, text);
}
