//! The start-up sweep: times target and drafter passes of several widths, batches and contexts, so that the first round already
//! knows what a node costs. Bounded in time; what it leaves out, rounds teach.

use std::time::{Duration, Instant};

use crate::control::{FrontierRow, NONE, SweepKind, SweepPoint, Treads};
use crate::device::{Device, Event};
use crate::engine::drafting::{Drafting, Ranking};
use crate::engine::proposer::Proposer;
use crate::engine::request::Request;
use crate::engine::sequence::{Sequence, SequenceId};
use crate::engine::verifier::Verifier;
use crate::error::Result;
use crate::kernels::tree_attention::rows_together;
use crate::model::{MAX_ROWS_PER_SEQUENCE, Row, Taps, causal_words, text_rotary};
use crate::pages::PagePool;

/// Wall time after which no further pass is measured; the first two are measured whatever they take. A pass that would end far beyond it is
/// left out.
const TIME_LIMIT: Duration = Duration::from_millis(1500);
const FAR_BEYOND: Duration = Duration::from_millis(300);
/// Passes that take longer are measured once, after all others.
const DEAR: Duration = Duration::from_millis(50);
/// Turns in which all passes are measured, after one that warms up: a machine that is slow for a while must not make a few of them look dear.
const TURNS: usize = 3;
/// What is run before a pass is timed: itself, for about so long and so often. In rounds, too, it comes after its like, and finds in caches what
/// small networks leave there.
const WARM_UP: Duration = Duration::from_millis(3);
const MAX_WARM_UPS: f64 = 4.0;

/// Widths of one sequence in the order of their use: what every decision needs first. Tiles of linear layers end at powers of two, so there may be an edge
/// behind each: 24, 40, 72 and 136 stand right behind one.
const VERIFY_ROWS: [usize; 18] = [1, 8, 2, 16, 4, 32, 64, 24, 48, 12, 128, 40, 72, 192, 136, 256, 160, 96];
const DRAFT_ROWS: [usize; 8] = [1, 10, 4, 2, 8, 16, 32, 64];
/// Widest of them where there are no treads: there is no end of free rows to be found.
const WIDEST_ON_HOST: usize = 64;
/// Widths that are measured there besides: the host driver's native twins work rows off in groups of 1, 2, 4 and 8, so there are edges, though
/// at other places, and the first two of them decide about every small tree.
const BEHIND_EDGES_ON_HOST: [usize; 2] = [3, 5];
/// Nodes and drafter rows of each sequence in passes over a batch.
pub(super) const NODES_PER_SEQUENCE: usize = 64;
const DRAFT_ROWS_PER_SEQUENCE: usize = 16;
/// Children drafted per row, as `smart` asks for.
const TOP_K: usize = 10;
const RANKING: Ranking = Ranking { top_k: TOP_K, masked: false, sampled: false };

/// What a sweep measured.
pub(super) struct Sweep {
    /// Least of a few times each, in the order measured.
    pub points: Vec<SweepPoint>,
    /// Passes that were to be measured, had there been time.
    pub planned: usize,
    /// Granularity of the kernels, as declared.
    pub treads: Treads,
    /// Wall time.
    pub took: Duration,
}

/// A pass to measure: `tokens` rows spread evenly over `sequences`, each with `context` cached tokens.
#[derive(Clone, Copy)]
pub(super) struct PassSize {
    pub kind: SweepKind,
    pub tokens: usize,
    pub sequences: usize,
    pub context: usize,
}

impl PassSize {
    fn taking(self, us: f64) -> SweepPoint {
        let PassSize { kind, tokens, sequences, context } = self;
        SweepPoint { kind, tokens, sequences, context, us }
    }

    fn is_of(self, point: &SweepPoint) -> bool {
        self.taking(point.us) == *point
    }
}

/// What to measure.
pub(super) struct Scope {
    /// Longest context.
    pub max_context: usize,
    /// Largest batch.
    pub max_sequences: usize,
    /// Whether plain passes are measured for themselves, not only as verification passes of as many rows: for who looks at them.
    pub plain_passes: bool,
}

/// Measures passes over the first sequence slots, all of which are free again afterwards.
pub(super) fn measure(
    device: &Device,
    (verifier, pool): (&mut Verifier, &mut PagePool),
    mut proposer: Option<&mut Proposer>,
    scope: Scope,
) -> Result<Sweep> {
    let Scope { max_context, max_sequences, plain_passes } = scope;
    let near = (max_context / 4).min(64);
    let far = (max_context - 1).min(1024);
    let start = Instant::now();
    let batch = reserve(verifier, pool, near, far, max_sequences)?;
    // Heads read one state a sequence, whatever the tree and the context.
    let heads = matches!(proposer, Some(Proposer::Heads(_)));
    let modelled = device.has_modelled_time();
    // The host driver's native twins have no tiles.
    let tiled = !device.is_host() || modelled;
    let edges: &[usize] = if tiled { &[] } else { &BEHIND_EDGES_ON_HOST };
    let mut plan = plan(near, far, batch, if heads { 1 } else { DRAFT_ROWS_PER_SEQUENCE }, edges);
    plan.retain(|pass| match pass.kind {
        SweepKind::Verify => tiled || pass.sequences > 1 || pass.tokens <= WIDEST_ON_HOST,
        SweepKind::Draft if heads => pass.tokens == pass.sequences && pass.context == near,
        SweepKind::Draft => proposer.is_some(),
        SweepKind::Plain => plain_passes,
    });
    let last_turn = if modelled { 0 } else { TURNS };
    let mut points: Vec<SweepPoint> = Vec::new();
    for turn in 0..=last_turn {
        for &pass in &plan {
            let expected = expected(&points, pass);
            if points.len() >= 2 && !modelled {
                let elapsed = start.elapsed();
                let is_late = elapsed > TIME_LIMIT || elapsed + expected > TIME_LIMIT + FAR_BEYOND;
                if is_late || expected > DEAR && turn < last_turn {
                    continue;
                }
            }
            let warm_ups = if turn == 0 { 0.0 } else { WARM_UP.div_duration_f64(expected).round() };
            let warm_ups = warm_ups.min(MAX_WARM_UPS) as usize;
            let us = match (pass.kind, proposer.as_deref_mut()) {
                (SweepKind::Draft, Some(Proposer::Network(drafting))) => {
                    drafting.catch_up_for_sweep(pool, pass.sequences, pass.context)?;
                    time(device, warm_ups, || draft_pass(drafting, pass))?
                }
                (SweepKind::Draft, Some(Proposer::Heads(heads))) => {
                    let levels = heads.heads.num_heads();
                    time(device, warm_ups, || {
                        heads.pass((0..pass.sequences).map(|slot| (slot, 0)), RANKING, levels)
                    })?
                }
                (SweepKind::Draft, Some(Proposer::Ngram(ngrams))) => {
                    let mut draft = ngrams.for_sweep(pass.context);
                    time(device, warm_ups, || {
                        draft(pass.tokens, TOP_K);
                        Ok(())
                    })?
                }
                (_, proposer) => {
                    let proposer = proposer.as_deref();
                    time(device, warm_ups, || verify_pass((verifier, pool), proposer, pass))?
                }
            };
            // What disturbs a pass only lengthens it: the least of its times counts. The first turn, in which kernels may be loaded, counts
            // for passes that no other comes to.
            match points.iter_mut().find(|point| pass.is_of(point)) {
                Some(point) if turn == 1 || us < point.us => point.us = us,
                Some(_) => (),
                None => points.push(pass.taking(us)),
            }
        }
    }
    for slot in 0..batch {
        pool.release(slot);
        if let Some(proposer) = proposer.as_deref_mut() {
            proposer.release(slot);
        }
    }
    let config = verifier.target.config();
    let group = config.geometry.num_q_heads / config.geometry.num_kv_heads;
    let treads = match tiled {
        true => Treads { tokens: 8, nodes: (rows_together(device) / group).max(1) },
        false => Treads { tokens: 1, nodes: 1 },
    };
    Ok(Sweep { points, planned: plan.len(), treads, took: start.elapsed() })
}

/// Makes positions of slots usable, as many slots as there are pages for, and returns how many. The first takes part in passes with
/// the far context.
pub(super) fn reserve(
    verifier: &mut Verifier,
    pool: &mut PagePool,
    near: usize,
    far: usize,
    max_sequences: usize,
) -> Result<usize> {
    for slot in 0..max_sequences {
        let positions = if slot == 0 { far + MAX_ROWS_PER_SEQUENCE } else { near + NODES_PER_SEQUENCE + 1 };
        match pool.reserve(slot, positions) {
            Ok(()) => verifier.set_sampling(slot, &sequence_of(0))?,
            Err(error) if slot == 0 => return Err(error),
            Err(_) => {
                pool.upload()?;
                return Ok(slot);
            }
        }
    }
    pool.upload()?;
    Ok(max_sequences)
}

/// Passes in the order of their use, kinds interleaved, so that a short time leaves some of each.
fn plan(near: usize, far: usize, batch: usize, draft_rows_each: usize, edges: &[usize]) -> Vec<PassSize> {
    let one = |kind, tokens, context| PassSize { kind, tokens, sequences: 1, context };
    let verify = VERIFY_ROWS.map(|rows| one(SweepKind::Verify, rows, near));
    let draft = DRAFT_ROWS.map(|rows| one(SweepKind::Draft, rows, near));
    let mut plan = vec![verify[0], draft[0], verify[1], draft[1]];
    plan.push(one(SweepKind::Verify, 1, far));
    plan.push(one(SweepKind::Draft, 1, far));
    plan.extend([8, 32].map(|rows| one(SweepKind::Verify, rows, far)));
    plan.push(one(SweepKind::Plain, 1, near));
    // A batch: plain, a full tree for each sequence, a level of each tree.
    let batches = std::iter::successors(Some(batch), |&batch| Some(batch / 2)).take_while(|&batch| batch > 1);
    for sequences in batches {
        let all = |kind, each| PassSize { kind, tokens: each * sequences, sequences, context: near };
        plan.push(all(SweepKind::Plain, 1));
        plan.push(all(SweepKind::Verify, NODES_PER_SEQUENCE));
        plan.push(all(SweepKind::Draft, draft_rows_each));
    }
    for &rows in edges {
        plan.extend([SweepKind::Verify, SweepKind::Draft].map(|kind| one(kind, rows, near)));
    }
    plan.extend(
        verify[2..]
            .iter()
            .zip(draft[2..].iter().map(Some).chain(std::iter::repeat(None)))
            .flat_map(|(v, d)| std::iter::once(*v).chain(d.copied())),
    );
    plan
}

/// How long a pass takes at most, by those of its kind that were measured: time grows with rows, not faster.
fn expected(points: &[SweepPoint], pass: PassSize) -> Duration {
    let drafts = |kind| kind == SweepKind::Draft;
    let us = points
        .iter()
        .filter(|point| drafts(point.kind) == drafts(pass.kind))
        .map(|point| point.us * (pass.tokens as f64 / point.tokens as f64).max(1.0))
        .fold(f64::INFINITY, f64::min);
    Duration::try_from_secs_f64(us / 1e6).unwrap_or_default()
}

/// Time of a pass that has been run so often before, µs.
fn time(device: &Device, warm_ups: usize, mut pass: impl FnMut() -> Result<()>) -> Result<f64> {
    let (begin, end) = (Event::new(device)?, Event::new(device)?);
    // Passes share staging memory, also with what was run before.
    device.synchronize()?;
    for _ in 0..warm_ups {
        pass()?;
        device.synchronize()?;
    }
    begin.record()?;
    pass()?;
    end.record()?;
    device.synchronize()?;
    Ok(end.micros_since(&begin)?.unwrap_or_default().max(1e-3))
}

/// A target pass over chains, with draws, walk and compaction.
pub(super) fn verify_pass(
    (verifier, pool): (&mut Verifier, &PagePool),
    proposer: Option<&Proposer>,
    size: PassSize,
) -> Result<()> {
    let nodes = size.tokens / size.sequences;
    verifier.pass.clear();
    for sequence in 0..size.sequences {
        verifier.pass.begin_sequence(size.context);
        for i in 0..nodes {
            let position = size.context + i;
            let slot = pool.kv_slot(sequence, position);
            verifier.pass.push(
                Row {
                    token: 0,
                    position,
                    rotary: text_rotary(position),
                    slot,
                    ancestors: causal_words(i),
                    link: i as i32 - 1,
                },
                true,
            );
        }
    }
    let taps = proposer.and_then(|proposer| proposer.taps(verifier.pass.width()));
    let (logits, _) = verifier.forward(taps.as_ref().map(|(out, layers)| Taps { layers, out }))?;
    verifier.draw(&logits)?;
    verifier.walk(nodes - 1)?;
    verifier.compact()
}

/// A drafter level of siblings with their children, the same number in each sequence.
pub(super) fn draft_pass(drafting: &mut Drafting, size: PassSize) -> Result<()> {
    let each = size.tokens / size.sequences;
    let level: Vec<FrontierRow> = (0..size.tokens)
        .map(|row| (row / each, row % each))
        .map(|(sequence, i)| FrontierRow {
            sequence: sequence as u32,
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
    drafting.level(&level, |sequence| sequence, |_| size.context + 1, RANKING)?;
    Ok(())
}

/// A sequence of so many tokens.
fn sequence_of(len: usize) -> Sequence {
    Sequence::new(SequenceId(0), Request::new(vec![0; len], 1), Vec::new(), Vec::new())
}

impl Drafting {
    /// Begins a round for `sequences` slots whose target has just seen one token more than `context`.
    pub(super) fn catch_up_for_sweep(
        &mut self,
        pool: &PagePool,
        sequences: usize,
        context: usize,
    ) -> Result<()> {
        let mut sequence = sequence_of(context + 2);
        sequence.draft_len = context;
        let batch: Vec<(usize, &Sequence)> = (0..sequences).map(|slot| (slot, &sequence)).collect();
        self.catch_up(pool, &batch, |_| 1, Some(RANKING))?;
        Ok(())
    }
}
