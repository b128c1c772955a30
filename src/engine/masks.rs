//! [`MaskWriter`]: what running sequences may say next, laid over the logits at every node that a text can reach: what their grammars
//! allow, and no end before its time.

use crate::device::{DType, Device, PinnedBuffer, Tensor};
use crate::error::Result;
use crate::kernels::token_mask::{TokenMaskArgs, mask_words, token_mask};
use crate::text::Grammar;
use crate::tree::DraftTree;

/// Masks sent in one go.
const MAX_MASKS: usize = 64;

/// Tokens that may not come yet: they would end a text too early.
#[derive(Clone, Copy)]
pub(super) struct EarlyEnds<'a> {
    pub ids: &'a [i32],
    /// They are banned at nodes of less depth.
    pub depth: usize,
}

impl EarlyEnds<'_> {
    /// Bans them in `mask`, unless nothing else is left: a text that its grammar brings to its end has one.
    fn ban(self, mask: &mut [u32], depth: usize) {
        if depth >= self.depth {
            return;
        }
        let bit = |id: i32| (id as usize / 32, 1 << (id % 32));
        let is_end = |word: usize| {
            self.ids
                .iter()
                .map(|&id| bit(id))
                .filter(|&(at, _)| at == word)
                .fold(0, |bits, (_, bit)| bits | bit)
        };
        if mask.iter().enumerate().any(|(word, bits)| bits & !is_end(word) != 0) {
            self.ids.iter().map(|&id| bit(id)).for_each(|(word, bit)| mask[word] &= !bit);
        }
    }
}

/// Masks are collected on the host, then sent: what goes wrong with a grammar is its request's affair, what goes wrong with the device
/// everybody's.
pub(super) struct MaskWriter {
    device: Device,
    words: usize,
    /// Bits of u32 words, i32 `[MAX_MASKS, words]`, and the row of logits that each is for.
    masks: Tensor,
    rows: Tensor,
    host_masks: PinnedBuffer<i32>,
    host_rows: PinnedBuffer<i32>,
    /// What is collected: words mask by mask, and the rows that they are for.
    collected: Vec<u32>,
    collected_rows: Vec<i32>,
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
            collected: Vec::new(),
            collected_rows: Vec::new(),
        })
    }

    /// Forgets what is collected.
    pub fn clear(&mut self) {
        self.collected.clear();
        self.collected_rows.clear();
    }

    /// Collects masks for the rows of logits from `first_row` on, which are the nodes of `tree` (without one, a single row). A node whose token
    /// the grammar does not allow is never reached, so its row, and those below it, are left alone. The grammar is left as it was. `early` ends
    /// are banned on top. The number of masks.
    ///
    /// # Errors
    /// Those of the grammar, which is of no use then, nor is what was collected for it.
    pub fn collect(
        &mut self,
        first_row: usize,
        grammar: &mut Grammar,
        tree: Option<&DraftTree>,
        early: EarlyEnds,
    ) -> Result<usize> {
        let before = self.collected_rows.len();
        self.collect_row(first_row, grammar, early, 0)?;
        if let Some(tree) = tree {
            self.collect_below(first_row, grammar, (tree, 0), early)?;
        }
        Ok(self.collected_rows.len() - before)
    }

    /// Collects masks of a text without a grammar, as [`MaskWriter::collect`] does: `early` ends alone are banned.
    pub fn collect_early_ends(&mut self, first_row: usize, tree: Option<&DraftTree>, early: EarlyEnds) {
        for node in 0..tree.map_or(1, DraftTree::num_nodes) {
            let depth = tree.map_or(0, |tree| tree.depth(node));
            if depth < early.depth {
                let start = self.new_row(first_row + node, u32::MAX);
                early.ban(&mut self.collected[start..], depth);
            }
        }
    }

    /// Lays all that is collected over `logits`. The device must have passed what was sent in the step before.
    pub fn send(&mut self, logits: &Tensor) -> Result<()> {
        let batches =
            self.collected_rows.chunks(MAX_MASKS).zip(self.collected.chunks(MAX_MASKS * self.words));
        for (i, (rows, words)) in batches.enumerate() {
            if i > 0 {
                self.device.synchronize()?;
            }
            for (staged, &word) in self.host_masks.as_mut_slice().iter_mut().zip(words) {
                *staged = word as i32;
            }
            self.host_rows.as_mut_slice()[..rows.len()].copy_from_slice(rows);
            let (masks, mask_row) = (self.masks.rows(0..rows.len()), self.rows.rows(0..rows.len()));
            self.host_masks.write_to(&masks, words.len())?;
            self.host_rows.write_to(&mask_row, rows.len())?;
            token_mask(&self.device, TokenMaskArgs { logits, masks: &masks, mask_row: &mask_row })?;
        }
        Ok(())
    }

    fn collect_below(
        &mut self,
        first_row: usize,
        grammar: &mut Grammar,
        (tree, parent): (&DraftTree, usize),
        early: EarlyEnds,
    ) -> Result<()> {
        for child in tree.children(parent) {
            let token = tree.token(child);
            if grammar.accepts(token) {
                grammar.push(token)?;
                self.collect_row(first_row + child, grammar, early, tree.depth(child))?;
                self.collect_below(first_row, grammar, (tree, child), early)?;
                grammar.pop(1)?;
            }
        }
        Ok(())
    }

    fn collect_row(
        &mut self,
        row: usize,
        grammar: &mut Grammar,
        early: EarlyEnds,
        depth: usize,
    ) -> Result<()> {
        let start = self.new_row(row, 0);
        grammar.allowed(&mut self.collected[start..])?;
        early.ban(&mut self.collected[start..], depth);
        Ok(())
    }

    /// Adds a mask of these words for `row`; where it begins.
    fn new_row(&mut self, row: usize, word: u32) -> usize {
        let start = self.collected.len();
        self.collected.resize(start + self.words, word);
        self.collected_rows.push(row as i32);
        start
    }
}
