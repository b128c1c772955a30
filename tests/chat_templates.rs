//! Chat templates against transformers: the same text for the same conversation, or a refusal in the same words.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use smart_run::Result;
use smart_run::text::{ChatTemplate, Message};

/// A model folder with the golden template `name`: of its own file, or in tokenizer_config.json.
fn open(name: &str, special_tokens: &Value, own_file: bool, now: u64) -> ChatTemplate {
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat").join(name).with_extension("jinja");
    let template = fs::read_to_string(golden).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut config = special_tokens.clone();
    if own_file {
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    } else {
        config["chat_template"] = json!([{"name": "default", "template": template}]);
    }
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let template = ChatTemplate::open(&folder.path().into()).unwrap().unwrap();
    template.at(SystemTime::UNIX_EPOCH + Duration::from_secs(now))
}

fn render(template: &ChatTemplate, case: &Value) -> Result<String> {
    let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
    let tools = Some(&case["tools"]).filter(|tools| !tools.is_null());
    template.render(&messages, tools, case["add_generation_prompt"].as_bool().unwrap())
}

#[test]
fn conversations_read_as_transformers_has_them() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat/expected.json");
    let expected: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    let formats = expected["formats"].as_object().unwrap();
    assert_eq!(formats.len(), 6);
    let mut wrong = Vec::new();
    for (name, format) in formats {
        for own_file in [true, false] {
            let now = expected["now"].as_u64().unwrap();
            let template = open(name, &format["special_tokens"], own_file, now);
            let cases = format["cases"].as_array().unwrap();
            assert_eq!(cases.len(), 20, "{name}");
            for (number, case) in cases.iter().enumerate() {
                let got = render(&template, case);
                let fits = match &got {
                    Ok(text) => case["text"] == **text,
                    // Where the template itself speaks, its words are passed on; Python's own errors read otherwise.
                    Err(error) if case["refuses"].is_string() => {
                        error.to_string()
                            == format!(
                                "the chat template refuses the conversation: {}",
                                case["refuses"].as_str().unwrap()
                            )
                    }
                    Err(error) => case["fails"].is_string() && error.is_input(),
                };
                if !fits {
                    wrong.push(format!("{name} {number}: {got:?}\n{case}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
