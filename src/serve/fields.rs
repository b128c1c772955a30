//! [`Fields`]: a request's JSON object, field by field, each value checked and every complaint named after its field.

use std::fmt::Display;

use serde_json::{Map, Value};

use super::errors::ApiError;

/// Most values in a body. A JSON value takes many times the memory of the character that it may be written with.
const MAX_VALUES: usize = 1 << 20;

/// An object's fields; those that nobody takes are ignored.
pub(super) struct Fields {
    map: Map<String, Value>,
    /// What stands in front of the fields' names, as in `stream_options.`.
    within: String,
}

impl Fields {
    /// The object that `bytes` are.
    ///
    /// # Errors
    /// What is not JSON in UTF-8, nests deeper than 128 levels, has too many values or is no object.
    pub fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        if std::str::from_utf8(bytes).is_err() {
            return Err(ApiError::invalid("the body is not UTF-8 text"));
        }
        if num_values(bytes) > MAX_VALUES {
            return Err(ApiError::invalid(format!(
                "the body holds more than {MAX_VALUES} values and list items"
            )));
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Self { map, within: String::new() }),
            Ok(_) => Err(ApiError::invalid("the body should be a JSON object")),
            Err(error) => Err(ApiError::invalid(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// How complaints name the field.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.within)
    }

    /// The value, if there is one; null is none.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// The object in a field.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { map, within: format!("{}.", self.name(name)) })),
            Some(_) => Err(self.wrong(name, "an object")),
        }
    }

    /// The text in a field.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    /// A text out of `choices`.
    pub fn choice(&mut self, name: &str, choices: &[&'static str]) -> Result<Option<&'static str>, ApiError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let chosen = choices.iter().find(|choice| **choice == text).copied();
        chosen.map(Some).ok_or_else(|| self.wrong(name, &format!("one of {choices:?}")))
    }

    /// A truth value.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(name, "true or false")),
        }
    }

    /// A number from `min` to `max`.
    pub fn number(&mut self, name: &str, min: f32, max: f32) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|&number| number >= f64::from(min) && number <= f64::from(max));
        // Adding zero turns -0 into 0, which a kernel may tell apart.
        let number = number.map(|number| Some(number as f32 + 0.0));
        number.ok_or_else(|| self.wrong(name, &format!("a number from {min} to {max}")))
    }

    /// An integer from `min` to `max`.
    pub fn integer<T: TryFrom<i128> + Into<i128> + Copy + Display>(
        &mut self,
        name: &str,
        min: T,
        max: T,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let integer = as_integer(&value).filter(|integer| (min.into()..=max.into()).contains(integer));
        let integer = integer.and_then(|integer| T::try_from(integer).ok());
        integer.map(Some).ok_or_else(|| self.wrong(name, &format!("an integer from {min} to {max}")))
    }

    /// Refuses a field that is known to OpenAI's servers and not done here, unless its value asks for nothing.
    pub fn refuse(
        &mut self,
        name: &str,
        asks_nothing: fn(&Value) -> bool,
        instead: &str,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !asks_nothing(&value) => Err(ApiError::unsupported(
                self.name(name),
                format!("{} is not supported: {instead}", self.name(name)),
            )),
            _ => Ok(()),
        }
    }

    /// The complaint about a field that should be `expected`.
    pub fn wrong(&self, name: &str, expected: &str) -> ApiError {
        let name = self.name(name);
        ApiError::field(&name, format!("{name} should be {expected}"))
    }
}

/// Floating-point numbers up to here are the integers that they look like.
const MAX_WHOLE: f64 = 9_007_199_254_740_992.0;

/// The integer that `value` is; to JSON schemas `3.0` is one.
pub(super) fn as_integer(value: &Value) -> Option<i128> {
    let whole = || value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() <= MAX_WHOLE);
    value
        .as_u64()
        .map(i128::from)
        .or_else(|| value.as_i64().map(i128::from))
        .or_else(|| Some(whole()? as i128))
}

/// A list of token ids.
pub(super) fn as_ids(list: &[Value]) -> Option<Vec<i32>> {
    list.iter().map(|id| i32::try_from(as_integer(id)?).ok()).collect()
}

/// At least as many values as a parser makes of this JSON text: commas and openings outside of strings.
fn num_values(json: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (1, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => count += 1,
            _ => (),
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).unwrap()
    }

    fn said(error: ApiError) -> (Value, String) {
        let body = error.body();
        (body["error"]["param"].clone(), body["error"]["message"].as_str().unwrap().to_owned())
    }

    #[test]
    fn values_are_taken_by_type_and_range() {
        let mut all = fields(
            r#"{"a": 1.5, "b": -3, "c": true, "d": "x", "e": null, "f": {"g": 7}, "big": 18446744073709551615}"#,
        );
        assert_eq!(all.number("a", 0.0, 2.0).unwrap(), Some(1.5));
        assert_eq!(all.integer("b", i64::MIN, i64::MAX).unwrap(), Some(-3));
        assert_eq!(fields(r#"{"a": 3.0}"#).integer("a", 1u32, 3).unwrap(), Some(3));
        assert_eq!(fields(r#"{"a": -0.0}"#).integer("a", 0u32, 3).unwrap(), Some(0));
        assert_eq!(all.flag("c").unwrap(), Some(true));
        assert_eq!(all.choice("d", &["y", "x"]).unwrap(), Some("x"));
        assert_eq!(all.text("e").unwrap(), None);
        assert_eq!(all.integer("big", 0, u64::MAX).unwrap(), Some(u64::MAX));
        let mut inner = all.object("f").unwrap().unwrap();
        assert_eq!(
            said(inner.integer("g", 0, 6).unwrap_err()),
            ("f.g".into(), "f.g should be an integer from 0 to 6".into())
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |json: &str, expected: &str| {
            let mut fields = fields(json);
            let error = match expected {
                "number" => fields.number("a", 0.0, 2.0).unwrap_err(),
                "integer" => fields.integer("a", 1u32, 3).unwrap_err(),
                "flag" => fields.flag("a").unwrap_err(),
                "text" => fields.text("a").unwrap_err(),
                _ => fields.object("a").map(drop).unwrap_err(),
            };
            let (param, message) = said(error);
            assert_eq!(param, "a");
            assert!(message.starts_with("a should be "), "{message}");
        };
        for json in [r#"{"a": 2.1}"#, r#"{"a": -0.1}"#, r#"{"a": "1"}"#, r#"{"a": 1e300}"#, r#"{"a": []}"#] {
            wrong(json, "number");
        }
        for json in [r#"{"a": 0}"#, r#"{"a": 4}"#, r#"{"a": 1.5}"#, r#"{"a": -1}"#, r#"{"a": 1e30}"#] {
            wrong(json, "integer");
        }
        wrong(r#"{"a": 1}"#, "flag");
        wrong(r#"{"a": 1}"#, "text");
        wrong(r#"{"a": 1}"#, "object");
    }

    #[test]
    fn bodies_that_are_no_objects_of_json_are_refused() {
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(200), "]".repeat(200));
        for body in ["", "[]", "3", "{", r#"{"a": NaN}"#, r#"{"a": Infinity}"#, r#"{"a": 1e999}"#, &deep] {
            assert!(Fields::parse(body.as_bytes()).is_err(), "{body}");
        }
        assert!(Fields::parse(b"{\"a\": \"\xff\"}").is_err());
        let many = format!("{{\"a\": [{}1]}}", "1,".repeat(MAX_VALUES));
        assert!(Fields::parse(many.as_bytes()).is_err());
        let text = format!("{{\"a\": \"{}\"}}", ",\\\"".repeat(MAX_VALUES));
        assert!(Fields::parse(text.as_bytes()).is_ok());
    }
}
