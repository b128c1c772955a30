//! What a model does with a picture before its vision tower sees it.

use super::picture::check_size;
use super::{AnyresProcessor, DynamicProcessor, FixedProcessor, PatchLayout, Patches, Picture};
use crate::config::{ImageConfig, ModelSource};
use crate::{Error, Result};

/// An image processor, one variant a way to choose the resolution.
#[derive(Debug, Clone)]
pub enum ImageProcessor {
    /// CLIP, SigLIP, LLaVA: every picture in one size.
    Fixed(FixedProcessor),
    /// LLaVA-NeXT: the whole picture, and a larger one in tiles.
    Anyres(AnyresProcessor),
    /// Qwen2-VL, Qwen2.5-VL: about the picture's own size.
    Dynamic(DynamicProcessor),
}

impl ImageProcessor {
    /// The image processor of the model `source`, whose vision tower takes patches of `patch_size` x `patch_size` pixels;
    /// `None` if the model says nothing of pictures.
    ///
    /// # Errors
    /// A field that is broken, not supported, or does not fit the patch size.
    pub fn from_hf(source: &ModelSource, patch_size: usize) -> Result<Option<Self>> {
        let Some(config) = ImageConfig::from_hf(source)? else { return Ok(None) };
        let misfit = |what: String| {
            let reason =
                format!("the image processor {what}, the model's vision tower takes patches of {patch_size}");
            Error::format(source.name(), reason)
        };
        match config {
            ImageConfig::Fixed(config) => {
                let (rows, columns) = config.output_size();
                if patch_size == 0 || patch_size > rows.min(columns) {
                    return Err(misfit(format!("makes pictures of {rows} x {columns} pixels")));
                }
                Ok(Some(ImageProcessor::Fixed(FixedProcessor::new(config, patch_size))))
            }
            ImageConfig::Anyres(config) => {
                if patch_size == 0 || patch_size > config.tile {
                    return Err(misfit(format!("makes tiles of {0} x {0} pixels", config.tile)));
                }
                Ok(Some(ImageProcessor::Anyres(AnyresProcessor::new(config, patch_size))))
            }
            ImageConfig::Dynamic(config) => {
                if patch_size != config.patch_size {
                    return Err(misfit(format!("has a `patch_size` of {}", config.patch_size)));
                }
                Ok(Some(ImageProcessor::Dynamic(DynamicProcessor::new(config))))
            }
        }
    }

    /// How the patches of a picture of `size`, (height, width) in pixels, will stand: how many there are and what memory they take, known
    /// without making them.
    ///
    /// # Errors
    /// [`Error::Input`] for a picture whose shape the processor does not take.
    pub fn layout(&self, size: (usize, usize)) -> Result<PatchLayout> {
        check_size(size.0, size.1).map_err(Error::Input)?;
        match self {
            ImageProcessor::Fixed(processor) => processor.layout(size),
            ImageProcessor::Anyres(processor) => Ok(processor.layout(size)),
            ImageProcessor::Dynamic(processor) => processor.layout(size),
        }
    }

    /// What the vision tower is given of `picture`.
    ///
    /// # Errors
    /// [`Error::Input`] for a picture whose shape the processor does not take.
    pub fn prepare(&self, picture: &Picture) -> Result<Patches> {
        match self {
            ImageProcessor::Fixed(processor) => processor.prepare(picture),
            ImageProcessor::Anyres(processor) => processor.prepare(picture),
            ImageProcessor::Dynamic(processor) => processor.prepare(picture),
        }
    }
}
