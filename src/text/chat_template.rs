//! Where a model keeps its chat template.

use serde_json::Value;

use crate::config::ModelSource;
use crate::{Error, Result};

/// The file of `source` that holds a chat template, if one does: of its own (transformers 4.48 and newer), or a field of
/// the tokenizer's or processor's configuration.
///
/// # Errors
/// A configuration that is not valid JSON.
pub fn chat_template_file(source: &ModelSource) -> Result<Option<&'static str>> {
    const OWN: &str = "chat_template.jinja";
    if source.read_optional(OWN)?.is_some() {
        return Ok(Some(OWN));
    }
    for file in ["tokenizer_config.json", "chat_template.json"] {
        let Some(content) = source.read_optional(file)? else { continue };
        let json: Value = serde_json::from_slice(&content)
            .map_err(|error| Error::format(source.path(file), format!("this is not valid JSON: {error}")))?;
        if json.get("chat_template").is_some_and(|template| !template.is_null()) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}
