//! The drafter's side of a round: catching up on committed tokens, then one pass per level of the tree.

use crate::control::FrontierRow;
use crate::device::{DType, Device, PinnedBuffer, Tensor};
use crate::drafter::Eagle3;
use crate::engine::sequence::Sequence;
use crate::error::Result;
use crate::kernels::draft::{DraftTopkArgs, draft_topk};
use crate::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use crate::kv_cache::KvCache;
use crate::model::{MAX_ROWS_PER_SEQUENCE, Pass, Row, causal_words};

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
    pub network: Eagle3,
    pub kv: KvCache,
    /// Tapped streams of the last target pass, `[rows, taps * hidden]`.
    pub taps: Tensor,
    pass: Pass,
    /// `[sequence slots * BACKLOG, taps * hidden]`, one ring a slot; see [`backlog_row`].
    backlog: Tensor,
    /// The features of one catch-up pass, gathered.
    extend_in: Tensor,
    index: Tensor,
    parent_logp: Tensor,
    tokens: Tensor,
    logp: Tensor,
    path_logp: Tensor,
    host_index: PinnedBuffer<i32>,
    host_parent_logp: PinnedBuffer<f32>,
    host_tokens: PinnedBuffer<i32>,
    host_logp: PinnedBuffer<f32>,
}

impl Drafting {
    pub fn new(
        device: &Device,
        network: Eagle3,
        kv: KvCache,
        max_rows: usize,
        max_sequences: usize,
    ) -> Result<Self> {
        let width = network.config().tap_layers.len() * network.config().target_hidden_size;
        let dtype = network.kv_shape().dtype;
        let floats = |dtype, shape: &[usize]| Tensor::uninit(device, dtype, shape);
        Ok(Self {
            taps: floats(dtype, &[max_rows, width])?,
            pass: Pass::new(device, max_rows, max_sequences)?,
            backlog: Tensor::zeros(device, dtype, &[max_sequences * BACKLOG, width])?,
            extend_in: floats(dtype, &[max_rows, width])?,
            index: floats(DType::I32, &[max_rows])?,
            parent_logp: floats(DType::F32, &[max_rows])?,
            tokens: floats(DType::I32, &[max_rows, MAX_TOP_K])?,
            logp: floats(DType::F32, &[max_rows, MAX_TOP_K])?,
            path_logp: floats(DType::F32, &[max_rows, MAX_TOP_K])?,
            host_index: PinnedBuffer::new(device, max_rows)?,
            host_parent_logp: PinnedBuffer::new(device, max_rows)?,
            host_tokens: PinnedBuffer::new(device, max_rows * MAX_TOP_K)?,
            host_logp: PinnedBuffer::new(device, max_rows * MAX_TOP_K)?,
            network,
            kv,
        })
    }

    /// Stores the features of freshly committed positions. `rows` lists (sequence slot, position, row of the last target
    /// pass); rows of a slot come in position order.
    pub fn remember(&mut self, rows: &[(usize, usize, usize)]) -> Result<()> {
        for (staged, &(_, _, row)) in self.host_index.as_mut_slice().iter_mut().zip(rows) {
            *staged = row as i32;
        }
        self.host_index.write_to(&self.index, rows.len())?;
        let place = |&(slot, position, _): &(usize, usize, usize)| backlog_row(slot, position);
        let mut start = 0;
        while start < rows.len() {
            // A run ends with its sequence or where the ring wraps.
            let at = place(&rows[start]);
            let run = (start..rows.len()).take_while(|&i| place(&rows[i]) == at + i - start).count();
            let index = self.index.rows(start..start + run);
            let out = self.backlog.rows(at..at + run);
            gather_rows(self.pass.device(), GatherRowsArgs { src: &self.taps, index: &index, out: &out })?;
            start += run;
        }
        Ok(())
    }

    /// Runs waiting pairs of the given sequences through the drafter, at most [`MAX_ROWS_PER_SEQUENCE`] each, and starts
    /// the round's feature store. With `top_k` the last row of each sequence brings that many children.
    pub fn catch_up(
        &mut self,
        slots: &[(usize, &Sequence)],
        limit: impl Fn(&Sequence) -> usize,
        top_k: Option<usize>,
    ) -> Result<usize> {
        self.pass.clear();
        let mut next_slot = 0;
        for &(slot, sequence) in slots {
            self.skip_to(&mut next_slot, slot);
            self.pass.begin_sequence(sequence.draft_len);
            let count = limit(sequence);
            self.kv.reserve(slot, sequence.draft_len + count)?;
            for i in 0..count {
                let position = sequence.draft_len + i;
                let row = Row {
                    token: sequence.committed[position + 1],
                    position,
                    slot: self.kv.slot(slot, position),
                    ancestors: causal_words(i),
                    // Where the row's feature waits.
                    parent: backlog_row(slot, position) as i32,
                };
                self.pass.push(row, top_k.is_some() && i + 1 == count);
            }
        }
        let num_rows = self.pass.num_rows();
        if num_rows == 0 {
            return Ok(0);
        }
        self.pass.upload()?;
        let features = self.extend_in.rows(0..num_rows);
        gather_rows(
            self.pass.device(),
            GatherRowsArgs { src: &self.backlog, index: &self.pass.parents(), out: &features },
        )?;
        let logits = self.network.extend(&self.pass, &self.kv, &features)?;
        if let Some(top_k) = top_k {
            self.host_parent_logp.as_mut_slice()[..slots.len()].fill(0.0);
            self.children(&logits, top_k)?;
        }
        Ok(num_rows)
    }

    /// Runs one level of drafted nodes: `rows` grouped by sequence, `slot_of` and `root_of` giving each sequence's slot and
    /// root position.
    pub fn level(
        &mut self,
        rows: &[FrontierRow],
        slot_of: impl Fn(usize) -> usize,
        root_of: impl Fn(usize) -> usize,
        top_k: usize,
    ) -> Result<()> {
        self.pass.clear();
        let (mut next_slot, mut current) = (0, None);
        for (i, row) in rows.iter().enumerate() {
            let sequence = row.sequence as usize;
            let (slot, prefix_len) = (slot_of(sequence), root_of(sequence));
            if current != Some(sequence) {
                self.skip_to(&mut next_slot, slot);
                self.pass.begin_sequence(prefix_len);
                self.kv.reserve(slot, prefix_len + MAX_ROWS_PER_SEQUENCE)?;
                current = Some(sequence);
            }
            let row_of_pass = Row {
                token: row.token,
                // The pair of a node at depth d sits one position before the node's own.
                position: prefix_len + usize::from(row.depth) - 1,
                slot: self.kv.slot(slot, prefix_len + row.slot as usize),
                ancestors: row.ancestors,
                parent: row.parent_row as i32,
            };
            self.pass.push(row_of_pass, true);
            self.host_parent_logp.as_mut_slice()[i] = row.path_logp;
        }
        self.pass.upload()?;
        let (_, logits) = self.network.step(&self.pass, &self.kv)?;
        self.children(&logits, top_k)
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

    fn children(&mut self, logits: &Tensor, top_k: usize) -> Result<()> {
        let rows = logits.dim(0);
        self.host_parent_logp.write_to(&self.parent_logp, rows)?;
        let flat = |t: &Tensor| t.reshape(&[t.num_elements()]).rows(0..rows * top_k).reshape(&[rows, top_k]);
        let [tokens, logp, path_logp] = [&self.tokens, &self.logp, &self.path_logp].map(flat);
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

    /// Gives sequence slots without work an empty place in the pass.
    fn skip_to(&mut self, next: &mut usize, slot: usize) {
        while *next < slot {
            self.pass.begin_sequence(0);
            *next += 1;
        }
        *next = slot + 1;
    }
}
