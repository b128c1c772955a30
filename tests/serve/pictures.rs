//! Pictures over HTTP: the tokens are transformers', and nothing is fetched.

use std::collections::BTreeMap;
use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use smart_run::config::{FloatType, ModelSource};
use smart_run::device::DeviceChoice;
use smart_run::engine::Engine;

use super::client::post;
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
