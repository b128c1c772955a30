//! Pictures over HTTP: the tokens are transformers', and nothing is fetched.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use smart_run::config::{FloatType, ModelSource};
use smart_run::device::DeviceChoice;
use smart_run::engine::Engine;
use smart_run::image::{ImageProcessor, Picture};
use smart_run::serve::ServerConfig;

use super::client::{Stream, get, post};
use super::running::{Running, config, in_repository};

const PATH: &str = "/v1/chat/completions";

/// The golden model with a tokenizer that spells token 7 as `t7`, and a template that writes nothing but what messages hold.
fn folder(case: &str, image_token: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        fs::copy(in_repository(&format!("tests/golden/{case}/{file}")), folder.path().join(file)).unwrap();
    }
    let image_token = image_token.as_u64().unwrap();
    let vocab: BTreeMap<String, u64> = (0..128).map(|id| (format!("t{id}"), id)).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [{"id": image_token, "content": format!("t{image_token}"), "special": false, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let template = format!(
        "{{% for part in messages[0].content %}}{{% if part.type == 'image' %}} t{image_token} {{% else %}}{{{{ part.text }}}}{{% endif %}}{{% endfor %}}"
    );
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

fn data_url(case: &str, picture: &str) -> String {
    let bytes = fs::read(in_repository(&format!("tests/golden/{case}/{picture}.png"))).unwrap();
    format!("data:image/png;base64,{}", STANDARD.encode(bytes))
}

#[test]
fn pictures_are_seen() {
    for case in ["llava", "qwen2_vl"] {
        let expected: Value = serde_json::from_slice(
            &fs::read(in_repository(&format!("tests/golden/{case}/expected.json"))).unwrap(),
        )
        .unwrap();
        let image_token = &expected["image_token_id"];
        let folder = folder(case, image_token);
        let source = ModelSource::from(folder.path());
        let engine = Engine::builder(source.clone())
            .device(DeviceChoice::Host)
            .float_type(FloatType::F32)
            .max_sequences(2);
        let running = Running::with(config(), &source, engine.build().unwrap());
        for prompt in expected["prompts"].as_array().unwrap() {
            let mut pictures = prompt["pictures"].as_array().unwrap().iter();
            let parts: Vec<Value> = prompt["prompt_ids"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| {
                    if id == image_token {
                        let url = data_url(case, pictures.next().unwrap().as_str().unwrap());
                        json!({"type": "image_url", "image_url": {"url": url, "detail": "auto"}})
                    } else {
                        json!({"type": "text", "text": format!("t{id} ")})
                    }
                })
                .collect();
            let messages = json!([{"role": "user", "content": parts}]);
            let body = json!({"messages": messages, "max_tokens": 48, "temperature": 0, "ignore_eos": true});
            let answer = post(running.address, PATH, &body).good();
            let words: Vec<String> =
                prompt["greedy_ids"].as_array().unwrap().iter().map(|id| format!("t{id}")).collect();
            assert_eq!(
                answer["choices"][0]["message"]["content"],
                words.join(" "),
                "{case} {}",
                prompt["name"]
            );
            assert_eq!(answer["usage"]["prompt_tokens"], prompt["expanded_ids"].as_array().unwrap().len());
            // The same tokens, by the endpoint that only counts them.
            let tokens = post(running.address, "/tokenize", &json!({"messages": messages})).good();
            assert_eq!(tokens["tokens"], prompt["expanded_ids"]);
        }
        refuse_what_is_no_picture(&running);
    }
}

fn refuse_what_is_no_picture(running: &Running) {
    let text = json!({"type": "text", "text": "t1 "});
    let picture = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
    for part in [
        picture("http://127.0.0.1:9/a.png"),
        picture("https://example.org/a.png"),
        picture("file:///etc/passwd"),
        picture("data:image/png;base64,!!!"),
        picture("data:image/png;base64,AAAA"),
        picture("data:image/png,abc"),
        picture(""),
        json!({"type": "image_url", "image_url": {}}),
        json!({"type": "image"}),
    ] {
        let body = json!({"messages": [{"role": "user", "content": [text, part]}]});
        let answer = post(running.address, PATH, &body);
        let error = answer.json()["error"].clone();
        assert_eq!(
            (answer.status, &error["param"]),
            (400, &json!("messages[0].content[1]")),
            "{part}: {error}"
        );
    }
}

/// The golden LLaVA, a place for one sequence of `context` tokens, and a budget of `budget` bytes for pictures.
fn with_budget(budget: usize, context: usize) -> Running {
    let folder = folder("llava", &json!(120));
    let source = ModelSource::from(folder.path());
    let engine = Engine::builder(source.clone())
        .device(DeviceChoice::Host)
        .float_type(FloatType::F32)
        .max_context(context)
        .max_sequences(1);
    let config = ServerConfig { picture_budget_bytes: budget, max_sequences: 1, ..config() };
    Running::with(config, &source, engine.build().unwrap())
}

/// Bytes that the picture takes once it is prepared, and its tokens.
fn size_of_exact() -> (usize, usize) {
    let source = ModelSource::from(in_repository("tests/golden/llava"));
    let patch_size =
        smart_run::config::ModelConfig::from_hf(&source).unwrap().vision.unwrap().tower.patch_size;
    let processor = ImageProcessor::from_hf(&source, patch_size).unwrap().unwrap();
    let size = Picture::open(&in_repository("tests/golden/llava/exact.png")).unwrap().size();
    let layout = processor.layout(size).unwrap();
    (layout.bytes(), layout.num_patches())
}

/// A question about pictures.
fn about(urls: &[String], n: usize, max_tokens: usize) -> Value {
    let mut parts = vec![json!({"type": "text", "text": "t1 "})];
    parts.extend(urls.iter().map(|url| json!({"type": "image_url", "image_url": {"url": url}})));
    json!({"messages": [{"role": "user", "content": parts}], "n": n, "max_tokens": max_tokens, "ignore_eos": true, "seed": 1})
}

/// A picture whose header is whole.
fn cut_short(url: &str) -> String {
    let bytes = STANDARD.decode(url.split_once(',').unwrap().1).unwrap();
    format!("data:image/png;base64,{}", STANDARD.encode(&bytes[..bytes.len() * 2 / 3]))
}

fn metric(running: &Running, name: &str) -> usize {
    let page = get(running.address, "/metrics").text();
    let value = page.lines().find_map(|line| line.strip_prefix(&format!("smart_run_{name} ")));
    value.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
}

/// Waits until all of the budget has been given back.
fn wait_for_all_of_it(running: &Running) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while metric(running, "picture_bytes") > 0 {
        assert!(Instant::now() < deadline, "{} bytes are held", metric(running, "picture_bytes"));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn pictures_share_a_budget_and_give_it_back() {
    let (bytes, _) = size_of_exact();
    let running = with_budget(bytes, 256);
    let url = data_url("llava", "exact");
    let one = std::slice::from_ref(&url);
    assert_eq!(metric(&running, "picture_bytes"), 0);
    // Whatever `n`, the picture is there once.
    let answer = post(running.address, PATH, &about(one, 8, 4)).good();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 8);
    wait_for_all_of_it(&running);
    // Answers that run and that wait hold it.
    let mut asked = about(one, 64, 100_000);
    asked["stream"] = true.into();
    let mut stream = Stream::open(running.address, PATH, &asked);
    stream.next().unwrap();
    assert_eq!(metric(&running, "picture_bytes"), metric(&running, "picture_bytes_max"));
    assert_eq!(metric(&running, "picture_bytes"), bytes.next_multiple_of(1024));
    let busy = post(running.address, PATH, &about(one, 1, 4));
    assert_eq!((busy.status, &busy.json()["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    assert!((1..=60).contains(&busy.headers["retry-after"].parse::<u64>().unwrap()));
    assert!(busy.text().contains("memory for pictures"), "{}", busy.text());
    // To count tokens nothing is prepared.
    post(running.address, "/tokenize", &json!({"messages": asked["messages"]})).good();
    // A client that goes gives it back, for the next.
    drop(stream);
    wait_for_all_of_it(&running);
    post(running.address, PATH, &about(one, 1, 4)).good();
    wait_for_all_of_it(&running);
    // So does one that is refused once its share is taken.
    let answer = post(running.address, PATH, &about(&[cut_short(&url)], 1, 4));
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("messages[0].content[1]")));
    assert_eq!(metric(&running, "picture_bytes"), 0);
    // To come back would not help.
    let answer = post(running.address, PATH, &about(&[url.clone(), url.clone()], 1, 4));
    let error = answer.json()["error"].clone();
    assert_eq!(
        (answer.status, &error["param"], &error["code"]),
        (400, &json!("messages"), &json!("invalid_value"))
    );
    assert!(error["message"].as_str().unwrap().contains("once they are prepared"), "{error}");
    post(running.address, PATH, &about(one, 1, 4)).good();
}

#[test]
fn what_does_not_fit_the_context_is_refused_before_pictures_are_prepared() {
    let (bytes, tokens) = size_of_exact();
    assert!(bytes > 2048);
    // One picture fits the context, two do not; none fits the memory.
    let running = with_budget(1024, tokens + 8);
    let url = data_url("llava", "exact");
    let answer = post(running.address, PATH, &about(std::slice::from_ref(&url), 1, 4));
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (400, &json!("invalid_value")),
        "{}",
        answer.text()
    );
    // They are not even decoded: nobody sees that they are broken.
    for url in [cut_short(&url), url] {
        let answer = post(running.address, PATH, &about(&[url.clone(), url], 1, 4));
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["code"]), (400, &json!("context_length_exceeded")), "{error}");
        let counted = format!("has {} tokens", 1 + 2 * tokens);
        assert!(error["message"].as_str().unwrap().contains(&counted), "{error}");
    }
}
