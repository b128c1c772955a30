//! JSON schemas on their way to the crate: what it would not survive, or would take for something else, ends here.

use llguidance::JsonCompileOptions;
use serde_json::{Map, Number, Value};

use super::limits::{
    MAX_COUNT, MAX_FIELDS, MAX_MULTIPLE, MAX_NUMBER, MAX_PATTERNS, MAX_SCHEMA_DEPTH, MAX_SPEC_BYTES,
};

/// White space between the parts of a JSON text: pretty printing of 30 levels fits, an endless run does not.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";

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

/// Where in a schema a value stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// It is a schema, or a part of one.
    Schema,
    /// Schemas by name.
    Definitions,
    /// It is text that may come: a `$ref` in it is no reference.
    Literal,
    /// It is for people.
    Annotation,
}

impl Place {
    /// Of the value under `key`.
    fn under(self, key: &str) -> Self {
        match (self, key) {
            (Self::Literal | Self::Annotation, _) => self,
            (_, "const" | "enum") => Self::Literal,
            (_, "default" | "examples" | "example") => Self::Annotation,
            (_, "$defs" | "definitions") => Self::Definitions,
            _ => Self::Schema,
        }
    }
}

/// Walks a schema without recursion; returns its length in bytes, as compact JSON that escapes nothing.
fn check(schema: &Value) -> Result<usize, String> {
    let mut num_bytes = 0;
    let mut multiples = Vec::new();
    let mut pending = vec![("", schema, 0, Place::Schema)];
    while let Some((key, value, depth, place)) = pending.pop() {
        if depth > MAX_SCHEMA_DEPTH {
            return Err(format!("the JSON schema nests more than {MAX_SCHEMA_DEPTH} levels deep"));
        }
        num_bytes += match value {
            Value::String(text) => text.len() + 2,
            Value::Array(values) => {
                pending.extend(values.iter().map(|value| (key, value, depth + 1, place)));
                values.len() + 1
            }
            Value::Object(fields) => {
                pending.extend(
                    fields.iter().map(|(key, value)| (key.as_str(), value, depth + 1, place.under(key))),
                );
                fields.keys().map(|key| key.len() + 4).sum::<usize>() + 2
            }
            _ => 4,
        };
        if num_bytes > MAX_SPEC_BYTES {
            return Err(format!("the JSON schema is longer than {} KiB", MAX_SPEC_BYTES >> 10));
        }
        check_size(key, value, place)?;
        match (place, key, value) {
            (Place::Schema, "$ref", Value::String(reference)) => check_reference(reference)?,
            (Place::Schema, "multipleOf", Value::Number(number)) => multiples.extend(number.as_f64()),
            (Place::Schema | Place::Literal, _, Value::Number(number)) => check_number(key, number, place)?,
            _ => (),
        }
    }
    check_multiples(&multiples)?;
    Ok(num_bytes)
}

/// The crate's work grows with the square of these.
fn check_size(key: &str, value: &Value, place: Place) -> Result<(), String> {
    let (size, bound) = match (place, key, value) {
        (Place::Schema, "patternProperties", Value::Object(fields)) => (fields.len(), MAX_PATTERNS),
        (Place::Schema | Place::Literal, _, Value::Object(fields)) => (fields.len(), MAX_FIELDS),
        (Place::Schema, "required", Value::Array(names)) => (names.len(), MAX_FIELDS),
        _ => return Ok(()),
    };
    match size <= bound {
        true => Ok(()),
        false => Err(format!(
            "the JSON schema has {size} entries under `{key}`, of which {bound} at most can be followed"
        )),
    }
}

fn check_reference(reference: &str) -> Result<(), String> {
    match reference == "#" || reference.starts_with("#/") {
        true => Ok(()),
        false => Err(format!(
            "the JSON schema refers to {reference:?}, which is not fetched: move it under `$defs` and refer to it as \
             \"#/$defs/...\""
        )),
    }
}

/// The crate's arithmetic is exact, and does not overflow, up to here.
fn check_number(key: &str, number: &Number, place: Place) -> Result<(), String> {
    let bound = match (place, key) {
        (Place::Literal, _) | (_, "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum") => {
            MAX_NUMBER
        }
        (_, "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties") => {
            MAX_COUNT
        }
        _ => return Ok(()),
    };
    match number.as_f64().is_some_and(|value| value.abs() <= bound) {
        true => Ok(()),
        false => Err(format!(
            "the JSON schema has the number {number} under `{key}`, but numbers there go up to {bound}: leave it out, or take \
             a smaller one"
        )),
    }
}

/// Divisors that meet in one number become their common multiple, counted in the smallest one's last decimal place: the lexer
/// has as many states, and its arithmetic multiplies two of them.
fn check_multiples(multiples: &[f64]) -> Result<(), String> {
    let whole = |scale: f64| multiples.iter().all(|multiple| (multiple * scale).fract() == 0.0);
    let scale = [1.0, 10.0, 100.0, 1e3, 1e4].into_iter().find(|&scale| whole(scale));
    let common = scale.and_then(|scale| {
        let mut multiples =
            multiples.iter().map(|multiple| (multiple * scale).abs()).filter(|&multiple| multiple > 0.0);
        multiples.try_fold(1, |common, multiple| {
            let multiple = if multiple > MAX_MULTIPLE as f64 { return None } else { multiple as u64 };
            Some(common / gcd(common, multiple) * multiple).filter(|&common| common <= MAX_MULTIPLE)
        })
    });
    common.map(|_| ()).ok_or_else(|| {
        format!(
            "the JSON schema has `multipleOf` with numbers whose common multiple is more than {MAX_MULTIPLE}, or that have more \
             than four decimal places: take fewer or rounder ones"
        )
    })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
