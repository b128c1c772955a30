//! Which policy an engine runs: its controllers, and the measured costs that they start from.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use crate::control::{Controller, ControllerConfig, CostModel, KeptSweep, Policy};
use crate::device::Device;
use crate::engine::proposer::Proposer;
use crate::engine::verifier::Verifier;
use crate::engine::{Engine, sweep};
use crate::error::{Error, Result};
use crate::model::MAX_ROWS_PER_SEQUENCE;
use crate::pages::PagePool;

impl Engine {
    /// A controller for `policy` that knows the start-up costs and nothing else. If the policy reads costs and none has asked for them
    /// yet, they are measured now.
    ///
    /// # Errors
    /// [`Error::Input`]: the policy needs a drafter and there is none, or sequences are running; driver failures.
    pub fn new_controller(&mut self, policy: Policy) -> Result<Controller> {
        check_drafter(policy, self.proposer.is_some())?;
        self.check_idle()?;
        let cost = match &mut self.proposer {
            Some(proposer) if policy.reads_costs() => {
                let scope = start_scope(self.limits.max_context, self.sequences.len());
                self.start_costs.model(&self.device, (&mut self.verifier, &mut self.pool), proposer, scope)?
            }
            _ => CostModel::unmeasured(),
        };
        let config = limits(self.sequences.len(), self.floor, self.proposer.as_ref());
        Ok(Controller::new(policy, config, cost))
    }

    /// Runs under `controller`, one of [`Engine::new_controller`], from the next request on; returns the one so far, with all that it
    /// has learned, which may be put back later.
    ///
    /// # Errors
    /// [`Error::Input`]: the controller's policy needs a drafter and there is none, or sequences are running.
    pub fn set_controller(&mut self, controller: Controller) -> Result<Controller> {
        check_drafter(controller.policy(), self.proposer.is_some())?;
        self.check_idle()?;
        // A controller that never drafts leaves the drafter's part of the pages empty.
        self.pool.clear_cache();
        self.last_round = None;
        self.times.forget_tail();
        Ok(std::mem::replace(&mut self.controller, controller))
    }

    /// Whether there is a drafter that may run and that reads the target's features; if not, they are not kept.
    pub(super) fn feeds_drafter(&self) -> bool {
        self.proposer.as_ref().is_some_and(Proposer::reads_features)
            && (self.controller.policy() != Policy::Plain || self.recording.is_some())
    }

    /// # Errors
    /// [`Error::Input`] while sequences are running.
    pub(super) fn check_idle(&self) -> Result<()> {
        if self.is_idle() {
            return Ok(());
        }
        Err(Error::Input("sequences are running; wait for them to end, or cancel them".into()))
    }
}

/// Costs to start from: measured at most once, and only for who reads them.
pub(super) struct StartCosts {
    /// A file that keeps sweeps from run to run, and what they hold for.
    cache: Option<(PathBuf, String)>,
    known: Option<CostModel>,
}

impl StartCosts {
    /// Those that are `given`, or else in the `cache` if enough sweeps are, or else measured.
    pub fn new(given: Option<CostModel>, cache: Option<(PathBuf, String)>) -> Self {
        Self { cache, known: given }
    }

    /// The model; no sequence may be running.
    pub fn model(
        &mut self,
        device: &Device,
        (verifier, pool): (&mut Verifier, &mut PagePool),
        proposer: &mut Proposer,
        scope: sweep::Scope,
    ) -> Result<CostModel> {
        if let Some(cost) = &self.known {
            return Ok(cost.clone());
        }
        let mut kept = match &self.cache {
            Some((path, fingerprint)) => KeptSweep::load(path, fingerprint),
            None => KeptSweep::new(""),
        };
        if !kept.is_settled() {
            let sweep = sweep::measure(device, (verifier, pool), Some(proposer), scope)?;
            kept.add(&sweep.points, sweep.treads);
            if let Some((path, _)) = &self.cache {
                kept.save(path);
            }
        }
        let cost = kept.cost_model()?;
        Ok(self.known.insert(cost).clone())
    }
}

/// What a start-up measures.
pub(super) fn start_scope(max_context: usize, max_sequences: usize) -> sweep::Scope {
    sweep::Scope { max_context, max_sequences, plain_passes: false }
}

/// # Errors
/// [`Error::Input`] if `policy` drafts and there is nothing to draft with.
pub(super) fn check_drafter(policy: Policy, has_drafter: bool) -> Result<()> {
    if policy == Policy::Plain || has_drafter {
        return Ok(());
    }
    Err(Error::Input(format!("policy {policy} needs a drafter; give one with --draft, or use plain")))
}

/// Bounds of the controller of an engine with `max_sequences` places that drafts with `proposer`.
pub(super) fn limits(max_sequences: usize, floor: usize, proposer: Option<&Proposer>) -> ControllerConfig {
    let max_level_rows = MAX_ROWS_PER_SEQUENCE * max_sequences;
    let heads = proposer.and_then(Proposer::num_heads);
    ControllerConfig { max_level_rows, floor, heads, ..ControllerConfig::default() }
}
