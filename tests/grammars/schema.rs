//! Schemas, and a validator of the keywords that they use.

use serde_json::{Value, json};

pub fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "object", "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 12},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "tags": {"type": "array", "items": {"enum": ["red", "green", "blue \"sky\"", "größe"]}, "minItems": 1, "maxItems": 3},
                "active": {"type": "boolean"}},
            "required": ["name", "age", "tags"], "additionalProperties": false}),
        json!({"type": "array", "items": {"anyOf": [{"type": "null"}, {"type": "number"}, {"const": {"a": [1, "x"]}}]}, "maxItems": 4}),
        json!({"$defs": {"tree": {"type": "object", "properties": {
                    "value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}},
                "required": ["value", "children"], "additionalProperties": false}},
            "$ref": "#/$defs/tree"}),
        json!({"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
                "kind": {"type": "string", "enum": ["a", "b"]}}, "required": ["zip"]}),
        json!({"oneOf": [
            {"type": "object", "properties": {"kind": {"const": "circle"}, "r": {"type": "number", "exclusiveMinimum": 0}},
             "required": ["kind", "r"], "additionalProperties": false},
            {"type": "object", "properties": {"kind": {"const": "square"}, "side": {"type": ["integer", "null"]}},
             "required": ["kind", "side"], "additionalProperties": false}]}),
        json!({"type": "string", "maxLength": 5}),
        json!({"type": "integer", "minimum": -20, "maximum": 7}),
        json!(true),
    ]
}

/// Whether `value` is valid under `schema`, a part of `root`; panics at keywords that this test does not use.
pub fn is_valid(root: &Value, schema: &Value, value: &Value) -> bool {
    let fields = match schema {
        Value::Bool(valid) => return *valid,
        schema => schema.as_object().unwrap(),
    };
    let all = |check: &dyn Fn(&Value) -> bool, values: &Value| values.as_array().unwrap().iter().all(check);
    let count = |check: &dyn Fn(&Value) -> bool, values: &Value| {
        values.as_array().unwrap().iter().filter(|value| check(value)).count()
    };
    let under = |schema: &Value| is_valid(root, schema, value);
    let number = |limit: &Value| limit.as_f64().unwrap();
    let length = |limit: &Value| limit.as_u64().unwrap() as usize;
    fields.iter().all(|(key, rule)| match key.as_str() {
        "$defs" => true,
        "$ref" => under(root.pointer(&rule.as_str().unwrap()[1..]).unwrap()),
        "type" => match rule {
            Value::Array(names) => names.iter().any(|name| has_type(value, name.as_str().unwrap())),
            name => has_type(value, name.as_str().unwrap()),
        },
        "enum" => rule.as_array().unwrap().contains(value),
        "const" => rule == value,
        "anyOf" => count(&under, rule) > 0,
        "oneOf" => count(&under, rule) == 1,
        "properties" => rule
            .as_object()
            .unwrap()
            .iter()
            .all(|(name, schema)| value.get(name).is_none_or(|property| is_valid(root, schema, property))),
        "required" => all(&|name| value.get(name.as_str().unwrap()).is_some(), rule),
        "additionalProperties" => {
            assert_eq!(rule, &Value::Bool(false));
            let known = schema["properties"].as_object().unwrap();
            value.as_object().is_none_or(|object| object.keys().all(|name| known.contains_key(name)))
        }
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| is_valid(root, rule, item))),
        "minItems" => value.as_array().is_none_or(|items| items.len() >= length(rule)),
        "maxItems" => value.as_array().is_none_or(|items| items.len() <= length(rule)),
        "minLength" => value.as_str().is_none_or(|text| text.chars().count() >= length(rule)),
        "maxLength" => value.as_str().is_none_or(|text| text.chars().count() <= length(rule)),
        "minimum" => value.as_f64().is_none_or(|value| value >= number(rule)),
        "maximum" => value.as_f64().is_none_or(|value| value <= number(rule)),
        "exclusiveMinimum" => value.as_f64().is_none_or(|value| value > number(rule)),
        "pattern" => {
            assert_eq!(rule, "^[0-9]{5}(-[0-9]{4})?$");
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            value.as_str().is_none_or(|text| match text.split_once('-') {
                Some((zip, more)) => zip.len() == 5 && more.len() == 4 && digits(zip) && digits(more),
                None => text.len() == 5 && digits(text),
            })
        }
        key => panic!("the validator does not know {key:?}"),
    })
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        name => panic!("no type {name:?}"),
    }
}

#[test]
fn the_validator_tells_valid_from_invalid() {
    let schemas = schemas();
    let valid = [
        r#"{"name":"x","age":3,"tags":["red"]}"#,
        r#"[null,1.5,{"a":[1,"x"]}]"#,
        r#"{"value":1,"children":[{"value":2,"children":[]}]}"#,
        r#"{"zip":"12345-6789","more":1}"#,
        r#"{"kind":"circle","r":1e-3}"#,
        r#""12345""#,
        "-20",
        "{}",
    ];
    let invalid = [
        r#"{"name":"x","age":3,"tags":[]}"#,
        r#"["x"]"#,
        r#"{"value":1,"children":[{"value":2}]}"#,
        r#"{"zip":"1234"}"#,
        r#"{"kind":"circle","side":1}"#,
        r#""123456""#,
        "8",
    ];
    for (schema, text) in schemas.iter().zip(valid) {
        assert!(is_valid(schema, schema, &serde_json::from_str(text).unwrap()), "{text}");
    }
    for (schema, text) in schemas.iter().zip(invalid) {
        assert!(!is_valid(schema, schema, &serde_json::from_str(text).unwrap()), "{text}");
    }
}
