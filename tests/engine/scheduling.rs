//! Places, pages and prompts: whoever waits, is interrupted, shares pages with others or is read in pieces gets the text that it would get
//! alone.

use std::collections::HashMap;

use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::engine::{Emission, Engine, EngineBuilder, FinishReason, Request, SequenceId, Stats};
use smart_run::sampling::SamplingParams;

use crate::fixtures::{demo_builder, demo_prompts, greedy, run};

fn builder(policy: &str) -> EngineBuilder<'static> {
    demo_builder(FloatType::Bf16, policy.parse().unwrap()).max_context(384)
}

/// Requests with prompts of `prompt_len` tokens, each its own over and over.
fn requests(count: usize, prompt_len: usize) -> Vec<Request> {
    let prompts: Vec<Vec<i32>> = demo_prompts(count, prompt_len)
        .into_iter()
        .map(|prompt| prompt.into_iter().cycle().take(prompt_len).collect())
        .collect();
    let sampling = |i: usize| SamplingParams {
        temperature: if i.is_multiple_of(2) { 0.0 } else { 0.8 },
        seed: i as u64,
        ..SamplingParams::default()
    };
    let request =
        |(i, prompt): (usize, &Vec<i32>)| Request { sampling: sampling(i), ..greedy(prompt, 16 + 5 * i) };
    prompts.iter().enumerate().map(request).collect()
}

fn alone(requests: &[Request]) -> Vec<Vec<i32>> {
    let mut engine = builder("plain").build().unwrap();
    requests.iter().map(|request| run(&mut engine, request.clone())).collect()
}

/// Runs all of `requests`, submitted at once; the text and the last emission of each.
fn run_all(engine: &mut Engine, requests: &[Request]) -> Vec<(Vec<i32>, Emission)> {
    let ids: Vec<SequenceId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut texts: HashMap<SequenceId, Vec<i32>> = HashMap::new();
    let mut last = HashMap::new();
    while !engine.is_idle() {
        for emission in engine.step().unwrap() {
            texts.entry(emission.sequence).or_default().extend(&emission.tokens);
            if emission.finished.is_some() {
                last.insert(emission.sequence, emission);
            }
        }
    }
    ids.iter().map(|id| (texts.remove(id).unwrap(), last.remove(id).unwrap())).collect()
}

fn texts(engine: &mut Engine, requests: &[Request]) -> Vec<Vec<i32>> {
    run_all(engine, requests).into_iter().map(|(text, _)| text).collect()
}

/// A budget of so many pages.
fn pages(count: usize) -> usize {
    let probe = builder("smart").kv_budget_bytes(1 << 40).build().unwrap();
    probe.page_bytes() * count
}

#[test]
fn prompts_read_in_pieces_of_any_size_beside_rounds_give_the_same_texts() {
    let requests = requests(5, 300);
    let wanted = alone(&requests);
    for (policy, prefill_tokens) in [("smart", 1000), ("eagle2:10,5,60", 7), ("chain:3", 33), ("plain", 64)] {
        let mut engine = builder(policy).max_sequences(3).prefill_tokens(prefill_tokens).build().unwrap();
        assert_eq!(texts(&mut engine, &requests), wanted, "{policy}, {prefill_tokens} tokens");
        assert_eq!(engine.page_counts().used, 0);
    }
}

#[test]
fn who_gives_up_pages_for_older_texts_goes_on_later_as_if_nothing_had_happened() {
    let requests: Vec<Request> =
        requests(6, 60).into_iter().map(|request| Request { max_new_tokens: 130, ..request }).collect();
    let wanted = alone(&requests);
    // A sequence of 190 tokens with headroom takes 28 pages; six of them 168.
    for (policy, count) in [("eagle2:10,5,60", 66), ("smart", 50), ("chain:2", 84)] {
        let mut engine =
            builder(policy).max_context(192).max_sequences(6).kv_budget_bytes(pages(count)).build().unwrap();
        assert_eq!(engine.page_counts().total, count);
        assert_eq!(texts(&mut engine, &requests), wanted, "{policy}");
        assert!(engine.preemptions() > 0, "{policy}: {count} pages were enough, the test tests nothing");
        assert_eq!(engine.page_counts().used, 0);
    }
}

#[test]
fn a_prefix_that_is_known_is_not_read_again_and_changes_nothing() {
    let prompt = demo_prompts(1, 200).remove(0);
    assert!(prompt.len() > 100);
    let other = demo_prompts(2, 200).remove(1);
    // The same again; the same and more; the same up to the middle of a page, then something else.
    let continued = [&prompt[..], &other[..40]].concat();
    let diverging = [&prompt[..70], &other[..50]].concat();
    let requests = [&prompt, &prompt, &continued, &diverging].map(|prompt| greedy(prompt, 24));
    let wanted = alone(&requests);
    for policy in ["eagle2:10,5,60", "chain:3", "plain"] {
        let mut fresh = Vec::new();
        for request in &requests {
            let mut engine = builder(policy).max_sequences(2).build().unwrap();
            fresh.extend(run_all(&mut engine, std::slice::from_ref(request)));
        }
        let mut engine = builder(policy).max_sequences(2).build().unwrap();
        for (i, request) in requests.iter().enumerate() {
            let (text, last) = run_all(&mut engine, std::slice::from_ref(request)).remove(0);
            assert_eq!(text, wanted[i], "{policy} {i}");
            let known = [0, (prompt.len() - 1) / 16 * 16, prompt.len() / 16 * 16, 64][i];
            assert!(
                known.abs_diff(last.stats.cached_tokens) <= 16,
                "{policy} {i}: {} cached tokens, about {known} were possible",
                last.stats.cached_tokens
            );
            // The drafter's keys and values are the same, too, so it proposes the same.
            let fresh = fresh[i].1.stats;
            let of = |stats: smart_run::engine::SequenceStats| {
                (stats.rounds, stats.drafted_tokens, stats.accepted_tokens)
            };
            assert_eq!(of(last.stats), of(fresh), "{policy} {i}: the drafter found other pages");
        }
        assert!(engine.page_counts().cached > 0);
    }
}

#[test]
fn one_prompt_many_times_at_once_is_read_once() {
    let prompt = demo_prompts(1, 250).remove(0);
    let request = |i: u64| Request {
        sampling: SamplingParams { temperature: 1.0, seed: i, ..SamplingParams::default() },
        ..greedy(&prompt, 12)
    };
    let requests: Vec<Request> = (0..5).map(request).collect();
    let wanted = alone(&requests);
    let mut engine = builder("smart").max_sequences(5).build().unwrap();
    let all = run_all(&mut engine, &requests);
    for (i, (text, last)) in all.iter().enumerate() {
        assert_eq!(text, &wanted[i]);
        let known = if i == 0 { 0 } else { (prompt.len() - 2) / 16 * 16 };
        assert_eq!(last.stats.cached_tokens, known, "copy {i}");
    }
}

#[test]
fn what_is_cached_makes_room_for_what_is_needed() {
    let requests: Vec<Request> =
        requests(12, 90).into_iter().map(|request| Request { max_new_tokens: 20, ..request }).collect();
    let wanted = alone(&requests);
    let mut engine =
        builder("smart").max_context(128).max_sequences(2).kv_budget_bytes(pages(48)).build().unwrap();
    for _ in 0..2 {
        assert_eq!(texts(&mut engine, &requests), wanted);
        let counts = engine.page_counts();
        assert_eq!(counts.used, 0);
        assert!(counts.cached <= 48 && counts.cached > 0);
    }
}

#[test]
fn a_failed_round_can_be_run_again_from_what_is_committed() {
    let requests = requests(4, 120);
    let wanted = alone(&requests);
    let mut engine = builder("eagle2:10,5,60").max_sequences(3).build().unwrap();
    let ids: Vec<SequenceId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut texts: HashMap<SequenceId, Vec<i32>> = HashMap::new();
    for round in 0.. {
        if engine.is_idle() {
            break;
        }
        for emission in engine.step().unwrap() {
            texts.entry(emission.sequence).or_default().extend(emission.tokens);
        }
        if round % 3 == 2 && round < 20 {
            engine.restart_running();
            assert_eq!((engine.running().count(), engine.page_counts().used), (0, 0));
        }
    }
    let got: Vec<Vec<i32>> = ids.iter().map(|id| texts.remove(id).unwrap()).collect();
    assert_eq!(got, wanted);
}

#[test]
fn who_is_cancelled_while_waiting_or_being_read_leaves_nothing_behind() {
    let requests = requests(4, 300);
    let wanted = alone(&requests[3..]);
    let mut engine = builder("smart").max_sequences(1).prefill_tokens(16).build().unwrap();
    let ids: Vec<SequenceId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    assert!(engine.cancel(ids[1]), "it waits");
    assert!(engine.step().unwrap().is_empty(), "the first prompt takes two passes");
    assert!(engine.cancel(ids[0]), "it is being read");
    engine.step().unwrap();
    assert!(engine.cancel(ids[2]));
    assert!(!engine.cancel(ids[2]), "once is enough");
    let mut text = Vec::new();
    while !engine.is_idle() {
        for emission in engine.step().unwrap() {
            assert_eq!(emission.sequence, ids[3]);
            text.extend(emission.tokens);
        }
    }
    assert_eq!(text, wanted[0]);
    assert_eq!(engine.page_counts().used, 0);
}

/// Behind a round in whose pass a prompt was read, the drafter reads it, too. That is prefill: it must not seem to be what the next round costs outside its
/// passes, or drafting would look dear whenever requests come.
#[test]
fn what_the_drafter_reads_behind_a_round_is_no_part_of_the_next() {
    let mut engine = builder("chain:1").max_sequences(2).prefill_tokens(400).build().unwrap();
    let prompts = demo_prompts(2, 300);
    engine.submit(greedy(&prompts[0], 60)).unwrap();
    while engine.stats().rounds < 5 {
        engine.step().unwrap();
    }
    // Prefill, and the host's part of a round: what is neither in its drafter passes nor in its target pass.
    let step = |engine: &mut Engine| {
        let before = engine.stats().clone();
        engine.step().unwrap();
        let now = engine.stats();
        let host_ms = |it: &Stats| it.decode_ms - it.draft_ms - it.verify_ms;
        (now.prefill_ms - before.prefill_ms, host_ms(now) - host_ms(&before))
    };
    let (prefill_ms, host_ms) = step(&mut engine);
    assert!(prefill_ms == 0.0 && host_ms > 1e-6, "{prefill_ms} and {host_ms} ms");
    engine.submit(greedy(&prompts[1], 60)).unwrap();
    let (prefill_ms, _) = step(&mut engine);
    assert!(prefill_ms > 0.1, "the drafter read 300 tokens in {prefill_ms} ms");
    let (prefill_ms, host_ms) = step(&mut engine);
    assert!(prefill_ms == 0.0 && host_ms.abs() < 1e-6, "{prefill_ms} and {host_ms} ms");
    let (_, host_ms) = step(&mut engine);
    assert!(host_ms > 1e-6, "{host_ms} ms");
}

#[test]
fn speculation_can_be_refused_and_stop_tokens_end_a_text() {
    let prompt = demo_prompts(1, 80).remove(0);
    let mut engine = builder("eagle2:10,5,60").build().unwrap();
    let all = run_all(&mut engine, &[Request { speculation: false, ..greedy(&prompt, 40) }]);
    let (text, last) = &all[0];
    assert_eq!((last.stats.drafted_tokens, last.stats.rounds), (0, 39), "one token a round");
    assert_eq!(last.finished, Some(FinishReason::Length));
    let stop = text[17];
    let stopped = run_all(&mut engine, &[Request { stop_tokens: vec![stop], ..greedy(&prompt, 40) }]);
    let cut = text.iter().position(|&token| token == stop).unwrap();
    assert_eq!(stopped[0].0, text[..cut]);
    assert_eq!(stopped[0].1.finished, Some(FinishReason::Eos));
}

#[test]
fn a_policy_put_in_place_later_finds_no_pages_of_one_that_did_not_draft() {
    let prompt = demo_prompts(1, 150).remove(0);
    let request = greedy(&prompt, 24);
    let mut fresh = builder("eagle2:10,5,60").build().unwrap();
    let wanted = run_all(&mut fresh, std::slice::from_ref(&request)).remove(0);
    let mut engine = builder("eagle2:10,5,60").build().unwrap();
    let eagle = engine.new_controller("eagle2:10,5,60".parse().unwrap()).unwrap();
    let plain = engine.new_controller(Policy::Plain).unwrap();
    engine.set_controller(plain).unwrap();
    run_all(&mut engine, std::slice::from_ref(&request));
    engine.set_controller(eagle).unwrap();
    let got = run_all(&mut engine, std::slice::from_ref(&request)).remove(0);
    assert_eq!((got.0, got.1.stats), (wanted.0, wanted.1.stats));
}

/// What a drafter has not seen waits, up to a bound; where exactly it caught up leaves no trace in what it proposes.
#[test]
fn a_drafter_that_was_quiet_for_long_proposes_what_one_that_read_the_text_does() {
    let prompt = demo_prompts(1, 30).remove(0);
    let drafted = |engine: &Engine| -> Vec<(i32, u32, u32)> {
        let nodes = engine.controller().round().pool(0).nodes();
        nodes.iter().map(|node| (node.token, node.parent, node.logp.to_bits())).collect()
    };
    let text = run(&mut builder("plain").build().unwrap(), greedy(&prompt, 262));
    for plain_rounds in [1, 253, 254, 255, 256, 257] {
        let mut quiet = builder("eagle2:10,3,24").build().unwrap();
        quiet.submit(greedy(&prompt, 300)).unwrap();
        let first = quiet.step().unwrap().remove(0);
        let mut last = first.tokens[0];
        for _ in 0..plain_rounds {
            let root = smart_run::tree::DraftTree::new(last);
            last = quiet.step_with(&[root]).unwrap().remove(0).tokens[0];
        }
        quiet.step().unwrap();
        // Its first token is drawn behind the prompt.
        let mut reader = builder("eagle2:10,3,24").build().unwrap();
        let read = [&prompt[..], &text[..plain_rounds]].concat();
        reader.submit(greedy(&read, 100)).unwrap();
        while reader.step().unwrap().is_empty() {}
        reader.step().unwrap();
        assert!(drafted(&quiet).len() > 30);
        assert_eq!(drafted(&quiet), drafted(&reader), "after {plain_rounds} plain rounds");
    }
}

#[test]
fn a_full_context_ends_a_text_at_the_same_token_under_every_policy() {
    let prompt = demo_prompts(1, 40).remove(0);
    for context in [prompt.len() + 1, 61, 62, 63, 64] {
        let mut engine = builder("plain").max_context(context).build().unwrap();
        let wanted = run(&mut engine, greedy(&prompt, 500));
        assert_eq!(prompt.len() + wanted.len(), context);
        for policy in ["chain:6", "eagle2:10,5,60"] {
            let mut engine = builder(policy).max_context(context).build().unwrap();
            let (text, last) = run_all(&mut engine, &[greedy(&prompt, 500)]).remove(0);
            assert_eq!(
                (text, last.finished),
                (wanted.clone(), Some(FinishReason::Length)),
                "{policy}, {context}"
            );
        }
    }
}
