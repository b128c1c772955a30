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
    pub graphs: PassGraphs<PassKind, Scores>,
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
    /// How sequences sample, by slot, U8 `[sequences, 24]`, where drafts are coupled with draws.
    pub sampling: Option<Tensor>,
    /// Of the latest pass: whether it ran committed tokens, roots the last, and its scores.
    latest: Option<(bool, Scores)>,
}

/// What a level's children are to be.
#[derive(Clone, Copy)]
pub(super) struct Ranking {
    /// Children a row.
    pub top_k: usize,
    /// Whether the scores change before they are ranked: then [`Drafting::rank`] does that, and else the pass itself.
    pub masked: bool,
    /// Whether there are rows of texts that are sampled.
    pub sampled: bool,
}

/// What launches of a drafter's passes of one shape depend on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PassKind {
    /// Whether committed tokens are run.
    at_roots: bool,
    /// Children a row, if the pass ranks them.
    top_k: Option<usize>,
    /// Whether its logits get the noise of draws.
    coupled: bool,
}

impl Drafting {
    pub fn new(
        device: &Device,
        network: Box<dyn Drafter>,
        kv: KvCache,
        (max_rows, tread): (usize, usize),
        max_sequences: usize,
        sampling: Option<Tensor>,
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
            sampling,
            latest: None,
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
                let is_root = ranking.is_some() && i + 1 == count;
                self.pass.push(row, is_root);
                if is_root {
                    // A pair's logits predict the token behind its second one.
                    self.pass.foresee(slot, position + 2);
                }
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
            self.pass.foresee(slot_of(sequence), root_of(sequence) + usize::from(row.depth) + 1);
        }
        self.forward(false, Some(ranking))
    }

    /// Runs the rows of the pass, committed tokens or drafted ones; whether the device waited for a graph.
    fn forward(&mut self, at_roots: bool, ranking: Option<Ranking>) -> Result<bool> {
        let Self { network, pass, kv, backlog, candidates, graphs, sampling, .. } = self;
        let sampling = sampling.as_ref().filter(|_| ranking.is_some_and(|ranking| ranking.sampled));
        pass.keep_outputs(self.feature_rows);
        self.feature_rows += pass.num_rows();
        if let Some(Ranking { top_k, .. }) = ranking {
            let call = candidates.expect((pass.num_logit_rows(), pass.logit_width()), top_k);
            pass.tell(call);
        }
        pass.stage();
        let top_k = ranking.and_then(|ranking| (!ranking.masked).then_some(ranking.top_k));
        let launch = || {
            let scores = if at_roots {
                pass.fetch()?;
                network.extend(pass, kv, backlog)?
            } else {
                candidates.describe_rows(pass, kv)?;
                network.step(pass, kv)?
            };
            if let Some(top_k) = top_k {
                let noisy = couple(&scores, (pass, network.d2t()), sampling)?;
                candidates.append(&noisy, at_roots, network.d2t(), (top_k, &pass.call()))?;
            }
            network.layer().keep_outputs(pass)?;
            Ok(scores)
        };
        let shape =
            pass.shape().map(|shape| (shape, PassKind { at_roots, top_k, coupled: sampling.is_some() }));
        let (scores, waited) = graphs.run(shape, launch)?;
        self.latest = Some((at_roots, scores));
        Ok(waited)
    }

    /// Waits for the last pass and gives its children: tokens and log-probabilities, `top_k` a row.
    pub fn read_children(&self) -> Result<(&[i32], &[f32])> {
        self.candidates.read()
    }

    /// Makes the children of the latest pass, whose ranking was masked, once `mask` has changed its logits: it gets these, f32
    /// `[rows, draft vocab]`, those that are wanted first, and the offsets from their ids to the target's.
    pub fn rank(
        &self,
        Ranking { top_k, sampled, .. }: Ranking,
        mask: impl FnOnce(&Tensor, Option<&Tensor>) -> Result<()>,
    ) -> Result<()> {
        let (at_roots, scores) = self.latest.as_ref().expect("a pass comes before its children");
        let d2t = self.network.d2t();
        mask(&scores.logits, d2t)?;
        scores.digest(self.pass.device())?;
        let scores = couple(scores, (&self.pass, d2t), self.sampling.as_ref().filter(|_| sampled))?;
        self.candidates.append(&scores, *at_roots, d2t, (top_k, &self.pass.call()))
    }
}

/// The scores of a pass with the noise of the draws behind its rows, if it is known how these are made.
fn couple(
    scores: &Scores,
    (pass, d2t): (&Pass, Option<&Tensor>),
    sampling: Option<&Tensor>,
) -> Result<Scores> {
    let Some(params) = sampling else { return Ok(scores.clone()) };
    scores.couple(pass.device(), d2t, (&pass.foreseen(), params))
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
mod tests;
