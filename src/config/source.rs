//! Where a model's files come from.

use std::borrow::Cow;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A model: a folder in Hugging Face layout, or one embedded in the program.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A folder with `config.json`, weights (`*.safetensors`, `pytorch_model*.bin`) and usually `tokenizer.json`.
    Dir(PathBuf),
    /// Files that the program carries.
    Embedded(&'static EmbeddedModel),
}

/// The files of a model as static data. The library embeds none; a program fills this with `include_str!` and
/// `include_bytes!`.
#[derive(Debug)]
pub struct EmbeddedModel {
    /// Stands for the folder in messages and reports.
    pub name: &'static str,
    /// `config.json`.
    pub config: &'static str,
    /// `generation_config.json`.
    pub generation_config: Option<&'static str>,
    /// `tokenizer.json`.
    pub tokenizer: Option<&'static [u8]>,
    /// `model.safetensors`.
    pub weights: &'static [u8],
}

impl ModelSource {
    /// The folder, or the embedded model's name: what messages and reports call the model.
    pub fn name(&self) -> String {
        self.root().display().to_string()
    }

    /// The path that messages give for `file`.
    pub fn path(&self, file: &str) -> PathBuf {
        self.root().join(file)
    }

    /// Content of the small file `file`; `None` when the model has no such file.
    pub(crate) fn read_optional(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>> {
        match self {
            ModelSource::Dir(_) => {
                let path = self.path(file);
                match fs::read(&path) {
                    Ok(content) => Ok(Some(Cow::Owned(content))),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(Error::io(path, error)),
                }
            }
            ModelSource::Embedded(model) => Ok(model.file(file).map(Cow::Borrowed)),
        }
    }

    /// Content of the small file `file`, which the model must have.
    pub(crate) fn read(&self, file: &str) -> Result<Cow<'static, [u8]>> {
        self.check_root()?;
        self.read_optional(file)?.ok_or_else(|| {
            Error::format(self.root(), format!("no {file} here; a Hugging Face model folder holds one"))
        })
    }

    /// Fails when the folder itself is missing or is no folder: a better sentence than "no config.json".
    pub(crate) fn check_root(&self) -> Result<()> {
        let ModelSource::Dir(dir) = self else { return Ok(()) };
        let metadata = fs::metadata(dir).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::format(dir, "there is no such model folder"),
            _ => Error::io(dir, error),
        })?;
        if metadata.is_dir() {
            Ok(())
        } else {
            Err(Error::format(dir, "this is a file; give the model's folder (config.json, *.safetensors)"))
        }
    }

    fn root(&self) -> &Path {
        match self {
            ModelSource::Dir(dir) => dir,
            ModelSource::Embedded(model) => Path::new(model.name),
        }
    }
}

impl From<PathBuf> for ModelSource {
    fn from(dir: PathBuf) -> Self {
        ModelSource::Dir(dir)
    }
}

impl From<&Path> for ModelSource {
    fn from(dir: &Path) -> Self {
        ModelSource::Dir(dir.to_path_buf())
    }
}

impl EmbeddedModel {
    fn file(&self, name: &str) -> Option<&'static [u8]> {
        match name {
            "config.json" => Some(self.config.as_bytes()),
            "generation_config.json" => self.generation_config.map(str::as_bytes),
            "tokenizer.json" => self.tokenizer,
            _ => None,
        }
    }
}
