//! One round: draft, select, verify, accept, commit, learn. Read [`Engine::step`] first.

use std::time::Instant;

use crate::control::trace::SequenceTrace;
use crate::control::{DraftRound, Passenger, PhaseTimes, RoundReport, SequenceOutcome, SequenceView};
use crate::device::Tensor;
use crate::engine::proposer::Proposer;
use crate::engine::schedule::Chunk;
use crate::engine::sequence::{Sequence, SequenceStats};
use crate::engine::stats::RoundClock;
use crate::engine::verifier::Verified;
use crate::engine::{Bug, Engine, FinishReason, SequenceId};
use crate::error::{Error, Result};
use crate::model::{MAX_ROWS_PER_SEQUENCE, Row, Taps, causal_words};
use crate::pages::PagePool;
use crate::replay::{Outcome, RoundCount};
use crate::tree::DraftTree;

/// What one round emitted for one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Emission {
    /// The sequence.
    pub sequence: SequenceId,
    /// Its new tokens.
    pub tokens: Vec<i32>,
    /// How many of them, from the first on, were drafted and accepted.
    pub accepted: usize,
    /// One entry a token, if the request asked for them.
    pub logprobs: Vec<TokenLogprobs>,
    /// The sequence's rounds so far.
    pub stats: SequenceStats,
    /// Set when the sequence ended with this round.
    pub finished: Option<FinishReason>,
}

/// The log-probability of an emitted token, and what else was likely. Of the law that the token was drawn from, after penalties and biases,
/// at temperature 1.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The emitted token's natural log-probability.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(i32, f32)>,
}

/// The latest round under a controller, for who counts rounds.
pub(super) struct LastRound {
    verified: Vec<Verified>,
    tokens: usize,
    /// Prompts were read beside it.
    reads: bool,
    pub predicted_us: f32,
    pub speedup: f32,
}

impl Engine {
    /// Runs one round: a step of every running sequence, beside it a part of the prompts that are still to be read, all in one target pass. Returns
    /// what each sequence emitted; that may be nothing while prompts are read. See [`Engine::is_idle`].
    ///
    /// # Errors
    /// A driver failure. What is committed is whole; see [`Engine::restart_running`].
    pub fn step(&mut self) -> Result<Vec<Emission>> {
        self.last_round = None;
        self.admit()?;
        self.make_room()?;
        let chunks = self.plan_chunks();
        let slots = self.deciding_slots();
        if slots.is_empty() {
            return self.read_only(&chunks);
        }
        if let Some(shape) = self.record_shape() {
            return self.record_round(slots[0], shape);
        }
        self.times.begin()?;
        let drafted = self.draft(&slots, &chunks)?;
        let trees: Vec<DraftTree> = if drafted {
            self.controller.round().selected().iter().map(|selected| selected.tree.clone()).collect()
        } else {
            slots.iter().map(|&slot| DraftTree::new(self.sequence(slot).root_token())).collect()
        };
        let (verified, firsts) = self.verify(&slots, &trees, &chunks)?;
        self.times.collect()?;
        self.learn(&verified);
        self.trace_round(&slots, &verified)?;
        let emissions = self.commit((&slots, &trees, &verified), (&chunks, &firsts))?;
        self.times.stats.count_round(&trees, &verified, &emissions[..slots.len()]);
        self.times.end();
        let tokens = emissions[..slots.len()].iter().map(|emission| emission.tokens.len()).sum();
        let predicted_us = self.controller.predicted().total;
        let speedup = self.controller.round().speedup();
        let reads = !chunks.is_empty();
        self.last_round = Some(LastRound { verified, tokens, reads, predicted_us, speedup });
        Ok(emissions)
    }

    /// A pass that only reads prompts.
    fn read_only(&mut self, chunks: &[Chunk]) -> Result<Vec<Emission>> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let start = Instant::now();
        let (_, firsts) = self.verify(&[], &[], chunks)?;
        let emissions = self.commit((&[], &[], &[]), (chunks, &firsts))?;
        self.times.stats.prefill_ms += start.elapsed().as_secs_f64() * 1e3;
        self.times.forget_tail();
        Ok(emissions)
    }

    /// Adds the round that the latest [`Engine::step`] ran to `outcome`; nothing if it ran none, or one that read a prompt, too, whose time
    /// is not that of a round alone. What plain rounds would have taken is not known here.
    pub fn count_round(&self, outcome: &mut Outcome) {
        let Some(round) = self.last_round.as_ref().filter(|round| !round.reads) else { return };
        let accepted = accepted_nodes(&round.verified);
        let times = &self.times.last;
        let times = RoundCount {
            tokens: round.tokens,
            draft_us: times.draft_us.iter().sum::<f64>() - times.control_in_draft_us,
            verify_us: times.verify_us - times.control_in_verify_us,
            control_us: times.control_us,
            us: times.total_us,
            plain_us: 0.0,
        };
        outcome.count_round(&self.controller, &outcomes(&accepted, &round.verified), &times);
    }

    /// What the round that the latest [`Engine::step`] ran did for a sequence, ratios left out; `None` if it ran none with it.
    pub fn round_trace(&self, id: SequenceId) -> Option<SequenceTrace> {
        self.trace_of(self.controller.views().iter().position(|view| view.id == id.0)?)
    }

    /// As [`Engine::round_trace`], of the first sequence.
    pub fn last_round_trace(&self) -> Option<SequenceTrace> {
        self.trace_of(0)
    }

    fn trace_of(&self, index: usize) -> Option<SequenceTrace> {
        let round = self.last_round.as_ref()?;
        let accepted = accepted_nodes(&round.verified);
        let outcome = outcomes(&accepted, &round.verified).into_iter().nth(index)?;
        Some(SequenceTrace::new(&self.controller, 0, index, &outcome))
    }

    /// Runs one round with the caller's trees, one for each sequence of [`Engine::running`] in that order: for drafters outside
    /// this crate, and for tests. Each tree's root is the sequence's last token. No request may wait, no prompt be unread.
    ///
    /// # Errors
    /// Trees that do not fit; as [`Engine::step`].
    pub fn step_with(&mut self, trees: &[DraftTree]) -> Result<Vec<Emission>> {
        let slots = self.deciding_slots();
        let fits = trees.len() == slots.len()
            && slots.iter().zip(trees).all(|(&slot, tree)| tree.token(0) == self.sequence(slot).root_token());
        if !fits || !self.queue.is_empty() || slots.len() < self.running_slots().len() {
            return Err(Error::Input(
                "one tree per running sequence is needed, rooted at its last token, and `step` must have read all prompts".into(),
            ));
        }
        self.last_round = None;
        for (&slot, tree) in slots.iter().zip(trees) {
            self.pool.reserve(slot, self.sequence(slot).root() + tree.num_nodes())?;
        }
        self.pool.upload()?;
        self.times.begin()?;
        let (verified, _) = self.verify(&slots, trees, &[])?;
        self.times.collect()?;
        let emissions = self.commit((&slots, trees, &verified), (&[], &[]))?;
        self.times.stats.count_round(trees, &verified, &emissions);
        self.times.end();
        Ok(emissions)
    }

    /// Drafts and selects the trees; false for a plain round. The result stays in the controller's round.
    fn draft(&mut self, slots: &[usize], chunks: &[Chunk]) -> Result<bool> {
        let control = Instant::now();
        let catches_up =
            self.feeds_drafter() && self.proposer.as_ref().is_some_and(|it| it.network().is_some());
        let views: Vec<SequenceView> = slots
            .iter()
            .map(|&slot| {
                let sequence = self.sequence(slot);
                let left = sequence.request.max_new_tokens - sequence.emitted().len();
                let view = sequence.view((left - 1).min(MAX_ROWS_PER_SEQUENCE - 1));
                if catches_up { view } else { SequenceView { backlog: 0, ..view } }
            })
            .collect();
        let passengers: Vec<Passenger> = chunks
            .iter()
            .map(|chunk| Passenger { rows: chunk.positions.len(), context_len: chunk.positions.start })
            .collect();
        let plan = self.controller.begin_shared_round(&views, &passengers);
        self.times.control(control);
        let Engine { proposer, sequences, times, controller, pool, .. } = self;
        let Some(proposer) = proposer.as_mut().filter(|_| plan.drafts()) else { return Ok(false) };
        let round = controller.round_mut();
        run_levels(proposer, (sequences, pool), slots, times, round)?;
        let control = Instant::now();
        round.select();
        times.control(control);
        Ok(true)
    }

    /// One target pass over all trees and chunks, the draws, the walk and the compaction: what became of each tree, and the draw behind each
    /// text that ends with its chunk.
    fn verify(
        &mut self,
        slots: &[usize],
        trees: &[DraftTree],
        chunks: &[Chunk],
    ) -> Result<(Vec<Verified>, Vec<Option<Verified>>)> {
        let num_rows = self.fill_pass(slots, trees, chunks);
        let logits = self.run_target(num_rows)?;
        let deepest = trees.iter().flat_map(|tree| tree.depths()).copied().max().unwrap_or(0);
        self.verifier.walk(if self.has(Bug::StaleKv) { 0 } else { usize::from(deepest) })?;
        if !slots.is_empty() {
            self.times.mark_verify()?;
        }
        let mut verified = self.verifier.read_walks()?;
        if self.has(Bug::WrongSibling) {
            mutate_siblings(trees, slots, &mut verified);
        }
        self.read_logprobs(&logits, &mut verified)?;
        let mut take = |slot: usize| std::mem::take(&mut verified[slot]);
        let trees = slots.iter().map(|&slot| take(slot)).collect();
        Ok((trees, chunks.iter().map(|chunk| chunk.is_last.then(|| take(chunk.slot))).collect()))
    }

    /// Adds log-probabilities to what became of sequences that want them.
    fn read_logprobs(&self, logits: &Tensor, verified: &mut [Verified]) -> Result<()> {
        for (slot, outcome) in verified.iter_mut().enumerate() {
            let request = self.sequences[slot].as_ref().map(|sequence| &sequence.request);
            let Some(top) = request.and_then(|request| request.logprobs) else { continue };
            if outcome.bonus < 0 || outcome.drawn.is_empty() {
                continue;
            }
            let first_row = self.verifier.pass.logit_rows_of(slot).start;
            let path = std::iter::once(&0).chain(&outcome.accepted);
            let drawn: Vec<(usize, i32)> =
                path.map(|&node| (first_row + node, outcome.drawn[node])).collect();
            outcome.logprobs = self.logprobs.read(logits, &drawn, top)?;
        }
        Ok(())
    }

    /// Fills the target's pass with trees and chunks, in the order of their slots; its rows.
    fn fill_pass(&mut self, slots: &[usize], trees: &[DraftTree], chunks: &[Chunk]) -> usize {
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
        self.verifier.pass.num_rows()
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
                slot: self.pool.position(slot, root + node),
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

    /// The target over the `num_rows` rows of its pass, with draws, and with features for the drafter if it may run; the logits.
    pub(super) fn run_target(&mut self, num_rows: usize) -> Result<Tensor> {
        let proposer = self.proposer.as_ref().filter(|_| self.feeds_drafter());
        let taps = proposer.and_then(|proposer| proposer.taps(num_rows));
        self.verifier.run(taps.as_ref().map(|(out, layers)| Taps { layers, out }))
    }

    /// Appends accepted and bonus tokens, and those drawn behind chunks, hands the features of what was read to the drafter, releases what has
    /// ended. Emissions of trees come first, in their order.
    pub(super) fn commit(
        &mut self,
        (slots, trees, verified): (&[usize], &[DraftTree], &[Verified]),
        (chunks, firsts): (&[Chunk], &[Option<Verified>]),
    ) -> Result<Vec<Emission>> {
        // (slot, position, row of the pass)
        let mut features: Vec<(usize, usize, usize)> = Vec::new();
        let mut emissions = Vec::new();
        for ((&slot, tree), outcome) in slots.iter().zip(trees).zip(verified) {
            let first_row = self.verifier.pass.first_row(slot);
            let root = self.sequence(slot).root();
            let path = std::iter::once(0).chain(outcome.accepted.iter().copied()).enumerate();
            features.extend(path.map(|(i, node)| (slot, root + i, first_row + node)));
            emissions.extend(self.emit(slot, outcome, Some(tree))?);
        }
        for chunk in chunks {
            let first_row = self.verifier.pass.first_row(chunk.slot);
            let rows = chunk.positions.clone().enumerate();
            features.extend(rows.map(|(row, position)| (chunk.slot, position, first_row + row)));
            if let Some(sequence) = &mut self.sequences[chunk.slot] {
                sequence.unread = Some(chunk.positions.end);
            }
        }
        features.sort_unstable();
        if self.feeds_drafter() {
            self.remember(&features, chunks)?;
        }
        for (chunk, first) in chunks.iter().zip(firsts) {
            self.publish(chunk.slot);
            let Some(first) = first else { continue };
            if let Some(sequence) = &mut self.sequences[chunk.slot] {
                sequence.unread = None;
                sequence.pictures.forget_embeddings();
            }
            emissions.extend(self.emit(chunk.slot, first, None)?);
        }
        for slot in self.running_slots() {
            if self.sequence(slot).finished.is_some() {
                self.publish(slot);
                self.release(slot);
            }
        }
        Ok(emissions)
    }

    /// Commits what was drawn for a sequence: with `tree` a round, else the token behind its text.
    fn emit(
        &mut self,
        slot: usize,
        outcome: &Verified,
        tree: Option<&DraftTree>,
    ) -> Result<Option<Emission>> {
        let max_context = self.max_context;
        let Some(sequence) = &mut self.sequences[slot] else { return Ok(None) };
        let mut tokens: Vec<i32> = match tree {
            Some(tree) => outcome.accepted.iter().map(|&node| tree.token(node)).collect(),
            None => Vec::new(),
        };
        let mut logprobs = outcome.logprobs.clone();
        let failed = outcome.bonus < 0;
        tokens.extend((!failed).then_some(outcome.bonus));
        let count = sequence.commit(&tokens);
        tokens.truncate(count);
        logprobs.truncate(count);
        if sequence.finished.is_none() && sequence.committed.len() >= max_context {
            sequence.finished = Some(FinishReason::Length);
        }
        if failed {
            sequence.finished.get_or_insert(FinishReason::Failed);
        }
        if let Some(tree) = tree {
            sequence.stats.rounds += 1;
            sequence.stats.drafted_tokens += tree.num_draft_tokens() as u64;
            sequence.stats.accepted_tokens += outcome.accepted.len() as u64;
        }
        self.verifier.penalties.count(slot, &tokens, true)?;
        Ok(Some(Emission {
            sequence: sequence.id,
            accepted: outcome.accepted.len().min(tokens.len()),
            tokens,
            logprobs,
            stats: sequence.stats,
            finished: sequence.finished,
        }))
    }

    /// Stores features and keeps the backlog bounded: a drafter that has been off for long sees them now, as it does those of prompts.
    fn remember(&mut self, features: &[(usize, usize, usize)], chunks: &[Chunk]) -> Result<()> {
        let Some(proposer) = &mut self.proposer else { return Ok(()) };
        proposer.remember(features)?;
        let Some(drafting) = proposer.network_mut() else { return Ok(()) };
        let is_read = |slot: usize| chunks.iter().any(|chunk| chunk.slot == slot);
        // The pair of the last position waits for the token behind it.
        let known = |sequence: &Sequence| sequence.kv_len().min(sequence.root()) - sequence.draft_len;
        let late: Vec<usize> = (0..self.sequences.len())
            .filter(|&slot| {
                self.sequences[slot].as_ref().is_some_and(|sequence| {
                    let full = known(sequence) >= MAX_ROWS_PER_SEQUENCE;
                    sequence.finished.is_none() && known(sequence) > 0 && (full || is_read(slot))
                })
            })
            .collect();
        if late.is_empty() {
            return Ok(());
        }
        let batch: Vec<(usize, &Sequence)> =
            late.iter().filter_map(|&slot| Some((slot, self.sequences[slot].as_ref()?))).collect();
        let count = |sequence: &Sequence| known(sequence).min(MAX_ROWS_PER_SEQUENCE);
        drafting.catch_up(&self.pool, &batch, count, None)?;
        for &slot in &late {
            if let Some(sequence) = &mut self.sequences[slot] {
                sequence.draft_len += count(sequence);
            }
        }
        self.device.synchronize()
    }

    /// Feeds times and outcomes to the controller.
    fn learn(&mut self, verified: &[Verified]) {
        let control = Instant::now();
        let accepted = accepted_nodes(verified);
        let outcomes = outcomes(&accepted, verified);
        let times = &self.times.last;
        let levels: Vec<f32> = times.draft_us.iter().map(|&us| us as f32).collect();
        let times = PhaseTimes {
            draft_levels: &levels,
            verify: Some(times.verify_us as f32),
            total: Some(times.total_us as f32),
        };
        self.controller.observe(&RoundReport { sequences: &outcomes, times });
        self.times.control(control);
    }
}

/// Accepted nodes as controllers name them.
fn accepted_nodes(verified: &[Verified]) -> Vec<Vec<u32>> {
    verified.iter().map(|v| v.accepted.iter().map(|&node| node as u32).collect()).collect()
}

/// What a controller is told; `accepted` by [`accepted_nodes`].
fn outcomes<'a>(accepted: &'a [Vec<u32>], verified: &'a [Verified]) -> Vec<SequenceOutcome<'a>> {
    let pairs = accepted.iter().zip(verified);
    pairs.map(|(accepted, v)| SequenceOutcome { accepted, drawn: &v.drawn }).collect()
}

/// Drafts level by level, on what `round` asks for, until it asks for nothing more.
pub(super) fn run_levels(
    proposer: &mut Proposer,
    (sequences, pool): (&mut [Option<Sequence>], &PagePool),
    slots: &[usize],
    times: &mut RoundClock,
    round: &mut DraftRound,
) -> Result<()> {
    let (top_k, levels) = (round.top_k(), round.plan().max_levels);
    loop {
        let control = Instant::now();
        let rows = round.next_level().map(<[_]>::to_vec);
        times.control(control);
        let Some(rows) = rows else { return Ok(()) };
        proposer.run(&rows, (sequences, pool), slots, top_k, levels)?;
        times.mark_level()?;
        let (tokens, logps) = proposer.read_children()?;
        let count = rows.len() * top_k;
        let control = Instant::now();
        round.add_level(&tokens[..count], &logps[..count]);
        times.control(control);
        if rows[0].node == 0 {
            for row in &rows {
                if let Some(sequence) = &mut sequences[slots[row.sequence as usize]] {
                    sequence.draft_len = sequence.root();
                }
            }
        }
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
