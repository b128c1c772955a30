//! What an answer has to look like: `response_format`.

use super::errors::ApiError;
use super::fields::Fields;

/// Reads `response_format`. Only free text can be promised.
///
/// # Errors
/// 400 for another format.
pub(super) fn response_format(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(()) };
    match format.text("type")?.as_deref() {
        Some("text") => Ok(()),
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            Err(ApiError::unsupported(
                "response_format",
                format!("response_format of type {other:?} is not supported: answers are free text"),
            ))
        }
        None => Err(format.wrong("type", "\"text\"")),
    }
}
