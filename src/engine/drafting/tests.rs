use std::path::Path;

use crate::control::{FrontierRow, NONE};
use crate::device::DeviceChoice;
use crate::engine::drafting::Ranking;
use crate::engine::errand::Errand;
use crate::engine::{Engine, Request};
use crate::reference::draft as oracle;
use crate::sampling::DIGEST_LEN;

const TOP_K: usize = 3;

/// Candidate, place among the rows of the round, and that of the parent: what a level goes by.
fn row((candidate, slot, parent_slot): (u32, u32, u32)) -> FrontierRow {
    FrontierRow {
        sequence: 0,
        node: 1,
        token: 0,
        depth: 1,
        parent_row: 0,
        candidate,
        parent_slot,
        slot,
        ancestors: [0; 4],
        path_logp: 0.0,
    }
}

/// Children, by level and row, of a round that runs `levels` behind its root, its passes filled up to `tread`.
fn children(tread: usize, levels: &[&[(u32, u32, u32)]]) -> Vec<Vec<(i32, f32)>> {
    let demo = |part: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").join(part);
    let mut engine = Engine::builder(demo("target"))
        .drafter(demo("drafter"))
        .device(DeviceChoice::Host)
        .policy("eagle2:3,2,6".parse().unwrap())
        .max_context(300)
        .pass_tread(tread)
        .build()
        .unwrap();
    engine.submit(Request::new((0..40).map(|i| 7 * i + 3).collect(), 20)).unwrap();
    // Reads the prompt, then a round.
    engine.step().unwrap();
    engine.step().unwrap();
    let Engine { proposer, sequences, pool, .. } = &mut engine;
    let drafting = proposer.as_mut().and_then(|it| it.network_mut()).unwrap();
    let sequence = sequences[0].as_ref().unwrap();
    // One waiting pair is enough for a root, whose feature then is the first of the store.
    let root = sequence.draft_len + 1;
    pool.reserve(0, root + 32).unwrap();
    pool.upload().unwrap();
    let ranking = Ranking { top_k: TOP_K, masked: false, sampled: false };
    drafting.catch_up(pool, &[(0, sequence)], |_| 1, Some(ranking)).unwrap();
    drafting.read_children().unwrap();
    let mut answers = Vec::new();
    for level in levels {
        let rows: Vec<FrontierRow> = level.iter().copied().map(row).collect();
        drafting.level(&rows, |_| 0, |_| root, ranking).unwrap();
        let (tokens, logps) = drafting.read_children().unwrap();
        let pairs: Vec<_> = tokens.iter().copied().zip(logps.iter().copied()).collect();
        answers.extend(pairs.chunks(TOP_K).take(rows.len()).map(<[_]>::to_vec));
    }
    answers
}

/// A node's children do not depend on when it is run, nor on what fills passes up: features stay where they are for the whole round.
#[test]
fn a_node_may_be_run_long_after_its_parent() {
    // The root's first child, then two children of that and the root's second child, together or one by one.
    let first: &[_] = &[(0, 0, NONE)];
    let [a, b, c] = [(3, 1, 0), (4, 2, 0), (1, 3, NONE)];
    let together = children(1, &[first, &[a, b, c]]);
    assert!(together.iter().flatten().all(|(_, logp)| logp.is_finite()));
    assert!(together[2] != together[1] && together[3] != together[2]);
    for tread in [1, 8] {
        assert_eq!(children(tread, &[first, &[a], &[b], &[c]]), together, "tread {tread}");
    }
}

/// Children of masked logits are those of what the mask has left, the best of before and whole slices being banned.
#[test]
fn masked_children_are_those_of_the_masked_logits() {
    let demo = |part: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").join(part);
    let builder = Engine::builder(demo("target")).drafter(demo("drafter")).device(DeviceChoice::Host);
    let mut engine = builder.policy("eagle2:3,2,6".parse().unwrap()).max_context(300).build().unwrap();
    engine.submit(Request::new((0..40).map(|i| 7 * i + 3).collect(), 20)).unwrap();
    engine.step().unwrap();
    engine.step().unwrap();
    let Engine { proposer, sequences, pool, .. } = &mut engine;
    let drafting = proposer.as_mut().and_then(|it| it.network_mut()).unwrap();
    let sequence = sequences[0].as_ref().unwrap();
    pool.reserve(0, sequence.draft_len + 33).unwrap();
    pool.upload().unwrap();
    let ranking = Ranking { top_k: TOP_K, masked: true, sampled: false };
    drafting.catch_up(pool, &[(0, sequence)], |_| 1, Some(ranking)).unwrap();
    let mut wanted = Vec::new();
    drafting
        .rank(ranking, |logits, d2t| {
            let mut row = logits.rows(0..1).to_vec::<f32>()?;
            let d2t = d2t.map(|d2t| d2t.to_vec::<i32>()).transpose()?;
            let best = oracle::descending(&row)[0];
            let slice = best / DIGEST_LEN * DIGEST_LEN;
            let end = row.len().min(slice + DIGEST_LEN);
            row[slice..end].fill(f32::NEG_INFINITY);
            logits.rows(0..1).write_bytes(0, bytemuck::cast_slice(&row))?;
            wanted = oracle::topk(&row, d2t.as_deref(), 0.0, TOP_K);
            Ok(())
        })
        .unwrap();
    let (tokens, logps) = drafting.read_children().unwrap();
    let got: Vec<(i32, f32)> = tokens.iter().copied().zip(logps.iter().copied()).take(TOP_K).collect();
    let wanted: Vec<(i32, f32)> = wanted.iter().map(|child| (child.token, child.logp)).collect();
    assert_eq!(got, wanted);
}

/// Where the stream puts work off (`SIMT_LAZY=1`) no copy has read its rows before the third pass has written its own.
#[test]
fn features_of_three_passes_ahead_of_any_wait_are_kept() {
    let demo = |part: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").join(part);
    let builder = Engine::builder(demo("target")).drafter(demo("drafter")).device(DeviceChoice::Host);
    let builder = builder.float_type(crate::config::FloatType::F32).policy("chain:1".parse().unwrap());
    let mut engine = builder.max_context(300).build().unwrap();
    let drafting = engine.proposer.as_mut().and_then(|it| it.network_mut()).unwrap();
    let width = drafting.taps.dim(1);
    let taps: Vec<f32> = (0..3 * width).map(|i| (i / width + 1) as f32).collect();
    drafting.taps.rows(0..3).write_bytes(0, bytemuck::cast_slice(&taps)).unwrap();
    for row in 0..3 {
        drafting.remember(&[(0, 10 + row, row)]).unwrap();
    }
    for row in 0..3 {
        let kept = drafting.backlog.index(super::backlog_row(0, 10 + row)).to_vec::<f32>().unwrap();
        assert_eq!(kept, vec![(row + 1) as f32; width]);
    }
}

/// Committed tokens behind the prompt, and the features that wait for the drafter, after four plain rounds, in pairs that run ahead or one
/// by one.
fn waiting_features(ahead: bool) -> (Vec<i32>, Vec<f32>) {
    let demo = |part: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").join(part);
    let builder = Engine::builder(demo("target")).drafter(demo("drafter")).device(DeviceChoice::Host);
    let builder = builder.float_type(crate::config::FloatType::F32).policy("smart".parse().unwrap());
    let costs = crate::control::roofline::Roofline::H200_LLAMA_8B.cost_model(64);
    let mut engine = builder.costs(costs).max_context(300).run_ahead(ahead).build().unwrap();
    engine.submit(Request::new((0..40).map(|i| 7 * i + 3).collect(), 60)).unwrap();
    engine.step().unwrap();
    for _ in 0..2 {
        if ahead {
            engine.times.begin().unwrap();
            let views = engine.views(&[0]);
            engine.controller.begin_plain_round(&views);
            assert_eq!(engine.run_ahead(&[0], &mut Errand::none()).unwrap().len(), 1);
            let settled = engine.settle_issued(&mut Errand::none()).expect("a round is under way");
            assert_eq!(settled.unwrap().len(), 1);
        } else {
            for _ in 0..2 {
                let roots = engine.roots(&[0]);
                engine.step_with(&roots).unwrap();
            }
        }
    }
    assert!(engine.settle_issued(&mut Errand::none()).is_none(), "under smart every other round is decided");
    let sequence = engine.sequences[0].as_ref().unwrap();
    let (waiting, text) = (sequence.draft_len..sequence.root(), sequence.emitted().to_vec());
    assert!(waiting.len() >= 4);
    let drafting = engine.proposer.as_ref().and_then(|it| it.network()).unwrap();
    let row = |position| drafting.backlog.index(super::backlog_row(0, position)).to_vec::<f32>().unwrap();
    (text, waiting.flat_map(row).collect())
}

/// The feature of every position is where the drafter looks for it.
#[test]
fn rounds_that_run_ahead_keep_their_features() {
    let (wanted, got) = (waiting_features(false), waiting_features(true));
    assert_eq!(got.0, wanted.0);
    assert!(got.1 == wanted.1, "other features");
}
