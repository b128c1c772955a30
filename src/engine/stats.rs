//! Times and counts of an engine's rounds.

use std::time::Instant;

use crate::device::{Device, Timeline};
use crate::engine::commit::Emission;
use crate::engine::verifier::Verified;
use crate::error::Result;
use crate::tree::DraftTree;

/// Sums over the rounds since the engine was built or [`Stats::default`] was assigned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Rounds run, plain ones included.
    pub rounds: u64,
    /// Of these, plain rounds that were issued before the host had read the round before.
    pub rounds_ahead: u64,
    /// Rounds times running sequences.
    pub sequence_rounds: u64,
    /// Tokens emitted by rounds (the token that prefill draws is not one of them).
    pub emitted_tokens: u64,
    /// Accepted draft tokens.
    pub accepted_tokens: u64,
    /// Nodes verified, roots included.
    pub nodes: u64,
    /// Prefill outside decoding rounds, ms: passes that only read prompts, and the drafter's reading of those that the target has read beside a round.
    pub prefill_ms: f64,
    /// Device time of drafting, ms.
    pub draft_ms: f64,
    /// Device time of target passes with draws, walk and compaction, ms.
    pub verify_ms: f64,
    /// Host time of the controller, ms.
    pub control_ms: f64,
    /// What the host did for rounds before while the device was busy, ms: the controller's learning, and the errands of
    /// [`Engine::step_meanwhile`](crate::engine::Engine::step_meanwhile). Part of no other time here, as long as the device is busy for longer.
    pub meanwhile_ms: f64,
    /// All rounds, host work included, ms.
    pub decode_ms: f64,
}

impl Stats {
    /// Accepted draft tokens per sequence and round; the bonus token is not one of them.
    pub fn mean_accepted_len(&self) -> f64 {
        self.accepted_tokens as f64 / (self.sequence_rounds as f64).max(1.0)
    }

    /// Verified nodes per sequence and round, root included.
    pub fn mean_nodes(&self) -> f64 {
        self.nodes as f64 / (self.sequence_rounds as f64).max(1.0)
    }

    /// Tokens per second of decoding, prefill excluded; 0 before the first round.
    pub fn tokens_per_second(&self) -> f64 {
        if self.decode_ms > 0.0 { self.emitted_tokens as f64 / self.decode_ms * 1e3 } else { 0.0 }
    }

    pub(super) fn count_round(&mut self, trees: &[DraftTree], verified: &[Verified], emissions: &[Emission]) {
        self.rounds += 1;
        self.sequence_rounds += trees.len() as u64;
        self.nodes += trees.iter().map(|tree| tree.num_nodes() as u64).sum::<u64>();
        self.accepted_tokens += verified.iter().map(|v| v.accepted.len() as u64).sum::<u64>();
        self.emitted_tokens += emissions.iter().map(|emission| emission.tokens.len() as u64).sum::<u64>();
    }
}

/// Measured times of one round, µs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoundTimes {
    /// Each drafter pass, from the end of the one before it.
    pub draft_us: Vec<f64>,
    /// The target pass.
    pub verify_us: f64,
    /// Host time of the controller, all of it; 0 where time is modelled.
    pub control_us: f64,
    /// The part of `control_us` that passed while drafter passes were timed, and so is part of `draft_us`.
    pub control_in_draft_us: f64,
    /// The part of `control_us` that is part of `verify_us`.
    pub control_in_verify_us: f64,
    /// The whole round, with the host work that followed the target pass of the round before it.
    pub total_us: f64,
}

/// Marks the phases of rounds on the stream and sums them up.
pub(super) struct RoundClock {
    timeline: Timeline,
    levels: usize,
    /// When the host began to work on the results of the last target pass.
    tail_start: Instant,
    /// How long that took, µs. Zero where time is modelled: a host's real time has no place in it.
    tail_us: f64,
    modelled: bool,
    /// Whether the host kept the device waiting within a drafter pass, and within the target pass.
    spoilt_draft: bool,
    spoilt_verify: bool,
    control: ControlTime,
    pub stats: Stats,
    pub last: RoundTimes,
}

impl RoundClock {
    pub fn new(device: &Device) -> Self {
        Self {
            timeline: Timeline::new(device),
            levels: 0,
            tail_start: Instant::now(),
            tail_us: 0.0,
            modelled: device.has_modelled_time(),
            spoilt_draft: false,
            spoilt_verify: false,
            control: ControlTime::default(),
            stats: Stats::default(),
            last: RoundTimes::default(),
        }
    }

    /// Starts a round.
    pub fn begin(&mut self) -> Result<()> {
        self.timeline.restart();
        self.levels = 0;
        (self.spoilt_draft, self.spoilt_verify) = (false, false);
        self.control = ControlTime::default();
        self.timeline.mark()
    }

    /// Ends a drafter pass.
    pub fn mark_level(&mut self) -> Result<()> {
        self.levels += 1;
        self.control.in_draft_us += std::mem::take(&mut self.control.unmarked_us);
        self.timeline.mark()
    }

    /// Ends the target pass.
    pub fn mark_verify(&mut self) -> Result<()> {
        self.control.in_verify_us += std::mem::take(&mut self.control.unmarked_us);
        self.timeline.mark()
    }

    /// Marks the times of the drafter's passes as ones that say nothing of passes to come.
    pub fn spoil_draft(&mut self) {
        self.spoilt_draft = true;
    }

    /// Marks the time of the target pass so.
    pub fn spoil_verify(&mut self) {
        self.spoilt_verify = true;
    }

    /// Times of the latest round's drafter passes, of its target pass and of all of it, µs, where they say what such a round costs.
    pub fn lessons(&self) -> (Vec<f32>, Option<f32>, Option<f32>) {
        let RoundTimes { draft_us, verify_us, total_us, .. } = &self.last;
        let levels = draft_us.iter().filter(|_| !self.spoilt_draft).map(|&us| us as f32).collect();
        let verify = (!self.spoilt_verify).then_some(*verify_us as f32);
        let total = (!self.spoilt_draft && !self.spoilt_verify).then_some(*total_us as f32);
        (levels, verify, total)
    }

    /// Adds host time of the controller since `start`.
    pub fn control(&mut self, start: Instant) {
        let us = start.elapsed().as_secs_f64() * 1e6;
        self.stats.control_ms += us / 1e3;
        self.control.us += us;
        self.control.unmarked_us += us;
    }

    /// Adds what the host has done since `start` while the device was busy.
    pub fn meanwhile(&mut self, start: Instant) {
        if !self.modelled {
            self.stats.meanwhile_ms += start.elapsed().as_secs_f64() * 1e3;
        }
    }

    /// Reads the phases of the round, whose results have been waited for, and starts the host's tail.
    pub fn collect(&mut self) -> Result<()> {
        self.tail_start = Instant::now();
        // Results may be seen a moment before a mark that was issued in front of them.
        self.timeline.wait()?;
        let phases = self.timeline.phases()?.unwrap_or_default();
        let (draft, verify) = phases.split_at(self.levels.min(phases.len()));
        self.last = RoundTimes {
            draft_us: draft.to_vec(),
            verify_us: verify.iter().sum(),
            total_us: phases.iter().sum::<f64>() + self.tail_us,
            ..RoundTimes::default()
        };
        self.stats.draft_ms += draft.iter().sum::<f64>() / 1e3;
        self.stats.verify_ms += self.last.verify_us / 1e3;
        self.stats.decode_ms += self.last.total_us / 1e3;
        Ok(())
    }

    /// The same for a round that was issued behind another, and took so many µs from the end of that; `waited` says whether the device waited for
    /// the host meanwhile.
    pub fn collect_ahead(&mut self, us: f64, waited: bool) {
        self.tail_start = Instant::now();
        self.control = ControlTime::default();
        (self.spoilt_draft, self.spoilt_verify) = (false, waited);
        self.last = RoundTimes { verify_us: us, total_us: us, ..RoundTimes::default() };
        self.stats.rounds_ahead += 1;
        self.stats.verify_ms += us / 1e3;
        self.stats.decode_ms += us / 1e3;
    }

    /// Ends the round.
    pub fn end(&mut self) {
        self.tail_us = if self.modelled { 0.0 } else { self.tail_start.elapsed().as_secs_f64() * 1e6 };
        if !self.modelled {
            self.last.control_us = self.control.us;
            self.last.control_in_draft_us = self.control.in_draft_us;
            self.last.control_in_verify_us = self.control.in_verify_us;
        }
    }

    /// Counts what followed the latest round as a part of prefill, not of the next round.
    pub fn count_tail_as_prefill(&mut self) {
        self.stats.prefill_ms += std::mem::take(&mut self.tail_us) / 1e3;
    }

    /// Leaves what followed the latest round out of the next one's time.
    pub fn forget_tail(&mut self) {
        self.tail_us = 0.0;
    }
}

/// Host time of the controller in the present round, µs.
#[derive(Default)]
struct ControlTime {
    us: f64,
    in_draft_us: f64,
    in_verify_us: f64,
    /// Since the last mark.
    unmarked_us: f64,
}
