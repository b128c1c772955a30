//! `/openapi.json` and the server agree: every path answers, answers are as their schemas say, and every bound of a field is the server's.

use serde_json::{Value, json};

use super::chat::CHAT;
use super::client::{Stream, get, post, send};
use super::running::DEMO;

fn document() -> Value {
    get(DEMO.address, "/openapi.json").good()
}

/// The schema itself, where it is a reference.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => {
            document.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference}"))
        }
        None => schema,
    }
}

/// Fails unless `value` is what `schema` says.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    let schema = resolved(document, schema);
    if let Some(alternatives) = schema["oneOf"].as_array() {
        let fits = alternatives.iter().any(|schema| fits_type(resolved(document, schema), value));
        assert!(fits, "{place}: {value}");
        let schema = alternatives.iter().find(|schema| fits_type(resolved(document, schema), value)).unwrap();
        return check(document, schema, value, place);
    }
    assert!(fits_type(schema, value), "{place} should be {}: {value}", schema["type"]);
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{place}: {value}");
    }
    if let (Some(least), Some(number)) = (schema["minimum"].as_f64(), value.as_f64()) {
        assert!(number >= least, "{place}: {value}");
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(name.as_str().unwrap()).is_some(), "{place} lacks {name}");
    }
    let properties = schema["properties"].as_object();
    if let (Some(properties), Some(fields)) = (properties.filter(|all| !all.is_empty()), value.as_object()) {
        for (name, field) in fields {
            let schema =
                properties.get(name).unwrap_or_else(|| panic!("{place}.{name} is not in the document"));
            check(document, schema, field, &format!("{place}.{name}"));
        }
    }
    for item in value.as_array().into_iter().flatten() {
        check(document, &schema["items"], item, &format!("{place}[]"));
    }
}

fn fits_type(schema: &Value, value: &Value) -> bool {
    match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_path_answers_as_its_schema_says() {
    let document = document();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let bodies = [
        ("/v1/completions", json!({"prompt": "def main(", "max_tokens": 8})),
        ("/tokenize", json!({"prompt": "def main("})),
        ("/detokenize", json!({"tokens": [305]})),
    ];
    for (path, methods) in document["paths"].as_object().unwrap() {
        let real = path.replace("{model}", "demo");
        for method in ["get", "post"] {
            let Some(operation) = methods.get(method) else {
                let answer = send(DEMO.address, &method.to_uppercase(), &real, &[], b"");
                assert_eq!(answer.status, 405, "{method} {path}");
                continue;
            };
            let content = &operation["responses"]["200"]["content"];
            let body = bodies.iter().find(|(known, _)| known == path).map(|(_, body)| body.clone());
            let answer = match method {
                "get" => get(DEMO.address, &real),
                // The demo pair has no chat template: its refusal is checked below.
                _ => post(
                    DEMO.address,
                    &real,
                    &body.unwrap_or_else(|| json!({"messages": [{"role": "user", "content": "a"}]})),
                ),
            };
            let (status, schema) = match path.as_str() {
                "/v1/chat/completions" => (
                    400,
                    &resolved(&document, &operation["responses"]["400"])["content"]["application/json"]["schema"],
                ),
                _ => (200, &content["application/json"]["schema"]),
            };
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
            let kind = answer.headers["content-type"].split(';').next().unwrap();
            assert!(status == 400 || content.get(kind).is_some(), "{path}: {kind}");
            if kind == "application/json" {
                check(&document, schema, &answer.json(), path);
            }
        }
    }
}

/// Its type, null aside.
fn type_of(schema: &Value) -> Option<&str> {
    schema["type"].as_str().or_else(|| schema["type"][0].as_str())
}

/// Whether null is among what fits.
fn takes_null(schema: &Value) -> bool {
    let types = schema["type"].as_array().into_iter().flatten();
    let options = schema["oneOf"].as_array().into_iter().flatten().map(|option| &option["type"]);
    types.chain(options).any(|kind| kind == "null")
}

/// A value of a wrong type, and values beyond the bounds.
fn wrong_values(schema: &Value) -> Vec<Value> {
    let mut values = vec![match type_of(schema) {
        Some("string") => json!(1.5),
        Some("object" | "array" | "boolean" | "number" | "integer") => json!("words"),
        _ => json!(1.5),
    }];
    let whole = type_of(schema) == Some("integer");
    for (bound, step) in [("minimum", -1), ("maximum", 1)] {
        match schema[bound].as_f64() {
            Some(limit) if whole => values.push(json!(limit as i64 + step)),
            Some(limit) => values.push(json!(limit + f64::from(step as i32) * 0.001)),
            None => (),
        }
    }
    values.extend(schema["exclusiveMinimum"].as_f64().map(|limit| json!(limit)));
    if schema["enum"].is_array() {
        values.push(json!("something else"));
    }
    if let Some(most) = schema["maxItems"].as_u64() {
        values.push(json!(vec![1; most as usize + 1]));
    }
    if schema["additionalProperties"].is_object() {
        values.extend([json!({"x": 0}), json!({"1": 101}), json!({"1": "a"})]);
    }
    values
}

#[test]
fn every_bound_in_the_document_is_the_servers() {
    let document = document();
    for (path, schema) in [("/v1/completions", "CompletionRequest"), ("/v1/chat/completions", "ChatRequest")]
    {
        let mut base =
            json!({"prompt": "a", "messages": [{"role": "user", "content": "a"}], "logprobs": null});
        if path == "/v1/chat/completions" {
            base["logprobs"] = true.into();
        }
        let refused = |field: &str, value: &Value| {
            let mut body = base.clone();
            body[field] = value.clone();
            let answer = post(DEMO.address, path, &body);
            let param = answer.json()["error"]["param"].clone();
            (answer.status, param.as_str().unwrap_or_default().to_owned())
        };
        let mut checked = 0;
        let own = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        let common = document["components"]["schemas"]["Parameters"]["properties"].as_object().unwrap();
        for (field, schema) in own.iter().chain(common) {
            if matches!(field.as_str(), "user" | "messages" | "prompt") {
                continue;
            }
            let (status, param) = refused(field, &Value::Null);
            let is_fine = if path == "/v1/completions" { status == 200 } else { param == "messages" };
            assert!(takes_null(schema) && is_fine, "{path} {field}: {status} {param}");
            for value in wrong_values(schema) {
                let (status, param) = refused(field, &value);
                assert!(
                    matches!(status, 400 | 404) && param.starts_with(field.as_str()),
                    "{path} {field} {value}: {status} {param}"
                );
                checked += 1;
            }
            // The bounds themselves are within; a chat is then refused for its template alone, which the demo pair lacks.
            for bound in ["minimum", "maximum"] {
                if let Some(value) =
                    schema.get(bound).filter(|_| !matches!(field.as_str(), "n" | "min_tokens"))
                {
                    let (status, param) = refused(field, value);
                    let fits = if path == "/v1/completions" {
                        status == 200 || field == "logprobs"
                    } else {
                        param == "messages"
                    };
                    assert!(fits, "{path} {field} {value}: {status} {param}");
                }
            }
        }
        assert!(checked > 40, "{checked}");
    }
}

#[test]
fn pieces_of_streams_are_as_their_schemas_say() {
    let document = document();
    for (path, schema, n) in
        [("/v1/completions", "CompletionChunk", 2), ("/v1/chat/completions", "ChatChunk", 1)]
    {
        let content = &document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"];
        let data = &content["itemSchema"]["properties"]["data"];
        assert_eq!(data["contentSchema"]["$ref"], format!("#/components/schemas/{schema}"));
        let mut body = json!({"max_tokens": 6, "n": n, "stream": true, "stream_options": {"include_usage": true}, "smart_run": {"watch": true}});
        match path {
            "/v1/completions" => (body["prompt"], body["logprobs"]) = ("def main(".into(), 2.into()),
            _ => {
                body["messages"] = json!([{"role": "user", "content": "def main("}]);
                body["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
                body["tool_choice"] = "required".into();
                body["max_tokens"] = 60.into();
            }
        }
        let chunks = Stream::open(CHAT.address, path, &body).chunks();
        assert!(chunks.len() > 2, "{chunks:?}");
        chunks.iter().for_each(|chunk| check(&document, &data["contentSchema"], chunk, path));
    }
}
