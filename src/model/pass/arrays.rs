//! The device arrays of a [`Pass`], as it was staged.

use super::{
    ANCESTORS, CALL, DRAW_POSITIONS, DRAW_SEQUENCES, FORESEEN, LINKS, LOGIT_ROWS, OPEN_ROWS, OUTPUTS,
    POSITIONS, PREFIX_LEN, Pass, ROOT_OUTPUTS, SEQ_START, SLOTS, TOKENS, TREE_PARENTS, TREE_START,
    TREE_TOKENS, TreeArrays,
};
use crate::device::{DType, Tensor};

impl Pass {
    pub(super) fn array(&self, array: usize) -> Tensor {
        let (start, end) = self.arrays[array];
        self.ints.rows(start..end)
    }

    /// Token ids, i32 `[width]`.
    pub fn tokens(&self) -> Tensor {
        self.array(TOKENS)
    }

    /// Rotary positions, i32 `[width]`, with sections `[3, width]`.
    pub fn positions(&self) -> Tensor {
        match self.sections {
            Some(_) => self.array(POSITIONS).reshape(&[3, self.width()]),
            None => self.array(POSITIONS),
        }
    }

    /// Pairs of a head that turn by each axis of the positions; `None` is one axis.
    pub fn rope_sections(&self) -> Option<[usize; 3]> {
        self.sections
    }

    /// Key/value slots, i32 `[width]`.
    pub fn slots(&self) -> Tensor {
        self.array(SLOTS)
    }

    /// [`Row::link`] of each row, i32 `[width]`.
    pub fn links(&self) -> Tensor {
        self.array(LINKS)
    }

    /// What is known of each row that a kernel will describe, i32 `[width, 4]`; of a row that fills the pass up -1.
    pub fn open_rows(&self) -> Tensor {
        self.array(OPEN_ROWS).reshape(&[self.width(), 4])
    }

    /// Of open rows, the row of the store of outputs that holds the root's, i32 `[sequences]`; -1 for sequences without rows.
    pub fn root_outputs(&self) -> Tensor {
        self.array(ROOT_OUTPUTS)
    }

    /// What was told, i32 `[2]`.
    pub fn call(&self) -> Tensor {
        self.array(CALL)
    }

    /// Sequence and position of the draw that each row of logits foresees, i32 `[logit width, 2]`; -1 for rows that fill the pass up.
    pub fn foreseen(&self) -> Tensor {
        self.array(FORESEEN).reshape(&[self.logit_width(), 2])
    }

    /// Where outputs are kept: pairs of a row of the pass and one of the store, i32 `[width, 2]`; -1 for rows that fill the pass up.
    pub fn outputs(&self) -> Tensor {
        self.array(OUTPUTS).reshape(&[self.width(), 2])
    }

    /// The rows whose logits are wanted, as trees: [`Row::link`] is the parent among the sequence's rows of that kind.
    pub fn trees(&self) -> TreeArrays {
        let [seq_start, tokens, parents] = match self.num_logit_rows() < self.num_rows {
            true => [TREE_START, TREE_TOKENS, TREE_PARENTS],
            false => [SEQ_START, TOKENS, LINKS],
        }
        .map(|array| self.array(array));
        let [tokens, parents] = [tokens, parents].map(|array| array.rows(0..self.num_logit_rows()));
        TreeArrays { seq_start, tokens, parents }
    }

    /// First row of each sequence and the end, i32 `[sequences + 1]`.
    pub fn seq_start(&self) -> Tensor {
        self.array(SEQ_START)
    }

    /// Prefix lengths, i32 `[sequences]`.
    pub fn prefix_len(&self) -> Tensor {
        self.array(PREFIX_LEN)
    }

    /// Rows whose logits are wanted, i32 `[logit width]`.
    pub fn logit_rows(&self) -> Tensor {
        self.array(LOGIT_ROWS)
    }

    /// Absolute position of the token that each logit row draws, i32 `[logit rows]`.
    pub fn draw_positions(&self) -> Tensor {
        self.array(DRAW_POSITIONS)
    }

    /// Sequence of each logit row, i32 `[logit rows]`.
    pub fn draw_sequences(&self) -> Tensor {
        self.array(DRAW_SEQUENCES)
    }

    /// Ancestor words, u64 `[width, 4]`; those of rows that fill the pass up are not looked at.
    pub fn ancestors(&self) -> Tensor {
        self.array(ANCESTORS).retype(DType::U64, &[self.width(), 4])
    }
}
