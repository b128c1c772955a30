//! Plain rounds that are issued before the host has read the one before: the same texts, and nothing that comes between is lost.

use std::path::Path;

use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::engine::{Emission, Engine, EngineBuilder, FinishReason, Request, SequenceId};
use smart_run::sampling::{Penalties, SamplingParams};

use crate::fixtures::{demo_prompts, greedy, paying_costs, repository};
use crate::random_drafters::random_drafter;

fn builder(ahead: bool) -> EngineBuilder<'static> {
    Engine::builder(repository("assets/demo/target"))
        .float_type(FloatType::Bf16)
        .policy(Policy::Plain)
        .max_sequences(3)
        .max_context(320)
        .run_ahead(ahead)
}

/// Greedy and sampled, some that end by a token of theirs, of lengths that end in different rounds.
fn requests() -> Vec<Request> {
    let sampled = |seed: u64| SamplingParams { temperature: 0.9, seed, ..SamplingParams::default() };
    let prompts = demo_prompts(7, 60);
    let request = |(i, prompt): (usize, &Vec<i32>)| Request {
        sampling: if i % 2 == 0 { SamplingParams::default() } else { sampled(i as u64) },
        ignore_eos: i % 3 != 0,
        ..greedy(prompt, 1 + 13 * i)
    };
    // The last goes on beyond 256 keys, where passes have another shape.
    prompts.iter().enumerate().map(request).chain([greedy(&prompts[0], 230)]).collect()
}

/// Texts and ends by request, all submitted at once.
fn all(engine: &mut Engine, requests: &[Request]) -> Vec<(Vec<i32>, Option<FinishReason>)> {
    let ids: Vec<SequenceId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut texts = vec![(Vec::new(), None); ids.len()];
    while !engine.is_idle() {
        for Emission { sequence, tokens, finished, .. } in engine.step().unwrap() {
            let text = &mut texts[ids.iter().position(|&id| id == sequence).unwrap()];
            assert_eq!(text.1, None, "nothing comes behind the end");
            text.0.extend(tokens);
            text.1 = finished;
        }
    }
    texts
}

#[test]
fn texts_are_those_of_rounds_that_wait() {
    let requests = requests();
    let mut engine = builder(false).build().unwrap();
    let wanted = all(&mut engine, &requests);
    let rounds = engine.stats().rounds;
    assert_eq!(engine.stats().rounds_ahead, 0);
    let with_tread = |rows: usize| builder(true).pass_tread(rows);
    for (case, builder) in [("rows as they are", builder(true)), ("graphs", with_tread(8))] {
        let mut engine = builder.build().unwrap();
        assert_eq!(all(&mut engine, &requests), wanted, "{case}");
        assert_eq!(engine.stats().rounds, rounds, "{case}: rounds that nobody takes part in do not count");
        let ahead = engine.stats().rounds_ahead;
        assert!(ahead > rounds / 2, "{case}: {ahead} of {rounds} rounds were run ahead");
        assert_eq!(engine.page_counts().used, 0, "{case}");
        // The same engine again, which finds prompts in its cache.
        assert_eq!(all(&mut engine, &requests), wanted, "{case}, again");
    }
}

/// Positions on three axes, and windows. `make test` runs this file on a stream that puts work off, too.
#[test]
fn rotary_axes_and_windows_change_nothing() {
    let golden = repository("tests/golden");
    for model in ["llama31_gqa", "qwen2_vl", "mistral_window"] {
        let run = |ahead: bool| {
            let builder = Engine::builder(golden.join(model)).float_type(FloatType::F32);
            let mut engine = builder.max_sequences(2).max_context(128).run_ahead(ahead).build().unwrap();
            let prompts = [vec![5, 9, 31, 7, 2, 11, 17, 3, 8, 13, 21], vec![4]];
            all(&mut engine, &prompts.map(|prompt| greedy(&prompt, 40)))
        };
        assert_eq!(run(true), run(false), "{model}");
    }
}

#[test]
fn who_comes_goes_or_wants_more_is_served_as_ever() {
    let prompts = demo_prompts(4, 60);
    let run = |ahead: bool| {
        let mut engine = builder(ahead).build().unwrap();
        let mut texts: Vec<(SequenceId, Vec<i32>)> = Vec::new();
        let mut submit = |engine: &mut Engine, request: Request| {
            let id = engine.submit(request).unwrap();
            texts.push((id, Vec::new()));
            id
        };
        let first = submit(&mut engine, greedy(&prompts[0], 60));
        submit(&mut engine, greedy(&prompts[1], 90));
        let mut at_cancel = 0;
        let mut emissions = Vec::new();
        for round in 0..200 {
            if round == 7 {
                submit(&mut engine, Request { logprobs: Some(2), ..greedy(&prompts[2], 12) });
            }
            if round == 30 {
                assert!(engine.cancel(first));
                at_cancel = emissions.iter().filter(|e: &&Emission| e.sequence == first).count();
            }
            if round == 40 {
                let penalties = Penalties { repetition: 1.3, ..Penalties::default() };
                submit(&mut engine, Request { penalties, ..greedy(&prompts[3], 30) });
            }
            if round == 50 {
                // A forward pass of its own, between two rounds.
                engine.score(&prompts[3][..20], &[]).unwrap();
            }
            if round == 60 {
                engine.restart_running();
            }
            emissions.extend(engine.step().unwrap());
        }
        assert!(engine.is_idle());
        assert_eq!(emissions.iter().filter(|e| e.sequence == first).count(), at_cancel);
        for Emission { sequence, tokens, logprobs, .. } in emissions {
            assert!(logprobs.is_empty() || logprobs.len() == tokens.len());
            texts.iter_mut().find(|text| text.0 == sequence).unwrap().1.extend(tokens);
        }
        // How far the cancelled text came may differ by how steps fall.
        texts.remove(0);
        texts.into_iter().map(|text| text.1).collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}

/// Where pages are scarce none is taken beforehand that another text needs.
#[test]
fn scarce_pages_go_to_who_needs_them() {
    let run = |ahead: bool| {
        let mut engine = builder(ahead).max_sequences(4).build().unwrap();
        let page = engine.page_bytes();
        drop(engine);
        engine = builder(ahead).max_sequences(4).kv_budget_bytes(24 * page).build().unwrap();
        let prompts = demo_prompts(4, 60);
        let requests: Vec<Request> = prompts.iter().map(|prompt| greedy(prompt, 90)).collect();
        all(&mut engine, &requests)
    };
    assert_eq!(run(true), run(false));
}

/// A drafter that seldom pays: `smart` rests, and rests ahead; what it drafts in between it drafts from the features of those rounds.
#[test]
fn a_controller_that_rests_runs_ahead() {
    let drafter = random_drafter(&repository("assets/demo/target"), false);
    let prompts = demo_prompts(3, 60);
    let requests: Vec<Request> =
        prompts.iter().enumerate().map(|(i, prompt)| greedy(prompt, 150 + 20 * i)).collect();
    let wanted = all(&mut builder(false).build().unwrap(), &requests);
    let smart = |drafter: &Path, ahead: bool| {
        let builder = builder(ahead).policy(Policy::Smart).drafter(drafter).costs(paying_costs());
        let mut engine = builder.build().unwrap();
        assert_eq!(all(&mut engine, &requests), wanted);
        engine.stats().clone()
    };
    // How often it rests depends on the machine's pace; tests/clock.rs holds the speed.
    let hopeless = smart(drafter.path(), true);
    assert!(hopeless.rounds_ahead > 0 && hopeless.nodes > hopeless.sequence_rounds, "{hopeless:?}");
    assert!(2 * hopeless.rounds_ahead <= hopeless.rounds, "every other round is decided");
    assert_eq!(smart(drafter.path(), false).rounds_ahead, 0);
    smart(&repository("assets/demo/drafter"), true);
}
