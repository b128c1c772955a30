//! The drafter's side of a round: catching up on committed tokens, then one pass per level of the tree.

use crate::control::{FrontierRow, NONE};
use crate::device::{DType, Device, PinnedBuffer, Tensor};
use crate::drafter::Drafter;
use crate::engine::sequence::Sequence;
use crate::error::Result;
use crate::kernels::copy_rows::{CopyRowsArgs, copy_rows};
use crate::kernels::draft::{
    DraftFrontierArgs, DraftTopkArgs, MAX_RUNS, RunTables, draft_frontier, draft_topk,
};
use crate::kv_cache::{KvCache, PAGE_SIZE};
use crate::model::{MAX_ROWS_PER_SEQUENCE, Pass, Row, causal_words, text_rotary};
use crate::pages::PagePool;

/// Features a sequence may keep waiting: a prefill chunk on top of what a quiet drafter has not seen.
const BACKLOG: usize = 2 * MAX_ROWS_PER_SEQUENCE;

/// Most children of a row.
pub(super) const MAX_TOP_K: usize = crate::control::MAX_TOP_K;

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
    /// `[sequence slots * BACKLOG, taps * hidden]`, one ring a slot; see [`backlog_row`].
    backlog: Tensor,
    /// Rows of `taps` and where in the backlog they go, `[rows, 2]`.
    moves: Tensor,
    /// Log-probability of the path to each row's node, f32 `[rows]`.
    parent_logp: Tensor,
    /// Candidates of the round, row by row as the drafter brought them: i32, f32, f32.
    pool_tokens: Tensor,
    pool_logp: Tensor,
    pool_path_logp: Tensor,
    pool_used: usize,
    /// What the next level runs, `[rows, 4]`, and behind it each slot's feature row of the root, i32 `[slots]`.
    frontier: Tensor,
    root_rows: Tensor,
    /// Runs of the round by (slot, run): ancestors u64 `[slots, MAX_RUNS, 4]`, feature rows i32 `[slots, MAX_RUNS]`.
    run_ancestors: Tensor,
    run_feature_row: Tensor,
    row_run: Tensor,
    host_moves: PinnedBuffer<i32>,
    host_root_logp: PinnedBuffer<f32>,
    host_frontier: PinnedBuffer<i32>,
    host_root_rows: PinnedBuffer<i32>,
    host_tokens: PinnedBuffer<i32>,
    host_logp: PinnedBuffer<f32>,
}

impl Drafting {
    pub fn new(
        device: &Device,
        network: Box<dyn Drafter>,
        kv: KvCache,
        max_rows: usize,
        max_sequences: usize,
    ) -> Result<Self> {
        let width = network.tap_width();
        let dtype = network.kv_shape().dtype;
        // A round runs each sequence's root and its runs.
        let max_candidates = (max_sequences + max_rows) * MAX_TOP_K;
        let floats = |dtype, shape: &[usize]| Tensor::uninit(device, dtype, shape);
        Ok(Self {
            taps: floats(dtype, &[max_rows, width])?,
            pass: Pass::new(device, max_rows, max_sequences)?,
            backlog: Tensor::zeros(device, dtype, &[max_sequences * BACKLOG, width])?,
            moves: floats(DType::I32, &[max_rows, 2])?,
            parent_logp: floats(DType::F32, &[max_rows])?,
            // Zeroed: the start-up sweep runs candidates that no pass has brought.
            pool_tokens: Tensor::zeros(device, DType::I32, &[max_candidates])?,
            pool_logp: Tensor::zeros(device, DType::F32, &[max_candidates])?,
            pool_path_logp: Tensor::zeros(device, DType::F32, &[max_candidates])?,
            pool_used: 0,
            frontier: floats(DType::I32, &[max_rows, 4])?,
            root_rows: floats(DType::I32, &[max_sequences])?,
            run_ancestors: floats(DType::U64, &[max_sequences, MAX_RUNS, 4])?,
            run_feature_row: floats(DType::I32, &[max_sequences, MAX_RUNS])?,
            row_run: floats(DType::I32, &[max_rows])?,
            host_moves: PinnedBuffer::new(device, 2 * max_rows)?,
            host_root_logp: PinnedBuffer::new(device, max_sequences)?,
            host_frontier: PinnedBuffer::new(device, 4 * max_rows)?,
            host_root_rows: PinnedBuffer::new(device, max_sequences)?,
            host_tokens: PinnedBuffer::new(device, max_rows * MAX_TOP_K)?,
            host_logp: PinnedBuffer::new(device, max_rows * MAX_TOP_K)?,
            network,
            kv,
        })
    }

    /// Stores the features of freshly committed positions. `rows` lists (sequence slot, position, row of the last target pass).
    pub fn remember(&mut self, rows: &[(usize, usize, usize)]) -> Result<()> {
        let staged = self.host_moves.as_mut_slice().chunks_exact_mut(2);
        for (staged, &(slot, position, row)) in staged.zip(rows) {
            staged.copy_from_slice(&[row as i32, backlog_row(slot, position) as i32]);
        }
        let moves = self.moves.rows(0..rows.len());
        self.host_moves.write_to(&moves, 2 * rows.len())?;
        copy_rows(self.pass.device(), CopyRowsArgs { src: &self.taps, moves: &moves, out: &self.backlog })
    }

    /// Runs waiting pairs of the given sequences through the drafter, at most [`MAX_ROWS_PER_SEQUENCE`] each, and starts
    /// the round's feature store. If it is to draft, the logits of the last row of each sequence are returned, for [`Drafting::children`].
    pub fn catch_up(
        &mut self,
        pool: &PagePool,
        slots: &[(usize, &Sequence)],
        limit: impl Fn(&Sequence) -> usize,
        drafts: bool,
    ) -> Result<Option<Tensor>> {
        self.pass.clear();
        self.pool_used = 0;
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
                self.pass.push(row, drafts && i + 1 == count);
            }
            self.host_root_rows.as_mut_slice()[slot] = self.pass.num_rows() as i32 - 1;
        }
        if self.pass.num_rows() == 0 {
            return Ok(None);
        }
        self.pass.upload()?;
        let logits = self.network.extend(&self.pass, &self.kv, &self.backlog)?;
        if drafts {
            // The host's copy is all zeros: a root has probability 1.
            self.host_root_logp.write_to(&self.parent_logp, slots.len())?;
            self.host_root_rows.write_to(&self.root_rows, self.root_rows.dim(0))?;
        }
        Ok(drafts.then_some(logits))
    }

    /// Runs one level of drafted nodes: `rows` grouped by sequence, `slot_of` and `root_of` giving each sequence's slot and
    /// root position. Returns their logits, for [`Drafting::children`].
    pub fn level(
        &mut self,
        rows: &[FrontierRow],
        slot_of: impl Fn(usize) -> usize,
        root_of: impl Fn(usize) -> usize,
    ) -> Result<Tensor> {
        self.pass.clear();
        let (mut next_slot, mut current) = (0, None);
        let staged = self.host_frontier.as_mut_slice().chunks_exact_mut(4);
        for (row, staged) in rows.iter().zip(staged) {
            let sequence = row.sequence as usize;
            let (slot, prefix_len) = (slot_of(sequence), root_of(sequence));
            if current != Some(sequence) {
                skip_to(&mut self.pass, &mut next_slot, slot);
                self.pass.begin_sequence(prefix_len);
                current = Some(sequence);
            }
            let parent_run = if row.parent_slot == NONE { -1 } else { row.parent_slot as i32 };
            staged.copy_from_slice(&[slot as i32, row.candidate as i32, parent_run, row.slot as i32]);
            self.pass.push_open(row.slot as usize + 1);
        }
        self.pass.upload()?;
        self.host_frontier.write_to(&self.frontier, 4 * rows.len())?;
        self.describe_rows()?;
        self.network.step(&self.pass, &self.kv)
    }

    /// Fills the row arrays of the pass from the frontier, on the device.
    fn describe_rows(&self) -> Result<()> {
        let (pass, slots) = (&self.pass, 0..self.pass.num_sequences());
        let rows = 0..pass.num_rows();
        // The pair of a node at depth d sits one position before the node's own: the root's children at its position.
        let prefix_len = pass.prefix_len();
        draft_frontier(
            pass.device(),
            DraftFrontierArgs {
                frontier: &self.frontier.rows(rows.clone()),
                pool_tokens: &self.pool_tokens,
                pool_path_logp: &self.pool_path_logp,
                first_position: &prefix_len,
                prefix_len: &prefix_len,
                page_table: &self.kv.page_table(slots.end),
                page_size: PAGE_SIZE,
                root_feature_row: &self.root_rows.rows(slots.clone()),
                runs: RunTables {
                    ancestors: &self.run_ancestors.rows(slots.clone()),
                    feature_row: &self.run_feature_row.rows(slots),
                },
                output_row: self.network.next_feature_row(),
                tokens: &pass.tokens(),
                positions: &pass.positions(),
                slots: &pass.slots(),
                ancestors: &pass.ancestors(),
                parent_logp: &self.parent_logp.rows(rows.clone()),
                feature_row: &pass.links(),
                row_run: &self.row_run.rows(rows),
            },
        )
    }

    /// Whether the round's feature store has no room for `rows` more, or has not been begun.
    pub fn round_is_full(&self, rows: usize) -> bool {
        !(1..=self.network.free_feature_rows()).contains(&rows)
    }

    /// Waits for the last pass and gives its children: tokens and log-probabilities, `top_k` a row.
    pub fn read_children(&self) -> Result<(&[i32], &[f32])> {
        self.pass.device().synchronize()?;
        Ok((self.host_tokens.as_slice(), self.host_logp.as_slice()))
    }

    /// Scores the children of the pass's logit rows, appends them to the candidates and starts reading them back.
    pub fn children(&mut self, logits: &Tensor, top_k: usize) -> Result<()> {
        let rows = logits.dim(0);
        let new = self.pool_used..self.pool_used + rows * top_k;
        let [tokens, logp, path_logp] = [&self.pool_tokens, &self.pool_logp, &self.pool_path_logp]
            .map(|pool| pool.rows(new.clone()).reshape(&[rows, top_k]));
        self.pool_used = new.end;
        draft_topk(
            self.pass.device(),
            DraftTopkArgs {
                logits,
                d2t: self.network.d2t(),
                parent_logp: &self.parent_logp.rows(0..rows),
                k: top_k,
                tokens: &tokens,
                logp: &logp,
                path_logp: &path_logp,
            },
        )?;
        self.host_tokens.read_from(&tokens, rows * top_k)?;
        self.host_logp.read_from(&logp, rows * top_k)
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
