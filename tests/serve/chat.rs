//! `/v1/chat/completions`: the template's text, answered; tools; what templates refuse.

use std::fs;
use std::sync::LazyLock;

use serde_json::{Value, json};
use smart_run::config::ModelSource;

use super::client::{Stream, post};
use super::running::{Running, config, in_repository};

const PATH: &str = "/v1/chat/completions";

/// Shows roles, contents, tools and calls; refuses a conversation that ends with the assistant.
const TEMPLATE: &str = "{{ bos_token }}{% if tools %}{% for tool in tools %}# tool {{ tool.function.name }}: <tool_call>\n{% endfor %}{% endif %}\
    {% for m in messages %}# {{ m.role }}\n{{ m.content or '' }}{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}{{ '\\n' }}{% endfor %}\
    {% if messages[-1].role == 'assistant' %}{{ raise_exception('the last word is the user\\'s') }}{% endif %}\
    {% if add_generation_prompt %}# assistant\n{% endif %}";

/// The demo target as a folder with a chat template.
pub fn chat_folder(template: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(in_repository("assets/demo/target")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join("tokenizer_config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["chat_template"] = template.into();
    fs::write(path, json.to_string()).unwrap();
    folder
}

/// A server of the demo pair with [`TEMPLATE`], shared as [`super::running::DEMO`] is.
pub static CHAT: LazyLock<Running> = LazyLock::new(|| {
    let folder = chat_folder(TEMPLATE);
    Running::start(config(), &ModelSource::from(folder.path()))
});

fn ask(body: &Value) -> Value {
    post(CHAT.address, PATH, body).good()
}

/// What `/v1/completions` says to the rendered text.
fn continued(text: &str, like: &Value) -> Value {
    // The template's own beginning-of-text token; the tokenizer must not add another.
    let ids = post(CHAT.address, "/tokenize", &json!({"prompt": text})).good()["tokens"].clone();
    let mut body = like.clone();
    body.as_object_mut().unwrap().remove("messages");
    body["prompt"] = ids;
    post(CHAT.address, "/v1/completions", &body).good()
}

#[test]
fn a_conversation_is_answered_as_its_text_is_continued() {
    let body = json!({
        "messages": [
            {"role": "developer", "content": "Sort things."},
            {"role": "user", "content": "def sort(items):"},
            {"role": "assistant", "content": "pass"},
            {"role": "user", "content": [{"type": "text", "text": "for item"}, {"type": "text", "text": "in items:"}]},
        ],
        "max_tokens": 30, "seed": 4, "temperature": 0.7,
    });
    let mut flat = body.clone();
    flat["messages"][3]["content"] = "for item\nin items:".into();
    let text = "# system\nSort things.\n# user\ndef sort(items):\n# assistant\npass\n# user\nfor item\nin items:\n# assistant\n";
    let expected = continued(text, &body);
    let answer = ask(&flat);
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][0];
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": expected["choices"][0]["text"], "refusal": null})
    );
    assert_eq!(choice["finish_reason"], expected["choices"][0]["finish_reason"]);
    assert_eq!(answer["usage"]["prompt_tokens"], expected["usage"]["prompt_tokens"]);
    assert_eq!(answer["smart_run"]["seed"], 4);
    // Parts of text are its lines.
    assert_eq!(ask(&body)["choices"], answer["choices"]);
}

#[test]
fn a_stream_opens_with_the_role_and_says_what_the_whole_answer_says() {
    let messages = json!([{"role": "user", "content": "def main("}]);
    for n in [1, 2] {
        let body = json!({"messages": messages, "max_completion_tokens": 20, "seed": 9, "n": n});
        let whole = ask(&body);
        let mut streamed = body;
        streamed["stream"] = true.into();
        let mut contents = vec![String::new(); n];
        let mut finishes = vec![Value::Null; n];
        let chunks = Stream::open(CHAT.address, PATH, &streamed).chunks();
        for (index, chunk) in chunks.iter().enumerate() {
            assert_eq!(chunk["object"], "chat.completion.chunk");
            let choice = &chunk["choices"][0];
            let at = choice["index"].as_u64().unwrap() as usize;
            assert_eq!(choice["delta"].get("role").is_some(), index < n, "{choice}");
            contents[at] += choice["delta"]["content"].as_str().unwrap_or_default();
            finishes[at] = choice["finish_reason"].clone();
        }
        for at in 0..n {
            assert_eq!(whole["choices"][at]["message"]["content"], contents[at]);
            assert_eq!(whole["choices"][at]["finish_reason"], finishes[at]);
        }
    }
}

#[test]
fn without_a_limit_an_answer_may_fill_the_context() {
    let body = json!({"messages": [{"role": "user", "content": "a"}], "temperature": 0, "ignore_eos": true});
    let answer = ask(&body);
    assert_eq!(answer["usage"]["total_tokens"], super::running::CONTEXT);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn tools_and_calls_reach_the_template() {
    let tools =
        json!([{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]);
    let call = json!({"id": "c", "type": "function", "function": {"name": "lookup", "arguments": "{\"b\": 1, \"a\": 2}"}});
    let messages = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "c"},
    ]);
    let text = "# user\nx\n# assistant\nlookup({\"b\": 1, \"a\": 2})\n# tool\n7\n# assistant\n";
    let with_tools = format!("# tool lookup: <tool_call>\n{text}");
    let expected =
        |text: &str| post(CHAT.address, "/tokenize", &json!({"prompt": text})).good()["tokens"].clone();
    let tokens = |extra: Value| {
        let mut body = json!({"messages": messages, "tools": tools});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        post(CHAT.address, "/tokenize", &body).good()["tokens"].clone()
    };
    assert_eq!(tokens(json!({})), expected(&with_tools));
    assert_eq!(tokens(json!({"tool_choice": "auto"})), expected(&with_tools));
    assert_eq!(tokens(json!({"tool_choice": "none"})), expected(text));
    assert_eq!(tokens(json!({"tools": []})), expected(text));
    // The demo model calls nothing: its words stay words.
    let answer = ask(
        &json!({"messages": [{"role": "user", "content": "def f("}], "tools": tools, "max_tokens": 12, "temperature": 0}),
    );
    assert!(answer["choices"][0]["message"].get("tool_calls").is_none());
    assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
}

#[test]
fn a_bad_conversation_is_named() {
    let user = json!({"role": "user", "content": "a"});
    let long = "word ".repeat(300);
    for (body, param, code) in [
        (json!({}), "messages", "invalid_value"),
        (json!({"messages": []}), "messages", "invalid_value"),
        (json!({"messages": "hello"}), "messages", "invalid_value"),
        (json!({"messages": [3]}), "messages[0]", "invalid_value"),
        (json!({"messages": [user, {"content": "a"}]}), "messages[1].role", "invalid_value"),
        (json!({"messages": [{"role": 3, "content": "a"}]}), "messages[0].role", "invalid_value"),
        (json!({"messages": [{"role": "user", "content": 3}]}), "messages[0]", "invalid_value"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
            "messages[0]",
            "invalid_value",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}),
            "messages[0].content[0]",
            "unsupported_parameter",
        ),
        (json!({"messages": [user, {"role": "assistant", "content": "b"}]}), "messages", "invalid_value"),
        (json!({"messages": [{"role": "user", "content": long}]}), "messages", "context_length_exceeded"),
        (json!({"messages": [user], "tools": {}}), "tools", "invalid_value"),
        (json!({"messages": [user], "tools": [{"type": "function"}]}), "tools", "invalid_value"),
        (
            json!({"messages": [user], "tools": vec![json!({"type": "function", "function": {"name": "f"}}); 129]}),
            "tools",
            "invalid_value",
        ),
        (json!({"messages": [user], "tool_choice": "required"}), "tool_choice", "invalid_value"),
        (json!({"messages": [user], "tool_choice": "any"}), "tool_choice", "invalid_value"),
        (json!({"messages": [user], "tool_choice": {"type": "function"}}), "tool_choice", "invalid_value"),
        (json!({"messages": [user], "top_logprobs": 2}), "top_logprobs", "invalid_value"),
        (json!({"messages": [user], "logprobs": 2}), "logprobs", "invalid_value"),
        (json!({"messages": [user], "logprobs": true, "top_logprobs": 21}), "top_logprobs", "invalid_value"),
    ] {
        let answer = post(CHAT.address, PATH, &body);
        let error = answer.json()["error"].clone();
        assert_eq!(
            (answer.status, &error["param"], &error["code"]),
            (400, &json!(param), &json!(code)),
            "{error}"
        );
    }
    let refused =
        post(CHAT.address, PATH, &json!({"messages": [user, {"role": "assistant", "content": "b"}]}));
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("the last word is the user's"));
}

#[test]
fn log_probabilities_have_the_chat_apis_shape() {
    let body = json!({
        "messages": [{"role": "user", "content": "def main("}], "max_tokens": 12, "temperature": 0, "logprobs": true, "top_logprobs": 2,
    });
    let answer = ask(&body);
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 12);
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|entry| serde_json::from_value::<Vec<u8>>(entry["bytes"].clone()).unwrap())
        .collect();
    assert_eq!(bytes, answer["choices"][0]["message"]["content"].as_str().unwrap().as_bytes());
    for entry in &content {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&entry["token"], &entry["logprob"]));
    }
}
