//! How the description of a [`Pass`] is laid out in the host's memory, and comes to the device.

use super::{
    ANCESTORS, CALL, DRAW_POSITIONS, DRAW_SEQUENCES, FORESEEN, LINKS, LOGIT_ROWS, NO_ROW, NO_SLOT, OPEN_ROWS,
    OUTPUTS, POSITIONS, PREFIX_LEN, Pass, ROOT_OUTPUTS, SEQ_START, SLOTS, TOKENS, TREE_PARENTS, TREE_START,
    TREE_TOKENS,
};
use crate::device::Tensor;
use crate::error::Result;
use crate::kernels::host_words::fetch_words;

impl Pass {
    /// Lays the description out for [`Pass::fetch`]; open rows are left to the kernel that fills them. The previous pass must have been waited
    /// for.
    pub fn stage(&mut self) {
        assert!(self.rows.is_empty() || self.open_rows.is_empty(), "open rows and others do not mix");
        let is_open = !self.open_rows.is_empty();
        let sequence_of = |row: i32| self.seq_start.partition_point(|&start| start <= row) as i32 - 1;
        let position_of = |row: i32| self.rows.get(row as usize).map_or(0, |row| row.position as i32 + 1);
        let (width, logit_width) = (self.width(), self.logit_width());
        let mut at = 0;
        let staged = self.staged_ints.as_mut_slice();
        let mut stage = |array: usize, len: usize, values: &mut dyn Iterator<Item = i32>| {
            for (place, value) in staged[at..at + len].iter_mut().zip(values) {
                *place = value;
            }
            self.arrays[array] = (at, at + len);
            at = (at + len).next_multiple_of(4);
            at
        };
        let (num_sequences, num_logits) = (self.prefix_len.len(), self.logit_rows.len());
        let starts = &mut self.seq_start.iter().copied().chain([self.num_rows as i32]);
        stage(SEQ_START, num_sequences + 1, starts);
        stage(PREFIX_LEN, num_sequences, &mut self.prefix_len.iter().copied());
        let filled = |values: usize, width: usize, filler: i32| std::iter::repeat_n(filler, width - values);
        // What a network reads comes first: its place depends on the shape alone.
        let logit_rows = self.logit_rows.iter().copied().chain(filled(num_logits, logit_width, 0));
        stage(LOGIT_ROWS, logit_width, &mut logit_rows.into_iter());
        let moves = self.first_output.iter().flat_map(|&first| {
            let kept = (0..self.num_rows).flat_map(move |row| [row as i32, (first + row) as i32]);
            kept.chain(filled(2 * self.num_rows, 2 * width, NO_ROW))
        });
        stage(OUTPUTS, if self.first_output.is_some() { 2 * width } else { 0 }, &mut moves.into_iter());
        let known =
            self.open_rows.iter().flatten().copied().chain(filled(4 * self.num_rows, 4 * width, NO_ROW));
        stage(OPEN_ROWS, if is_open { 4 * width } else { 0 }, &mut known.into_iter());
        let told = self.call.as_slice().as_flattened();
        stage(CALL, told.len(), &mut told.iter().copied());
        let foresees = !self.foreseen.is_empty();
        assert!(!foresees || self.foreseen.len() == num_logits, "a draw for each row of logits");
        let foreseen = self.foreseen.iter().flatten().copied();
        let foreseen = foreseen.chain(filled(2 * num_logits, 2 * logit_width, NO_ROW));
        stage(FORESEEN, if foresees { 2 * logit_width } else { 0 }, &mut foreseen.into_iter());
        let roots = if is_open { num_sequences } else { 0 };
        let outline = stage(ROOT_OUTPUTS, roots, &mut self.root_outputs.iter().copied());
        // Words as their halves, the lower first. Those of rows that fill the pass up are not looked at.
        let halves = |words: [u64; 4]| words.into_iter().flat_map(|word| [word as i32, (word >> 32) as i32]);
        stage(ANCESTORS, 8 * width, &mut self.rows.iter().flat_map(|row| halves(row.ancestors)));
        let filler = |value| filled(self.rows.len(), width, value);
        stage(TOKENS, width, &mut self.rows.iter().map(|r| r.token).chain(filler(0)));
        let axes = if self.sections.is_some() { 3 } else { 1 };
        let rotary =
            (0..axes).flat_map(|axis| self.rows.iter().map(move |row| row.rotary[axis]).chain(filler(0)));
        stage(POSITIONS, axes * width, &mut rotary.into_iter());
        stage(SLOTS, width, &mut self.rows.iter().map(|r| r.slot).chain(filler(NO_SLOT)));
        stage(LINKS, width, &mut self.rows.iter().map(|r| r.link).chain(filler(0)));
        if !is_open {
            stage(DRAW_POSITIONS, num_logits, &mut self.logit_rows.iter().map(|&row| position_of(row)));
            stage(DRAW_SEQUENCES, num_logits, &mut self.logit_rows.iter().map(|&row| sequence_of(row)));
        }
        if num_logits < self.num_rows && !is_open {
            // Some rows are only read: the trees are among the others.
            let of_row = |&row: &i32| self.rows[row as usize];
            let starts = (0..=num_sequences).map(|i| {
                let start = self.seq_start.get(i).copied().unwrap_or(self.num_rows as i32);
                self.logit_rows.partition_point(|&logit_row| logit_row < start) as i32
            });
            stage(TREE_START, num_sequences + 1, &mut starts.into_iter());
            stage(TREE_TOKENS, num_logits, &mut self.logit_rows.iter().map(|row| of_row(row).token));
            stage(TREE_PARENTS, num_logits, &mut self.logit_rows.iter().map(|row| of_row(row).link));
        }
        // As much as passes of the shape ever have: what a graph fetches.
        let of_logits = logit_width.next_multiple_of(4);
        let most = self.arrays[LINKS].1.next_multiple_of(4)
            + 4 * of_logits
            + (num_sequences + 1).next_multiple_of(4);
        self.num_staged = if is_open { outline } else { most };
    }

    /// Has the device fetch the description. The launch depends on the pass's shape and on whether it has open rows alone.
    pub fn fetch(&self) -> Result<()> {
        let [src, out] = self.staged();
        fetch_words(&self.device, &src, &out)
    }

    /// The description where the host has laid it out and where the device is to have it, for kernels that fetch it themselves.
    pub fn staged(&self) -> [Tensor; 2] {
        [&self.mapped_ints, &self.ints].map(|words| words.rows(0..self.num_staged))
    }
}
