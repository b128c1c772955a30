//! The pictures of `--image`, prepared as the model wants them.

use std::path::{Path, PathBuf};

use smart_run::config::{ModelConfig, ModelSource};
use smart_run::image::{ImageProcessor, Patches, Picture};
use smart_run::{Error, Result};

/// Opens pictures for one model.
pub struct PictureFiles {
    processor: ImageProcessor,
}

impl PictureFiles {
    /// How the model at `source` wants its pictures.
    ///
    /// # Errors
    /// A model that sees none, or whose folder does not say how they are prepared.
    pub fn of(source: &ModelSource, config: &ModelConfig) -> Result<Self> {
        let Some(vision) = &config.vision else {
            return Err(Error::Input(format!(
                "{} reads text alone: --image needs a model that sees, such as LLaVA or Qwen2-VL",
                source.name()
            )));
        };
        match ImageProcessor::from_hf(source, vision.tower.patch_size)? {
            Some(processor) => Ok(Self { processor }),
            None => Err(Error::format(
                source.name(),
                "no preprocessor_config.json here, which says how pictures are prepared",
            )),
        }
    }

    /// The picture in `path`.
    ///
    /// # Errors
    /// A file that cannot be read, is no picture, or has a shape that the model does not take.
    pub fn open(&self, path: &Path) -> Result<Patches> {
        self.processor.prepare(&Picture::open(path)?)
    }

    /// The pictures in `paths`, in order; nothing is asked of the model where there are none.
    ///
    /// # Errors
    /// As [`PictureFiles::of`] and [`PictureFiles::open`].
    pub fn open_all(source: &ModelSource, config: &ModelConfig, paths: &[PathBuf]) -> Result<Vec<Patches>> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let pictures = Self::of(source, config)?;
        paths.iter().map(|path| pictures.open(path)).collect()
    }
}
