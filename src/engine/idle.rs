//! What a level of a drafter takes behind an idle device, with and without weights brought in the meantime: whether [`Prefetch`] pays.

use std::time::{Duration, Instant};

use crate::control::SweepKind;
use crate::device::{Device, Event};
use crate::engine::drafting::Drafting;
use crate::engine::prefetch::Prefetch;
use crate::engine::sweep::{PassSize, draft_pass, reserve, verify_pass};
use crate::engine::verifier::Verifier;
use crate::error::Result;
use crate::pages::PagePool;

/// About as long as the host takes between two levels.
const IDLE: Duration = Duration::from_micros(20);
/// Rows of the level.
const ROWS: usize = 8;
const TURNS: usize = 9;

/// Time of a level of one sequence, µs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IdleLevel {
    /// Behind 20 µs in which the device had nothing to do.
    pub us: f64,
    /// The same, with the weights that it reads first brought into the cache in that time.
    pub prefetched_us: f64,
}

/// Measures in turns, the medians; the slot is free again afterwards.
pub(super) fn measure(
    device: &Device,
    (verifier, pool): (&mut Verifier, &mut PagePool),
    drafting: &mut Drafting,
    prefetch: &Prefetch,
    context: usize,
) -> Result<IdleLevel> {
    reserve(verifier, pool, context, context, 1)?;
    let pass = |kind, tokens| PassSize { kind, tokens, sequences: 1, context };
    let (begin, end) = (Event::new(device)?, Event::new(device)?);
    let mut times = [Vec::new(), Vec::new()];
    for turn in 0..=TURNS {
        for (brings, times) in [false, true].into_iter().zip(&mut times) {
            // A target pass drives the drafter's weights out, as in a round.
            verify_pass((verifier, pool), None, pass(SweepKind::Verify, 1))?;
            drafting.catch_up_for_sweep(pool, 1, context)?;
            device.synchronize()?;
            if brings {
                prefetch.start(drafting.network.first_weight(false))?;
            }
            let start = Instant::now();
            while start.elapsed() < IDLE {
                std::hint::spin_loop();
            }
            begin.record()?;
            draft_pass(drafting, pass(SweepKind::Draft, ROWS))?;
            end.record()?;
            device.synchronize()?;
            let us = end.micros_since(&begin)?.unwrap_or_default();
            // The first loads kernels, the second makes a graph.
            if turn > 1 {
                times.push(us);
            }
        }
    }
    pool.release(0);
    let [us, prefetched_us] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    Ok(IdleLevel { us, prefetched_us })
}
