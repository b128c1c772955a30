//! [`MaskWriter`]: what running sequences may say next, laid over the logits at every node that a text can reach, of the target and of the
//! drafter: what their grammars allow, and no end before its time.

use std::borrow::Cow;

use crate::control::{FrontierRow, NONE};
use crate::device::{DType, Device, PinnedBuffer, Tensor};
use crate::engine::guided::GuidedText;
use crate::engine::sequence::Sequence;
use crate::error::{Error, Result};
use crate::kernels::token_mask::{TokenMaskArgs, mask_words, token_mask};
use crate::tree::DraftTree;

/// Masks sent in one go.
const MAX_MASKS: usize = 64;

/// Tokens that may not come yet: they would end a text too early.
pub(super) struct EarlyEnds {
    pub ids: Vec<i32>,
    /// They are banned at nodes of less depth.
    pub depth: usize,
}

impl EarlyEnds {
    /// Bans them in the mask of a node, unless nothing else is left: a text that its grammar brings to its end has one.
    fn ban(&self, mask: &mut [u32], depth: usize) {
        if depth >= self.depth {
            return;
        }
        let banned_in = |word: usize| {
            let here = self.ids.iter().filter(|&&id| id as usize / 32 == word);
            here.fold(0, |bits, &id| bits | 1u32 << (id as u32 % 32))
        };
        if mask.iter().enumerate().any(|(word, bits)| bits & !banned_in(word) != 0) {
            for &id in &self.ids {
                // A config may name an end that the vocabulary does not have.
                if let Some(word) = mask.get_mut(id as usize / 32) {
                    *word &= !(1 << (id as u32 % 32));
                }
            }
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
    /// Rows of nodes that a text may reach, and of which nobody can say what may follow.
    unknown_rows: Vec<usize>,
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
            unknown_rows: Vec::new(),
        })
    }

    /// Forgets what is collected.
    pub fn clear(&mut self) {
        self.collected.clear();
        self.collected_rows.clear();
        self.unknown_rows.clear();
    }

    /// Whether [`MaskWriter::collect_tree`] could make no mask for a row that the target may well reach: what is drawn there means nothing, and
    /// its node must not be accepted.
    pub fn is_unknown(&self, row: usize) -> bool {
        self.unknown_rows.contains(&row)
    }

    /// Collects masks for the rows of logits from `first_row` on, which are the nodes of `tree` (without one, a single row). A node whose token
    /// the grammar does not allow is never reached, so its row, and those below it, are left alone; so are those where the grammar gives up.
    /// `early` ends are banned on top.
    ///
    /// # Errors
    /// Those of the grammar at the root: it is of no use then, nor is what was collected for it.
    pub fn collect_tree(
        &mut self,
        first_row: usize,
        text: &mut GuidedText,
        tree: Option<&DraftTree>,
        early: &EarlyEnds,
    ) -> Result<()> {
        let mut node_of = vec![Some(0)];
        self.collect(first_row, text, 0)?;
        early.ban(self.newest(), 0);
        let Some(tree) = tree else { return Ok(()) };
        for node in 1..tree.num_nodes() {
            let parent = tree.parent(node).and_then(|parent| node_of[parent]);
            let known = match parent {
                Some(parent) => text.child(parent, tree.token(node))?,
                None => None,
            };
            let masked = match known {
                Some(known) => self.collect(first_row + node, text, known)?,
                None => false,
            };
            if masked {
                early.ban(self.newest(), tree.depth(node));
            } else if known.is_some() {
                self.unknown_rows.push(first_row + node);
            }
            node_of.push(known.filter(|_| masked));
        }
        Ok(())
    }

    /// Collects the mask of a node of `text` for a row of logits; false if there is none, which is never so of the root.
    ///
    /// # Errors
    /// As [`MaskWriter::collect_tree`].
    fn collect(&mut self, row: usize, text: &mut GuidedText, node: usize) -> Result<bool> {
        let Some(mask) = text.mask(node)? else { return Ok(false) };
        if mask.len() != self.words {
            let (expected, got) = (format!("{} words", self.words), format!("{} words", mask.len()));
            return Err(Error::Shape {
                what: "the mask of a grammar for another vocabulary".into(),
                expected,
                got,
            });
        }
        self.collected.extend_from_slice(mask);
        self.collected_rows.push(row as i32);
        Ok(true)
    }

    /// Collects masks of a text without a grammar, as [`MaskWriter::collect_tree`] does: `early` ends alone are banned.
    pub fn collect_early_ends(&mut self, first_row: usize, tree: Option<&DraftTree>, early: &EarlyEnds) {
        for node in 0..tree.map_or(1, DraftTree::num_nodes) {
            let depth = tree.map_or(0, |tree| tree.depth(node));
            if depth < early.depth {
                self.collected.resize(self.collected.len() + self.words, u32::MAX);
                self.collected_rows.push((first_row + node) as i32);
                early.ban(self.newest(), depth);
            }
        }
    }

    /// Collects masks for the rows of a drafter's pass. A grammar that gives up at the root fails its text; rows without a mask are left alone.
    pub fn collect_level(
        &mut self,
        rows: &[FrontierRow],
        sequences: &mut [Option<Sequence>],
        slots: &[usize],
    ) {
        self.clear();
        for (index, row) in rows.iter().enumerate() {
            let Some(sequence) = &mut sequences[slots[row.sequence as usize]] else { continue };
            sequence.guide(|text| match node_of(text, row)? {
                Some(node) => self.collect(index, text, node).map(|_| ()),
                None => Ok(()),
            });
        }
    }

    /// Lays all that is collected over `logits`, over a drafter's vocabulary by `d2t`. The device must have passed what was sent before.
    pub fn send(&mut self, logits: &Tensor, d2t: Option<&Tensor>) -> Result<()> {
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
            token_mask(&self.device, TokenMaskArgs { logits, masks: &masks, mask_row: &mask_row, d2t })?;
        }
        Ok(())
    }

    /// The mask that was collected last.
    fn newest(&mut self) -> &mut [u32] {
        let start = self.collected.len() - self.words;
        &mut self.collected[start..]
    }
}

/// The node of `text` that a drafter's row is; `None` where the grammar does not allow it, or nobody can say.
fn node_of(text: &mut GuidedText, row: &FrontierRow) -> Result<Option<usize>> {
    let run = |slot: u32| (slot != NONE).then_some(slot as usize);
    match run(row.slot) {
        Some(own) => text.begin_run(run(row.parent_slot), own, row.token),
        None => Ok(Some(0)),
    }
}

/// Takes all hope from children that a grammar does not allow, where they were not drawn from masked logits.
pub(super) fn ban_children(
    rows: &[FrontierRow],
    sequences: &mut [Option<Sequence>],
    slots: &[usize],
    tokens: &[i32],
    logps: &mut Cow<'_, [f32]>,
) {
    let top_k = tokens.len() / rows.len().max(1);
    for (index, (row, tokens)) in rows.iter().zip(tokens.chunks(top_k.max(1))).enumerate() {
        let Some(sequence) = &mut sequences[slots[row.sequence as usize]] else { continue };
        sequence.guide(|text| {
            let Some(node) = node_of(text, row)? else { return Ok(()) };
            for (rank, &token) in tokens.iter().enumerate() {
                if !text.allows(node, token)? {
                    logps.to_mut()[index * top_k + rank] = f32::NEG_INFINITY;
                }
            }
            Ok(())
        });
    }
}
