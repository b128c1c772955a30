//! [`ServedModel`]: what stands around the engine: the model's name, its tokenizer, chat template and way with pictures.

use crate::config::{ModelConfig, ModelSource};
use crate::error::{Error, Result};
use crate::image::ImageProcessor;
use crate::text::{ChatTemplate, GrammarCompiler, TokenTexts, Tokenizer};

use super::tool_calls::ToolFormat;

/// A model's files, but for the weights.
pub struct ServedModel {
    pub(super) name: String,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<ChatTemplate>,
    pub(super) tools: Option<ToolFormat>,
    pub(super) images: Option<ImageProcessor>,
    pub(super) texts: TokenTexts,
    /// Compiles grammars of answers; or why that is not possible.
    pub(super) grammars: std::result::Result<GrammarCompiler, String>,
    /// Bytes of the longest token: a longer text than this times the context cannot fit.
    pub(super) longest_token: usize,
}

impl ServedModel {
    /// Opens the model at `source`, to be served under `name`.
    ///
    /// # Errors
    /// No tokenizer; a broken file.
    pub fn open(source: &ModelSource, name: impl Into<String>) -> Result<Self> {
        let config = ModelConfig::from_hf(source)?;
        let tokenizer = Tokenizer::open(source)?.ok_or_else(|| {
            Error::format(
                source.name(),
                "no tokenizer.json here, which a server needs to read and write text",
            )
        })?;
        let template = ChatTemplate::open(source)?;
        let grammars = GrammarCompiler::new(&tokenizer, config.geometry.vocab_size, &config.eos_token_ids);
        let grammars = grammars.map_err(|error| match error {
            Error::Format { reason, .. } => reason,
            error => error.to_string(),
        });
        let images = match &config.vision {
            Some(vision) => ImageProcessor::from_hf(source, vision.tower.patch_size)?,
            None => None,
        };
        let ids = 0..i32::try_from(tokenizer.num_ids()).unwrap_or(i32::MAX);
        let longest_token =
            ids.filter_map(|id| tokenizer.spelling(id)).map(|token| token.len()).max().unwrap_or(1);
        Ok(Self {
            name: name.into(),
            texts: TokenTexts::new(tokenizer.clone())?,
            grammars,
            tools: template.as_ref().and_then(ToolFormat::of),
            tokenizer,
            template,
            images,
            longest_token,
        })
    }

    /// The name that requests give.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has a chat template.
    pub fn chats(&self) -> bool {
        self.template.is_some()
    }
}
