//! Drafters: small networks that propose the tokens of a draft tree. One file a drafting method.
//!
//! A drafter's row is a pair: the feature of position t beside token t+1. It has rotary position and key/value position t, and its
//! logits predict token t+2. Where the target has seen position t the feature comes from it (its *taps*); where it has not, the
//! feature is the drafter's own output at the pair before. Medusa heads have no rows of their own: they read one feature a round.
#![forbid(unsafe_code)]

mod eagle1;
mod eagle3;
mod layer;
mod medusa;
pub mod ngram;
mod scores;
mod vocabulary;

use crate::config::{
    ConfigSummary, Eagle1Config, Eagle3Config, MedusaConfig, ModelConfig, ModelKind, ModelSource,
};
use crate::device::Tensor;
use crate::error::Result;
use crate::kv_cache::{KvCache, KvShape};
use crate::model::{Decoder, Pass, WeightLoader};
use crate::weights::Checkpoint;

use eagle1::Eagle1;
use eagle3::Eagle3;
use layer::DraftLayer;
pub use medusa::Medusa;
pub use scores::Scores;
pub use vocabulary::DraftVocabulary;
pub(crate) use vocabulary::HotTokens;

/// A drafter as the engine runs it.
pub trait Drafter: Send {
    /// The layer that it is.
    fn layer(&self) -> &DraftLayer;

    /// The same, to be changed.
    fn layer_mut(&mut self) -> &mut DraftLayer;

    /// Sizes the activations: passes of at most `max_rows` rows, rounds of at most `max_round_rows` rows in all, contexts
    /// of at most `max_positions`.
    fn prepare(&mut self, max_rows: usize, max_round_rows: usize, max_positions: usize) -> Result<()>;

    /// Runs committed pairs: what the target's streams were at row i is row `pass.links()[i]` of `taps[.., tap_width]`. Its outputs
    /// are kept by [`DraftLayer::keep_outputs`]. Returns the scores of the rows that want them, as many as the pass's logit width.
    /// Launches depend on the pass's shape alone, as do those of [`Drafter::step`].
    fn extend(&self, pass: &Pass, kv: &KvCache, taps: &Tensor) -> Result<Scores>;

    /// Runs drafted tokens: the feature of row i is row `pass.links()[i]` of the feature store. All else is as in [`Drafter::extend`].
    fn step(&self, pass: &Pass, kv: &KvCache) -> Result<Scores>;

    /// The weight that [`Drafter::extend`] reads first, or else [`Drafter::step`].
    fn first_weight(&self, extends: bool) -> &Tensor;

    /// The target's streams that it reads, as [`Taps`](crate::model::Taps) names them.
    fn tap_layers(&self) -> &[usize];

    /// Columns of a row of taps.
    fn tap_width(&self) -> usize;

    /// Offsets from draft ids to target ids, i32 `[draft vocab]`; `None` when both vocabularies are one.
    fn d2t(&self) -> Option<&Tensor>;

    /// Geometry of the key/value cache it needs.
    fn kv_shape(&self) -> KvShape {
        self.layer().kv_shape()
    }
}

/// What kind of drafter a folder holds, and its configuration.
pub enum DrafterConfig {
    /// EAGLE-1 and EAGLE-2, whose weights are the same; MSD.
    Eagle1(Eagle1Config),
    /// EAGLE-3.
    Eagle3(Eagle3Config),
    /// Medusa heads.
    Medusa(MedusaConfig),
}

/// A drafter with its weights.
pub enum LoadedDrafter {
    /// A network that runs once a level.
    Network(Box<dyn Drafter>),
    /// Heads that bring all levels at once.
    Heads(Box<Medusa>),
}

impl DrafterConfig {
    /// Reads and validates the configuration of a drafter for `target`. Configs of both kinds may look alike; the tensors tell them apart.
    ///
    /// # Errors
    /// A configuration that is broken, not supported, or made for another target.
    pub fn read(source: &ModelSource, checkpoint: &Checkpoint, target: &ModelConfig) -> Result<Self> {
        let summary = ConfigSummary::read(source)?;
        let kind = ModelKind::of(&summary, checkpoint.names());
        match kind {
            Some(ModelKind::Eagle1) => Eagle1Config::from_hf(source, target).map(Self::Eagle1),
            Some(ModelKind::Msd) => Eagle1Config::msd(source, target).map(Self::Eagle1),
            Some(ModelKind::Medusa) => {
                let tensors = checkpoint.tensors().map(|tensor| (tensor.name, tensor.shape));
                MedusaConfig::from_hf(source, tensors, target).map(Self::Medusa)
            }
            // What is no drafter either is said by who expects one.
            _ => Eagle3Config::from_hf(source, target).map(Self::Eagle3),
        }
    }

    /// Loads the drafter for `target`, whose tokens it proposes or `hot` ones of them; every tensor of the checkpoint must have a use.
    ///
    /// # Errors
    /// Missing, unknown or misshapen tensors; a lack of memory; `hot` tokens for a drafter that was trained with a vocabulary of its own.
    pub(crate) fn load(
        self,
        mut loader: WeightLoader,
        target: &Decoder,
        hot: Option<&HotTokens>,
    ) -> Result<LoadedDrafter> {
        use LoadedDrafter::{Heads, Network};
        let loader = &mut loader;
        let drafter = match self {
            Self::Eagle1(config) => Network(Box::new(Eagle1::load(loader, config, target, hot)?)),
            Self::Eagle3(config) => Network(Box::new(Eagle3::load(loader, config, target, hot)?)),
            Self::Medusa(config) => Heads(Box::new(Medusa::load(loader, config, target.config(), hot)?)),
        };
        loader.checkpoint.finish()?;
        Ok(drafter)
    }
}
