//! A record is the text that plain decoding gives, and a replay of it is what the engine does.

use std::path::Path;
use std::sync::{Arc, Mutex};

use smart_run::config::FloatType;
use smart_run::control::roofline::Roofline;
use smart_run::control::{CostModel, Policy};
use smart_run::engine::{Engine, Request};
use smart_run::reference::sampler::law;
use smart_run::replay::{RECORD_VERSION, Record, RecordHeader, RecordShape, Settings, replay};
use smart_run::sampling::SamplingParams;

use crate::fixtures::{demo, demo_builder, demo_prompts, greedy, run};

/// A file that stays readable.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn header(engine: &Engine, request: &Request) -> RecordHeader {
    RecordHeader {
        record_version: RECORD_VERSION,
        shape: RecordShape::DEFAULT,
        model: "demo".into(),
        drafter: "demo".into(),
        device: engine.device().name().into(),
        dtype: engine.dtype().into(),
        temperature: request.sampling.temperature,
        top_p: request.sampling.top_p,
        top_k: request.sampling.top_k,
        min_p: request.sampling.min_p,
        seed: request.sampling.seed,
    }
}

/// Records `request`; the text and the record.
fn record(engine: &mut Engine, request: &Request) -> (Vec<i32>, Record) {
    let header = header(engine, request);
    let file = Memory::default();
    engine.set_record(file.clone(), &header).unwrap();
    let tokens = run(engine, request.clone());
    engine.finish_record().unwrap();
    let bytes = file.0.lock().unwrap();
    (tokens, Record::parse(&bytes[..], Path::new("memory")).unwrap().1)
}

/// The demo pair, its drafts coupled with draws or not.
fn pair(policy: Policy, coupled: bool) -> Engine {
    let builder = demo_builder(FloatType::Bf16, policy).max_context(512);
    if coupled { builder } else { builder.uncoupled() }.build().unwrap()
}

fn requests() -> Vec<Request> {
    let sampling = SamplingParams { temperature: 0.7, top_p: 0.95, seed: 4, ..SamplingParams::default() };
    let prompts = demo_prompts(2, 60);
    vec![greedy(&prompts[0], 32), Request { sampling, ..greedy(&prompts[1], 32) }]
}

#[test]
fn replay_runs_the_rounds_that_the_engine_runs() {
    for coupled in [true, false] {
        replay_runs_the_rounds(coupled);
    }
}

fn replay_runs_the_rounds(coupled: bool) {
    let mut engine = pair(Policy::Plain, coupled);
    let costs: CostModel = Roofline::H200_LLAMA_8B.cost_model(512);
    let mut exact = 0;
    for request in requests() {
        let plain = run(&mut engine, request.clone());
        let (tokens, record) = record(&mut engine, &request);
        assert_eq!(tokens, plain, "recording changes nothing about the text");
        assert_eq!(record.num_positions(), tokens.len() - 1, "the prompt's pass draws the first token");
        let drawn: Vec<i32> = record.sequences()[0].trees.iter().map(|tree| tree.drawn).collect();
        assert_eq!(drawn, tokens[1..]);
        // Where drafts know the noise, what the target's draw is leaves nothing to chance.
        assert_eq!(record.has_probs(), request.sampling.temperature > 0.0 && !coupled);
        for policy in
            ["eagle2:10,5,24", "eagle2:10,2,60", "eagle2:10,7,16", "chain:2", "chain:4", "eagle2:4,3,60"]
        {
            let policy: Policy = policy.parse().unwrap();
            let mut speculating = pair(policy, coupled);
            run(&mut speculating, request.clone());
            let ran = speculating.stats();
            let played = replay(&record, &costs, policy, &Settings::new(1, record.num_positions())).unwrap();
            if played.rows_refused > 0 {
                // The record's beams of 16 are the likeliest nodes of each level: a beam of 10 lies within, one of fewer children may not.
                assert!(!matches!(policy, Policy::Eagle2 { top_k: 10, .. }), "{policy}");
                continue;
            }
            exact += 1;
            assert_eq!(
                (played.rounds, played.accepted, played.nodes, played.tokens),
                (ran.rounds, ran.accepted_tokens, ran.nodes, ran.emitted_tokens),
                "{policy} at temperature {}",
                request.sampling.temperature
            );
        }
    }
    assert!(exact >= 7, "of 12 replays only {exact} found every row recorded");
}

/// At the root the record's probabilities are those of the sampler's law over the target's logits there.
#[test]
fn recorded_probabilities_are_the_targets() {
    let mut engine = pair(Policy::Plain, false);
    let request = requests().pop().unwrap();
    let (tokens, record) = record(&mut engine, &request);
    let text = [request.prompt.clone(), tokens].concat();
    let logits = engine.score(&text, &[]).unwrap();
    let vocab_size = engine.model_config().geometry.vocab_size;
    let mut drawn = 0;
    for (i, tree) in record.sequences()[0].trees.iter().enumerate() {
        let probs = tree.probs().expect("draws were a matter of chance");
        let law = law(&logits[(request.prompt.len() + i) * vocab_size..][..vocab_size], &request.sampling);
        for (&token, &prob) in tree.tokens()[..tree.top_k()].iter().zip(probs) {
            let wanted = law[token as usize];
            assert!((f64::from(prob) - wanted).abs() < 2e-6, "position {i}, token {token}: {prob}, {wanted}");
            drawn += usize::from(token == tree.drawn);
        }
        for row in probs.chunks(tree.top_k()) {
            assert!(row.iter().sum::<f32>() < 1.001);
        }
    }
    assert!(drawn > 5, "some draws were listed");
}

/// Measuring costs runs rounds of its own; they are no part of the record.
#[test]
fn a_measurement_is_not_recorded() {
    let mut engine = demo(FloatType::Bf16, Policy::Plain);
    let file = Memory::default();
    engine.set_record(file.clone(), &header(&engine, &requests()[0])).unwrap();
    engine.measure_costs().unwrap();
    engine.finish_record().unwrap();
    assert_eq!(file.0.lock().unwrap().iter().filter(|&&byte| byte == b'\n').count(), 1, "the header alone");
}

#[test]
fn only_an_engine_with_a_drafter_records() {
    let target = crate::fixtures::repository("assets/demo/target");
    let mut engine = Engine::builder(target).max_context(256).build().unwrap();
    let header = header(&engine, &requests()[0]);
    let error = engine.set_record(Memory::default(), &header).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("needs a drafter"), "{error}");
}
