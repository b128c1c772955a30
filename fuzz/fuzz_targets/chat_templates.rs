//! Chat templates from strangers: within time and length, or refused in one sentence.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use smart_run::config::ModelSource;
use smart_run::text::{ChatTemplate, Message};

static MESSAGES: LazyLock<(Vec<Message>, Value)> = LazyLock::new(|| {
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"b": 1}}}]});
    let messages = [
        json!({"role": "system", "content": "s"}),
        json!({"role": "user", "content": [{"type": "text", "text": "a é"}, {"type": "image"}]}),
        call,
        json!({"role": "tool", "content": "7", "name": "f"}),
        json!({"role": "user", "content": "b"}),
    ];
    let messages = messages.into_iter().map(|message| serde_json::from_value(message).unwrap()).collect();
    (messages, json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]))
});

fuzz_target!(|data: &[u8]| {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap();
    }
    FOLDER.with(|folder| {
        std::fs::write(folder.path().join("chat_template.jinja"), data).unwrap();
        let (messages, tools) = &*MESSAGES;
        let rendered =
            ChatTemplate::open(&ModelSource::from(folder.path())).and_then(|template| match template {
                Some(template) => template.render(messages, Some(tools), true).map(|text| text.len()),
                None => Ok(0),
            });
        match rendered {
            Ok(bytes) => assert!(bytes < 64 << 20, "{bytes} bytes"),
            Err(error) => assert!(error.is_input() && !error.to_string().contains('\n'), "{error}"),
        }
    });
});
