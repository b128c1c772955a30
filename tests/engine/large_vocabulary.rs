//! Rows of logits that several blocks share: vocabularies of more than one slice, as all but toys have. The models of `tests/golden` and
//! `assets/demo` have one. Plain rounds have few rows, trees more than are sliced. On the host driver blocks only share where every thread is
//! emulated (`SIMT_NATIVE=0`, a line of `make test`); native twins hold the workspaces to it.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use smart_run::engine::{Engine, Request};
use smart_run::sampling::{SLICE_LEN, SamplingParams};
use tempfile::TempDir;

use crate::fixtures::{builder, greedy, paying_costs, repository};
use crate::random_drafters::random_drafter;

/// Three slices, the last of them short and of no whole number of quads.
const VOCAB: usize = 2 * SLICE_LEN + 809;

/// The tiny target, each of its tokens many times over with another sign or size, so that rows have near ties across slices.
fn large_target() -> TempDir {
    let source = repository("tests/golden/llama31_gqa");
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut grown: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in tensors.tensors() {
        let (mut shape, mut data) = (tensor.shape().to_vec(), tensor.data().to_vec());
        if name == "lm_head.weight" || name == "model.embed_tokens.weight" {
            let width = shape[1];
            let rows: Vec<f32> =
                data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let old = shape[0];
            data = (0..VOCAB)
                .flat_map(|id| {
                    let factor = [1.0, -0.75, 1.0 + 1e-6, 0.5][id / old % 4];
                    rows[id % old * width..][..width].iter().map(move |x| factor * x)
                })
                .flat_map(f32::to_le_bytes)
                .collect();
            shape[0] = VOCAB;
        }
        grown.push((name, shape, data));
    }
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read(source.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["vocab_size"] = json!(VOCAB);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let views = grown
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

/// Greedy, sampled, with min-p, and with a filter that wants the whole row; log-probabilities are asked for now and then.
fn requests() -> Vec<Request> {
    let base = SamplingParams::default();
    let samplings = [
        base,
        SamplingParams { temperature: 0.6, seed: 3, ..base },
        SamplingParams { temperature: 1.0, min_p: 0.2, seed: 4, ..base },
        SamplingParams { temperature: 1.0, top_p: 0.9, top_k: 40, seed: 5, ..base },
    ];
    let request = |(i, sampling)| Request {
        sampling,
        logprobs: (i % 2 == 0).then_some(3),
        ..greedy(&[7, 900 * i as i32, VOCAB as i32 - 1], 12)
    };
    samplings.into_iter().enumerate().map(request).collect()
}

/// Tokens and log-probabilities of all requests, side by side.
fn texts(target: &Path, drafter: &Path, policy: &str) -> Vec<(Vec<i32>, Vec<f32>)> {
    let mut engine: Engine = builder(target)
        .drafter(drafter)
        .policy(policy.parse().unwrap())
        .costs(paying_costs())
        .max_context(64)
        .max_sequences(4)
        .build()
        .unwrap();
    let ids: Vec<_> = requests().into_iter().map(|request| engine.submit(request).unwrap()).collect();
    let mut texts = vec![(Vec::new(), Vec::new()); ids.len()];
    while !engine.is_idle() {
        for emission in engine.step().unwrap() {
            let text = &mut texts[ids.iter().position(|&id| id == emission.sequence).unwrap()];
            text.0.extend(&emission.tokens);
            text.1.extend(emission.logprobs.iter().map(|entry| entry.logprob));
        }
    }
    texts
}

#[test]
fn tiny_texts_over_several_slices_are_those_of_plain_decoding() {
    let target = large_target();
    let drafter = random_drafter(target.path(), false);
    let wanted = texts(target.path(), drafter.path(), "plain");
    assert!(wanted.iter().all(|(tokens, _)| tokens.len() == 12));
    assert!(wanted.iter().flat_map(|text| &text.0).any(|&token| token as usize > SLICE_LEN));
    assert_eq!(wanted[0].1.len(), 12);
    for policy in ["chain:3", "eagle2:8,4,24", "smart"] {
        let got = texts(target.path(), drafter.path(), policy);
        for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
            assert_eq!(got.0, wanted.0, "{policy}, request {i}");
            assert_eq!(got.1.len(), wanted.1.len(), "{policy}, request {i}");
            let apart = got.1.iter().zip(&wanted.1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{policy}, request {i}: {apart}");
        }
    }
}
