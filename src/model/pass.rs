//! A packed ragged pass: the rows of several sequences that go through a network together.
//!
//! Rows of a sequence are consecutive. Keys before a sequence's `prefix_len` are visible to all its rows; of the
//! positions from there on a row sees those whose bit is set in its ancestor words (see `tree_attention`).

mod arrays;
mod staging;

use std::ops::Range;

use crate::device::{DType, Device, PinnedBuffer, Tensor};
use crate::error::Result;
use crate::kernels::advance_rows::{AdvanceRowsArgs, advance_rows};
use crate::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use crate::kv_cache::PAGE_SIZE;
use crate::model::MAX_ROWS_PER_SEQUENCE;
use crate::model::row::Row;

/// Outside any cache: what is written there is not written.
const NO_SLOT: i32 = -1;
/// No row of a store, and no known row: of rows that fill a pass up.
const NO_ROW: i32 = -1;

/// The trees of a pass, on the device.
pub struct TreeArrays {
    /// First node of each sequence and the end, i32 `[sequences + 1]`.
    pub seq_start: Tensor,
    /// Tokens, i32 `[nodes]`.
    pub tokens: Tensor,
    /// Parent's index within the sequence, -1 for roots, i32 `[nodes]`.
    pub parents: Tensor,
}

/// What decides the launches of a pass: those of one shape are launched alike, on the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PassShape {
    width: usize,
    logit_width: usize,
    num_sequences: usize,
    max_rows_per_sequence: usize,
    max_kv_len: usize,
    all_want_logits: bool,
}

/// Host description and device arrays of a pass. Reused from pass to pass.
pub struct Pass {
    device: Device,
    // Host side, filled between `clear` and `stage`.
    rows: Vec<Row>,
    /// Rows whose embedding is not their token's: the first of them, and what they have instead.
    pictures: Vec<(usize, Tensor)>,
    /// What is known of rows that a kernel will describe: of all rows or of none.
    open_rows: Vec<[i32; 4]>,
    /// See [`Pass::begin_open_sequence`].
    root_outputs: Vec<i32>,
    /// Rows of the pass.
    num_rows: usize,
    /// See [`Pass::keep_outputs`].
    first_output: Option<usize>,
    /// See [`Pass::tell`].
    call: Option<[i32; 2]>,
    /// See [`Pass::foresee`].
    foreseen: Vec<[i32; 2]>,
    seq_start: Vec<i32>,
    prefix_len: Vec<i32>,
    logit_rows: Vec<i32>,
    max_kv_len: usize,
    // Device side: all arrays in one buffer, so that one launch fetches them.
    ints: Tensor,
    staged_ints: PinnedBuffer<i32>,
    /// The same as kernels see it.
    mapped_ints: Tensor,
    /// What is fetched of it.
    num_staged: usize,
    arrays: [(usize, usize); NUM_ARRAYS],
    /// See [`Pass::with_sections`].
    sections: Option<[usize; 3]>,
    /// See [`Pass::with_tread`].
    tread: usize,
    /// i32 `[MAX_ROWS_PER_SEQUENCE]`: 0, 1, 2, ...
    count: Tensor,
}

/// Keys by which the bound on what a row sees grows, where shapes are few.
const KEYS_STEP: usize = 256;

const NUM_ARRAYS: usize = 18;
const TOKENS: usize = 0;
const POSITIONS: usize = 1;
const SLOTS: usize = 2;
const LINKS: usize = 3;
const SEQ_START: usize = 4;
const PREFIX_LEN: usize = 5;
const LOGIT_ROWS: usize = 6;
const DRAW_POSITIONS: usize = 7;
const DRAW_SEQUENCES: usize = 8;
const TREE_START: usize = 9;
const TREE_TOKENS: usize = 10;
const TREE_PARENTS: usize = 11;
const OPEN_ROWS: usize = 12;
const OUTPUTS: usize = 13;
const ANCESTORS: usize = 14;
const ROOT_OUTPUTS: usize = 15;
const CALL: usize = 16;
const FORESEEN: usize = 17;

impl Pass {
    /// A pass of at most `max_rows` rows of `max_sequences` sequences.
    pub fn new(device: &Device, max_rows: usize, max_sequences: usize) -> Result<Self> {
        // Eight arrays of rows, two with two columns, others with three, four and eight, four of sequences and one of two words, each rounded up to 4
        // elements so that it starts on 16 bytes.
        let capacity = 27 * (max_rows + 4) + 4 * (max_sequences + 5) + 4;
        let count: Vec<i32> = (0..MAX_ROWS_PER_SEQUENCE as i32).collect();
        let staged_ints = PinnedBuffer::new(device, capacity)?;
        Ok(Self {
            device: device.clone(),
            rows: Vec::with_capacity(max_rows),
            pictures: Vec::new(),
            open_rows: Vec::new(),
            root_outputs: Vec::new(),
            num_rows: 0,
            first_output: None,
            call: None,
            foreseen: Vec::new(),
            seq_start: Vec::with_capacity(max_sequences + 1),
            prefix_len: Vec::with_capacity(max_sequences),
            logit_rows: Vec::with_capacity(max_rows),
            max_kv_len: 0,
            ints: Tensor::uninit(device, DType::I32, &[capacity])?,
            mapped_ints: staged_ints.mapped(),
            staged_ints,
            num_staged: 0,
            arrays: [(0, 0); NUM_ARRAYS],
            sections: None,
            tread: 1,
            count: Tensor::from_slice(device, &count, &[MAX_ROWS_PER_SEQUENCE])?,
        })
    }

    /// The pass with positions on three axes, `sections` pairs of a head each (M-RoPE).
    pub fn with_sections(mut self, sections: Option<[usize; 3]>) -> Self {
        self.sections = sections;
        self
    }

    /// The pass with few shapes: its rows are filled up to a multiple of `tread`, at most what it was made for if that is one, and what bounds
    /// its launches is rounded up. The rows beyond are computed and nobody's: no key or value of theirs is written.
    pub fn with_tread(mut self, tread: usize) -> Self {
        self.tread = tread.max(1);
        self
    }

    /// Forgets the rows.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.pictures.clear();
        self.open_rows.clear();
        self.root_outputs.clear();
        self.num_rows = 0;
        self.first_output = None;
        self.call = None;
        self.foreseen.clear();
        self.seq_start.clear();
        self.prefix_len.clear();
        self.logit_rows.clear();
        self.max_kv_len = 0;
    }

    /// Starts the rows of the next sequence. Sequences appear in the order of the cache's page tables, without gaps: one
    /// that has nothing to do in this pass has no rows.
    pub fn begin_sequence(&mut self, prefix_len: usize) {
        self.seq_start.push(self.num_rows as i32);
        self.prefix_len.push(prefix_len as i32);
        self.root_outputs.push(NO_ROW);
    }

    /// The same for open rows, with the row of the store of outputs that holds the root's.
    pub fn begin_open_sequence(&mut self, prefix_len: usize, root_output: i32) {
        self.begin_sequence(prefix_len);
        if let Some(last) = self.root_outputs.last_mut() {
            *last = root_output;
        }
    }

    /// Appends a row to the current sequence.
    pub fn push(&mut self, row: Row, wants_logits: bool) {
        let highest = (0..4).rev().find(|&word| row.ancestors[word] != 0);
        let visible = highest.map_or(0, |word| word * 64 + 64 - row.ancestors[word].leading_zeros() as usize);
        self.count_row(visible, wants_logits);
        self.rows.push(row);
    }

    /// Appends a row that wants logits and that a kernel will describe, in the row arrays, by what is `known` of it; it sees `visible`
    /// positions from the prefix on, at most. A pass has only such rows or none.
    pub fn push_open(&mut self, known: [i32; 4], visible: usize) {
        self.count_row(visible, true);
        self.open_rows.push(known);
    }

    /// Lets the outputs of the rows be kept, that of row i in row `first + i` of a store; see [`Pass::outputs`].
    pub fn keep_outputs(&mut self, first: usize) {
        self.first_output = Some(first);
    }

    /// Tells what follows the network in this pass two words: see [`Pass::call`].
    pub fn tell(&mut self, call: [i32; 2]) {
        self.call = Some(call);
    }

    /// Notes the draw that the logits of the next of the rows that want them foresee: its sequence and the position of the token to be drawn. Of all
    /// such rows or of none; see [`Pass::foreseen`].
    pub fn foresee(&mut self, sequence: usize, position: usize) {
        self.foreseen.push([sequence as i32, position as i32]);
    }

    /// Lets the rows from `first_row` on see a picture: row `first_row + i` has row i of `features`, `[n, hidden]` with at most
    /// [`MAX_ROWS_PER_SEQUENCE`] rows, for its embedding.
    pub fn show(&mut self, first_row: usize, features: Tensor) {
        self.pictures.push((first_row, features));
    }

    /// Whether there are such rows.
    pub fn has_pictures(&self) -> bool {
        !self.pictures.is_empty()
    }

    /// Overwrites the rows of `out[rows, hidden]` that see a picture.
    pub fn overlay_pictures(&self, out: &Tensor) -> Result<()> {
        for (first_row, features) in &self.pictures {
            let len = features.dim(0);
            let (index, out) = (self.count.rows(0..len), out.rows(*first_row..first_row + len));
            gather_rows(&self.device, GatherRowsArgs { src: features, index: &index, out: &out })?;
        }
        Ok(())
    }

    fn count_row(&mut self, visible: usize, wants_logits: bool) {
        let prefix_len = *self.prefix_len.last().expect("begin_sequence comes first") as usize;
        self.max_kv_len = self.max_kv_len.max(prefix_len + visible);
        if wants_logits {
            self.logit_rows.push(self.num_rows as i32);
        }
        self.num_rows += 1;
    }

    /// Makes a pass of roots the one behind it, on the device: its rows are at the next positions of their sequences, with the tokens that were
    /// `drawn` behind them, i32 `[logit rows]`, -1 for none. The page table has pages for these positions.
    pub fn advance(&mut self, drawn: &Tensor, page_table: &Tensor) -> Result<()> {
        assert!(self.logit_rows.len() == self.num_rows && self.open_rows.is_empty(), "a pass of roots");
        let n = self.num_rows;
        let axes = if self.sections.is_some() { 3 } else { 1 };
        self.max_kv_len += 1;
        advance_rows(
            &self.device,
            AdvanceRowsArgs {
                drawn,
                row_sequence: &self.draw_sequences(),
                page_table,
                page_size: PAGE_SIZE,
                tokens: &self.tokens().rows(0..n),
                positions: &self.array(POSITIONS).reshape(&[axes, self.width()]),
                slots: &self.slots().rows(0..n),
                draw_positions: &self.draw_positions(),
                prefix_len: &self.prefix_len(),
            },
        )
    }

    /// Rows of the pass.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Rows that a network computes: those of the pass, and what fills it up.
    pub fn width(&self) -> usize {
        self.num_rows.next_multiple_of(self.tread)
    }

    /// Rows of logits that it computes.
    pub fn logit_width(&self) -> usize {
        self.logit_rows.len().next_multiple_of(self.tread)
    }

    /// Its shape; none for a pass with pictures, which are memory of their own.
    pub fn shape(&self) -> Option<PassShape> {
        self.pictures.is_empty().then(|| PassShape {
            width: self.width(),
            logit_width: self.logit_width(),
            num_sequences: self.num_sequences(),
            max_rows_per_sequence: self.max_rows_per_sequence(),
            max_kv_len: self.max_kv_len(),
            all_want_logits: self.all_want_logits(),
        })
    }

    /// Sequences of the pass.
    pub fn num_sequences(&self) -> usize {
        self.prefix_len.len()
    }

    /// Rows whose logits are wanted.
    pub fn num_logit_rows(&self) -> usize {
        self.logit_rows.len()
    }

    /// Whether these are all of its rows, so that nothing has to be gathered.
    pub fn all_want_logits(&self) -> bool {
        self.logit_rows.len() == self.num_rows
    }

    /// First row of a sequence.
    pub fn first_row(&self, sequence: usize) -> usize {
        self.seq_start[sequence] as usize
    }

    /// Which of the rows whose logits are wanted are those of `sequence`.
    pub fn logit_rows_of(&self, sequence: usize) -> Range<usize> {
        let end = self.seq_start.get(sequence + 1).copied().unwrap_or(self.num_rows as i32);
        let at = |row: i32| self.logit_rows.partition_point(|&logit_row| logit_row < row);
        at(self.seq_start[sequence])..at(end)
    }

    /// Most rows of one sequence, or a bound.
    pub fn max_rows_per_sequence(&self) -> usize {
        let ends = self.seq_start.iter().skip(1).copied().chain([self.num_rows as i32]);
        let most = ends.zip(&self.seq_start).map(|(end, start)| (end - start) as usize).max().unwrap_or(0);
        match self.tread {
            1 => most,
            // Up to where attention is narrow, step by step; then by its tiles.
            _ if most <= 16 => most.next_power_of_two(),
            _ => most.next_multiple_of(16),
        }
    }

    /// One past the last key position that any row sees, or a bound.
    pub fn max_kv_len(&self) -> usize {
        if self.tread == 1 { self.max_kv_len } else { self.max_kv_len.next_multiple_of(KEYS_STEP) }
    }

    /// The device this pass uploads to.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

#[cfg(test)]
mod tests;
