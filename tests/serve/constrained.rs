//! Answers under a grammar.

use serde_json::{Value, json};

use super::client::{Stream, post};
use super::running::DEMO;

const PATH: &str = "/v1/completions";

fn complete(body: Value) -> Value {
    post(DEMO.address, PATH, &body).good()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false
    })
}

#[test]
fn answers_keep_to_a_schema_whole_or_streamed_speculating_or_not() {
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "person", "strict": true, "schema": person()}});
    for seed in 0..4 {
        let body = json!({"prompt": "person = ", "max_tokens": 150, "temperature": 0.8, "seed": seed, "response_format": format});
        let answer = complete(body.clone());
        if answer["choices"][0]["finish_reason"] == "stop" {
            let value: Value = serde_json::from_str(text(&answer)).unwrap();
            assert!(value["name"].as_str().unwrap().chars().count() <= 8);
            assert!((0..=120).contains(&value["age"].as_i64().unwrap()));
            assert!(value["tags"].as_array().unwrap().iter().all(|tag| tag == "a" || tag == "b"));
            assert_eq!(value.as_object().unwrap().len(), 3);
        } else {
            assert!(text(&answer).starts_with('{'));
        }
        let mut off = body.clone();
        off["speculation"] = "off".into();
        assert_eq!(text(&complete(off)), text(&answer), "seed {seed}");
        let mut streamed = body;
        streamed["stream"] = true.into();
        let chunks = Stream::open(DEMO.address, PATH, &streamed).chunks();
        let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
        assert_eq!(said, text(&answer), "seed {seed}");
    }
}

#[test]
fn regular_expressions_and_grammars_bind_answers_and_their_choices() {
    let body = json!({
        "prompt": "port = ", "max_tokens": 20, "temperature": 1, "seed": 3, "n": 3,
        "response_format": {"type": "regex", "regex": "[1-9][0-9]{3}"}
    });
    let answer = complete(body);
    for choice in answer["choices"].as_array().unwrap() {
        let port = choice["text"].as_str().unwrap();
        assert!((1000..10_000).contains(&port.parse().unwrap()), "{port:?}");
        assert_eq!(choice["finish_reason"], "stop");
    }
    let grammar =
        "start: term (\" + \" term)? \"\\n\"\nterm: /[a-c]/ | \"(\" start_inner \")\"\nstart_inner: /[0-9]/";
    let body = json!({
        "prompt": "x = ", "max_tokens": 20, "temperature": 0,
        "response_format": {"type": "grammar", "grammar": grammar}
    });
    let answer = complete(body);
    assert!(text(&answer).ends_with('\n') && answer["choices"][0]["finish_reason"] == "stop", "{answer}");
    let body = json!({"prompt": "d = ", "max_tokens": 60, "temperature": 0, "response_format": {"type": "json_object"}});
    assert!(text(&complete(body)).starts_with('{'));
}
