//! One round: draft, select, verify, accept, learn, commit. Read [`Engine::step`] first.

use std::borrow::Cow;
use std::time::Instant;

use crate::control::trace::SequenceTrace;
use crate::control::{
    DraftRound, FrontierRow, Passenger, PhaseTimes, RoundReport, SequenceOutcome, SequenceView,
};
use crate::engine::drafting::Ranking;
use crate::engine::errand::Errand;
use crate::engine::masks::{MaskWriter, ban_children};
use crate::engine::prefetch::Prefetch;
use crate::engine::proposer::Proposer;
use crate::engine::schedule::Chunk;
use crate::engine::sequence::Sequence;
use crate::engine::stats::RoundClock;
use crate::engine::verifier::Verified;
use crate::engine::{Emission, Engine, SequenceId};
use crate::error::{Error, Result};
use crate::model::MAX_ROWS_PER_SEQUENCE;
use crate::pages::PagePool;
use crate::replay::{Outcome, RoundCount};
use crate::tree::DraftTree;

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
        self.step_meanwhile(&mut || {})
    }

    /// As [`Engine::step`], which calls `errand` once, whatever comes of the round: as soon as the device has something to do, if it gets anything
    /// to do. So what is to be done with the tokens of one round, like handing them to whoever waits, delays no other.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_meanwhile(&mut self, errand: &mut dyn FnMut()) -> Result<Vec<Emission>> {
        let mut errand = Errand::new(errand);
        let emissions = self.run_round(&mut errand);
        errand.run();
        emissions
    }

    fn run_round(&mut self, errand: &mut Errand) -> Result<Vec<Emission>> {
        self.last_round = None;
        if !self.pending.is_empty() {
            return Ok(std::mem::take(&mut self.pending));
        }
        if let Some(emissions) = self.settle_issued(errand) {
            return emissions;
        }
        if self.may_seat_pictures() {
            // They are encoded first, which takes longer than any errand.
            errand.run();
        }
        self.admit()?;
        self.make_room()?;
        let chunks = self.plan_chunks();
        let slots = self.deciding_slots();
        if slots.is_empty() {
            let emissions = self.read_only(&chunks, errand)?;
            return Ok([emissions, std::mem::take(&mut self.pending)].concat());
        }
        if let Some(shape) = self.record_shape() {
            return self.record_round(slots[0], shape);
        }
        self.times.begin()?;
        let drafted = self.draft(&slots, &chunks, errand)?;
        if !drafted && self.may_run_ahead(&slots, true) {
            return self.run_ahead(&slots, errand);
        }
        let trees: Vec<DraftTree> = match drafted {
            true => self.controller.round().selected().iter().map(|selected| selected.tree.clone()).collect(),
            false => self.roots(&slots),
        };
        let (verified, firsts) = self.verify(&slots, &trees, &chunks, errand)?;
        self.times.collect()?;
        let emissions = self.conclude((&slots, &trees), verified, (&chunks, &firsts), true)?;
        // Those that could not be admitted come last.
        Ok([emissions, std::mem::take(&mut self.pending)].concat())
    }

    /// What follows a target pass, whose times have been collected: the controller learns, and what was drawn is committed, as by
    /// [`Engine::commit`].
    pub(super) fn conclude(
        &mut self,
        (slots, trees): (&[usize], &[DraftTree]),
        verified: Vec<Verified>,
        (chunks, firsts): (&[Chunk], &[Option<Verified>]),
        keeps_features: bool,
    ) -> Result<Vec<Emission>> {
        self.learn(&verified);
        self.trace_round(slots, &verified)?;
        let emissions = self.commit((slots, trees, &verified), (chunks, firsts), keeps_features)?;
        self.times.stats.count_round(trees, &verified, &emissions[..slots.len()]);
        self.times.end();
        let reads = !chunks.is_empty();
        if reads {
            // The drafter has read the prompts, too, behind the round.
            self.times.count_tail_as_prefill();
        }
        let tokens = emissions[..slots.len()].iter().map(|emission| emission.tokens.len()).sum();
        let predicted_us = self.controller.predicted().total;
        let speedup = self.controller.round().speedup();
        self.last_round = Some(LastRound { verified, tokens, reads, predicted_us, speedup });
        Ok(emissions)
    }

    /// A pass that only reads prompts.
    fn read_only(&mut self, chunks: &[Chunk], errand: &mut Errand) -> Result<Vec<Emission>> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let start = Instant::now();
        let (_, firsts) = self.verify(&[], &[], chunks, errand)?;
        let emissions = self.commit((&[], &[], &[]), (chunks, &firsts), true)?;
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
        self.ahead.forget();
        for (&slot, tree) in slots.iter().zip(trees) {
            self.pool.reserve(slot, self.sequence(slot).root() + tree.num_nodes())?;
        }
        self.pool.upload()?;
        self.times.begin()?;
        let (verified, _) = self.verify(&slots, trees, &[], &mut Errand::none())?;
        self.times.collect()?;
        let emissions = self.commit((&slots, trees, &verified), (&[], &[]), true)?;
        self.times.stats.count_round(trees, &verified, &emissions);
        self.times.end();
        Ok(emissions)
    }

    /// Drafts and selects the trees; false for a plain round. The result stays in the controller's round.
    fn draft(&mut self, slots: &[usize], chunks: &[Chunk], errand: &mut Errand) -> Result<bool> {
        let control = Instant::now();
        let views = self.views(slots);
        let passengers: Vec<Passenger> = chunks
            .iter()
            .map(|chunk| Passenger { rows: chunk.positions.len(), context_len: chunk.positions.start })
            .collect();
        let plan = self.controller.begin_shared_round(&views, &passengers);
        self.times.control(control);
        let Engine { proposer, sequences, times, controller, pool, masks, prefetch, .. } = self;
        let Some(proposer) = proposer.as_mut().filter(|_| plan.drafts()) else { return Ok(false) };
        let (round, equip) = controller.round_to_equip();
        let meanwhile = |round: &mut DraftRound| {
            equip(round);
            errand.run();
        };
        run_levels((proposer, masks, prefetch), (sequences, pool), slots, (times, meanwhile), round)?;
        let control = Instant::now();
        controller.round_mut().select();
        times.control(control);
        Ok(true)
    }

    /// Running sequences as the controller sees them.
    pub(super) fn views(&self, slots: &[usize]) -> Vec<SequenceView> {
        let catches_up =
            self.feeds_drafter() && self.proposer.as_ref().is_some_and(|it| it.network().is_some());
        let view = |&slot: &usize| {
            let sequence = self.sequence(slot);
            let left = sequence.request.max_new_tokens - sequence.emitted().len();
            let view = sequence.view((left - 1).min(MAX_ROWS_PER_SEQUENCE - 1));
            if catches_up { view } else { SequenceView { backlog: 0, ..view } }
        };
        slots.iter().map(view).collect()
    }

    /// What the host does while the device is busy with a target pass.
    pub(super) fn do_meanwhile(&mut self, errand: &mut Errand) {
        let start = Instant::now();
        self.controller.catch_up();
        errand.run();
        self.times.meanwhile(start);
    }

    /// Feeds times and outcomes to the controller.
    fn learn(&mut self, verified: &[Verified]) {
        let control = Instant::now();
        let accepted = accepted_nodes(verified);
        let outcomes = outcomes(&accepted, verified);
        let (levels, verify, total) = self.times.lessons();
        let times = PhaseTimes { draft_levels: &levels, verify, total };
        self.controller.observe_first(&RoundReport { sequences: &outcomes, times });
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

/// Drafts level by level, on what `round` asks for, until it asks for nothing more. `meanwhile` is called while the first level is run.
pub(super) fn run_levels(
    (proposer, masks, prefetch): (&mut Proposer, &mut MaskWriter, &Prefetch),
    (sequences, pool): (&mut [Option<Sequence>], &PagePool),
    slots: &[usize],
    (times, meanwhile): (&mut RoundClock, impl FnOnce(&mut DraftRound)),
    round: &mut DraftRound,
) -> Result<()> {
    let (top_k, levels) = (round.top_k(), round.plan().max_levels);
    let mut meanwhile = Some(meanwhile);
    loop {
        let control = Instant::now();
        let rows = round.next_level().map(<[_]>::to_vec);
        times.control(control);
        let Some(rows) = rows else { return Ok(()) };
        let is_guided = |row: &FrontierRow| {
            sequences[slots[row.sequence as usize]].as_ref().is_some_and(|sequence| sequence.guided.is_some())
        };
        let masked = rows.iter().any(is_guided);
        let is_sampled = |row: &FrontierRow| {
            let sequence = sequences[slots[row.sequence as usize]].as_ref();
            sequence.is_some_and(|sequence| !sequence.request.sampling.is_greedy())
        };
        let ranking = Ranking { top_k, masked, sampled: rows.iter().any(is_sampled) };
        if proposer.run(&rows, (sequences, pool), slots, ranking, levels)? {
            times.spoil_draft();
        }
        if let Some(drafting) = proposer.network().filter(|_| masked) {
            // Made while the device is busy with the logits that they are for.
            masks.collect_level(&rows, sequences, slots);
            drafting.rank(ranking, |logits, d2t| masks.send(logits, d2t))?;
        }
        times.mark_level()?;
        // Most levels have another behind them.
        proposer.first_weight(false).map_or(Ok(()), |weight| prefetch.start(weight))?;
        if let Some(meanwhile) = meanwhile.take() {
            let start = Instant::now();
            meanwhile(round);
            times.meanwhile(start);
        }
        let (tokens, logps) = proposer.read_children()?;
        let count = rows.len() * top_k;
        let control = Instant::now();
        let (tokens, mut logps) = (&tokens[..count], Cow::Borrowed(&logps[..count]));
        if proposer.network().is_none() {
            ban_children(&rows, sequences, slots, tokens, &mut logps);
        }
        round.add_level(tokens, &logps);
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
