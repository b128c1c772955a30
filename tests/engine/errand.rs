//! What the host is asked to do while the device is busy: once a step, whatever the step is, before its results are looked at.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use smart_run::config::FloatType;
use smart_run::control::trace::{TRACE_VERSION, TraceHeader};
use smart_run::engine::{Engine, EngineBuilder};

use crate::common::device::{device, plan_host_failure};
use crate::fixtures::{demo_prompts, greedy, paying_costs, repository};

fn builder(policy: &str) -> EngineBuilder<'static> {
    Engine::builder(repository("assets/demo/target"))
        .drafter(repository("assets/demo/drafter"))
        .float_type(FloatType::F32)
        .policy(policy.parse().unwrap())
        .max_sequences(2)
        .max_context(320)
}

/// Steps until `engine` is idle, and how often the errand was run in each.
fn runs(engine: &mut Engine) -> Vec<usize> {
    let mut runs = Vec::new();
    while !engine.is_idle() {
        let mut times = 0;
        engine.step_meanwhile(&mut || times += 1).unwrap();
        runs.push(times);
    }
    runs
}

#[test]
fn it_is_run_once_a_step() {
    let _alone = device();
    let prompts = demo_prompts(3, 60);
    for (policy, ahead) in [("plain", false), ("plain", true), ("smart", true), ("eagle2:3,2,8", false)] {
        let mut engine =
            builder(policy).costs(paying_costs()).run_ahead(ahead).prefill_tokens(16).build().unwrap();
        // The third waits for a place, and prompts are read in several steps.
        for prompt in &prompts {
            engine.submit(greedy(prompt, 30)).unwrap();
        }
        let runs = runs(&mut engine);
        assert!(runs.len() > 10 && runs.iter().all(|&times| times == 1), "{policy}: {runs:?}");
        let mut idle = 0;
        engine.step_meanwhile(&mut || idle += 1).unwrap();
        assert_eq!(idle, 1, "{policy}");
    }
}

#[test]
fn it_is_run_where_a_round_fails() {
    let device = device();
    if !device.is_host() {
        eprintln!("skipped: failures can be planned on the host driver alone");
        return;
    }
    // Launches that no engine but those of tests that hold the device has.
    let mut engine = builder("eagle2:3,2,8").prefetch_bytes(1 << 16).build().unwrap();
    engine.submit(greedy(&demo_prompts(1, 60)[0], 60)).unwrap();
    engine.step().unwrap();
    // Behind each of three levels, and behind the target pass.
    for nth in 1..=4 {
        plan_host_failure(c"prefetch", nth, 1);
        let mut times = 0;
        let error = engine.step_meanwhile(&mut || times += 1).expect_err("a launch failed").to_string();
        assert!(error.contains("prefetch"), "{error}");
        assert_eq!(times, 1, "launch {nth}");
        engine.restart_running();
        // Reads again what was read before.
        engine.step().unwrap();
    }
}

/// Counts what is written.
struct Lines(Arc<AtomicUsize>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Its trace tells when the results of a round are looked at.
#[test]
fn it_is_run_before_results_are_looked_at() {
    let _alone = device();
    for policy in ["plain", "eagle2:3,2,8"] {
        let mut engine = builder(policy).build().unwrap();
        let written = Arc::new(AtomicUsize::new(0));
        let header = TraceHeader {
            version: TRACE_VERSION,
            model: String::new(),
            drafter: None,
            device: String::new(),
            policy: policy.into(),
            seed: 0,
            temperature: 0.0,
        };
        engine.set_trace(Lines(written.clone()), &header).unwrap();
        engine.submit(greedy(&demo_prompts(1, 60)[0], 30)).unwrap();
        let mut rounds = 0;
        while !engine.is_idle() {
            let before = written.load(Ordering::Relaxed);
            let mut meanwhile = 0;
            engine.step_meanwhile(&mut || meanwhile = written.load(Ordering::Relaxed)).unwrap();
            assert_eq!(meanwhile, before, "{policy}");
            rounds += usize::from(written.load(Ordering::Relaxed) > before);
        }
        assert!(rounds > 5, "{policy}: {rounds} rounds");
    }
}
