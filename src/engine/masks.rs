//! [`MaskWriter`]: what the grammars of running sequences allow, laid over the logits at every node that a text can reach.

use crate::device::{DType, Device, PinnedBuffer, Tensor};
use crate::error::Result;
use crate::kernels::token_mask::{TokenMaskArgs, mask_words, token_mask};
use crate::text::Grammar;
use crate::tree::DraftTree;

/// Masks sent in one go.
const MAX_MASKS: usize = 64;

pub(super) struct MaskWriter {
    device: Device,
    words: usize,
    /// Bits of u32 words, i32 `[MAX_MASKS, words]`, and the row of logits that each is for.
    masks: Tensor,
    rows: Tensor,
    host_masks: PinnedBuffer<i32>,
    host_rows: PinnedBuffer<i32>,
    /// Masks that wait to be sent.
    count: usize,
    mask: Vec<u32>,
}

impl MaskWriter {
    pub fn new(device: &Device, vocab_size: usize) -> Result<Self> {
        let words = mask_words(vocab_size);
        Ok(Self {
            device: device.clone(),
            words,
            masks: Tensor::uninit(device, DType::I32, &[MAX_MASKS, words])?,
            rows: Tensor::uninit(device, DType::I32, &[MAX_MASKS])?,
            host_masks: PinnedBuffer::new(device, MAX_MASKS * words)?,
            host_rows: PinnedBuffer::new(device, MAX_MASKS)?,
            count: 0,
            mask: vec![0; words],
        })
    }

    /// Masks the rows of `logits` from `first_row` on, which are the nodes of `tree` (without one, a single row). A node whose token the
    /// grammar does not allow is never reached, so its row, and those below it, are left alone. The grammar is left as it was. The number of
    /// masks.
    pub fn mask_tree(
        &mut self,
        logits: &Tensor,
        first_row: usize,
        grammar: &mut Grammar,
        tree: Option<&DraftTree>,
    ) -> Result<usize> {
        self.mask_row(logits, first_row, grammar)?;
        let below = match tree {
            Some(tree) => self.mask_below(logits, first_row, grammar, (tree, 0))?,
            None => 0,
        };
        Ok(1 + below)
    }

    /// Sends what waits; the device must have passed what was sent in the step before.
    pub fn flush(&mut self, logits: &Tensor) -> Result<()> {
        let count = std::mem::take(&mut self.count);
        if count == 0 {
            return Ok(());
        }
        let (masks, mask_row) = (self.masks.rows(0..count), self.rows.rows(0..count));
        self.host_masks.write_to(&masks, count * self.words)?;
        self.host_rows.write_to(&mask_row, count)?;
        token_mask(&self.device, TokenMaskArgs { logits, masks: &masks, mask_row: &mask_row })
    }

    fn mask_below(
        &mut self,
        logits: &Tensor,
        first_row: usize,
        grammar: &mut Grammar,
        (tree, parent): (&DraftTree, usize),
    ) -> Result<usize> {
        let mut count = 0;
        for child in tree.children(parent) {
            let token = tree.token(child);
            if !grammar.accepts(token) {
                continue;
            }
            grammar.push(token)?;
            self.mask_row(logits, first_row + child, grammar)?;
            count += 1 + self.mask_below(logits, first_row, grammar, (tree, child))?;
            grammar.pop(1)?;
        }
        Ok(count)
    }

    fn mask_row(&mut self, logits: &Tensor, row: usize, grammar: &mut Grammar) -> Result<()> {
        if self.count == MAX_MASKS {
            self.flush(logits)?;
            self.device.synchronize()?;
        }
        grammar.allowed(&mut self.mask)?;
        let staged = &mut self.host_masks.as_mut_slice()[self.count * self.words..][..self.words];
        for (staged, &word) in staged.iter_mut().zip(&self.mask) {
            *staged = word as i32;
        }
        self.host_rows.as_mut_slice()[self.count] = row as i32;
        self.count += 1;
        Ok(())
    }
}
