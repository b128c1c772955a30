//! JSON schemas on their way to the crate: what it would not survive, or would take for something else, ends here.

use llguidance::JsonCompileOptions;
use serde_json::{Map, Value};

use super::limits::{MAX_SCHEMA_DEPTH, MAX_SPEC_BYTES};

/// White space between the parts of a JSON text: pretty printing of 30 levels fits, an endless run does not.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";

/// Values under these keys are data: a `$ref` in them is no reference.
const DATA: [&str; 5] = ["const", "enum", "default", "examples", "example"];

/// Any object.
pub fn any_object() -> Value {
    serde_json::json!({"type": "object"})
}

/// `schema` with the options that its grammar is made with, and its length as JSON, in bytes.
pub fn prepare(schema: &Value) -> Result<(Value, usize), String> {
    let num_bytes = check(schema)?;
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => Value::Object(Map::new()),
        Value::Bool(false) => return Err("the JSON schema is `false`, so no text is valid".into()),
        _ => return Err("a JSON schema is an object, `true` or `false`".into()),
    };
    // The options travel in the schema, in place of any that a stranger has put there.
    let options = JsonCompileOptions {
        whitespace_pattern: Some(WHITE_SPACE.into()),
        // Otherwise an `é` as `\u00e9` were no JSON.
        json_allow_general_unicode_escapes: true,
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    Ok((schema, num_bytes))
}

/// Walks a schema without recursion; returns its length in bytes, as compact JSON that escapes nothing.
fn check(schema: &Value) -> Result<usize, String> {
    let mut num_bytes = 0;
    let mut pending = vec![(schema, 0, true)];
    while let Some((value, depth, is_schema)) = pending.pop() {
        if depth > MAX_SCHEMA_DEPTH {
            return Err(format!("the JSON schema nests more than {MAX_SCHEMA_DEPTH} levels deep"));
        }
        num_bytes += match value {
            Value::String(text) => text.len() + 2,
            Value::Array(values) => {
                pending.extend(values.iter().map(|value| (value, depth + 1, is_schema)));
                values.len() + 1
            }
            Value::Object(fields) => {
                for (key, value) in fields {
                    if let ("$ref", Value::String(reference), true) = (key.as_str(), value, is_schema)
                        && reference != "#"
                        && !reference.starts_with("#/")
                    {
                        return Err(format!(
                            "the JSON schema refers to {reference:?}, which is not fetched: move it under `$defs` and refer \
                             to it as \"#/$defs/...\""
                        ));
                    }
                    num_bytes += key.len() + 4;
                    pending.push((value, depth + 1, is_schema && !DATA.contains(&key.as_str())));
                }
                2
            }
            _ => 4,
        };
        if num_bytes > MAX_SPEC_BYTES {
            return Err(format!("the JSON schema is longer than {} KiB", MAX_SPEC_BYTES >> 10));
        }
    }
    Ok(num_bytes)
}
