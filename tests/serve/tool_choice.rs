//! Calls that an answer must make.

use serde_json::{Value, json};
use smart_run::config::ModelSource;

use super::chat::{CHAT, chat_folder};
use super::client::{Stream, post};
use super::running::{DEMO, Running, config};

const PATH: &str = "/v1/chat/completions";

/// Functions whose arguments end soon, whatever a model makes of them.
fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "lookup", "parameters": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "properties": {"key": {"$ref": "#/$defs/key"}, "limit": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["key", "limit"], "additionalProperties": false,
            "$defs": {"key": {"enum": ["alpha", "beta"]}}}}},
        {"type": "function", "function": {"name": "stop_all"}},
    ])
}

fn body(choice: Value, seed: u64) -> Value {
    json!({
        "messages": [{"role": "user", "content": "def lookup("}], "tools": tools(), "tool_choice": choice, "max_tokens": 160, "seed": seed,
    })
}

/// Fails unless `call` is of one of the functions, with arguments that it takes. Its name.
fn check(call: &Value) -> String {
    assert_eq!(call["type"], "function");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    let name = call["function"]["name"].as_str().unwrap();
    match name {
        "lookup" => {
            assert!(arguments["key"] == "alpha" || arguments["key"] == "beta", "{arguments}");
            assert!((1..=9).contains(&arguments["limit"].as_i64().unwrap()), "{arguments}");
            assert_eq!(arguments.as_object().unwrap().len(), 2);
        }
        "stop_all" => assert_eq!(arguments, json!({})),
        _ => panic!("{call}"),
    }
    name.into()
}

#[test]
fn a_required_call_is_made_whole_or_streamed_speculating_or_not() {
    for seed in 0..3 {
        let mut body = body("required".into(), seed);
        body["parallel_tool_calls"] = false.into();
        let choice = post(CHAT.address, PATH, &body).good()["choices"][0].clone();
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Value::Null)
        );
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1, "{choice}");
        check(&calls[0]);
        body["speculation"] = "off".into();
        let plain = post(CHAT.address, PATH, &body).good()["choices"][0]["message"]["tool_calls"].clone();
        assert_eq!(plain[0]["function"], calls[0]["function"]);
        body["stream"] = true.into();
        let chunks = Stream::open(CHAT.address, PATH, &body).chunks();
        let deltas: Vec<&Value> =
            chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"].get("tool_calls")).collect();
        assert_eq!(deltas.len(), 1);
        assert_eq!(deltas[0][0]["function"], calls[0]["function"]);
    }
}

#[test]
fn a_function_that_is_named_is_called_once() {
    for name in ["lookup", "stop_all"] {
        let choice = json!({"type": "function", "function": {"name": name}});
        let answer = post(CHAT.address, PATH, &body(choice, 5)).good();
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().clone();
        assert_eq!(calls.iter().map(check).collect::<Vec<_>>(), [name]);
    }
}

#[test]
fn several_calls_may_follow_one_another() {
    let mut body = body("required".into(), 1);
    // The end-of-sequence token is made so unlikely that one call follows another.
    body["logit_bias"] = json!({"1": -100});
    let answer = post(CHAT.address, PATH, &body).good();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert!(calls.len() > 1, "{choice}");
    calls.iter().for_each(|call| drop(check(call)));
    // With one call at most there is nothing else to say.
    body["parallel_tool_calls"] = false.into();
    let answer = post(CHAT.address, PATH, &body).good();
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 1);
}

#[test]
fn models_that_write_calls_bare_are_held_to_that() {
    let folder = chat_folder(
        "{{ bos_token }}{# ipython \"parameters\" #}{% for m in messages %}{{ m.content }}{% endfor %}",
    );
    let running = Running::start(config(), &ModelSource::from(folder.path()));
    let answer = post(running.address, PATH, &body("required".into(), 2)).good();
    let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().clone();
    assert_eq!(calls.len(), 1);
    check(&calls[0]);
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    let refusal = |body: &Value| {
        let answer = post(CHAT.address, PATH, body);
        let error = answer.json()["error"].clone();
        (answer.status, error["param"].clone(), error["code"].clone())
    };
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    assert_eq!(refusal(&body(named("nothing"), 0)), (400, "tool_choice".into(), "invalid_value".into()));
    let mut with_format = body("required".into(), 0);
    with_format["response_format"] = json!({"type": "json_object"});
    assert_eq!(refusal(&with_format), (400, "response_format".into(), "invalid_value".into()));
    for (parameters, param) in [
        (json!({"type": "string"}), "tools[0].function.parameters"),
        (json!({"properties": {"a": {"not": {}}}}), "tools"),
    ] {
        let mut bad = body("required".into(), 0);
        bad["tools"][0]["function"]["parameters"] = parameters;
        assert_eq!(refusal(&bad), (400, param.into(), "invalid_value".into()), "{bad}");
        // A schema that nobody enforces is the template's affair.
        bad["tool_choice"] = "auto".into();
        assert_eq!(post(CHAT.address, PATH, &bad).status, 200);
    }
    // A template that teaches no calls.
    let folder = chat_folder("{% for m in messages %}{{ m.content }}{% endfor %}");
    let running = Running::start(config(), &ModelSource::from(folder.path()));
    let answer = post(running.address, PATH, &body("required".into(), 0));
    let error = answer.json()["error"].clone();
    assert_eq!(
        (answer.status, &error["param"], &error["code"]),
        (400, &json!("tool_choice"), &json!("unsupported_parameter"))
    );
    // The demo pair has no template at all.
    assert_eq!(post(DEMO.address, PATH, &body("required".into(), 0)).status, 400);
}
