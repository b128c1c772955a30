//! [`Engine::measure_costs`]: the start-up sweep on demand, with what a round costs outside its passes and the state of the GPU.

use std::time::{Duration, Instant};

use crate::conditions::Conditions;
use crate::control::{Controller, CostModel, Policy, SweepPoint, Treads};
use crate::device::ConditionsProbe;
use crate::engine::idle::{self, IdleLevel};
use crate::engine::policy::limits;
use crate::engine::proposer::Proposer;
use crate::engine::{Engine, Request, sweep};
use crate::error::Result;

/// What [`Engine::measure_costs`] found; the numbers of a `control::CostTable`.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredCosts {
    /// Passes, in the order measured.
    pub points: Vec<SweepPoint>,
    /// Passes that a sweep without a time limit would have measured.
    pub planned_points: usize,
    /// Granularity of the kernels, as declared; passes may show another one (`CostModel::observed_tread`).
    pub treads: Treads,
    /// A drafted round of one sequence outside its passes, µs; 0 where time is modelled.
    pub overhead_us: f64,
    /// A plain round of one sequence outside its pass, µs.
    pub plain_overhead_us: f64,
    /// What it is worth to bring weights into the cache while the host thinks; none without a drafter that runs once a level, or where nothing is
    /// brought.
    pub idle_level: Option<IdleLevel>,
    /// Wall time of the sweep, without the overheads.
    pub sweep_time: Duration,
    /// The GPU at the start and the end of the sweep, if it tells.
    pub conditions: Option<Conditions>,
}

impl Engine {
    /// Times target and drafter passes as a start-up does, and a few rounds for what is outside of them. What the engine's own
    /// controller knows does not change.
    ///
    /// # Errors
    /// Sequences are running; driver failures.
    pub fn measure_costs(&mut self) -> Result<MeasuredCosts> {
        self.check_idle()?;
        let probe = ConditionsProbe::start(&self.device);
        let scope = sweep::Scope {
            max_context: self.limits.max_context,
            max_sequences: self.sequences.len(),
            plain_passes: true,
        };
        let sweep = sweep::measure(
            &self.device,
            (&mut self.verifier, &mut self.pool),
            self.proposer.as_mut(),
            scope,
        )?;
        let conditions = probe.and_then(ConditionsProbe::finish);
        let plain_overhead_us = self.measure_overhead(Policy::Plain)?;
        let overhead_us = match self.proposer {
            Some(_) => self.measure_overhead(Policy::Eagle2 { top_k: 10, depth: 3, total: 16 })?,
            None => plain_overhead_us,
        };
        let near = (self.limits.max_context / 4).min(64);
        let drafting = self.proposer.as_mut().and_then(Proposer::network_mut);
        let idle_level = match drafting.filter(|_| self.prefetch.is_wanted()) {
            Some(drafting) => {
                let target = (&mut self.verifier, &mut self.pool);
                Some(idle::measure(&self.device, target, drafting, &self.prefetch, near)?)
            }
            None => None,
        };
        Ok(MeasuredCosts {
            points: sweep.points,
            planned_points: sweep.planned,
            treads: sweep.treads,
            overhead_us,
            plain_overhead_us,
            idle_level,
            sweep_time: sweep.took,
            conditions,
        })
    }

    /// Median time outside the passes of a few rounds of one sequence under `policy`, µs; 0 if the context has no room for them.
    fn measure_overhead(&mut self, policy: Policy) -> Result<f64> {
        const PROMPT: usize = 4;
        const ROUNDS: usize = 16;
        const TIME_LIMIT: Duration = Duration::from_millis(150);
        let max_new_tokens = self.limits.max_context.saturating_sub(PROMPT).min(16 * ROUNDS);
        if max_new_tokens == 0 {
            return Ok(0.0);
        }
        let config = limits(self.sequences.len(), 0, self.proposer.as_ref());
        let controller = Controller::new(policy, config, CostModel::unmeasured());
        let own = std::mem::replace(&mut self.controller, controller);
        let (stats, trace, recording) = (self.times.stats.clone(), self.trace.take(), self.recording.take());
        let request = Request { ignore_eos: true, ..Request::new(vec![0; PROMPT], max_new_tokens) };
        let samples = self.overheads_of(request, ROUNDS, TIME_LIMIT);
        // The policies of these rounds leave other traces in pages than the engine's own.
        self.pool.clear_cache();
        self.controller = own;
        self.times.stats = stats;
        self.trace = trace;
        self.recording = recording;
        let mut samples = samples?;
        samples.sort_by(f64::total_cmp);
        Ok(samples.get(samples.len() / 2).copied().unwrap_or(0.0))
    }

    /// Time outside the passes of each of the first rounds of `request`, which is cancelled then.
    fn overheads_of(&mut self, request: Request, rounds: usize, limit: Duration) -> Result<Vec<f64>> {
        let id = self.submit(request)?;
        let start = Instant::now();
        let mut samples = Vec::new();
        // The first step hands out the token that prefill drew.
        let outcome = (0..=rounds).try_for_each(|step| {
            if start.elapsed() < limit && !self.is_idle() {
                self.step()?;
                let last = &self.times.last;
                let passes = last.draft_us.iter().sum::<f64>() + last.verify_us;
                // A round's total holds the host's work behind the round before it, which the first round does not have.
                samples.extend((step > 1).then(|| (last.total_us - passes).max(0.0)));
            }
            Ok(())
        });
        self.cancel(id);
        outcome.map(|()| samples)
    }
}
