//! Log-probabilities in the two shapes that OpenAI's APIs have for them.

use serde_json::{Map, Value, json};

use super::errors::ApiError;
use crate::engine::TokenLogprobs;
use crate::text::TokenTexts;

/// Stands for minus infinity, which JSON cannot say.
const LEAST: f32 = -9999.0;

/// A token as text and as bytes. One that is part of a character reads `bytes:\xe2\x82`.
struct Named {
    text: String,
    bytes: Vec<u8>,
}

fn named(texts: &TokenTexts, id: i32) -> Result<Named, ApiError> {
    let bytes = texts.bytes(id).map_err(|error| ApiError::internal(error.to_string()))?.unwrap_or_default();
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    };
    Ok(Named { text, bytes })
}

/// The chat API's: `{"content": [{"token", "logprob", "bytes", "top_logprobs": [...]}]}`.
pub(super) fn chat(texts: &TokenTexts, tokens: &[(i32, TokenLogprobs)]) -> Result<Value, ApiError> {
    let one = |id: i32, logprob: f32| -> Result<Map<String, Value>, ApiError> {
        let Named { text, bytes } = named(texts, id)?;
        let fields =
            [("token", json!(text)), ("logprob", json!(logprob.max(LEAST))), ("bytes", json!(bytes))];
        Ok(fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
    };
    let mut content = Vec::new();
    for (id, logprobs) in tokens {
        let mut entry = one(*id, logprobs.logprob)?;
        let top = logprobs.top.iter().map(|&(id, logprob)| one(id, logprob).map(Value::Object));
        entry.insert("top_logprobs".into(), top.collect::<Result<_, _>>()?);
        content.push(Value::Object(entry));
    }
    Ok(json!({"content": content, "refusal": null}))
}

/// The completions API's: parallel lists, and the tokens' bytes beside them. `offset` is the first token's place in the text, in characters.
pub(super) fn completion(
    texts: &TokenTexts,
    tokens: &[(i32, TokenLogprobs)],
    mut offset: usize,
) -> Result<(Value, usize), ApiError> {
    let (mut names, mut logprobs, mut tops, mut offsets, mut bytes) =
        (vec![], vec![], vec![], vec![], vec![]);
    for (id, token) in tokens {
        let name = named(texts, *id)?;
        offsets.push(offset);
        offset += String::from_utf8_lossy(&name.bytes).chars().count();
        let mut top = Map::new();
        for &(id, logprob) in &token.top {
            top.insert(named(texts, id)?.text, json!(logprob.max(LEAST)));
        }
        // OpenAI lists the token itself, too, where it is not among the likeliest.
        top.entry(name.text.clone()).or_insert(json!(token.logprob.max(LEAST)));
        tops.push(Value::Object(top));
        logprobs.push(json!(token.logprob.max(LEAST)));
        names.push(name.text);
        bytes.push(name.bytes);
    }
    let value = json!({
        "tokens": names, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets, "bytes": bytes,
    });
    Ok((value, offset))
}
