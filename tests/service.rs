//! Many callers, one engine: what they are answered does not depend on each other, on who gives up, nor on failures that pass.

#[path = "common/mod.rs"]
mod common;
#[path = "engine/fixtures.rs"]
#[allow(dead_code)]
mod fixtures;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use common::device::{plan_host_failure, reset_host_driver};
use fixtures::{demo_prompts, expected, greedy, ids, paying_costs, prepare, repository, run};
use smart_run::config::FloatType;
use smart_run::control::Policy;
use smart_run::device::DeviceChoice;
use smart_run::engine::{CacheEvent, Engine, EngineBuilder, FinishReason, Request};
use smart_run::sampling::{Penalties, SamplingParams};
use smart_run::service::{Client, Refusal, Service, ServiceConfig, Updates};

const PATIENCE: Duration = Duration::from_secs(60);

fn builder(policy: &str) -> EngineBuilder<'static> {
    Engine::builder(repository("assets/demo/target"))
        .drafter(repository("assets/demo/drafter"))
        .float_type(FloatType::Bf16)
        .costs(paying_costs())
        .policy(policy.parse().unwrap())
        .max_context(256)
}

fn service(max_sequences: usize, max_waiting: usize) -> Service {
    let engine = builder("smart").max_sequences(max_sequences).build().unwrap();
    Service::start(engine, ServiceConfig { max_waiting })
}

/// Failures are planned for the whole process: the tests that plan them must not meet, nor meet others.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static HELD: Mutex<()> = Mutex::new(());
    HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn requests(count: usize) -> Vec<Request> {
    let prompts = demo_prompts(8, 60);
    let request = |i: usize| Request {
        sampling: SamplingParams {
            temperature: if i.is_multiple_of(3) { 0.0 } else { 0.7 },
            seed: i as u64,
            ..SamplingParams::default()
        },
        ..greedy(&prompts[i % 8], 6 + i % 17)
    };
    (0..count).map(request).collect()
}

fn alone(requests: &[Request]) -> Vec<Vec<i32>> {
    let mut engine = builder("plain").build().unwrap();
    requests.iter().map(|request| run(&mut engine, request.clone())).collect()
}

/// Waits until everything has been given back.
fn wait_until_idle(client: &Client) {
    let start = Instant::now();
    loop {
        let snapshot = client.snapshot();
        if (snapshot.running, snapshot.waiting, snapshot.pages.used) == (0, 0, 0) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "something is still held: {snapshot:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_hundred_callers_get_what_each_would_get_alone() {
    let _alone = one_at_a_time();
    let requests = requests(100);
    let wanted = alone(&requests);
    let service = service(8, 100);
    let client = service.client();
    let updates: Vec<Updates> =
        requests.iter().map(|request| client.submit(request.clone()).unwrap()).collect();
    let got: Vec<Vec<i32>> = std::thread::scope(|scope| {
        let wait = |updates: Updates| scope.spawn(move || updates.wait_for_all().unwrap());
        let threads: Vec<_> = updates.into_iter().map(wait).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().tokens).collect()
    });
    assert_eq!(got, wanted);
    wait_until_idle(&client);
    let snapshot = client.snapshot();
    assert_eq!((snapshot.requests, snapshot.finished_length), (100, 100));
    assert_eq!(snapshot.emitted_tokens as usize, wanted.iter().map(Vec::len).sum::<usize>());
    assert_eq!(snapshot.first_token_seconds.count(), 100);
    let engine = service.shut_down(PATIENCE).unwrap();
    assert!(engine.is_idle() && engine.page_counts().used == 0);
}

#[test]
fn updates_can_be_awaited_and_tell_what_a_request_took() {
    let _alone = one_at_a_time();
    let request = greedy(&demo_prompts(1, 60)[0], 40);
    let wanted = alone(std::slice::from_ref(&request)).remove(0);
    let service = service(2, 8);
    let client = service.client();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut updates = client.submit_watched(request.clone(), true).unwrap();
        let (mut tokens, mut accepted, mut trees) = (Vec::<i32>::new(), 0, 0);
        let mut last = None;
        while let Some(update) = updates.next().await {
            let update = update.unwrap();
            tokens.extend(&update.tokens);
            accepted += update.accepted;
            assert!(update.accepted <= update.tokens.len());
            if let Some(tree) = &update.tree {
                trees += 1;
                assert_eq!(tree.tree.tokens.len(), tree.tree.parents.len());
            }
            last = Some(update);
        }
        assert_eq!(tokens, wanted);
        let usage = last.unwrap().usage;
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (request.prompt.len(), 40));
        assert!(accepted > 5 && usage.accepted_tokens >= accepted as u64, "{usage:?}");
        assert!(trees > 3 && usage.rounds >= trees);
        assert!(updates.next().await.is_none(), "nothing follows the last");
        // The same again finds its prompt.
        let answer = client.submit(request.clone()).unwrap().all().await.unwrap();
        assert_eq!(answer.tokens, wanted);
        assert!(answer.usage.cached_tokens > 0);
    });
}

#[test]
fn who_stops_reading_frees_the_place_of_others() {
    let _alone = one_at_a_time();
    let all = requests(40);
    let wanted = alone(&all);
    let service = service(3, 64);
    let client = service.client();
    for round in 0..2 {
        let mut kept = Vec::new();
        for (i, request) in all.iter().enumerate() {
            let mut updates: Updates =
                client.submit(Request { max_new_tokens: 150, ..request.clone() }).unwrap();
            match (i + round) % 4 {
                0 => drop(updates),
                1 => {
                    let _first = updates.wait().unwrap().unwrap();
                }
                2 => std::thread::spawn(move || drop(updates)).join().unwrap(),
                _ => kept.push((i, client.submit(request.clone()).unwrap())),
            }
        }
        for (i, updates) in kept {
            assert_eq!(updates.wait_for_all().unwrap().tokens, wanted[i], "request {i}");
        }
        wait_until_idle(&client);
    }
    assert!(client.snapshot().cancelled >= 30);
}

/// What one who applies cache events knows: blocks with their parents and keys, by name.
type KnownBlocks = HashMap<u64, (Option<u64>, Vec<i64>)>;

fn apply(known: &mut KnownBlocks, events: Vec<CacheEvent>) -> usize {
    let mut removed = 0;
    for event in events {
        match event {
            CacheEvent::Stored { block, parent, keys } => {
                assert!(parent.is_none_or(|parent| known.contains_key(&parent)), "parents come first");
                assert!(known.insert(block, (parent, keys.into_vec())).is_none());
            }
            CacheEvent::Removed { block } => {
                assert!(known.remove(&block).is_some());
                removed += 1;
            }
        }
    }
    removed
}

#[test]
fn who_follows_the_prefix_cache_knows_what_a_prompt_finds() {
    let _alone = one_at_a_time();
    // Pages for one context and a few blocks more, so that texts push each other out.
    let probe = builder("smart").build().unwrap();
    let engine = builder("smart").kv_budget_bytes(38 * probe.page_bytes()).build().unwrap();
    drop(probe);
    let layout = engine.cache_layout();
    assert_eq!((layout.block_size, layout.lookahead, layout.num_blocks), (16, 1, engine.page_counts().total));
    let service = Service::start(engine, ServiceConfig::default());
    let client = service.client();
    let mut early = client.cache_events();
    let state = |client: &Client| {
        let mut known = KnownBlocks::new();
        apply(&mut known, client.cache_events().wait().unwrap());
        known
    };
    let prompts = demo_prompts(8, 70);
    let (mut found, mut missed) = (0, 0);
    for i in [0, 1, 0, 2, 3, 4, 5, 6, 7, 0, 7, 6, 1] {
        let prompt = &prompts[i];
        let known = state(&client);
        let (mut parent, mut length) = (None, 0);
        while length + 16 < prompt.len() {
            let keys: Vec<i64> = prompt[length..=length + 16].iter().map(|&token| token.into()).collect();
            let next = known.iter().find(|(_, block)| block.0 == parent && block.1 == keys);
            let Some((&block, _)) = next else { break };
            (parent, length) = (Some(block), length + 16);
        }
        let answer = client.submit(greedy(prompt, 20)).unwrap().wait_for_all().unwrap();
        assert_eq!(answer.usage.cached_tokens, length, "prompt {i}");
        if length > 0 { found += 1 } else { missed += 1 }
    }
    assert!(found > 2 && missed > 6, "{found} prompts found something, {missed} nothing");
    let last = state(&client);
    drop(service);
    let (mut known, mut removed) = (KnownBlocks::new(), 0);
    while let Some(events) = early.wait() {
        removed += apply(&mut known, events);
    }
    assert!(removed > 0 && known == last, "{removed} blocks went");
    assert!(client.cache_events().wait().is_none(), "nothing comes of a service that has ended");
}

#[test]
fn too_many_and_impossible_requests_are_refused_at_once() {
    let _alone = one_at_a_time();
    let service = service(1, 2);
    let client = service.client();
    let long = greedy(&[1, 2, 3], 200);
    let mut held = vec![client.submit(long.clone()).unwrap()];
    held[0].wait().unwrap().unwrap();
    held.extend((0..2).map(|_| client.submit(long.clone()).unwrap()));
    match client.submit(long.clone()) {
        Err(Refusal::Full { waiting }) => assert_eq!(waiting, 2),
        other => panic!("{:?}", other.err()),
    }
    for bad in [greedy(&[], 4), greedy(&[1; 256], 4), greedy(&[-3], 4)] {
        assert!(matches!(client.submit(bad), Err(Refusal::Invalid(error)) if error.is_input()));
    }
    drop(held);
    wait_until_idle(&client);
    assert_eq!(client.submit(greedy(&[1, 2, 3], 5)).unwrap().wait_for_all().unwrap().tokens.len(), 5);
}

#[test]
fn a_shut_down_lets_what_was_accepted_end_or_says_that_it_did_not() {
    let _alone = one_at_a_time();
    let all = requests(6);
    let wanted = alone(&all);
    let patient = service(2, 8);
    let client = patient.client();
    let updates: Vec<Updates> = all.iter().map(|request| client.submit(request.clone()).unwrap()).collect();
    let ended = std::thread::spawn(move || patient.shut_down(PATIENCE).is_some());
    for (updates, wanted) in updates.into_iter().zip(&wanted) {
        assert_eq!(updates.wait_for_all().unwrap().tokens, *wanted);
    }
    assert!(ended.join().unwrap());
    assert!(!client.is_open());
    assert!(matches!(client.submit(all[0].clone()), Err(Refusal::ShuttingDown)));

    let impatient = service(1, 8);
    let client = impatient.client();
    let mut first = client.submit(greedy(&[1, 2, 3], 250)).unwrap();
    let second = client.submit(greedy(&[1, 2, 3], 250)).unwrap();
    first.wait().unwrap().unwrap();
    let engine = impatient.shut_down(Duration::ZERO).unwrap();
    assert!(engine.is_idle());
    let error = second.wait_for_all().unwrap_err().to_string();
    assert!(error.contains("shut down"), "{error}");
    assert!(first.wait_for_all().is_err());
}

#[test]
fn a_request_that_cannot_go_on_fails_alone() {
    let _alone = one_at_a_time();
    let tiny = || {
        Engine::builder(repository("tests/golden/llama31_gqa"))
            .drafter(repository("tests/golden/eagle3_random/drafter"))
            .float_type(FloatType::F32)
            .max_context(128)
    };
    let good = greedy(&[1, 2, 3], 60);
    let wanted = run(&mut tiny().policy("plain".parse().unwrap()).build().unwrap(), good.clone());
    let engine = tiny().max_sequences(2).costs(paying_costs()).build().unwrap();
    let vocab_size = engine.model_config().geometry.vocab_size as i32;
    let service = Service::start(engine, ServiceConfig::default());
    let client = service.client();
    let beside = client.submit(good).unwrap();
    let banned = (0..vocab_size).map(|token| (token, f32::NEG_INFINITY)).collect();
    let error = client
        .submit(Request { logit_bias: banned, ..greedy(&[4, 5], 8) })
        .unwrap()
        .wait_for_all()
        .unwrap_err();
    assert!(error.to_string().contains("no token can be drawn"), "{error}");
    let answer = beside.wait_for_all().unwrap();
    assert_eq!((answer.tokens, answer.finished), (wanted, FinishReason::Length));
    assert_eq!(client.snapshot().failed, 1);
}

/// Resident memory of this process, in pages; 0 where the system does not tell.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

#[test]
fn nothing_is_left_of_thousands_of_requests() {
    let _alone = one_at_a_time();
    let soak = std::env::var("SMART_SOAK").is_ok_and(|value| value == "1");
    let count = if soak { 100_000 } else { 3_000 };
    let engine = Engine::builder(repository("tests/golden/llama31_gqa"))
        .drafter(repository("tests/golden/eagle3_random/drafter"))
        .float_type(FloatType::F32)
        .costs(paying_costs())
        .max_context(64)
        .max_sequences(4)
        .build()
        .unwrap();
    let service = Service::start(engine, ServiceConfig { max_waiting: 32 });
    let client = service.client();
    let mut state = 7u64;
    let mut random = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let (mut open, mut early, mut finished) = (Vec::new(), 0, 0);
    for i in 0..count {
        let prompt: Vec<i32> = (0..1 + random(40)).map(|_| random(120) as i32).collect();
        match client.submit(Request { logprobs: (i % 9 == 0).then_some(2), ..greedy(&prompt, 1 + i % 6) }) {
            Ok(updates) => open.push(updates),
            Err(Refusal::Full { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        if open.len() > 24 {
            let updates: Updates = open.swap_remove(random(open.len() as u64) as usize);
            match random(4) {
                0 => drop(updates),
                _ => {
                    updates.wait_for_all().unwrap();
                    finished += 1;
                }
            }
        }
        if i == count / 4 {
            early = resident();
        }
    }
    drop(open);
    wait_until_idle(&client);
    assert!(finished > count / 3, "{finished} of {count} were waited for");
    let late = resident();
    assert!(late <= early + early / 20, "{early} pages of memory in use, then {late}");
}

/// Only where the host driver serves: a GPU does not fail on purpose.
fn fails_on_purpose(service: &Service) -> bool {
    let _ = service;
    let device = common::device::device();
    if !device.is_host() {
        eprintln!("skipped: failures can be planned on the host driver alone");
    }
    device.is_host()
}

#[test]
fn a_launch_that_fails_once_is_made_up_for() {
    let _alone = one_at_a_time();
    let all = requests(5);
    let wanted = alone(&all);
    for (kernel, nth) in [(c"linear", 40), (c"tree_attention", 3), (c"verify_walk", 4), (c"draft_topk", 2)] {
        let service = service(3, 16);
        if !fails_on_purpose(&service) {
            return;
        }
        let client = service.client();
        plan_host_failure(kernel, nth, 1);
        let updates: Vec<Updates> =
            all.iter().map(|request| client.submit(request.clone()).unwrap()).collect();
        for (i, updates) in updates.into_iter().enumerate() {
            assert_eq!(updates.wait_for_all().unwrap().tokens, wanted[i], "{kernel:?} {nth}, request {i}");
        }
        let snapshot = client.snapshot();
        assert_eq!((snapshot.failed_rounds, snapshot.failed), (1, 0), "{kernel:?} {nth}");
    }
}

#[test]
fn failures_that_last_end_what_runs_and_then_the_service() {
    let _alone = one_at_a_time();
    let all = requests(4);
    let wanted = alone(&all);
    let service = service(1, 16);
    if !fails_on_purpose(&service) {
        return;
    }
    let client = service.client();
    // Three rounds fail: the first request is given up, those behind it are served.
    plan_host_failure(c"*", 30, 3);
    let updates: Vec<Updates> = all.iter().map(|request| client.submit(request.clone()).unwrap()).collect();
    let answers: Vec<_> = updates.into_iter().map(Updates::wait_for_all).collect();
    let error = answers[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("on purpose"), "{error}");
    for i in 1..4 {
        assert_eq!(answers[i].as_ref().unwrap().tokens, wanted[i]);
    }
    assert!(client.is_open());
    // All rounds fail: the device is lost.
    plan_host_failure(c"*", 1, u64::MAX);
    let answers: Vec<_> = all
        .iter()
        .filter_map(|request| client.submit(request.clone()).ok())
        .map(Updates::wait_for_all)
        .collect();
    assert!(!answers.is_empty() && answers.iter().all(Result::is_err));
    plan_host_failure(c"*", 0, 0);
    let start = Instant::now();
    while client.is_open() && start.elapsed() < PATIENCE {
        if let Ok(updates) = client.submit(all[0].clone()) {
            assert_eq!(updates.wait_for_all().unwrap().tokens, wanted[0], "it was not lost yet");
            return;
        }
    }
    assert!(
        matches!(client.submit(all[0].clone()), Err(Refusal::Stopped(reason)) if reason.contains("in a row"))
    );
}

/// What a request needs before its first pass is made up for, too.
#[test]
fn a_place_that_cannot_be_prepared_is_prepared_again() {
    let _alone = one_at_a_time();
    let penalties = Penalties { repetition: 1.3, ..Penalties::default() };
    let all: Vec<Request> = requests(4).into_iter().map(|request| Request { penalties, ..request }).collect();
    let wanted = alone(&all);
    for (nth, count) in [(1, 1), (2, 2)] {
        let service = service(3, 16);
        if !fails_on_purpose(&service) {
            return;
        }
        let client = service.client();
        plan_host_failure(c"count_tokens", nth, count);
        let updates: Vec<Updates> =
            all.iter().map(|request| client.submit(request.clone()).unwrap()).collect();
        for (updates, wanted) in updates.into_iter().zip(&wanted) {
            assert_eq!(&updates.wait_for_all().unwrap().tokens, wanted, "{nth}");
        }
        let snapshot = client.snapshot();
        assert_eq!((snapshot.failed_rounds, snapshot.failed), (count, 0), "{nth}");
    }
}

/// A device that does nothing any more is noticed at whatever launch it was lost, while others wait for a place.
#[test]
fn a_lost_device_ends_the_service() {
    let _alone = one_at_a_time();
    let all = requests(12);
    for nth in [1, 40, 400, 1200] {
        let service = service(3, 16);
        if !fails_on_purpose(&service) {
            return;
        }
        let client = service.client();
        plan_host_failure(c"lost", nth, 1);
        let updates: Vec<Updates> =
            all.iter().map(|request| client.submit(request.clone()).unwrap()).collect();
        let answers: Vec<_> = updates.into_iter().map(Updates::wait_for_all).collect();
        let last = answers.last().unwrap().as_ref().unwrap_err().to_string();
        assert!(last.contains("failed") && last.contains("in a row"), "{nth}: {last}");
        assert!(!client.is_open(), "{nth}");
        assert!(matches!(client.submit(all[0].clone()), Err(Refusal::Stopped(_))), "{nth}");
        reset_host_driver();
    }
}

#[test]
fn every_allocation_that_fails_is_one_sentence() {
    let _alone = one_at_a_time();
    let device = common::device::device();
    if !device.is_host() {
        eprintln!("skipped: failures can be planned on the host driver alone");
        return;
    }
    let build = || {
        Engine::builder(repository("tests/golden/llama31_gqa"))
            .drafter(repository("tests/golden/eagle3_random/drafter"))
            .float_type(FloatType::F32)
            .costs(paying_costs())
            .max_context(64)
            .build()
    };
    let mut failures = 0;
    for nth in 1.. {
        plan_host_failure(c"alloc", nth, 1);
        match build() {
            Err(error) => {
                failures += 1;
                let text = error.to_string();
                let says = text.contains("on purpose") || text.contains("out of device memory");
                assert!(!error.is_input() && says, "{nth}: {text}");
            }
            Ok(_) => break,
        }
    }
    plan_host_failure(c"alloc", 0, 0);
    assert!(failures > 50, "{failures} allocations of an engine");
}

/// Tokens are handed out while the device runs the round behind theirs; says how long that takes, with the controller's learning.
#[test]
fn what_is_done_meanwhile_is_counted() {
    let _alone = one_at_a_time();
    let prompts = demo_prompts(8, 60);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    for batch in [1, 16, 64] {
        let service = service(batch, batch);
        let client = service.client();
        let asked: Vec<Updates> =
            (0..batch).map(|i| client.submit(greedy(&prompts[i % 8], 120)).unwrap()).collect();
        let callers: Vec<_> = asked.into_iter().map(|updates| runtime.spawn(updates.all())).collect();
        for caller in callers {
            assert_eq!(runtime.block_on(caller).unwrap().unwrap().tokens.len(), 120);
        }
        let stats = client.snapshot().stats;
        let us = 1e3 * stats.meanwhile_ms / stats.rounds as f64;
        eprintln!("{batch} callers: {us:.0} us a round are spent while the device is busy");
        assert!(us > 0.0 && us < 1e5, "{us}");
    }
}

/// A picture that is encoded for one request keeps nobody's tokens waiting: what an errand plans for the encoder happens to it.
#[test]
fn errands_are_run_before_pictures_are_encoded() {
    let _alone = one_at_a_time();
    let folder = repository("tests/golden/llava");
    let golden = expected("llava");
    let prompts = golden["prompts"].as_array().unwrap();
    let shown = prompts.iter().find(|prompt| prompt["pictures"].as_array().unwrap().len() == 1).unwrap();
    let mut pictures = golden["pictures"].as_array().unwrap().iter();
    let picture = pictures.find(|picture| picture["name"] == shown["pictures"][0]).unwrap();
    let patches = prepare(&folder, &folder.join(picture["file"].as_str().unwrap()));
    let asks = Request { pictures: vec![patches], ..greedy(&ids(&shown["prompt_ids"]), 4) };

    let builder = Engine::builder(folder.as_path()).float_type(FloatType::F32).policy(Policy::Plain);
    let mut engine = builder.device(DeviceChoice::Host).max_sequences(2).build().unwrap();
    engine.submit(greedy(&[5, 9, 31], 20)).unwrap();
    engine.step().unwrap();
    let id = engine.submit(asks).unwrap();
    let mut emissions = engine.step_meanwhile(&mut || plan_host_failure(c"vision_attention", 1, 1)).unwrap();
    plan_host_failure(c"*", 0, 0);
    emissions.extend(engine.step().unwrap());
    let own = emissions.iter().find(|emission| emission.sequence == id).unwrap();
    assert_eq!(own.finished, Some(FinishReason::Failed));
    assert!(own.failure.as_ref().unwrap().to_string().contains("vision_attention"), "{:?}", own.failure);
}
