//! What the server says of itself: readiness, models, metrics, the page; and tokens.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::client::{get, post, send};
use super::running::{CONTEXT, DEMO, Running, SEQUENCES, config, drafting_engine, target};

#[test]
fn readiness_follows_the_model() {
    let mut running = Running::loading(config());
    let code = |path: &str| {
        let answer = get(running.address, path);
        (answer.status, answer.json()["error"]["code"].clone())
    };
    assert_eq!(code("/health"), (200, Value::Null));
    assert_eq!(code("/ready"), (503, json!("loading")));
    assert_eq!(code("/v1/models"), (503, json!("loading")));
    let asked = post(running.address, "/v1/completions", &json!({"prompt": "a"}));
    assert_eq!((asked.status, asked.json()["error"]["code"].clone()), (503, json!("loading")));
    assert!(get(running.address, "/metrics").text().contains("smart_run_up 0\n"));
    running.handle.fail("no such device");
    assert_eq!(code("/health"), (503, json!("failed")));
    assert_eq!(code("/ready"), (503, json!("failed")));
    let model = smart_run::serve::ServedModel::open(&target(), "m").unwrap();
    running.handle.serve(model, None, drafting_engine(&target()));
    assert_eq!(code("/ready"), (200, Value::Null));
    assert_eq!(get(running.address, "/v1/models/m").good()["id"], "m");
    running.stop();
    running.join();
}

#[test]
fn the_model_is_described() {
    let models = get(DEMO.address, "/v1/models").good();
    let model = &models["data"][0];
    assert_eq!(
        (&models["object"], &model["id"], &model["object"]),
        (&json!("list"), &json!("demo"), &json!("model"))
    );
    assert_eq!(model["max_model_len"], CONTEXT);
    assert_eq!(model["smart_run"]["max_sequences"], SEQUENCES);
    assert_eq!(model["smart_run"]["chat"], false);
    assert_eq!(get(DEMO.address, "/v1/models/demo").good(), *model);
}

#[test]
fn tokens_go_and_come_back() {
    let answer = post(DEMO.address, "/tokenize", &json!({"prompt": "def main("})).good();
    assert_eq!(answer["count"], answer["tokens"].as_array().unwrap().len());
    assert_eq!(answer["max_model_len"], CONTEXT);
    let text = post(DEMO.address, "/detokenize", &json!({"tokens": answer["tokens"]})).good();
    assert_eq!(text["prompt"], "def main(");
    let plain =
        post(DEMO.address, "/tokenize", &json!({"prompt": "def main(", "add_special_tokens": false})).good();
    assert_eq!(plain["tokens"].as_array().unwrap()[..], answer["tokens"].as_array().unwrap()[1..]);
    for (path, body, param) in [
        ("/tokenize", json!({}), "messages"),
        ("/tokenize", json!({"prompt": 3}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "model": "b"}), "model"),
        ("/tokenize", json!({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}), "messages"),
        ("/tokenize", json!({"prompt": "a", "tools": 3}), "tools"),
        ("/tokenize", json!({"messages": [], "add_special_tokens": "no"}), "add_special_tokens"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": ["a"]}), "tokens"),
    ] {
        let answer = post(DEMO.address, path, &body);
        assert!((400..=404).contains(&answer.status));
        assert_eq!(answer.json()["error"]["param"], param, "{path} {body}");
    }
}

/// Samples by name and labels. Fails on a page that Prometheus would not read.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let (mut kinds, mut samples) = (BTreeMap::new(), BTreeMap::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is declared twice");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let family = name.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| family.strip_suffix(end));
            let known = kinds.contains_key(family)
                || base.is_some_and(|base| kinds.get(base).is_some_and(|kind| kind == "histogram"));
            assert!(known && family.starts_with("smart_run_"), "{line}");
            assert!(
                samples.insert(name.to_owned(), value.parse().unwrap()).is_none(),
                "{name} is there twice"
            );
        }
    }
    samples
}

#[test]
fn metrics_count_what_was_done() {
    let running = Running::start(config(), &target());
    let read = || samples(&get(running.address, "/metrics").text());
    let before = read();
    for _ in 0..2 {
        post(
            running.address,
            "/v1/completions",
            &json!({"prompt": "def main(", "max_tokens": 20, "temperature": 0}),
        )
        .good();
    }
    post(running.address, "/v1/completions", &json!({"prompt": 3}));
    running.wait_until(|stats| stats["running"] == 0 && stats["emitted_tokens"] == 40);
    let with_lengths_alone = read();
    // A stop string ends an answer: it is no cancelled one, though the engine has not come to its end.
    let body = json!({"prompt": "def main(", "max_tokens": 200, "temperature": 0, "stop": "frame"});
    let answer = post(running.address, "/v1/completions", &body).good();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    running.wait_until(|stats| stats["running"] == 0);
    let stopped = read();
    assert_eq!(stopped["smart_run_choices_total{outcome=\"stop\"}"], 1.0);
    assert_eq!(stopped.get("smart_run_choices_total{outcome=\"cancelled\"}"), None);
    let count = "smart_run_request_seconds_count";
    assert_eq!((with_lengths_alone[count], stopped[count]), (2.0, 3.0));
    let after = with_lengths_alone;
    let grew = |name: &str| after[name] - before.get(name).copied().unwrap_or(0.0);
    assert_eq!(grew("smart_run_http_responses_total{route=\"/v1/completions\",status=\"200\"}"), 2.0);
    assert_eq!(grew("smart_run_http_responses_total{route=\"/v1/completions\",status=\"400\"}"), 1.0);
    assert_eq!(grew("smart_run_choices_total{outcome=\"length\"}"), 2.0);
    assert_eq!(grew("smart_run_completion_tokens_total"), 40.0);
    assert_eq!(grew("smart_run_prompt_tokens_total"), 8.0);
    assert_eq!(grew("smart_run_emitted_tokens_total"), 40.0);
    assert_eq!(grew("smart_run_sequences_total"), 2.0);
    assert_eq!(after["smart_run_up"], 1.0);
    assert!(grew("smart_run_rounds_total") > 0.0 && grew("smart_run_rounds_total") < 40.0);
    assert!(grew("smart_run_accepted_tokens_total") > 0.0);
    assert!(grew("smart_run_nodes_total") > grew("smart_run_sequence_rounds_total"));
    for histogram in ["queue_seconds", "first_token_seconds", "request_seconds"] {
        assert_eq!(grew(&format!("smart_run_{histogram}_count")), 2.0);
        assert_eq!(grew(&format!("smart_run_{histogram}_bucket{{le=\"+Inf\"}}")), 2.0);
    }
    assert!(after["smart_run_round_measured_seconds"] > 0.0);
}

#[test]
fn the_page_runs_under_its_own_policy() {
    let first = get(DEMO.address, "/");
    let second = get(DEMO.address, "/");
    let policy = &first.headers["content-security-policy"];
    assert!(policy.starts_with("default-src 'none'"));
    let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(!second.text().contains(nonce), "a nonce is used once");
    let page = first.text();
    assert_eq!(page.matches("<script").count(), page.matches(&format!("<script nonce=\"{nonce}\"")).count());
    assert!(page.contains("<script nonce=") && page.contains(&format!("<style nonce=\"{nonce}\"")));
    for outside in ["http:", "https:", "//cdn", "@import", "url(", "style=\"", "onclick=", "innerHTML"] {
        let found = page.lines().filter(|line| line.contains(outside) && !line.contains("xmlns"));
        assert_eq!(found.collect::<Vec<_>>(), Vec::<&str>::new(), "{outside}");
    }
}

#[test]
fn requests_have_names() {
    let given = |name: &str| {
        send(DEMO.address, "GET", "/health", &[("X-Request-Id", name)], b"").headers["x-request-id"].clone()
    };
    assert_eq!(given("abc-1.2:3_4"), "abc-1.2:3_4");
    for name in ["a b", "", "x".repeat(65).as_str(), "a\u{e9}"] {
        assert_ne!(given(name), name);
        assert_eq!(given(name).len(), 32);
    }
    assert_ne!(
        get(DEMO.address, "/health").headers["x-request-id"],
        get(DEMO.address, "/health").headers["x-request-id"]
    );
    assert_eq!(get(DEMO.address, "/health").headers["x-content-type-options"], "nosniff");
}
