//! Typed access to the fields of a JSON object, with errors that name file and field.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{FloatType, ModelSource};
use crate::{Error, Result};

/// Where a config names the stored dtype: transformers 5 and 4.
const DTYPE_FIELDS: [&str; 2] = ["dtype", "torch_dtype"];

/// A JSON object and where it stands. A field that is `null` counts as absent, as it does for Hugging Face.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    path: PathBuf,
    /// Names of the objects around this one, each followed by a dot: `rope_scaling.`
    prefix: String,
    object: Map<String, Value>,
}

impl Fields {
    /// The object that `file` of `source` holds.
    pub fn read(source: &ModelSource, file: &str) -> Result<Self> {
        Self::parse(source.path(file), &source.read(file)?)
    }

    /// As [`Fields::read`], for a file that a model may lack.
    pub fn read_optional(source: &ModelSource, file: &str) -> Result<Option<Self>> {
        source.read_optional(file)?.map(|content| Self::parse(source.path(file), &content)).transpose()
    }

    pub fn parse(path: PathBuf, content: &[u8]) -> Result<Self> {
        match serde_json::from_slice(content) {
            Ok(Value::Object(object)) => Ok(Fields { path, prefix: String::new(), object }),
            Ok(_) => Err(Error::format(path, "this should be a JSON object")),
            Err(error) => Err(Error::format(path, format!("this is not valid JSON: {error}"))),
        }
    }

    /// An error about `field`.
    pub fn error(&self, field: &str, reason: impl Display) -> Error {
        Error::format(&self.path, format!("`{}{field}` {reason}", self.prefix))
    }

    /// The value of `field`, if present and not null.
    pub fn value(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// Whether `field` is there at all, if only as null.
    pub fn mentions(&self, field: &str) -> bool {
        self.object.contains_key(field)
    }

    /// The object under `field`.
    pub fn object(&self, field: &str) -> Result<Option<Fields>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields {
                path: self.path.clone(),
                prefix: format!("{}{field}.", self.prefix),
                object: object.clone(),
            })),
            Some(other) => Err(self.error(field, format_args!("should be an object, not {}", brief(other)))),
        }
    }

    /// Gives the fields that the object does not even mention the values of `unsaid`.
    pub fn fill_in(&mut self, unsaid: &[(&str, u32)]) {
        for &(field, value) in unsaid {
            self.object.entry(field).or_insert_with(|| value.into());
        }
    }

    /// Sets `field`.
    pub fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.object.insert(field.into(), value.into());
    }

    /// The name of the first field that holds an object, if any does.
    pub fn name_of_object(&self) -> Option<&str> {
        self.object.iter().find(|(_, value)| value.is_object()).map(|(name, _)| name.as_str())
    }

    /// A count within `range`.
    pub fn count(&self, field: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        match value
            .as_u64()
            .and_then(|count| usize::try_from(count).ok())
            .filter(|count| range.contains(count))
        {
            Some(count) => Ok(Some(count)),
            None => Err(self.error(
                field,
                format_args!("is {}: it should be from {} to {}", brief(value), range.start(), range.end()),
            )),
        }
    }

    /// A finite number within `range`.
    pub fn number(&self, field: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.error(
                field,
                format_args!(
                    "is {}: it should be a number from {:e} to {:e}",
                    brief(value),
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    /// A list of finite numbers within `range`; a single number is a list of one.
    pub fn numbers(&self, field: &str, range: RangeInclusive<f64>) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let items = match value {
            Value::Array(items) => items.as_slice(),
            single => std::slice::from_ref(single),
        };
        let number = |item: &Value| item.as_f64().filter(|number| range.contains(number));
        match items.iter().map(number).collect() {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.error(
                field,
                format_args!(
                    "is {}: it should be numbers from {:e} to {:e}",
                    brief(value),
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    /// True or false.
    pub fn flag(&self, field: &str) -> Result<Option<bool>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => {
                Err(self.error(field, format_args!("is {}: it should be true or false", brief(other))))
            }
        }
    }

    /// A string.
    pub fn text(&self, field: &str) -> Result<Option<&str>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(field, format_args!("is {}: it should be a string", brief(other)))),
        }
    }

    /// A list of strings.
    pub fn texts(&self, field: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        match value.as_array().and_then(|items| items.iter().map(Value::as_str).collect()) {
            Some(texts) => Ok(Some(texts)),
            None => {
                Err(self.error(field, format_args!("is {}: it should be a list of strings", brief(value))))
            }
        }
    }

    /// A list of counts below `bound`; a single count is a list of one.
    pub fn indices(&self, field: &str, bound: usize) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let items = match value {
            Value::Array(items) => items.as_slice(),
            single => std::slice::from_ref(single),
        };
        let index = |item: &Value| {
            item.as_u64()
                .and_then(|index| usize::try_from(index).ok())
                .filter(|&index| index < bound)
                .ok_or_else(|| {
                    self.error(
                        field,
                        format_args!("holds {}: it should be an integer below {bound}", brief(item)),
                    )
                })
        };
        items.iter().map(index).collect::<Result<_>>().map(Some)
    }

    /// The stored dtype, which transformers 4 calls `torch_dtype` and transformers 5 `dtype`.
    pub fn float_type(&self) -> Result<Option<FloatType>> {
        for field in DTYPE_FIELDS {
            if let Some(spelling) = self.text(field)? {
                return match FloatType::from_hf(spelling) {
                    Some(float_type) => Ok(Some(float_type)),
                    None => Err(self.error(
                        field,
                        format_args!("is {spelling:?}: only bfloat16, float16 and float32 are supported"),
                    )),
                };
            }
        }
        Ok(None)
    }

    /// The object as JSON, with `dtype` wherever it names the stored dtype.
    pub fn with_dtype(mut self, dtype: FloatType) -> Result<Vec<u8>> {
        let nested = self.object.values_mut().filter_map(Value::as_object_mut);
        let set = |object: &mut Map<String, Value>| {
            for field in DTYPE_FIELDS {
                if let Some(spelling) = object.get_mut(field) {
                    *spelling = Value::from(dtype.hf_name());
                }
            }
        };
        nested.for_each(set);
        set(&mut self.object);
        let mut json = serde_json::to_vec_pretty(&self.object)
            .map_err(|error| Error::format(&self.path, error.to_string()))?;
        json.push(b'\n');
        Ok(json)
    }

    /// Fails unless the first of `architectures` is one of the names `known` for `what`.
    pub fn require_architecture(&self, what: &str, known: &[&str]) -> Result<()> {
        let name = self.architecture()?;
        if known.contains(&name) {
            return Ok(());
        }
        Err(self.error("architectures", format_args!("is {name:?}: {what} is one of {}", known.join(", "))))
    }

    /// The first of `architectures`.
    pub fn architecture(&self) -> Result<&str> {
        match self.value("architectures") {
            None => Err(self.missing("architectures")),
            Some(Value::Array(names)) if names.len() == 1 && names[0].is_string() => {
                Ok(names[0].as_str().unwrap_or_default())
            }
            Some(other) => {
                Err(self.error("architectures", format_args!("is {}: it should hold one name", brief(other))))
            }
        }
    }

    /// `found`, or an error that says that `field` is missing.
    pub fn require<T>(&self, field: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| self.missing(field))
    }

    fn missing(&self, field: &str) -> Error {
        self.error(field, "is missing")
    }
}

/// `value` for a message: whole if short, else its beginning.
pub(super) fn brief(value: &Value) -> String {
    const MAX_CHARS: usize = 40;
    let text = value.to_string();
    if text.chars().count() <= MAX_CHARS {
        text
    } else {
        text.chars().take(MAX_CHARS).chain(['…']).collect()
    }
}
