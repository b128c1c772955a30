//! Models and expectations of `tests/golden` and `assets/demo`, and short ways to run an engine.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;
use smart_run::config::{FloatType, ModelConfig, ModelSource};
use smart_run::control::roofline::Roofline;
use smart_run::control::{CostModel, Policy};
use smart_run::device::DeviceChoice;
use smart_run::engine::{Engine, EngineBuilder, Request};
use smart_run::image::{ImageProcessor, Patches, Picture};

/// A path of the repository: below `SMART_TEST_ROOT`, or where the tests were compiled.
pub fn repository(path: &str) -> PathBuf {
    let root = std::env::var_os("SMART_TEST_ROOT").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join(path)
}

/// `expected.json` of a golden case.
pub fn expected(case: &str) -> Value {
    let path = repository("tests/golden").join(case).join("expected.json");
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

/// One tensor of a golden case's `expected.safetensors`.
pub fn expected_tensor(case: &str, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(repository("tests/golden").join(case).join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(name).unwrap_or_else(|e| panic!("{case}: {name}: {e}")).data();
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub fn ids(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
}

pub fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// Asserts max |got - want| / max |want| < `limit`.
pub fn assert_close(what: &str, got: &[f32], want: &[f32], limit: f32) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let scale = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let (worst, error) = got
        .iter()
        .zip(want)
        .map(|(g, w)| (g - w).abs())
        .enumerate()
        .fold((0, 0f32), |best, (i, e)| if e > best.1 || e.is_nan() { (i, e) } else { best });
    assert!(
        error <= limit * scale,
        "{what}: element {worst} is {} instead of {} (scale {scale})",
        got[worst],
        want[worst]
    );
}

/// An f32 engine for a model folder.
pub fn builder(model: &Path) -> EngineBuilder<'static> {
    Engine::builder(model).device(DeviceChoice::Auto).float_type(FloatType::F32)
}

/// Costs under which drafting pays from the first round, however busy the machine is that runs the tests.
pub fn paying_costs() -> CostModel {
    Roofline::H200_LLAMA_8B.cost_model(512)
}

/// The demo pair, which starts from [`paying_costs`].
pub fn demo_builder(float_type: FloatType, policy: Policy) -> EngineBuilder<'static> {
    Engine::builder(repository("assets/demo/target"))
        .drafter(repository("assets/demo/drafter"))
        .float_type(float_type)
        .costs(paying_costs())
        .policy(policy)
}

/// The same as an engine for one sequence.
pub fn demo(float_type: FloatType, policy: Policy) -> Engine {
    demo_builder(float_type, policy).max_context(512).build().unwrap()
}

/// The tiny random pair, for runs where every thread of every kernel is emulated.
pub fn tiny(float_type: FloatType, policy: Policy) -> Engine {
    Engine::builder(repository("tests/golden/llama31_gqa"))
        .drafter(repository("tests/golden/eagle3_random/drafter"))
        .float_type(float_type)
        .policy(policy)
        .max_context(256)
        .build()
        .unwrap()
}

pub fn greedy(prompt: &[i32], max_new_tokens: usize) -> Request {
    Request { ignore_eos: true, ..Request::new(prompt.to_vec(), max_new_tokens) }
}

/// What the model of `folder` makes of the picture in `file`.
pub fn prepare(folder: &Path, file: &Path) -> Patches {
    let source = ModelSource::from(folder);
    let patch_size = ModelConfig::from_hf(&source).unwrap().vision.unwrap().tower.patch_size;
    let processor = ImageProcessor::from_hf(&source, patch_size).unwrap().unwrap();
    processor.prepare(&Picture::open(file).unwrap()).unwrap()
}

/// All tokens of a request.
pub fn run(engine: &mut Engine, request: Request) -> Vec<i32> {
    engine.generate(request).unwrap().flat_map(|batch| batch.unwrap()).collect()
}

/// The first `count` held-out prompts of the demo pair, as token ids, at most `max_len` each.
pub fn demo_prompts(count: usize, max_len: usize) -> Vec<Vec<i32>> {
    let source = ModelSource::from(repository("assets/demo/target"));
    let tokenizer = smart_run::text::Tokenizer::open(&source).unwrap().unwrap();
    let text = std::fs::read_to_string(repository("assets/demo/prompts.jsonl")).unwrap();
    let prompt = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let mut ids = tokenizer.encode(record["prompt"].as_str().unwrap(), true).unwrap();
        ids.truncate(max_len);
        ids
    };
    text.lines().take(count).map(prompt).collect()
}

/// Whether the long versions of tests were asked for (`make soak`).
pub fn soak() -> bool {
    std::env::var("SMART_SOAK").is_ok_and(|v| v == "1")
}
