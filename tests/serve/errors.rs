//! Bad requests: each is told what is wrong, in OpenAI's shape, and none reaches the engine.

use serde_json::{Value, json};
use smart_run::serve::{ApiKey, ServerConfig};

use super::client::{Answer, get, post, post_bytes, send};
use super::running::{DEMO, Running, config, target};

/// Checks the shape of a refusal, and returns its parts.
fn refusal(answer: &Answer) -> (u16, Value, Value, String) {
    let body = answer.json();
    let error = body["error"].as_object().unwrap_or_else(|| panic!("no error in {body}"));
    assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert!(error["type"].is_string());
    (
        answer.status,
        error["param"].clone(),
        error["code"].clone(),
        error["message"].as_str().unwrap().to_owned(),
    )
}

/// What both APIs refuse: a field, its value, the parameter named.
fn bad_fields() -> Vec<(&'static str, Value, &'static str)> {
    let many_biases: Value =
        (0..1025).map(|id| (id.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into();
    vec![
        ("temperature", json!(-0.1), "temperature"),
        ("temperature", json!(2.1), "temperature"),
        ("temperature", json!("1"), "temperature"),
        ("temperature", json!(1e300), "temperature"),
        ("top_p", json!(1.01), "top_p"),
        ("top_p", json!(-0.01), "top_p"),
        ("top_k", json!(-2), "top_k"),
        ("top_k", json!(1.5), "top_k"),
        ("min_p", json!(1.5), "min_p"),
        ("seed", json!("x"), "seed"),
        ("seed", json!(1.5), "seed"),
        ("min_tokens", json!(-1), "min_tokens"),
        ("min_tokens", json!(300), "min_tokens"),
        ("max_tokens", json!(0), "max_tokens"),
        ("max_tokens", json!(-1), "max_tokens"),
        ("max_tokens", json!(1e12), "max_tokens"),
        ("max_completion_tokens", json!(-5), "max_completion_tokens"),
        ("n", json!(0), "n"),
        ("n", json!(129), "n"),
        ("stop", json!(""), "stop"),
        ("stop", json!(3), "stop"),
        ("stop", json!(["a", 1]), "stop"),
        ("stop", json!(vec!["a"; 17]), "stop"),
        ("stop", json!("x".repeat(1001)), "stop"),
        ("stop_token_ids", json!([4096]), "stop_token_ids"),
        ("stop_token_ids", json!(["a"]), "stop_token_ids"),
        ("stop_token_ids", json!(vec![1; 257]), "stop_token_ids"),
        ("logit_bias", json!({"4096": 1}), "logit_bias"),
        ("logit_bias", json!({"-1": 1}), "logit_bias"),
        ("logit_bias", json!({"a": 1}), "logit_bias"),
        ("logit_bias", json!({"1": 101}), "logit_bias"),
        ("logit_bias", json!({"1": 1, "01": 1}), "logit_bias"),
        ("logit_bias", json!([1]), "logit_bias"),
        ("logit_bias", many_biases, "logit_bias"),
        ("presence_penalty", json!(2.5), "presence_penalty"),
        ("frequency_penalty", json!(-2.5), "frequency_penalty"),
        ("repetition_penalty", json!(0), "repetition_penalty"),
        ("repetition_penalty", json!(-1), "repetition_penalty"),
        ("stream", json!("yes"), "stream"),
        ("stream_options", json!({"include_usage": true}), "stream_options"),
        ("ignore_eos", json!(1), "ignore_eos"),
        ("speculation", json!("on"), "speculation"),
        ("speculation", json!(false), "speculation"),
        ("smart_run", json!({"watch": true}), "smart_run.watch"),
        ("smart_run", json!([]), "smart_run"),
        ("model", json!(7), "model"),
        ("response_format", json!({"type": 3}), "response_format.type"),
        ("response_format", json!({"type": "xml"}), "response_format.type"),
        ("response_format", json!({}), "response_format.type"),
        ("response_format", json!({"type": "json_schema"}), "response_format.json_schema"),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": 3, "schema": {}}}),
            "response_format.json_schema.name",
        ),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"strict": "yes", "schema": {}}}),
            "response_format.json_schema.strict",
        ),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "a"}}),
            "response_format.json_schema.schema",
        ),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"schema": {"type": "unicorn"}}}),
            "response_format",
        ),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"schema": {"$ref": "https://example.org/a"}}}),
            "response_format",
        ),
        ("response_format", json!({"type": "regex"}), "response_format.regex"),
        ("response_format", json!({"type": "regex", "regex": "("}), "response_format"),
        ("response_format", json!({"type": "grammar", "grammar": "start: nothing"}), "response_format"),
    ]
}

/// What is known and not done.
fn unsupported_fields() -> Vec<(&'static str, Value)> {
    vec![
        ("best_of", json!(2)),
        ("suffix", json!("end")),
        ("audio", json!({"voice": "a"})),
        ("modalities", json!(["text", "audio"])),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!("auto")),
        ("web_search_options", json!({})),
        ("use_beam_search", json!(true)),
        ("prompt_logprobs", json!(1)),
        ("chat_template_kwargs", json!({"a": 1})),
    ]
}

#[test]
fn a_field_out_of_range_is_named() {
    for path in ["/v1/completions", "/v1/chat/completions"] {
        let base = json!({"prompt": "a", "messages": [{"role": "user", "content": "a"}]});
        for (field, value, param) in bad_fields() {
            let mut body = base.clone();
            body[field] = value.clone();
            let (status, named, code, message) = refusal(&post(DEMO.address, path, &body));
            assert_eq!(
                (status, &named, &code),
                (400, &json!(param), &json!("invalid_value")),
                "{path} {field} {value}: {message}"
            );
            assert!(message.contains(field), "{message}");
        }
        for (field, value) in unsupported_fields() {
            let mut body = base.clone();
            body[field] = value.clone();
            let (status, named, code, message) = refusal(&post(DEMO.address, path, &body));
            assert_eq!(
                (status, &named, &code),
                (400, &json!(field), &json!("unsupported_parameter")),
                "{path} {field} {value}: {message}"
            );
        }
        let mut body = base.clone();
        body["model"] = "gpt-4".into();
        let (status, named, code, _) = refusal(&post(DEMO.address, path, &body));
        assert_eq!((status, named, code), (404, json!("model"), json!("model_not_found")));
    }
    // Nothing of this has been run.
    let completions = json!({"prompt": "a", "logprobs": 21});
    assert_eq!(refusal(&post(DEMO.address, "/v1/completions", &completions)).1, "logprobs");
    let echo = json!({"prompt": "a", "logprobs": 1, "echo": true});
    assert_eq!(refusal(&post(DEMO.address, "/v1/completions", &echo)).2, "unsupported_parameter");
}

#[test]
fn a_bad_prompt_is_named() {
    let ids = vec![1; 256];
    let words = "word ".repeat(400);
    for (prompt, code) in [
        (Value::Null, "invalid_value"),
        (json!(3), "invalid_value"),
        (json!([]), "invalid_value"),
        (json!({}), "invalid_value"),
        (json!([[]]), "invalid_value"),
        (json!([1, "a"]), "invalid_value"),
        (json!(["a", 1]), "invalid_value"),
        (json!([1.5]), "invalid_value"),
        (json!([-1]), "invalid_value"),
        (json!([4096]), "invalid_value"),
        (json!([1u64 << 40]), "invalid_value"),
        (json!(["a", [4096]]), "invalid_value"),
        (json!(vec!["a"; 300]), "invalid_value"),
        (json!(ids), "context_length_exceeded"),
        (json!(words), "context_length_exceeded"),
    ] {
        let (status, param, said, message) =
            refusal(&post(DEMO.address, "/v1/completions", &json!({"prompt": prompt})));
        assert_eq!((status, &param, &said), (400, &json!("prompt"), &json!(code)), "{message}");
    }
    let both = json!({"messages": [{"role": "user", "content": "a"}]});
    assert!(refusal(&post(DEMO.address, "/v1/completions", &both)).3.contains("/v1/chat/completions"));
    let both = json!({"prompt": "a"});
    assert!(refusal(&post(DEMO.address, "/v1/chat/completions", &both)).3.contains("/v1/completions"));
}

#[test]
fn ten_megabytes_of_prompt_are_refused_at_once() {
    let body = json!({"prompt": "def main(\n".repeat(1 << 20)}).to_string();
    let began = std::time::Instant::now();
    let (status, param, code, _) = refusal(&post_bytes(DEMO.address, "/v1/completions", body.as_bytes()));
    assert_eq!((status, param, code), (400, json!("prompt"), json!("context_length_exceeded")));
    assert!(began.elapsed().as_secs() < 10);
    let body = json!({"prompt": vec![1; 1 << 19]}).to_string();
    assert_eq!(
        refusal(&post_bytes(DEMO.address, "/v1/completions", body.as_bytes())).2,
        "context_length_exceeded"
    );
}

#[test]
fn a_body_that_is_no_json_object_is_refused() {
    let deep = format!("{{\"prompt\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let many = format!("{{\"prompt\": [{}1]}}", "1,".repeat(1 << 20));
    let bodies: [&[u8]; 10] = [
        b"",
        b"[]",
        b"null",
        b"{",
        b"{\"prompt\": NaN}",
        b"{\"temperature\": Infinity}",
        b"{\"temperature\": 1e999}",
        b"{\"prompt\": \"\xff\xfe\"}",
        deep.as_bytes(),
        many.as_bytes(),
    ];
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
        for body in bodies {
            let (status, param, _, message) = refusal(&post_bytes(DEMO.address, path, body));
            assert_eq!((status, param), (400, Value::Null), "{path}: {message}");
        }
        let (status, ..) =
            refusal(&send(DEMO.address, "POST", path, &[("Content-Type", "text/plain")], b"{}"));
        assert_eq!(status, 415);
        let (status, ..) = refusal(&send(DEMO.address, "POST", path, &[], b"{\"prompt\": \"a\"}"));
        assert_eq!(status, 415);
    }
    let parameters = [("Content-Type", "Application/JSON; charset=utf-8")];
    let good = send(DEMO.address, "POST", "/tokenize", &parameters, b"{\"prompt\": \"a\"}");
    assert_eq!(good.status, 200);
}

#[test]
fn unknown_paths_and_methods_are_told_so() {
    for path in ["/v1", "/v1/completions/", "/v2/completions", "/favicon.ico", "/..%2f..%2fetc/passwd"] {
        assert_eq!(refusal(&get(DEMO.address, path)).0, 404, "{path}");
    }
    for (method, path, allowed) in [
        ("GET", "/v1/completions", "POST"),
        ("DELETE", "/v1/models", "GET,HEAD"),
        ("POST", "/health", "GET,HEAD"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("BREW", "/", "GET,HEAD"),
    ] {
        let answer = send(DEMO.address, method, path, &[], b"");
        assert_eq!(refusal(&answer).0, 405, "{method} {path}");
        assert_eq!(answer.headers["allow"], allowed);
    }
    assert_eq!(refusal(&get(DEMO.address, "/v1/models/other")).2, "model_not_found");
}

#[test]
fn without_the_key_nothing_is_answered() {
    let keys = ["alpha", "beta"].map(ApiKey::new).to_vec();
    let running = Running::start(ServerConfig { api_keys: keys, ..config() }, &target());
    let with = |key: &str, method: &str, path: &str, body: &[u8]| {
        let headers = [("Content-Type", "application/json"), ("Authorization", key)];
        send(running.address, method, path, &headers, body)
    };
    for (method, path) in [
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/demo"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
    ] {
        for key in
            ["", "Bearer ", "Bearer alph", "Bearer alphabeta", "Basic alpha", "alpha", "Bearer alpha beta"]
        {
            let answer = with(key, method, path, b"");
            let (status, _, code, message) = refusal(&answer);
            assert_eq!((status, code), (401, json!("invalid_api_key")), "{path} {key}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            assert!(!message.contains("alph"));
        }
        assert_eq!(refusal(&send(running.address, method, path, &[], b"")).0, 401);
    }
    for key in ["Bearer alpha", "bearer beta"] {
        assert_eq!(with(key, "GET", "/v1/models", b"").status, 200);
        assert_eq!(
            with(key, "POST", "/v1/completions", b"{\"prompt\": \"a\", \"max_tokens\": 1}").status,
            200
        );
    }
    for path in ["/health", "/ready", "/", "/openapi.json", "/metrics"] {
        assert_eq!(get(running.address, path).status, 200);
    }
}

#[test]
fn other_origins_are_let_in_only_if_named() {
    let preflight = [("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST")];
    let off = send(DEMO.address, "OPTIONS", "/v1/completions", &preflight, b"");
    assert_eq!(off.status, 405);
    let plain = send(DEMO.address, "GET", "/health", &[("Origin", "https://a.example")], b"");
    for answer in [&off, &plain] {
        assert!(
            answer.headers.keys().all(|name| !name.starts_with("access-control")),
            "{:?}",
            answer.headers
        );
    }
    let origins = vec!["https://a.example".to_owned()];
    let running = Running::loading(ServerConfig { cors_origins: origins, ..config() });
    let on = send(running.address, "OPTIONS", "/v1/completions", &preflight, b"");
    assert_eq!((on.status, on.headers["access-control-allow-origin"].as_str()), (204, "https://a.example"));
    assert!(on.headers["access-control-allow-headers"].contains("authorization"));
    let other = send(running.address, "GET", "/health", &[("Origin", "https://b.example")], b"");
    assert!(!other.headers.contains_key("access-control-allow-origin"));
    assert_eq!(other.headers["vary"], "origin");
}
