//! Where the time of a pass goes: its graph cut short behind every launch, timed each, so that a launch's time is what it adds where it stands,
//! overlapped as it is and with the caches as they are.

use std::time::{Duration, Instant};

use crate::control::SweepKind;
use crate::device::{Device, Event, KernelLaunch};
use crate::engine::Engine;
use crate::engine::proposer::Proposer;
use crate::engine::sweep::{NODES_PER_SEQUENCE, PassSize, draft_pass, reserve, verify_pass};
use crate::error::{Error, Result};
use crate::model::MAX_ROWS_PER_SEQUENCE;

/// Turns in which all beginnings are measured, the last of them while time lasts. The least counts: what disturbs a beginning only lengthens it.
const TURNS: std::ops::Range<usize> = 3..20;
const TIME_LIMIT: Duration = Duration::from_secs(1);

/// A pass over rows of one sequence and what its launches take. For the target it ends with the logits; draws are not a part of its graph.
#[derive(Clone, Debug, PartialEq)]
pub struct PassBreakdown {
    /// Of the target or of the drafter.
    pub kind: SweepKind,
    /// Rows of the pass.
    pub rows: usize,
    /// Cached tokens before them.
    pub context: usize,
    /// Launches that are alike, in the order of the first of each.
    pub parts: Vec<PassPart>,
    /// A graph without launches, µs.
    pub start_us: f64,
}

/// Launches of one kernel and shape.
#[derive(Clone, Debug, PartialEq)]
pub struct PassPart {
    /// What they are.
    pub launch: KernelLaunch,
    /// How many.
    pub count: usize,
    /// What they add to the pass, all together, µs.
    pub us: f64,
}

impl PassBreakdown {
    /// The pass as a whole, µs.
    pub fn total_us(&self) -> f64 {
        self.start_us + self.parts.iter().map(|part| part.us).sum::<f64>()
    }
}

impl Engine {
    /// Takes a target pass of `rows` apart, and a level of the drafter of as many (up to 64), if that runs once a level. What the engine's controller
    /// knows does not change.
    ///
    /// # Errors
    /// Sequences are running; time is modelled; no or too many rows; driver failures.
    pub fn break_down_passes(&mut self, rows: usize) -> Result<Vec<PassBreakdown>> {
        self.check_idle()?;
        if self.device.has_modelled_time() {
            return Err(Error::Input("passes have no parts under modelled time (SIMT_CLOCK)".into()));
        }
        if !(1..=MAX_ROWS_PER_SEQUENCE).contains(&rows) {
            return Err(Error::Input(format!(
                "a pass of {rows} rows: between 1 and {MAX_ROWS_PER_SEQUENCE} can be taken apart"
            )));
        }
        let context = (self.limits.max_context - 1).min(1024);
        reserve(&mut self.verifier, &mut self.pool, context, context, 1)?;
        let breakdowns = self.break_down(rows, context);
        self.pool.release(0);
        breakdowns
    }

    fn break_down(&mut self, rows: usize, context: usize) -> Result<Vec<PassBreakdown>> {
        let Self { verifier, pool, proposer, .. } = self;
        let pass = |kind| PassSize { kind, tokens: rows, sequences: 1, context };
        verifier.graphs.break_down_next();
        verify_pass((verifier, pool), proposer.as_ref(), pass(SweepKind::Verify))?;
        let mut found = vec![(SweepKind::Verify, verifier.graphs.take_parts())];
        let drafting = proposer.as_mut().and_then(Proposer::network_mut);
        if let Some(drafting) = drafting.filter(|_| rows <= NODES_PER_SEQUENCE) {
            drafting.catch_up_for_sweep(pool, 1, context)?;
            drafting.graphs.break_down_next();
            draft_pass(drafting, pass(SweepKind::Draft))?;
            found.push((SweepKind::Draft, drafting.graphs.take_parts()));
        }
        self.device.synchronize()?;
        let breakdown = |(kind, parts): (_, Option<Parts>)| {
            parts.map(|Parts { start_us, parts }| PassBreakdown { kind, rows, context, parts, start_us })
        };
        Ok(found.into_iter().filter_map(breakdown).collect())
    }
}

/// What a pass came to.
pub(super) struct Parts {
    start_us: f64,
    parts: Vec<PassPart>,
}

/// Times all beginnings of `pass`, each behind the whole of it, which leaves caches as a round does. `pass` has run before: kernels are loaded.
pub(super) fn measure(device: &Device, pass: impl Fn() -> Result<()>) -> Result<Parts> {
    let (whole, launches) = device.capture_first(usize::MAX, &pass)?;
    let (begin, end) = (Event::new(device)?, Event::new(device)?);
    let mut ends = vec![f64::INFINITY; launches.len() + 1];
    let start = Instant::now();
    for turn in 0..TURNS.end {
        if turn >= TURNS.start && start.elapsed() > TIME_LIMIT {
            break;
        }
        for (count, least) in ends.iter_mut().enumerate() {
            let (beginning, _) = device.capture_first(count, &pass)?;
            // A graph is brought to the device by its first launch.
            beginning.launch()?;
            whole.launch()?;
            begin.record()?;
            beginning.launch()?;
            end.record()?;
            device.synchronize()?;
            *least = least.min(end.micros_since(&begin)?.unwrap_or_default());
        }
    }
    // Nor does a beginning take longer than what goes on behind it.
    for count in (0..launches.len()).rev() {
        ends[count] = ends[count].min(ends[count + 1]);
    }
    let mut parts: Vec<PassPart> = Vec::new();
    for (launch, ends_around) in launches.into_iter().zip(ends.windows(2)) {
        let us = ends_around[1] - ends_around[0];
        match parts.iter_mut().find(|part| part.launch == launch) {
            Some(part) => {
                part.count += 1;
                part.us += us;
            }
            None => parts.push(PassPart { launch, count: 1, us }),
        }
    }
    Ok(Parts { start_us: ends[0], parts })
}
