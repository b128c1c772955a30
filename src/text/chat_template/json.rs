//! `tojson` as transformers has it: Python's `json.dumps`, unescaped but for what JSON asks for, keys in their own order.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting; what a template builds itself could be any.
const MAX_DEPTH: usize = 200;

/// The filter: `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub fn tojson(state: &State, value: &Value, options: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let options = options.into_values();
    let (ensure_ascii, indent, separators, sort_keys, named): (
        Option<Value>,
        Option<Value>,
        Option<Value>,
        Option<Value>,
        Kwargs,
    ) = from_args(&options)?;
    let option = |positional: Option<Value>, name: &str| -> Result<Option<Value>, Error> {
        let value = positional.or(named.get::<Option<Value>>(name)?);
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let ensure_ascii = option(ensure_ascii, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = option(indent, "indent")?.map(|value| indentation(&value)).transpose()?;
    let sort_keys = option(sort_keys, "sort_keys")?.is_some_and(|value| value.is_true());
    let separators = match option(separators, "separators")? {
        Some(pair) => (text_at(&pair, 0)?, text_at(&pair, 1)?),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    named.assert_all_used()?;
    let mut writer = Writer { out: String::new(), state, ensure_ascii, indent, separators, sort_keys };
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {}", reason.into()))
}

/// What a level of nesting is indented by: as many spaces, or a text.
fn indentation(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    match value.as_i64() {
        Some(spaces @ ..=64) => Ok(" ".repeat(spaces.max(0) as usize)),
        _ => Err(invalid("indent should be a text, or a number of spaces up to 64")),
    }
}

fn text_at(pair: &Value, index: usize) -> Result<String, Error> {
    let part = pair.get_item_by_index(index)?;
    part.as_str().map(str::to_owned).ok_or_else(|| invalid("separators should be two texts"))
}

struct Writer<'a, 'state, 'env> {
    out: String,
    state: &'a State<'state, 'env>,
    ensure_ascii: bool,
    indent: Option<String>,
    /// Between items, and after a key.
    separators: (String, String),
    sort_keys: bool,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        // What a template builds may share parts, so it can be far longer as text than in memory.
        self.state
            .consume_fuel(1 + self.indent.as_ref().map_or(0, |indent| indent.len() * depth / 64) as u64)?;
        if depth > MAX_DEPTH {
            return Err(invalid(format!("values nest deeper than {MAX_DEPTH}")));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.text(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                let mut empty = true;
                self.out.push('[');
                for item in value.try_iter()?.checked() {
                    self.next_item(&mut empty, depth);
                    self.value(&item?, depth + 1)?;
                }
                self.close(']', empty, depth);
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.checked().collect::<Result<_, _>>()?;
                if self.sort_keys {
                    keys.sort();
                }
                let mut empty = true;
                self.out.push('{');
                for key in keys {
                    self.next_item(&mut empty, depth);
                    self.key(&key)?;
                    self.out.push_str(&self.separators.1);
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
                self.close('}', empty, depth);
            }
            kind => return Err(invalid(format!("a value that is {kind} has no JSON"))),
        }
        Ok(())
    }

    fn next_item(&mut self, empty: &mut bool, depth: usize) {
        if !std::mem::take(empty) {
            self.out.push_str(&self.separators.0);
        }
        self.new_line(depth + 1);
    }

    fn close(&mut self, bracket: char, empty: bool, depth: usize) {
        if !empty {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    /// Keys are texts in JSON; Python writes others as it would write them as values.
    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.text(key.as_str().unwrap_or_default()),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                self.out.push('"');
                self.value(key, 0)?;
                self.out.push('"');
                Ok(())
            }
            kind => Err(invalid(format!("a key that is {kind} has no JSON"))),
        }
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            let _ = write!(self.out, "{value}");
        } else {
            let number = f64::try_from(value.clone())?;
            self.out.push_str(&float(number));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel(text.len() as u64 / 16)?;
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                ' '..='~' => self.out.push(character),
                other if self.ensure_ascii || other < ' ' => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                other => self.out.push(other),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

/// A float as Python's `repr` has it: the shortest digits that read back, an exponent with a sign and two digits.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let text = format!("{number:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, exponent) =
                exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str, value: serde_json::Value) -> Result<String, Error> {
        let mut environment = minijinja::Environment::new();
        environment.add_filter("tojson", tojson);
        environment
            .render_str(source, minijinja::context! { v => Value::from(minijinja::value::Serde(&value)) })
    }

    /// Expected texts are `json.dumps`'.
    #[test]
    fn values_read_as_python_writes_them() {
        let value = serde_json::json!({"b": [1, 2.0, 1e16, 1e-5, 0.0001, -3], "a": {}, "é<\u{1F600}>": "\u{7f}\u{1}\"'&\n", "n": [null, true, []]});
        let plain = "{\"b\": [1, 2.0, 1e+16, 1e-05, 0.0001, -3], \"a\": {}, \"é<\u{1F600}>\": \"\u{7f}\\u0001\\\"'&\\n\", \"n\": [null, true, []]}";
        assert_eq!(rendered("{{ v|tojson }}", value.clone()).unwrap(), plain);
        assert_eq!(
            rendered("{{ v|tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}", value)
                .unwrap(),
            r#"{"a":{},"b":[1,2.0,1e+16,1e-05,0.0001,-3],"n":[null,true,[]],"\u00e9<\ud83d\ude00>":"\u007f\u0001\"'&\n"}"#
        );
        let nested = serde_json::json!({"a": [1, {"b": {}}], "c": []});
        let lines = "{\n  \"a\": [\n    1,\n    {\n      \"b\": {}\n    }\n  ],\n  \"c\": []\n}";
        assert_eq!(rendered("{{ v|tojson(indent=2) }}", nested.clone()).unwrap(), lines);
        assert_eq!(rendered("{{ v|tojson(false, 2) }}", nested).unwrap(), lines);
    }

    #[test]
    fn what_has_no_json_is_an_error() {
        for source in
            ["{{ x|tojson }}", "{{ v|tojson(indent=10**9) }}", "{{ v|tojson(colour=1) }}", "{{ [x]|tojson }}"]
        {
            assert!(rendered(source, serde_json::json!(1)).is_err(), "{source}");
        }
    }
}
