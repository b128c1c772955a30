//! What an answer has to look like: `response_format`, and the call that `tool_choice` asks for.

use super::errors::ApiError;
use super::fields::Fields;
use super::model::ServedModel;
use crate::text::{Grammar, GrammarSpec};

const FORMAT: &str = "response_format";

/// Reads `response_format`: none for free text, else the grammar that answers keep to. Compiling takes its time.
///
/// # Errors
/// 400 for an unknown format, for a schema, expression or grammar that is wrong or too large, and where the model's tokenizer cannot tell
/// the bytes of its tokens.
pub(super) fn response_format(fields: &mut Fields, model: &ServedModel) -> Result<Option<Grammar>, ApiError> {
    let Some(mut format) = fields.object(FORMAT)? else { return Ok(None) };
    let kinds = ["text", "json_object", "json_schema", "regex", "grammar"];
    let spec = match format.choice("type", &kinds)? {
        Some("text") => return Ok(None),
        Some("json_object") => GrammarSpec::JsonObject,
        Some("json_schema") => GrammarSpec::JsonSchema(schema_of(&mut format)?),
        Some(kind @ "regex") => GrammarSpec::Regex(required_text(&mut format, kind)?),
        Some(kind) => GrammarSpec::Lark(required_text(&mut format, kind)?),
        None => return Err(format.wrong("type", &format!("one of {kinds:?}"))),
    };
    compile(&spec, model, FORMAT).map(Some)
}

/// Compiles what the field `param` asks for.
///
/// # Errors
/// As of [`response_format`].
pub(super) fn compile(spec: &GrammarSpec, model: &ServedModel, param: &str) -> Result<Grammar, ApiError> {
    let compiler = model.grammars.as_ref().map_err(|reason| ApiError::unsupported(param, reason.clone()))?;
    compiler.compile(spec).map_err(|error| match error.is_input() {
        true => ApiError::field(param, format!("{param}: {error}")),
        false => ApiError::internal(error.to_string()),
    })
}

/// `json_schema.schema`; its name, description and strictness change nothing: answers keep to all of it.
fn schema_of(format: &mut Fields) -> Result<serde_json::Value, ApiError> {
    let Some(mut holder) = format.object("json_schema")? else {
        return Err(format.wrong("json_schema", "an object with a schema"));
    };
    holder.text("name")?;
    holder.flag("strict")?;
    holder.take("schema").ok_or_else(|| holder.wrong("schema", "a JSON schema"))
}

fn required_text(format: &mut Fields, name: &str) -> Result<String, ApiError> {
    format.text(name)?.ok_or_else(|| format.wrong(name, "a string"))
}
