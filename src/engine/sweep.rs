//! The start-up sweep: times target and drafter passes of several widths and contexts, so that the first round already
//! knows what a node costs. Bounded in time; what it leaves out, rounds teach.

use std::time::{Duration, Instant};

use crate::control::{CostModel, FrontierRow, NONE, SweepKind, SweepPoint, Treads};
use crate::device::{Device, Event};
use crate::engine::drafting::Drafting;
use crate::engine::sequence::{Sequence, SequenceId};
use crate::engine::verifier::Verifier;
use crate::error::Result;
use crate::model::{MAX_ROWS_PER_SEQUENCE, Row, Taps, causal_words};
use crate::sampling::SamplingParams;

/// Wall time after which no further point is measured. The first two points are measured whatever they take.
const TIME_LIMIT: Duration = Duration::from_millis(1800);
const REPETITIONS: usize = 3;

/// Widths in the order of their use: what every decision needs first.
const VERIFY_ROWS: [usize; 12] = [1, 8, 2, 16, 4, 32, 64, 24, 48, 12, 128, 40];
const DRAFT_ROWS: [usize; 8] = [1, 10, 4, 2, 8, 16, 32, 64];
/// Children drafted per row, as `smart` asks for.
const TOP_K: usize = 10;

/// Measures the passes of one sequence slot, which is free again afterwards.
pub(super) fn measure(
    device: &Device,
    verifier: &mut Verifier,
    drafting: &mut Drafting,
    max_context: usize,
) -> Result<CostModel> {
    let near = (max_context / 4).min(64);
    let far = (max_context - 1).min(1024);
    let positions = far + MAX_ROWS_PER_SEQUENCE;
    verifier.kv.reserve(0, positions)?;
    drafting.kv.reserve(0, positions)?;
    verifier.set_sampling(0, &SamplingParams::default())?;
    let mut points = Vec::new();
    let start = Instant::now();
    let verify = VERIFY_ROWS.map(|rows| (SweepKind::Verify, rows, near));
    let draft = DRAFT_ROWS.map(|rows| (SweepKind::Draft, rows, near));
    let contexts = [
        (SweepKind::Verify, 1, far),
        (SweepKind::Draft, 1, far),
        (SweepKind::Verify, 8, far),
        (SweepKind::Verify, 32, far),
    ];
    // Interleaved, so that a short limit leaves some of each.
    let mut plan = vec![verify[0], draft[0], verify[1], draft[1]];
    plan.extend(contexts);
    plan.extend(
        verify[2..]
            .iter()
            .zip(draft[2..].iter().map(Some).chain(std::iter::repeat(None)))
            .flat_map(|(v, d)| std::iter::once(*v).chain(d.copied())),
    );
    for (kind, tokens, context) in plan {
        if points.len() >= 2 && start.elapsed() > TIME_LIMIT && !device.has_modelled_time() {
            break;
        }
        let us = match kind {
            SweepKind::Draft => time(device, || draft_pass(drafting, tokens, context), start)?,
            _ => time(device, || verify_pass(verifier, drafting, tokens, context), start)?,
        };
        points.push(SweepPoint { kind, tokens, sequences: 1, context, us: us.max(1e-3) });
    }
    verifier.kv.release(0);
    drafting.kv.release(0);
    let config = verifier.target.config();
    let group = config.num_q_heads / config.num_kv_heads;
    // The host driver's native twins have no tiles: every row costs.
    let tiled = !device.is_host() || device.has_modelled_time();
    let treads =
        if tiled { Treads { tokens: 8, nodes: (16 / group).max(1) } } else { Treads { tokens: 1, nodes: 1 } };
    CostModel::from_sweep(&points, treads)
}

/// Median time of a pass, µs; the first, which may load kernels, is not counted. One sample is enough when late.
fn time(device: &Device, mut pass: impl FnMut() -> Result<()>, start: Instant) -> Result<f64> {
    let (begin, end) = (Event::new(device)?, Event::new(device)?);
    let mut samples = Vec::new();
    for repetition in 0..=REPETITIONS {
        device.synchronize()?;
        begin.record()?;
        pass()?;
        end.record()?;
        device.synchronize()?;
        let us = end.micros_since(&begin)?.unwrap_or_default();
        let late = start.elapsed() > TIME_LIMIT / 2 && !device.has_modelled_time();
        if repetition > 0 || late {
            samples.push(us);
        }
        if late {
            break;
        }
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}

/// A target pass over a chain of `rows` nodes, with draws and walk.
fn verify_pass(verifier: &mut Verifier, drafting: &Drafting, rows: usize, context: usize) -> Result<()> {
    verifier.pass.clear();
    verifier.pass.begin_sequence(context);
    for i in 0..rows {
        let position = context + i;
        let slot = verifier.kv.slot(0, position);
        verifier
            .pass
            .push(Row { token: 0, position, slot, ancestors: causal_words(i), link: i as i32 - 1 }, true);
    }
    let layers = &drafting.network.config().tap_layers;
    verifier.run(Some(Taps { layers, out: &drafting.taps.rows(0..rows) }))?;
    verifier.walk(rows - 1)
}

/// A drafter level of `rows` siblings with their children.
fn draft_pass(drafting: &mut Drafting, rows: usize, context: usize) -> Result<()> {
    let sequence = Sequence {
        id: SequenceId(0),
        committed: vec![0; context + 2],
        prompt_len: 1,
        max_new_tokens: 1,
        sampling: SamplingParams::default(),
        eos: vec![],
        draft_len: context,
        finished: None,
    };
    // A round's feature store begins with its catch-up pass.
    if drafting.round_is_full(rows) {
        drafting.catch_up(&[(0, &sequence)], |_| 1, None)?;
    }
    let level: Vec<FrontierRow> = (0..rows)
        .map(|i| FrontierRow {
            sequence: 0,
            node: 1 + i as u32,
            token: 0,
            depth: 1,
            parent_row: 0,
            candidate: i as u32,
            parent_slot: NONE,
            slot: i as u32,
            ancestors: crate::tree::with_bit([0; 4], i),
            path_logp: 0.0,
        })
        .collect();
    drafting.level(&level, |_| 0, |_| context + 1, TOP_K)
}
