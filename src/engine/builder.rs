//! From files to a ready engine: loading, memory sizing, start-up cost measurement.

use std::collections::VecDeque;
use std::hash::RandomState;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{FloatType, ModelSource};
use crate::control::{Controller, CostModel, MAX_TOP_K, Policy};
use crate::device::{Device, DeviceChoice};
use crate::drafter::{DraftVocabulary, LoadedDrafter};
use crate::engine::ahead::{self, Ahead};
use crate::engine::drafting::Drafting;
use crate::engine::graphs;
use crate::engine::heads::HeadsProposer;
use crate::engine::loading::Loaded;
use crate::engine::logprobs::LogprobReader;
use crate::engine::masks::MaskWriter;
use crate::engine::policy::{StartCosts, limits, start_scope};
use crate::engine::prefetch::Prefetch;
use crate::engine::proposer::{NgramProposer, Proposer};
use crate::engine::stats::RoundClock;
use crate::engine::verifier::Verifier;
use crate::engine::{Engine, RequestLimits};
use crate::error::{Error, Result};
use crate::kv_cache::{KvCache, KvShape, PAGE_SIZE};
use crate::model::MAX_ROWS_PER_SEQUENCE;
use crate::pages::PagePool;

/// How long linear layers may be measured, the target's and a drafter's.
const TUNING_LIMIT: Duration = Duration::from_millis(400);

/// Called while weights load: what is being loaded, bytes done, bytes in all.
pub type LoadProgress<'a> = Box<dyn FnMut(&str, usize, usize) + 'a>;

/// What drafts.
#[derive(Clone, Debug)]
pub enum DraftSource {
    /// The weights of a drafter that was made for the target.
    Weights(ModelSource),
    /// N-grams of each request's own text, which need no weights.
    Ngrams,
}

impl DraftSource {
    /// What reports and messages call it.
    pub fn name(&self) -> String {
        match self {
            Self::Weights(source) => source.name(),
            Self::Ngrams => "n-grams".into(),
        }
    }
}

impl<Source: Into<ModelSource>> From<Source> for DraftSource {
    fn from(source: Source) -> Self {
        Self::Weights(source.into())
    }
}

/// Collects what an [`Engine`] is made of.
pub struct EngineBuilder<'a> {
    pub(super) model: ModelSource,
    pub(super) drafter: Option<DraftSource>,
    pub(super) draft_vocabulary: Option<DraftVocabulary>,
    pub(super) coupled: bool,
    pub(super) device: DeviceChoice,
    pub(super) float_type: Option<FloatType>,
    pub(super) policy: Option<Policy>,
    pub(super) max_sequences: usize,
    pub(super) floor: usize,
    pub(super) max_context: usize,
    pub(super) prefill_tokens: usize,
    pub(super) pass_tread: Option<usize>,
    pub(super) run_ahead: Option<bool>,
    pub(super) prefetch_bytes: Option<usize>,
    pub(super) tune_within: Option<Duration>,
    pub(super) dummy_weights: bool,
    pub(super) kv_budget_bytes: Option<usize>,
    pub(super) cost_cache: Option<PathBuf>,
    pub(super) costs: Option<CostModel>,
    pub(super) progress: LoadProgress<'a>,
}

impl EngineBuilder<'static> {
    pub(super) fn new(model: ModelSource) -> Self {
        Self {
            model,
            drafter: None,
            draft_vocabulary: None,
            coupled: true,
            device: DeviceChoice::Auto,
            float_type: None,
            policy: None,
            max_sequences: 1,
            floor: 0,
            max_context: usize::MAX,
            prefill_tokens: 512,
            pass_tread: None,
            run_ahead: None,
            prefetch_bytes: None,
            tune_within: None,
            dummy_weights: false,
            kv_budget_bytes: None,
            cost_cache: None,
            costs: None,
            progress: Box::new(|_, _, _| ()),
        }
    }
}

impl<'a> EngineBuilder<'a> {
    /// What drafts for the model: the folder of EAGLE-3, EAGLE-1, MSD or Medusa weights, or [`DraftSource::Ngrams`]. Nothing by default.
    pub fn drafter(mut self, drafter: impl Into<DraftSource>) -> Self {
        self.drafter = Some(drafter.into());
        self
    }

    /// The target's tokens that the drafter may propose; all that it was trained with by default. Fewer make the drafter's head quicker, and never
    /// change a text. For EAGLE-1, MSD, Medusa, and EAGLE-3 with the target's whole vocabulary.
    pub fn draft_vocabulary(mut self, vocabulary: DraftVocabulary) -> Self {
        self.draft_vocabulary = Some(vocabulary);
        self
    }

    /// Lets sampled text be drafted without regard to the noise of its draws, as other runtimes do: fewer drafts are accepted, and texts are the same. For
    /// comparisons, and for records that hold the target's probabilities.
    pub fn uncoupled(mut self) -> Self {
        self.coupled = false;
        self
    }

    /// Makes the weights up: of the folders of target and drafter nothing but the config is read. What passes cost can be measured so; texts mean nothing.
    /// For language models and EAGLE-3 drafters; a config of a model that sees pictures is an error of [`EngineBuilder::build`].
    pub fn dummy_weights(mut self) -> Self {
        self.dummy_weights = true;
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

    /// Under `smart`: draft tokens that every drafting sequence keeps in verification before the rest of the pass goes to the best nodes of
    /// the batch; 0 by default, which is fastest overall. A floor bounds how long a hard sequence waits for its easy neighbours.
    pub fn floor(mut self, draft_tokens: usize) -> Self {
        self.floor = draft_tokens;
        self
    }

    /// Tokens of prompts that are read beside a round, at most, at least 1; 512 by default. More begin new texts sooner, fewer make those that run wait
    /// less.
    pub fn prefill_tokens(mut self, count: usize) -> Self {
        self.prefill_tokens = count;
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

    /// A file that keeps measured costs from run to run: with one, the first three starts measure them; without, all do.
    pub fn cost_cache(mut self, path: impl Into<PathBuf>) -> Self {
        self.cost_cache = Some(path.into());
        self
    }

    /// Costs to start from, in place of a measurement: those of a [`CostTable`](crate::control::CostTable) of this machine, say. Rounds
    /// correct them as they correct measured ones.
    pub fn costs(mut self, costs: CostModel) -> Self {
        self.costs = Some(costs);
        self
    }

    /// Fills passes of target and drafter up to a multiple of so many rows, and runs those of one shape as one graph, whatever the device: for tests.
    #[doc(hidden)]
    pub fn pass_tread(mut self, rows: usize) -> Self {
        self.pass_tread = Some(rows);
        self
    }

    /// How long linear layers are measured at the start, the target's and a drafter's, to run in the fastest way that the device has for them; zero:
    /// not at all, which is usual where there is no GPU. For tests.
    #[doc(hidden)]
    pub fn tune_within(mut self, limit: Duration) -> Self {
        self.tune_within = Some(limit);
        self
    }

    /// Whether plain rounds are issued before the host has read the one before, whatever the device: for tests.
    #[doc(hidden)]
    pub fn run_ahead(mut self, wanted: bool) -> Self {
        self.run_ahead = Some(wanted);
        self
    }

    /// How many bytes of weights are brought into the device's cache while the host thinks, whatever the device: for tests.
    #[doc(hidden)]
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.prefetch_bytes = Some(bytes);
        self
    }

    /// Called while weights load.
    pub fn progress<'b>(self, progress: impl FnMut(&str, usize, usize) + 'b) -> EngineBuilder<'b> {
        EngineBuilder { progress: Box::new(progress), ..self }
    }

    /// Says what [`EngineBuilder::build`] would say about files and options, without reading weights: configs, the names,
    /// shapes and types of all tensors, and whether the drafter was made for the target. Opens the device (any will do, the
    /// host driver too) but puts no weights on it.
    ///
    /// # Errors
    /// As [`EngineBuilder::build`], but for lack of memory and values beyond `float_type`.
    pub fn check(mut self) -> Result<()> {
        let mut files = self.open_files()?;
        files.checkpoint.rehearse();
        if let Some((_, checkpoint)) = &mut files.drafter {
            checkpoint.rehearse();
        }
        let device = Device::open(self.device)?;
        self.load(&device, files).map(drop)
    }

    /// Loads the model and prepares the device.
    ///
    /// # Errors
    /// Unusable files or options ([`Error::is_input`]); no usable device, or not enough memory on it.
    pub fn build(mut self) -> Result<Engine> {
        let policy = self.chosen_policy();
        let files = self.open_files()?;
        let float_type = files.float_type;
        let device = Device::open(self.device)?;
        let Loaded { mut target, vision, drafter } = self.load(&device, files)?;

        let budget = self.kv_budget_bytes;
        let max_sequences = self.max_sequences;
        let wanted_context = self.max_context.min(target.config().max_position);
        let shapes: Vec<KvShape> = std::iter::once(target.kv_shape())
            .chain(match &drafter {
                Some(LoadedDrafter::Network(network)) => Some(network.kv_shape()),
                Some(LoadedDrafter::Heads(_)) | None => None,
            })
            .collect();
        let num_pages = plan_pages(&device, &shapes, wanted_context, max_sequences, budget)?;
        let max_context =
            wanted_context.min((num_pages * PAGE_SIZE).saturating_sub(MAX_ROWS_PER_SEQUENCE)).max(1);
        // A tree may reach past the last position that can be emitted.
        let max_positions = max_context + MAX_ROWS_PER_SEQUENCE;
        let max_rows = MAX_ROWS_PER_SEQUENCE * max_sequences;
        let lookahead = usize::from(matches!(drafter, Some(LoadedDrafter::Network(_))));
        let mut pool = PagePool::new(&device, num_pages, max_sequences, max_positions, lookahead)?;
        let cache = |shape| KvCache::new(&device, shape, num_pages, pool.table().clone());
        target.prepare(max_rows, max_rows, max_positions)?;
        let tune_within =
            self.tune_within.unwrap_or(if device.is_host() { Duration::ZERO } else { TUNING_LIMIT });
        target.tune(Instant::now() + tune_within)?;
        let kv = cache(target.kv_shape())?;
        let tread = self.pass_tread.map_or_else(|| graphs::pass_tread(&device), Ok)?;
        let mut verifier = Verifier::new(&device, target, kv, (max_rows, tread), max_sequences)?;
        let sampling = self.coupled.then(|| verifier.sampling().clone());
        let mut proposer = match drafter {
            Some(LoadedDrafter::Network(mut network)) => {
                network.prepare(max_rows, 2 * max_rows, max_positions)?;
                network.layer_mut().tune(Instant::now() + tune_within)?;
                let kv = cache(network.kv_shape())?;
                let drafting =
                    Drafting::new(&device, network, kv, (max_rows, tread), max_sequences, sampling)?;
                Some(Proposer::Network(Box::new(drafting)))
            }
            Some(LoadedDrafter::Heads(mut heads)) => {
                heads.prepare(max_sequences)?;
                let heads = HeadsProposer::new(&device, *heads, max_rows, max_sequences, sampling)?;
                Some(Proposer::Heads(Box::new(heads)))
            }
            None if matches!(self.drafter, Some(DraftSource::Ngrams)) => {
                let vocab_size = verifier.target.config().geometry.vocab_size;
                if vocab_size < MAX_TOP_K {
                    return Err(Error::Input(format!(
                        "n-grams draft up to {MAX_TOP_K} different tokens a node, the vocabulary has {vocab_size}"
                    )));
                }
                Some(Proposer::Ngram(NgramProposer::new(vocab_size, max_sequences)))
            }
            None => None,
        };

        let fingerprint = format!(
            "smart-run {} | {} | {}{} | {}{} | {} | {} | {max_context} | {max_sequences}",
            env!("CARGO_PKG_VERSION"),
            device.name(),
            self.model.name(),
            if self.dummy_weights { ", dummy weights" } else { "" },
            self.drafter.as_ref().map(DraftSource::name).unwrap_or_default(),
            self.draft_vocabulary.as_ref().map_or(String::new(), |tokens| format!(" of {tokens}")),
            float_type.name(),
            kernels_fingerprint(&device, tread),
        );
        // Modelled time is exact and cheap to sweep; a file would only hide a changed table.
        let cache = self.cost_cache.filter(|_| !device.has_modelled_time());
        let mut start_costs = StartCosts::new(self.costs, cache.map(|path| (path, fingerprint)));
        let cost = match &mut proposer {
            Some(proposer) if policy.reads_costs() => {
                let scope = start_scope(max_context, max_sequences);
                start_costs.model(&device, (&mut verifier, &mut pool), proposer, scope)?
            }
            _ => CostModel::unmeasured(),
        };
        let vocab_size = verifier.target.config().geometry.vocab_size;
        let logprobs = LogprobReader::new(&device, vocab_size)?;
        let masks = MaskWriter::new(&device, vocab_size)?;
        let request_limits =
            RequestLimits { config: Arc::new(verifier.target.config().clone()), max_context };
        Ok(Engine {
            controller: Controller::new(policy, limits(max_sequences, self.floor, proposer.as_ref()), cost),
            proposer,
            vision,
            verifier,
            start_costs,
            floor: self.floor,
            sequences: (0..max_sequences).map(|_| None).collect(),
            pending: Vec::new(),
            queue: VecDeque::new(),
            pool,
            key_hasher: RandomState::new(),
            prefill_tokens: self.prefill_tokens,
            page_bytes: shapes.iter().map(KvShape::page_bytes).sum(),
            logprobs,
            masks,
            preemptions: 0,
            next_id: 0,
            limits: request_limits,
            times: RoundClock::new(&device),
            prefetch: Prefetch::new(&device, self.prefetch_bytes)?,
            ahead: Ahead::new(&device, self.run_ahead.map_or_else(|| ahead::is_usual(&device), Ok)?)?,
            trace: None,
            recording: None,
            last_round: None,
            dtype_name: float_type.name(),
            #[cfg(test)]
            planted: None,
            device,
        })
    }
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
fn kernels_fingerprint(device: &Device, tread: usize) -> String {
    format!(
        "kernels {}, nvcc {}, native twins {}, {}, {}, passes of {tread}",
        crate::device::KERNELS,
        crate::device::NVCC_VERSION,
        std::env::var("SIMT_NATIVE").unwrap_or_default(),
        device.driver_version(),
        device.families()
    )
}
