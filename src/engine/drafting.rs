//! The drafter's side of a round: catching up on committed tokens, then one pass per level of the tree.

use crate::control::{FrontierRow, NONE};
use crate::device::{Device, PinnedBuffer, Tensor};
use crate::drafter::{Drafter, Scores};
use crate::engine::candidates::Candidates;
use crate::engine::graphs::PassGraphs;
use crate::engine::sequence::Sequence;
use crate::error::Result;
use crate::kernels::copy_rows::{CopyRowsArgs, copy_rows};
use crate::kv_cache::KvCache;
use crate::model::{MAX_ROWS_PER_SEQUENCE, Pass, Row, causal_words, text_rotary};
use crate::pages::PagePool;

/// Features a sequence may keep waiting: a prefill chunk on top of what a quiet drafter has not seen.
const BACKLOG: usize = 2 * MAX_ROWS_PER_SEQUENCE;

/// Row of the backlog that holds the feature of `position` of sequence slot `slot`.
fn backlog_row(slot: usize, position: usize) -> usize {
    slot * BACKLOG + position % BACKLOG
}

/// Drafter, its cache, and the target features it has not seen yet.
pub(super) struct Drafting {
    pub network: Box<dyn Drafter>,
    pub kv: KvCache,
    /// Tapped streams of the last target pass, `[rows, taps * hidden]`.
    pub taps: Tensor,
    pass: Pass,
    /// Its passes, by shape.
    graphs: PassGraphs<PassKind, Scores>,
    /// Rows of the round's feature store that are taken.
    feature_rows: usize,
    /// `[sequence slots * BACKLOG, taps * hidden]`, one ring a slot; see [`backlog_row`].
    backlog: Tensor,
    /// Rows of `taps` and where in the backlog they go, `[rows, 2]`, which the kernel reads where they are, in turns: those of two passes may not
    /// have been read when those of the next are known. A decided round, the plain one behind it and the one that runs ahead of that come before
    /// the first wait that is for the second.
    moves: [PinnedBuffer<i32>; 3],
    /// Which of them are next.
    turn: usize,
    candidates: Candidates,
    /// By slot, the row of the round's feature store with the output of the root's pair.
    root_outputs: Vec<i32>,
    /// Of the latest pass: whether it ran committed tokens, roots the last, and its scores.
    latest: (bool, Option<Scores>),
}

/// What a level's children are to be.
#[derive(Clone, Copy)]
pub(super) struct Ranking {
    /// Children a row.
    pub top_k: usize,
    /// Whether the scores change before they are ranked: then [`Drafting::rank`] does that, and else the pass itself.
    pub masked: bool,
}

/// What launches of a drafter's passes of one shape depend on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct PassKind {
    /// Whether committed tokens are run.
    at_roots: bool,
    /// Children a row, if the pass ranks them.
    top_k: Option<usize>,
}

impl Drafting {
    pub fn new(
        device: &Device,
        network: Box<dyn Drafter>,
        kv: KvCache,
        (max_rows, tread): (usize, usize),
        max_sequences: usize,
    ) -> Result<Self> {
        let width = network.tap_width();
        let dtype = network.kv_shape().dtype;
        let floats = |dtype, shape: &[usize]| Tensor::uninit(device, dtype, shape);
        let moves = || PinnedBuffer::new(device, 2 * max_rows);
        Ok(Self {
            taps: floats(dtype, &[max_rows, width])?,
            pass: Pass::new(device, max_rows, max_sequences)?.with_tread(tread),
            graphs: PassGraphs::new(device),
            feature_rows: 0,
            backlog: Tensor::zeros(device, dtype, &[max_sequences * BACKLOG, width])?,
            moves: [moves()?, moves()?, moves()?],
            turn: 0,
            candidates: Candidates::new(device, (max_rows, tread), max_sequences)?,
            root_outputs: vec![0; max_sequences],
            latest: (false, None),
            network,
            kv,
        })
    }

    /// Stores the features of positions that are or will be committed. `rows` lists (sequence slot, position, row of the last target pass). All
    /// but the latest two such calls must have been waited for.
    pub fn remember(&mut self, rows: &[(usize, usize, usize)]) -> Result<()> {
        let turns = self.moves.len();
        let moves = &mut self.moves[self.turn];
        self.turn = (self.turn + 1) % turns;
        let staged = moves.as_mut_slice().chunks_exact_mut(2);
        for (staged, &(slot, position, row)) in staged.zip(rows) {
            staged.copy_from_slice(&[row as i32, backlog_row(slot, position) as i32]);
        }
        let moves = moves.mapped().rows(0..2 * rows.len()).reshape(&[rows.len(), 2]);
        copy_rows(self.pass.device(), CopyRowsArgs { src: &self.taps, moves: &moves, out: &self.backlog })
    }

    /// Runs waiting pairs of the given sequences through the drafter, at most [`MAX_ROWS_PER_SEQUENCE`] each, and starts
    /// the round's feature store. With a `ranking` the last row of each sequence gets children, for [`Drafting::read_children`]. Returns whether the
    /// device waited for a graph.
    pub fn catch_up(
        &mut self,
        pool: &PagePool,
        slots: &[(usize, &Sequence)],
        limit: impl Fn(&Sequence) -> usize,
        ranking: Option<Ranking>,
    ) -> Result<bool> {
        self.pass.clear();
        self.candidates.clear();
        self.feature_rows = 0;
        let mut next_slot = 0;
        for &(slot, sequence) in slots {
            skip_to(&mut self.pass, &mut next_slot, slot);
            self.pass.begin_sequence(sequence.draft_len);
            let count = limit(sequence);
            // A pair's embedding is that of its second token.
            let seen = sequence.draft_len + 1..sequence.draft_len + 1 + count;
            let first_row = self.pass.num_rows();
            sequence.pictures.show(&mut self.pass, first_row, seen);
            for i in 0..count {
                let position = sequence.draft_len + i;
                let row = Row {
                    token: sequence.committed[position + 1],
                    position,
                    // One axis, whatever the target's: so drafters are trained.
                    rotary: text_rotary(position),
                    slot: pool.kv_slot(slot, position),
                    ancestors: causal_words(i),
                    link: backlog_row(slot, position) as i32,
                };
                self.pass.push(row, ranking.is_some() && i + 1 == count);
            }
            self.root_outputs[slot] = self.pass.num_rows() as i32 - 1;
        }
        if self.pass.num_rows() == 0 {
            return Ok(false);
        }
        self.forward(true, ranking)
    }

    /// Runs one level of drafted nodes, which get children: `rows` grouped by sequence, `slot_of` and `root_of` giving each sequence's slot and
    /// root position. Returns whether the device waited for a graph.
    pub fn level(
        &mut self,
        rows: &[FrontierRow],
        slot_of: impl Fn(usize) -> usize,
        root_of: impl Fn(usize) -> usize,
        ranking: Ranking,
    ) -> Result<bool> {
        self.pass.clear();
        let (mut next_slot, mut current) = (0, None);
        for row in rows {
            let sequence = row.sequence as usize;
            let (slot, prefix_len) = (slot_of(sequence), root_of(sequence));
            if current != Some(sequence) {
                skip_to(&mut self.pass, &mut next_slot, slot);
                self.pass.begin_open_sequence(prefix_len, self.root_outputs[slot]);
                current = Some(sequence);
            }
            let parent_run = if row.parent_slot == NONE { -1 } else { row.parent_slot as i32 };
            let frontier = [slot as i32, row.candidate as i32, parent_run, row.slot as i32];
            self.pass.push_open(frontier, row.slot as usize + 1);
        }
        self.forward(false, Some(ranking))
    }

    /// Runs the rows of the pass, committed tokens or drafted ones; whether the device waited for a graph.
    fn forward(&mut self, at_roots: bool, ranking: Option<Ranking>) -> Result<bool> {
        let Self { network, pass, kv, backlog, candidates, graphs, .. } = self;
        pass.keep_outputs(self.feature_rows);
        self.feature_rows += pass.num_rows();
        if let Some(Ranking { top_k, .. }) = ranking {
            let call = candidates.expect((pass.num_logit_rows(), pass.logit_width()), top_k);
            pass.tell(call);
        }
        pass.stage();
        let top_k = ranking.and_then(|ranking| (!ranking.masked).then_some(ranking.top_k));
        let launch = || {
            pass.fetch()?;
            let scores = if at_roots {
                network.extend(pass, kv, backlog)?
            } else {
                candidates.describe_rows(pass, kv)?;
                network.step(pass, kv)?
            };
            if let Some(top_k) = top_k {
                candidates.append(&scores, at_roots, network.d2t(), (top_k, &pass.call()))?;
            }
            network.layer().keep_outputs(pass)?;
            Ok(scores)
        };
        let (scores, waited) = match pass.shape() {
            Some(shape) => graphs.run((shape, PassKind { at_roots, top_k }), launch)?,
            None => (launch()?, false),
        };
        self.latest = (at_roots, Some(scores));
        Ok(waited)
    }

    /// Graphs that are kept.
    pub fn num_graphs(&self) -> usize {
        self.graphs.num_graphs()
    }

    /// Waits for the last pass and gives its children: tokens and log-probabilities, `top_k` a row.
    pub fn read_children(&self) -> Result<(&[i32], &[f32])> {
        self.candidates.read()
    }

    /// Logits of the latest pass, f32 `[rows, draft vocab]`, of which those that are wanted come first. What changes them does so before
    /// [`Drafting::rank`].
    pub fn logits(&self) -> Option<&Tensor> {
        self.latest.1.as_ref().map(|scores| &scores.logits)
    }

    /// Makes the children of the latest pass, whose ranking was masked, of the logits as they are now.
    pub fn rank(&self, top_k: usize) -> Result<()> {
        let (at_roots, Some(scores)) = &self.latest else { return Ok(()) };
        scores.digest(self.pass.device())?;
        self.candidates.append(scores, *at_roots, self.network.d2t(), (top_k, &self.pass.call()))
    }
}

/// Gives sequence slots without work an empty place in the pass.
fn skip_to(pass: &mut Pass, next: &mut usize, slot: usize) {
    while *next < slot {
        pass.begin_sequence(0);
        *next += 1;
    }
    *next = slot + 1;
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::control::{FrontierRow, NONE};
    use crate::device::DeviceChoice;
    use crate::engine::drafting::Ranking;
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
        let ranking = Ranking { top_k: TOP_K, masked: false };
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
        let proposer = proposer.as_mut().unwrap();
        let sequence = sequences[0].as_ref().unwrap();
        pool.reserve(0, sequence.draft_len + 33).unwrap();
        pool.upload().unwrap();
        let drafting = proposer.network_mut().unwrap();
        let ranking = Ranking { top_k: TOP_K, masked: true };
        drafting.catch_up(pool, &[(0, sequence)], |_| 1, Some(ranking)).unwrap();
        let mut wanted = Vec::new();
        proposer
            .rank(TOP_K, |logits, d2t| {
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
        let (tokens, logps) = proposer.read_children().unwrap();
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
                assert_eq!(engine.run_ahead(&[0]).unwrap().len(), 1);
                assert_eq!(engine.settle_issued().expect("a round is under way").unwrap().len(), 1);
            } else {
                for _ in 0..2 {
                    let roots = engine.roots(&[0]);
                    engine.step_with(&roots).unwrap();
                }
            }
        }
        assert!(engine.settle_issued().is_none(), "under smart every other round is decided");
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
}
