//! Vision towers: from the patches of a picture to embeddings that a language model reads in place of tokens.
//!
//! `tower` runs the transformer over patches, `join` brings what it gives to the language model's width, `layout` says (on the
//! host) where everything stands: which embedding follows which, how many there are, and the positions of patches and tokens.

mod join;
mod layout;
mod tower;

use crate::config::{FloatType, VisionConfig};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::image::Patches;
use crate::model::{Progress, WeightLoader};
use crate::weights::Checkpoint;

use join::Join;
use tower::Tower;

pub use layout::{
    PlacedPicture, check_patches, expand_placeholders, find_pictures, num_tokens, rotary_positions,
};

/// A vision tower on a device, with what joins it to its language model.
pub struct VisionEncoder {
    config: VisionConfig,
    tower: Tower,
    join: Join,
}

impl VisionEncoder {
    /// Loads the tower of `checkpoint` for a language model of width `hidden`.
    ///
    /// # Errors
    /// Missing or misshapen tensors; a lack of memory.
    pub fn load(
        device: &Device,
        config: VisionConfig,
        hidden: usize,
        checkpoint: &Checkpoint,
        float_type: FloatType,
        progress: Progress,
    ) -> Result<Self> {
        let mut loader = WeightLoader::new(device, checkpoint, float_type, progress);
        Ok(Self {
            tower: Tower::load(&mut loader, &config.tower)?,
            join: Join::load(&mut loader, &config, hidden)?,
            config,
        })
    }

    /// The embeddings `[num_tokens, hidden]` of a picture, in the order of its tokens. Takes its working memory for the call.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for patches that this tower does not take; driver failures.
    pub fn encode(&self, patches: &Patches) -> Result<Tensor> {
        check_patches(&self.config, patches.layout())?;
        let features = self.tower.forward(patches)?;
        self.join.forward(&features, patches.layout())
    }

    /// What the tower alone gives, before it is joined: `[tiles * patches, tower width]`.
    ///
    /// # Errors
    /// As [`VisionEncoder::encode`].
    pub fn tower_features(&self, patches: &Patches) -> Result<Tensor> {
        check_patches(&self.config, patches.layout())?;
        self.tower.forward(patches)
    }

    /// The configuration.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }
}
