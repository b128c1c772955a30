//! The target pass of a round: rows of trees and of what is read, grammars, draws and the walk.

use crate::device::Tensor;
use crate::engine::errand::Errand;
use crate::engine::schedule::Chunk;
use crate::engine::verifier::Verified;
use crate::engine::{Bug, Engine};
use crate::error::Result;
use crate::model::{Row, Taps, causal_words};
use crate::tree::DraftTree;

impl Engine {
    /// One target pass over all trees and chunks, the draws, the walk and the compaction: what became of each tree, and the draw behind each
    /// text that ends with its chunk. `errand` is run once all is issued.
    pub(super) fn verify(
        &mut self,
        slots: &[usize],
        trees: &[DraftTree],
        chunks: &[Chunk],
        errand: &mut Errand,
    ) -> Result<(Vec<Verified>, Vec<Option<Verified>>)> {
        self.fill_pass(slots, trees, chunks);
        let logits = self.run_target(slots, trees)?;
        let depths = trees.iter().flat_map(|tree| tree.depths());
        let deepest = depths.copied().max().map_or(0, usize::from);
        self.verifier.walk(deepest)?;
        if !self.has(Bug::StaleKv) {
            self.verifier.compact()?;
        }
        if !slots.is_empty() {
            self.times.mark_verify()?;
            self.prefetch_next(trees)?;
        }
        let turn = self.verifier.start_reading()?;
        self.do_meanwhile(errand);
        let mut verified = self.verifier.read_turn(turn)?;
        if self.has(Bug::WrongSibling) {
            mutate_siblings(trees, slots, &mut verified);
        }
        for (&slot, tree) in slots.iter().zip(trees) {
            let first_row = self.verifier.pass.logit_rows_of(slot).start;
            verified[slot].end_before(tree, |node| self.masks.is_unknown(first_row + node));
        }
        self.read_logprobs(&logits, &mut verified)?;
        let mut take = |slot: usize| std::mem::take(&mut verified[slot]);
        let trees = slots.iter().map(|&slot| take(slot)).collect();
        Ok((trees, chunks.iter().map(|chunk| chunk.is_last.then(|| take(chunk.slot))).collect()))
    }

    /// Starts to bring what the next round reads first: a drafter, if this one drafted.
    fn prefetch_next(&self, trees: &[DraftTree]) -> Result<()> {
        let drafted = trees.iter().any(|tree| tree.num_nodes() > 1);
        let drafter = self.proposer.as_ref().filter(|_| drafted).and_then(|it| it.first_weight(true));
        let weight = drafter.or_else(|| self.verifier.target.first_weight());
        weight.map_or(Ok(()), |weight| self.prefetch.start(weight))
    }

    /// Adds log-probabilities to what became of sequences that want them.
    fn read_logprobs(&self, logits: &Tensor, verified: &mut [Verified]) -> Result<()> {
        for (slot, outcome) in verified.iter_mut().enumerate() {
            let request = self.sequences[slot].as_ref().map(|sequence| &sequence.request);
            let Some(top) = request.and_then(|request| request.logprobs) else { continue };
            if outcome.drawn.is_empty() {
                continue;
            }
            let first_row = self.verifier.pass.logit_rows_of(slot).start;
            let path = std::iter::once(&0).chain(&outcome.accepted);
            // Where nothing could be drawn there is no token.
            let drawn: Vec<(usize, i32)> = path
                .map(|&node| (first_row + node, outcome.drawn[node]))
                .filter(|&(_, token)| token >= 0)
                .collect();
            outcome.logprobs = self.logprobs.read(logits, &drawn, top)?;
        }
        Ok(())
    }

    /// Fills the target's pass with trees and chunks, in the order of their slots.
    pub(super) fn fill_pass(&mut self, slots: &[usize], trees: &[DraftTree], chunks: &[Chunk]) {
        self.verifier.pass.clear();
        let last_chunk = chunks.last().map(|chunk| chunk.slot);
        let (mut trees, mut chunks) = (slots.iter().zip(trees).peekable(), chunks.iter().peekable());
        let last = slots.last().copied().max(last_chunk);
        for slot in 0..last.map_or(0, |last| last + 1) {
            if let Some((_, tree)) = trees.next_if(|&(&busy, _)| busy == slot) {
                self.fill_tree(slot, tree);
            } else if let Some(chunk) = chunks.next_if(|chunk| chunk.slot == slot) {
                let Some(sequence) = &self.sequences[slot] else { continue };
                let last = chunk.is_last.then_some(sequence.root());
                let text = (&sequence.committed[..], &sequence.pictures);
                self.verifier
                    .fill_chunk((slot, &self.pool), chunk.positions.clone(), text, |at| Some(at) == last);
            } else {
                self.verifier.pass.begin_sequence(0);
            }
        }
    }

    /// Appends the rows of a tree to the target's pass.
    pub(super) fn fill_tree(&mut self, slot: usize, tree: &DraftTree) {
        let root = self.sequence(slot).root();
        self.verifier.pass.begin_sequence(root);
        for node in 0..tree.num_nodes() {
            let position = root + tree.depth(node) + usize::from(node > 0 && self.has(Bug::LatePosition));
            let row = Row {
                token: tree.token(node),
                position,
                rotary: self.sequence(slot).pictures.rotary(position),
                slot: self.pool.kv_slot(slot, root + node),
                ancestors: if self.has(Bug::SeesSiblings) {
                    causal_words(node)
                } else {
                    tree.ancestor_words(node)
                },
                link: tree.parents()[node],
            };
            self.verifier.pass.push(row, true);
        }
    }

    /// The target over the rows of its pass, with draws, and with features for the drafter if it may run; the logits. Rows of `slots` are the
    /// nodes of `trees`.
    pub(super) fn run_target(&mut self, slots: &[usize], trees: &[DraftTree]) -> Result<Tensor> {
        let width = self.verifier.pass.width();
        let proposer = self.proposer.as_ref().filter(|_| self.feeds_drafter());
        let taps = proposer.and_then(|proposer| proposer.taps(width));
        let (logits, waited) =
            self.verifier.forward(taps.as_ref().map(|(out, layers)| Taps { layers, out }))?;
        if waited {
            self.times.spoil_verify();
        }
        self.mask(&logits, slots, trees)?;
        self.verifier.draw(&logits)?;
        Ok(logits)
    }

    /// Bans what the grammars of sequences do not allow, and what would end them too early, node by node. A sequence whose grammar gives up
    /// at the root fails when the round is committed; whatever is drawn for it is not. A node at which it gives up is not accepted.
    fn mask(&mut self, logits: &Tensor, slots: &[usize], trees: &[DraftTree]) -> Result<()> {
        self.masks.clear();
        for slot in 0..self.verifier.pass.num_sequences() {
            let rows = self.verifier.pass.logit_rows_of(slot);
            let Some(sequence) = self.sequences[slot].as_mut().filter(|_| !rows.is_empty()) else { continue };
            let tree = slots.iter().position(|&own| own == slot).map(|index| &trees[index]);
            let (masks, early) = (&mut self.masks, sequence.early_ends());
            if sequence.guided.is_none() {
                masks.collect_early_ends(rows.start, tree, &early);
            }
            sequence.guide(|text| masks.collect_tree(rows.start, text, tree, &early));
        }
        self.masks.send(logits, None)
    }
}

/// [`Bug::WrongSibling`]: the last accepted node becomes a sibling, where it has one.
fn mutate_siblings(trees: &[DraftTree], slots: &[usize], verified: &mut [Verified]) {
    for (tree, &slot) in trees.iter().zip(slots) {
        if let Some(last) = verified[slot].accepted.last_mut() {
            let parent = tree.parent(*last).unwrap_or(0);
            *last = tree.children(parent).find(|child| child != last).unwrap_or(*last);
        }
    }
}
