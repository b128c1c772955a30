//! From files to a ready engine: loading, memory sizing, start-up cost measurement.

use std::path::PathBuf;

use crate::config::{Eagle3Config, FloatType, ModelConfig, ModelSource};
use crate::control::{Controller, ControllerConfig, CostModel, Policy};
use crate::device::{Device, DeviceChoice};
use crate::drafter::Eagle3;
use crate::engine::drafting::Drafting;
use crate::engine::stats::RoundClock;
use crate::engine::verifier::Verifier;
use crate::engine::{Engine, sweep};
use crate::error::{Error, Result};
use crate::kv_cache::{KvCache, KvShape, PAGE_SIZE};
use crate::model::{Decoder, MAX_ROWS_PER_SEQUENCE};
use crate::weights::Checkpoint;

/// Called while weights load: what is being loaded, bytes done, bytes in all.
pub type LoadProgress<'a> = Box<dyn FnMut(&str, usize, usize) + 'a>;

/// Collects what an [`Engine`] is made of.
pub struct EngineBuilder<'a> {
    model: ModelSource,
    drafter: Option<ModelSource>,
    device: DeviceChoice,
    float_type: Option<FloatType>,
    policy: Option<Policy>,
    max_sequences: usize,
    max_context: usize,
    kv_budget_bytes: Option<usize>,
    cost_cache: Option<PathBuf>,
    progress: LoadProgress<'a>,
}

impl EngineBuilder<'static> {
    pub(super) fn new(model: ModelSource) -> Self {
        Self {
            model,
            drafter: None,
            device: DeviceChoice::Auto,
            float_type: None,
            policy: None,
            max_sequences: 1,
            max_context: usize::MAX,
            kv_budget_bytes: None,
            cost_cache: None,
            progress: Box::new(|_, _, _| ()),
        }
    }
}

impl<'a> EngineBuilder<'a> {
    /// An EAGLE-3 drafter for the model.
    pub fn drafter(mut self, drafter: impl Into<ModelSource>) -> Self {
        self.drafter = Some(drafter.into());
        self
    }

    /// Where to run; a usable GPU, else the host driver, by default.
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// The type weights and activations are converted to; as stored by default.
    pub fn float_type(mut self, float_type: FloatType) -> Self {
        self.float_type = Some(float_type);
        self
    }

    /// How trees are grown; `smart` with a drafter and `plain` without by default.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Sequences served at once; 1 by default.
    pub fn max_sequences(mut self, count: usize) -> Self {
        self.max_sequences = count;
        self
    }

    /// Longest context in tokens; the model's own limit by default, and never more than that.
    pub fn max_context(mut self, tokens: usize) -> Self {
        self.max_context = tokens;
        self
    }

    /// Device memory for keys and values, in bytes; by default what `max_sequences` full contexts need, at most half of
    /// the memory that is free once the weights are loaded.
    pub fn kv_budget_bytes(mut self, bytes: usize) -> Self {
        self.kv_budget_bytes = Some(bytes);
        self
    }

    /// A file that keeps measured costs from run to run; without one they are measured at every start.
    pub fn cost_cache(mut self, path: impl Into<PathBuf>) -> Self {
        self.cost_cache = Some(path.into());
        self
    }

    /// Called while weights load.
    pub fn progress<'b>(self, progress: impl FnMut(&str, usize, usize) + 'b) -> EngineBuilder<'b> {
        EngineBuilder { progress: Box::new(progress), ..self }
    }

    /// Loads the model and prepares the device.
    ///
    /// # Errors
    /// Unusable files or options ([`Error::is_input`]); no usable device, or not enough memory on it.
    pub fn build(mut self) -> Result<Engine> {
        let policy =
            self.policy.unwrap_or(if self.drafter.is_some() { Policy::Smart } else { Policy::Plain });
        if policy != Policy::Plain && self.drafter.is_none() {
            return Err(Error::Input(format!(
                "policy {policy} needs a drafter; give one with --draft, or use plain"
            )));
        }
        if self.max_sequences == 0 {
            return Err(Error::Input("an engine serves at least one sequence".into()));
        }
        // Everything that can be said without a device is said first.
        let config = ModelConfig::from_hf(&self.model)?;
        let draft_config =
            self.drafter.as_ref().map(|source| Eagle3Config::from_hf(source, &config)).transpose()?;
        let checkpoint = Checkpoint::open(&self.model)?;
        let draft_checkpoint = self.drafter.as_ref().map(Checkpoint::open).transpose()?;
        let float_type = match self.float_type.or(config.dtype) {
            Some(float_type) => float_type,
            None => checkpoint.float_type()?,
        };

        let device = Device::open(self.device)?;
        let progress = &mut self.progress;
        let mut target = Decoder::load(&device, config, &checkpoint, float_type, &mut |done, all| {
            progress("target", done, all)
        })?;
        let mut drafter = match (draft_config, &draft_checkpoint) {
            (Some(config), Some(checkpoint)) => {
                let progress = &mut |done: usize, all: usize| progress("drafter", done, all);
                Some(Eagle3::load(&device, config, checkpoint, float_type, &target, progress)?)
            }
            _ => None,
        };

        let budget = self.kv_budget_bytes;
        let max_sequences = self.max_sequences;
        let wanted_context = self.max_context.min(target.config().max_position);
        let shapes: Vec<KvShape> =
            std::iter::once(target.kv_shape()).chain(drafter.as_ref().map(Eagle3::kv_shape)).collect();
        let num_pages = plan_pages(&device, &shapes, wanted_context, max_sequences, budget)?;
        let max_context =
            wanted_context.min((num_pages * PAGE_SIZE).saturating_sub(MAX_ROWS_PER_SEQUENCE)).max(1);
        // A tree may reach past the last position that can be emitted.
        let max_positions = max_context + MAX_ROWS_PER_SEQUENCE;
        let max_rows = MAX_ROWS_PER_SEQUENCE * max_sequences;
        let cache = |shape| KvCache::new(&device, shape, num_pages, max_sequences, max_positions);
        target.prepare(max_rows, max_rows, max_positions)?;
        let kv = cache(target.kv_shape())?;
        let mut verifier = Verifier::new(&device, target, kv, max_rows, max_sequences)?;
        let mut drafting = match drafter.take() {
            Some(mut network) => {
                network.prepare(max_rows, 2 * max_rows, max_positions)?;
                let kv = cache(network.kv_shape())?;
                Some(Drafting::new(&device, network, kv, max_rows, max_sequences)?)
            }
            None => None,
        };

        let cost = match &mut drafting {
            Some(drafting) if reads_costs(policy) => {
                let fingerprint = format!(
                    "smart-run {} | {} | {} | {} | {} | {max_context} | {max_sequences}",
                    env!("CARGO_PKG_VERSION"),
                    device.name(),
                    self.model.name(),
                    float_type.name(),
                    kernels_fingerprint(),
                );
                // Modelled time is exact and cheap to sweep; a file would only hide a changed table.
                let cache = self.cost_cache.filter(|_| !device.has_modelled_time());
                match cache.as_deref().and_then(|path| CostModel::load(path, &fingerprint)) {
                    Some(cost) => cost,
                    None => {
                        let scope = sweep::Scope { max_context, max_sequences, plain_passes: false };
                        let sweep = sweep::measure(&device, &mut verifier, Some(drafting), scope)?;
                        let cost = CostModel::from_sweep(&sweep.points, sweep.treads)?;
                        if let Some(path) = cache {
                            cost.save(&path, &fingerprint);
                        }
                        cost
                    }
                }
            }
            _ => CostModel::unmeasured(),
        };
        let limits = ControllerConfig { max_level_rows: max_rows, ..ControllerConfig::default() };
        Ok(Engine {
            verifier,
            drafting,
            controller: Controller::new(policy, limits, cost),
            sequences: (0..max_sequences).map(|_| None).collect(),
            pending: Vec::new(),
            next_id: 0,
            max_context,
            times: RoundClock::new(&device),
            trace: None,
            recording: None,
            dtype_name: float_type.name(),
            #[cfg(test)]
            planted: None,
            device,
        })
    }
}

/// Whether plans of `policy` depend on the cost model.
fn reads_costs(policy: Policy) -> bool {
    matches!(
        policy,
        Policy::Smart | Policy::SmartPaper | Policy::AutoN | Policy::Sequoia { .. } | Policy::Goodput { .. }
    )
}

/// Pages of each cache: enough for `max_sequences` contexts, within the budget.
fn plan_pages(
    device: &Device,
    shapes: &[KvShape],
    context: usize,
    max_sequences: usize,
    budget: Option<usize>,
) -> Result<usize> {
    let page_bytes: usize = shapes.iter().map(KvShape::page_bytes).sum();
    let wanted = (context + MAX_ROWS_PER_SEQUENCE).div_ceil(PAGE_SIZE) * max_sequences;
    let budget = match budget {
        Some(bytes) => bytes,
        None => device.memory()?.0 / 2,
    };
    let num_pages = wanted.min(budget / page_bytes);
    let least = (MAX_ROWS_PER_SEQUENCE + 1).div_ceil(PAGE_SIZE);
    if num_pages < least {
        return Err(Error::Input(format!(
            "a key/value budget of {} MiB is too small: one sequence needs at least {} MiB",
            budget >> 20,
            (least * page_bytes).div_ceil(1 << 20)
        )));
    }
    Ok(num_pages)
}

/// Tells apart kernels that cost differently under the same name.
fn kernels_fingerprint() -> String {
    format!(
        "nvcc {}, native twins {}",
        crate::device::NVCC_VERSION,
        std::env::var("SIMT_NATIVE").unwrap_or_default()
    )
}
