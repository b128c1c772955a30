//! From files to networks: what an [`EngineBuilder`] opens, and loads.

use crate::config::{FloatType, ModelConfig};
use crate::control::Policy;
use crate::device::Device;
use crate::drafter::{DrafterConfig, HotTokens, LoadedDrafter};
use crate::engine::builder::{DraftSource, EngineBuilder};
use crate::engine::policy::check_drafter;
use crate::error::{Error, Result};
use crate::model::vision::VisionEncoder;
use crate::model::{Decoder, WeightLoader};
use crate::weights::Checkpoint;

/// What can be known of target and drafter without a device.
pub(super) struct Files {
    pub(super) config: ModelConfig,
    pub(super) checkpoint: Checkpoint,
    pub(super) drafter: Option<(DrafterConfig, Checkpoint)>,
    pub(super) hot_tokens: Option<HotTokens>,
    pub(super) float_type: FloatType,
}

/// What is on the device.
pub(super) struct Loaded {
    pub(super) target: Decoder,
    pub(super) vision: Option<VisionEncoder>,
    pub(super) drafter: Option<LoadedDrafter>,
}

impl EngineBuilder<'_> {
    pub(super) fn chosen_policy(&self) -> Policy {
        self.policy.unwrap_or(if self.drafter.is_some() { Policy::Smart } else { Policy::Plain })
    }

    /// Everything that can be said without a device is said here, first.
    pub(super) fn open_files(&self) -> Result<Files> {
        check_drafter(self.chosen_policy(), self.drafter.is_some())?;
        if self.max_sequences == 0 {
            return Err(Error::Input("an engine serves at least one sequence".into()));
        }
        if self.prefill_tokens == 0 {
            return Err(Error::Input("prefill_tokens is 0: no prompt would ever be read".into()));
        }
        let config = ModelConfig::from_hf(&self.model)?;
        if self.dummy_weights && config.vision.is_some() {
            return Err(Error::Input(
                "dummy weights are for language models, and this config is of one that sees pictures".into(),
            ));
        }
        let open =
            |source| if self.dummy_weights { Ok(Checkpoint::dummy()) } else { Checkpoint::open(source) };
        let checkpoint = open(&self.model)?;
        let drafter = match &self.drafter {
            Some(DraftSource::Weights(source)) => {
                let checkpoint = open(source)?;
                Some((DrafterConfig::read(source, &checkpoint, &config)?, checkpoint))
            }
            Some(DraftSource::Ngrams) | None => None,
        };
        let hot_tokens = match (&self.draft_vocabulary, &drafter) {
            (Some(vocabulary), Some(_)) => Some(vocabulary.tokens(config.geometry.vocab_size)?),
            (Some(_), None) => {
                let reason = "a draft vocabulary is for a drafter with weights, and there is none";
                return Err(Error::Input(reason.into()));
            }
            (None, _) => None,
        };
        let float_type = match self.float_type.or(config.dtype) {
            Some(float_type) => float_type,
            None if self.dummy_weights => FloatType::Bf16,
            None => checkpoint.float_type()?,
        };
        Ok(Files { config, checkpoint, drafter, hot_tokens, float_type })
    }

    pub(super) fn load(&mut self, device: &Device, files: Files) -> Result<Loaded> {
        let Files { config, checkpoint, drafter, hot_tokens, float_type } = files;
        let progress = &mut self.progress;
        let mut decoder_bytes = 0;
        let target = Decoder::load(device, config, &checkpoint, float_type, &mut |done, all| {
            decoder_bytes = done;
            progress("target", done, all)
        })?;
        let vision = match target.config().vision.clone() {
            Some(config) => {
                let hidden = target.config().geometry.hidden_size;
                let progress = &mut |done, all| progress("target", decoder_bytes + done, all);
                Some(VisionEncoder::load(device, config, hidden, &checkpoint, float_type, progress)?)
            }
            None => None,
        };
        // Every tensor of the checkpoint has had a use.
        checkpoint.finish()?;
        let Some((config, checkpoint)) = drafter else { return Ok(Loaded { target, vision, drafter: None }) };
        let progress = &mut |done: usize, all: usize| progress("drafter", done, all);
        let loader = WeightLoader::new(device, &checkpoint, float_type, progress);
        let drafter = config.load(loader, &target, hot_tokens.as_ref())?;
        Ok(Loaded { target, vision, drafter: Some(drafter) })
    }
}
