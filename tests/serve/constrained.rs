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

/// A grammar behind whose beginning there are more ways to go on than its parser follows.
fn hard(beginning: &str) -> Value {
    let names: Vec<String> = (0..3000).map(|index| format!("r{index}")).collect();
    let rules: String = names.iter().map(|name| format!("\n{name}: \"q{name}\"")).collect();
    let hard = format!("hard: {}{rules}", names.join(" | "));
    json!({"type": "grammar", "grammar": format!("start: {beginning}\nrest: /[^~]*/\n{hard}")})
}

#[test]
fn a_draft_that_the_grammar_gives_up_at_ends_no_answer() {
    let fork = r#"A rest | B hard
A: "\n        return "
B: "\n        x""#;
    let body = json!({
        "prompt": "    if x is None:", "max_tokens": 40, "temperature": 0, "ignore_eos": true, "response_format": hard(fork)
    });
    let mut off = body.clone();
    off["speculation"] = "off".into();
    let (plain, drafted) = (complete(off), complete(body));
    assert_eq!(plain["usage"]["completion_tokens"], 40);
    assert_eq!(text(&drafted), text(&plain));
}

#[test]
fn an_answer_ends_with_its_grammar_whatever_was_drafted() {
    let body = json!({
        "prompt": "def f(n):\n    ", "max_tokens": 40, "temperature": 0, "ignore_eos": true,
        "response_format": {"type": "regex", "regex": r"return [a-z]{1,4}\(n\)"}
    });
    let mut off = body.clone();
    off["speculation"] = "off".into();
    let (plain, drafted) = (complete(off), complete(body));
    assert!(text(&plain).ends_with("(n)"));
    for field in ["text", "finish_reason"] {
        assert_eq!(drafted["choices"][0][field], plain["choices"][0][field]);
    }
    assert_eq!(drafted["usage"]["completion_tokens"], plain["usage"]["completion_tokens"]);
}

/// Asked again it would fail again: the client is to hear so, and not to try.
#[test]
fn a_grammar_that_asks_for_too_much_is_its_clients_fault() {
    let body = json!({
        "prompt": "class Person:\n    ", "max_tokens": 40, "temperature": 0,
        "response_format": hard(r#""def __init__(self)" hard"#)
    });
    let answer = post(DEMO.address, PATH, &body);
    assert_eq!(answer.status, 400, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "invalid_request_error");
    assert!(error["message"].as_str().unwrap().contains("max is 2000"), "{error}");
    let mut streamed = body;
    streamed["stream"] = true.into();
    let mut stream = Stream::open(DEMO.address, PATH, &streamed);
    let mut last = Value::Null;
    while let Some(data) = stream.next() {
        last = serde_json::from_str(&data).unwrap_or(last);
    }
    assert_eq!(last["error"]["type"], "invalid_request_error", "{last}");
}
