//! The engine: a target, perhaps a drafter, and the rounds that turn prompts into tokens.
//!
//! Files in reading order: `request` (what is asked), `schedule` (who runs), `round` (one round, the heart), `verify` and `commit` (its second
//! half), `ahead` (plain rounds that do not wait for the host), `errand` (what the host does meanwhile), `sequence` (what is known of a request), `verifier` (the target's side), `graphs` (its passes by shape),
//! `pictures` (what it sees beside its tokens), `guided` (a text under a grammar), `penalties`, `masks` and `logprobs` (what is done to logits, and read from them),
//! `drafting` (the drafter's side), `heads` (that of Medusa heads), `proposer` (what drafts, the text's n-grams too), `sweep` (start-up cost
//! measurement), `profile` (the same on demand), `builder`, `loading`, `policy`, `stats`, `generation`, `scoring`, `recording`.
//!
//! Whatever the policy, the tree and the neighbours, a request's tokens are a function of prompt, sampling parameters and
//! weights alone: the target's own draw decides at every node, and its noise depends on seed, position and token only.
//!
//! ```
//! use smart_run::engine::{Engine, Request};
//! use smart_run::sampling::SamplingParams;
//!
//! # fn main() -> smart_run::Result<()> {
//! let mut engine = Engine::builder(std::path::Path::new("assets/demo/target"))
//!     .drafter(std::path::Path::new("assets/demo/drafter"))
//!     .build()?;
//! let sampling = SamplingParams { temperature: 0.7, seed: 1, ..Default::default() };
//! let request = Request { sampling, ..Request::new(vec![0, 87, 12], 16) };
//! for tokens in engine.generate(request)? {
//!     println!("{:?}", tokens?); // the tokens of one round
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod ahead;
mod breakdown;
mod builder;
mod candidates;
mod commit;
mod drafting;
mod errand;
mod generation;
mod graphs;
mod guided;
mod heads;
mod idle;
mod loading;
mod logprobs;
mod masks;
#[cfg(test)]
mod mutations;
mod penalties;
mod pictures;
mod policy;
mod prefetch;
mod profile;
mod proposer;
mod recording;
mod request;
mod round;
mod schedule;
mod scoring;
mod sequence;
mod stats;
mod sweep;
mod verifier;
mod verify;

use std::collections::VecDeque;
use std::hash::RandomState;
use std::io::Write;

use crate::control::trace::{RoundTrace, SequenceTrace, TraceHeader, write_line};
use crate::control::{Controller, SequenceOutcome};
use crate::device::Device;
use crate::engine::ahead::Ahead;
use crate::engine::logprobs::LogprobReader;
use crate::engine::masks::MaskWriter;
use crate::engine::policy::StartCosts;
use crate::engine::prefetch::Prefetch;
use crate::engine::proposer::Proposer;
use crate::engine::round::LastRound;
use crate::engine::sequence::Sequence;
use crate::engine::stats::RoundClock;
use crate::engine::verifier::{Verified, Verifier};
use crate::error::{Error, Result};
use crate::kernels::linear::TunedLaunch;
use crate::model::vision::VisionEncoder;
use crate::pages::PagePool;

pub use crate::drafter::DraftVocabulary;
pub use crate::pages::{CacheEvent, CacheLayout, PageCounts, PositionKey};
pub use breakdown::{PassBreakdown, PassPart};
pub use builder::{DraftSource, EngineBuilder};
pub use commit::{Emission, TokenLogprobs};
pub use generation::Generation;
pub use idle::IdleLevel;
pub use pictures::expand_prompt;
pub use profile::MeasuredCosts;
pub use request::{MAX_LOGIT_BIASES, MAX_TOP_LOGPROBS, Request, RequestLimits};
pub use sequence::{Failure, FinishReason, NO_TOKEN, SequenceId, SequenceStats};
pub use stats::{RoundTimes, Stats};

/// Serves sequences with one target and one policy.
pub struct Engine {
    device: Device,
    verifier: Verifier,
    proposer: Option<Proposer>,
    /// What pictures are seen through.
    vision: Option<VisionEncoder>,
    controller: Controller,
    start_costs: StartCosts,
    /// Draft tokens that every sequence keeps; see [`EngineBuilder::floor`].
    floor: usize,
    /// By slot; a slot is a row of the page tables.
    sequences: Vec<Option<Sequence>>,
    /// Emissions that the next step hands out.
    pending: Vec<Emission>,
    /// Those that wait for a place, first come first.
    queue: VecDeque<Sequence>,
    /// Who holds which pages of the caches.
    pool: PagePool,
    key_hasher: RandomState,
    /// Tokens of prompts read beside a round, at most.
    prefill_tokens: usize,
    page_bytes: usize,
    logprobs: LogprobReader,
    masks: MaskWriter,
    prefetch: Prefetch,
    preemptions: u64,
    next_id: u64,
    limits: RequestLimits,
    times: RoundClock,
    ahead: Ahead,
    last_round: Option<LastRound>,
    trace: Option<Trace>,
    recording: Option<recording::Recording>,
    dtype_name: &'static str,
    /// A bug to plant, in tests of the tests.
    #[cfg(test)]
    planted: Option<Bug>,
}

/// Predicted and measured time of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LastTimes {
    /// As the cost model foresaw it, µs.
    pub predicted_us: f32,
    /// As measured, µs.
    pub measured_us: f64,
    /// Predicted tokens per second relative to a plain round.
    pub speedup: f32,
}

/// Bugs that the losslessness tests must notice (`mutations`).
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
enum Bug {
    /// Accepted keys and values stay where the tree put them.
    StaleKv,
    /// A token that the target did not draw is accepted in place of one that it did.
    WrongSibling,
    /// Drafted nodes are rotated and drawn one position late.
    LatePosition,
    /// Every drafted node sees its siblings.
    SeesSiblings,
}

struct Trace {
    out: Box<dyn Write + Send>,
    round: u64,
}

impl Engine {
    /// Starts building an engine for the model at `model`: a Hugging Face folder, or an embedded model.
    pub fn builder(model: impl Into<crate::config::ModelSource>) -> EngineBuilder<'static> {
        EngineBuilder::new(model.into())
    }

    /// The device kernels run on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The target's configuration.
    pub fn model_config(&self) -> &crate::config::ModelConfig {
        self.verifier.target.config()
    }

    /// The vision tower, if the model sees pictures.
    pub fn vision(&self) -> Option<&VisionEncoder> {
        self.vision.as_ref()
    }

    /// Longest context (prompt and emitted tokens) of a sequence.
    pub fn max_context(&self) -> usize {
        self.limits.max_context
    }

    /// Type of weights and activations: `bf16`, `f16` or `f32`.
    pub fn dtype(&self) -> &'static str {
        self.dtype_name
    }

    /// The controller, to read its models.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Sums over all rounds so far.
    pub fn stats(&self) -> &Stats {
        &self.times.stats
    }

    /// Forgets the sums; what the controller has learned stays.
    pub fn reset_stats(&mut self) {
        self.times.stats = Stats::default();
    }

    /// What requests must keep to.
    pub fn limits(&self) -> RequestLimits {
        self.limits.clone()
    }

    /// Whether nothing runs, waits or is left to hand out.
    pub fn is_idle(&self) -> bool {
        self.running().next().is_none() && self.queue.is_empty() && self.pending.is_empty()
    }

    /// Times of the latest [`Engine::step`] that ran a round.
    pub fn last_times(&self) -> Option<LastTimes> {
        let round = self.last_round.as_ref()?;
        Some(LastTimes {
            predicted_us: round.predicted_us,
            measured_us: self.times.last.total_us,
            speedup: round.speedup,
        })
    }

    /// Bytes of a page of keys and values, the target's and the drafter's.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// How often a sequence gave its pages up to an older one.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Shapes of passes that run as one graph: of the target, and of the drafter.
    pub fn pass_graphs(&self) -> (usize, usize) {
        let network = self.proposer.as_ref().and_then(Proposer::network);
        (self.verifier.graphs.num_graphs(), network.map_or(0, |drafting| drafting.graphs.num_graphs()))
    }

    /// Launches of linear layers that could run in several ways, and those that measurements chose at the start, of the target and of a drafter
    /// that is a network; none on the host driver.
    pub fn tuned_launches(&self) -> [&[TunedLaunch]; 2] {
        let network = self.proposer.as_ref().and_then(Proposer::network);
        [self.verifier.target.tuned(), network.map_or(&[], |drafting| drafting.network.layer().tuned())]
    }

    /// Sequences that are running, those whose prompts are being read included, in slot order.
    pub fn running(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.sequences.iter().flatten().map(|sequence| sequence.id)
    }

    /// The one of those who wait that comes next.
    pub fn next_in_line(&self) -> Option<SequenceId> {
        self.queue.front().map(|sequence| sequence.id)
    }

    /// Ends a running sequence and frees its memory; false if there is none of that name.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        let slot = self.sequences.iter().position(|s| s.as_ref().is_some_and(|s| s.id == id));
        if let Some(slot) = slot {
            self.publish(slot);
            self.release(slot);
        }
        self.pending.retain(|emission| emission.sequence != id);
        let waiting = self.queue.len();
        self.queue.retain(|waits| waits.id != id);
        slot.is_some() || self.queue.len() < waiting
    }

    /// Writes the header and from now on every round to `out` (see `control::trace`).
    pub fn set_trace(&mut self, out: impl Write + Send + 'static, header: &TraceHeader) -> Result<()> {
        let mut trace = Trace { out: Box::new(out), round: 0 };
        write_line(&mut trace.out, header).map_err(trace_error)?;
        self.trace = Some(trace);
        Ok(())
    }

    /// Flushes and closes the trace.
    pub fn finish_trace(&mut self) -> Result<()> {
        self.trace.take().map_or(Ok(()), |mut trace| trace.out.flush()).map_err(trace_error)
    }

    /// Whether `bug` is planted; never outside tests.
    fn has(&self, bug: Bug) -> bool {
        #[cfg(test)]
        return self.planted == Some(bug);
        #[cfg(not(test))]
        {
            let _ = bug;
            false
        }
    }

    fn sequence(&self, slot: usize) -> &Sequence {
        self.sequences[slot].as_ref().expect("running slots hold sequences")
    }

    /// Running sequences whose prompts are read.
    fn deciding_slots(&self) -> Vec<usize> {
        let mut slots = self.running_slots();
        slots.retain(|&slot| self.sequence(slot).unread.is_none());
        slots
    }

    fn running_slots(&self) -> Vec<usize> {
        (0..self.sequences.len()).filter(|&slot| self.sequences[slot].is_some()).collect()
    }

    fn release(&mut self, slot: usize) {
        self.sequences[slot] = None;
        self.pool.release(slot);
        if let Some(proposer) = &mut self.proposer {
            proposer.release(slot);
        }
    }

    fn trace_round(&mut self, slots: &[usize], verified: &[Verified]) -> Result<()> {
        let Some(trace) = &mut self.trace else { return Ok(()) };
        self.controller.round_mut().compute_ratios();
        for (index, outcome) in verified.iter().enumerate().take(slots.len()) {
            let accepted: Vec<u32> = outcome.accepted.iter().map(|&node| node as u32).collect();
            let outcome = SequenceOutcome { accepted: &accepted, drawn: &outcome.drawn };
            write_line(&mut trace.out, &SequenceTrace::new(&self.controller, trace.round, index, &outcome))
                .map_err(trace_error)?;
        }
        let measured = &self.times.last;
        let record = RoundTrace {
            round: trace.round,
            predicted_us: self.controller.predicted().into(),
            measured_us: crate::control::trace::PhaseTrace {
                draft: Some(measured.draft_us.iter().sum::<f64>() as f32),
                verify: Some(measured.verify_us as f32),
                total: Some(measured.total_us as f32),
            },
        };
        trace.round += 1;
        write_line(&mut trace.out, &record).map_err(trace_error)
    }
}

fn trace_error(error: std::io::Error) -> Error {
    Error::Device(format!("the trace cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    /// A server runs its engine on a thread of its own.
    #[test]
    fn an_engine_can_move_to_another_thread() {
        fn moves<T: Send>() {}
        moves::<super::Engine>();
    }
}
