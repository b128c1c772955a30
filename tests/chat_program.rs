//! `smart-run chat` as a program, driven over a pipe: what it answers, its commands, and what it says where it cannot.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::SystemTime;

use serde_json::{Value, json};
use smart_run::config::ModelSource;
use smart_run::text::{ChatTemplate, Message, Tokenizer};

#[path = "common/program.rs"]
mod program;

use program::program;

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}\"\"\"{{ m.content }}\"\"\"\n\
                        {% else %}# {{ m.role }}\n{{ m.content }}\n{% endif %}{% endfor %}\
                        {% if add_generation_prompt %}# assistant\n{% endif %}";

fn in_repository(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).to_str().unwrap().to_owned()
}

/// The demo target as a folder with a chat template, its context cut to `context` tokens.
fn chat_model(template: &str, context: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(in_repository("assets/demo/target")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let edit = |file: &str, field: &str, value: Value| {
        let path = folder.path().join(file);
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json[field] = value;
        fs::write(path, json.to_string()).unwrap();
    };
    edit("config.json", "max_position_embeddings", json!(context));
    edit("tokenizer_config.json", "chat_template", json!(template));
    folder
}

/// Runs `arguments` with `input` on standard input.
fn smart_run(arguments: &[&str], input: &str) -> Output {
    let mut child = program()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments has closed its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `chat` prints and what it says on stderr; it must end well.
fn chat(model: &Path, flags: &[&str], input: &str) -> (String, String) {
    let drafter = in_repository("assets/demo/drafter");
    let model = model.to_str().unwrap();
    let first = ["chat", "--model", model, "--draft", &drafter, "--device", "host"];
    let output = smart_run(&[&first, flags].concat(), input);
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// What `generate` answers to the conversation: it knows nothing of chat templates and gets ids.
fn generated(model: &Path, flags: &[&str], messages: &[Message]) -> String {
    let source = ModelSource::from(model);
    let template = ChatTemplate::open(&source).unwrap().unwrap().at(SystemTime::UNIX_EPOCH);
    let tokenizer = Tokenizer::open(&source).unwrap().unwrap();
    let ids = tokenizer.encode(&template.render(messages, None, true).unwrap(), false).unwrap();
    // One bos token: the template's own.
    assert_eq!(ids.iter().filter(|&&id| id == 0).count(), 1);
    let ids = ids.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
    let first = [
        "generate",
        "--model",
        model.to_str().unwrap(),
        "--device",
        "host",
        "--format",
        "json",
        "--prompt-ids",
        &ids,
    ];
    let output = smart_run(&[&first, flags].concat(), "");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["text"].as_str().unwrap().to_owned()
}

/// Answers are plain decoding's of the whole conversation, turn after turn; /reset forgets it.
#[test]
fn answers_are_the_targets_own() {
    let model = chat_model(TEMPLATE, 2048);
    let flags = ["--max-new-tokens", "20", "--temperature", "0.7", "--seed", "3"];
    let system = ["--system", "Sort things."];
    let input = "def sort(items):\n\nfor item in items:\n/reset\ndef sort(items):\n";
    let (said, errors) = chat(model.path(), &[&flags[..], &system].concat(), input);

    let told = Message::new("system", "Sort things.");
    let asked = Message::new("user", "def sort(items):");
    let first = generated(model.path(), &flags, &[told.clone(), asked.clone()]);
    let asked_again = Message::new("user", "for item in items:");
    let answered = Message::new("assistant", first.clone());
    let second = generated(model.path(), &flags, &[told, asked, answered, asked_again]);
    assert_ne!(first, second);
    assert_eq!(said, format!("{first}\n{second}\n{first}\n"));
    assert_eq!(errors.matches("cut after 20 tokens: --max-new-tokens").count(), 3, "{errors}");
}

#[test]
fn commands_show_rounds_and_unknown_ones_are_named() {
    let model = chat_model(TEMPLATE, 2048);
    // A round with one token left to give drafts nothing: of these answers, not all end in such a round.
    let mut trees = Vec::new();
    for tokens in ["13", "14", "15", "16"] {
        let flags = ["--max-new-tokens", tokens, "--policy", "eagle2:4,2,8"];
        let (said, _) = chat(model.path(), &flags, "class A:\n/tree\n");
        trees.push(said.split("round at position ").nth(1).expect("a tree").to_owned());
    }
    let grown = trees.iter().find(|tree| tree.contains("`- \"")).unwrap_or_else(|| panic!("{trees:?}"));
    // The numbers of the first line are those of the lines below.
    let nodes =
        |fate: &str| grown.lines().filter(|line| line.contains("  q ") && line.ends_with(fate)).count();
    let (drafted, accepted) = (nodes(""), nodes("  accepted"));
    let verified = accepted + nodes("  verified");
    assert!(drafted >= 4 && verified >= 1, "{grown}");
    assert!(
        grown.contains(&format!(": {drafted} drafted, {verified} verified, {accepted} accepted, bonus \"")),
        "{grown}"
    );

    let flags = ["--max-new-tokens", "4", "--policy", "eagle2:4,2,8"];
    let (said, errors) =
        chat(model.path(), &flags, "/tree\nx = 1\n/stats\n/help\n/nonsense a\n/exit\nnever read\n");
    assert!(said.starts_with("no round has run yet\n"), "{said}");
    for part in ["tokens/s over ", "(eagle2:4,2,8, ", "of 2048 tokens, 2 messages", "/reset   forget"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(errors.contains("/nonsense: no such command; /help lists them"), "{errors}");
    assert!(!errors.contains("/help lists the commands"), "a pipe is not greeted: {errors}");
}

/// A stop string ends the answer before it, within an accepted path or not, and the next turn sees the cut answer.
#[test]
fn stop_strings_cut_answers() {
    let model = chat_model(TEMPLATE, 2048);
    let flags = ["--max-new-tokens", "40"];
    let asked = Message::new("user", "def main():");
    let whole = generated(model.path(), &flags, std::slice::from_ref(&asked));
    // From the middle of the answer, as it stands there first.
    let middle = whole.char_indices().nth(whole.chars().count() / 2).unwrap().0;
    let stop = &whole[middle..middle + whole[middle..].chars().take(3).map(char::len_utf8).sum::<usize>()];
    let expected = &whole[..whole.find(stop).unwrap()];
    let (said, _) = chat(
        model.path(),
        &[&flags[..], &["--stop", "never there", "--stop", stop]].concat(),
        "def main():\nx = 1\n",
    );
    let answered = Message::new("assistant", expected);
    let second = generated(
        model.path(),
        &["--max-new-tokens", "40", "--stop", stop],
        &[asked, answered, Message::new("user", "x = 1")],
    );
    assert_eq!(said, format!("{expected}\n{second}\n"));
}

/// `generate --stop`: the reason, the text, and the ids that count, alike with a drafter and without.
#[test]
fn generate_stops_at_texts() {
    let run = |flags: &[&str]| -> Value {
        let first = [
            "generate",
            "--device",
            "host",
            "--format",
            "json",
            "--prompt",
            "def main(",
            "--max-new-tokens",
            "48",
        ];
        let output = smart_run(&[&first, flags].concat(), "");
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let whole = run(&["--policy", "plain"]);
    assert_eq!(whole["finish_reason"], "length");
    let (answer, ids) = (whole["text"].as_str().unwrap(), whole["token_ids"].as_array().unwrap());
    let tokenizer =
        Tokenizer::open(&Path::new(&in_repository("assets/demo/target")).into()).unwrap().unwrap();
    let ids: Vec<i32> = ids.iter().map(|id| id.as_i64().unwrap() as i32).collect();
    for start in (0..answer.len()).filter(|&at| answer.is_char_boundary(at)).step_by(17) {
        let Some(stop) = answer.get(start..start + 4) else { continue };
        let expected = &answer[..answer.find(stop).unwrap()];
        for policy in ["plain", "eagle2:4,3,12"] {
            let cut = run(&["--policy", policy, "--stop", stop]);
            assert_eq!(
                (&cut["finish_reason"], cut["text"].as_str().unwrap()),
                (&json!("stop"), expected),
                "{stop:?}"
            );
            let count = cut["token_ids"].as_array().unwrap().len();
            assert_eq!(cut["token_ids"], json!(ids[..count]), "{stop:?}");
            assert_eq!(cut["stats"]["emitted_tokens"], count);
            // The most tokens whose text is in the answer.
            assert!(tokenizer.decode(&ids[..count]).unwrap().len() <= expected.len(), "{stop:?}");
            assert!(tokenizer.decode(&ids[..count + 1]).unwrap().len() > expected.len(), "{stop:?}");
        }
    }
    let none = run(&["--stop", "never there"]);
    assert_eq!(
        (&none["text"], &none["token_ids"], &none["finish_reason"]),
        (&whole["text"], &whole["token_ids"], &json!("length"))
    );
}

/// What cannot be answered is one sentence, and the conversation goes on.
#[test]
fn a_full_context_and_a_refusal_do_not_end_the_session() {
    let refusing = format!(
        "{{% if messages[-1].content == 'no' %}}{{{{ raise_exception('not this') }}}}{{% endif %}}{TEMPLATE}"
    );
    let model = chat_model(&refusing, 64);
    let long = "x = 1; ".repeat(60);
    let input = format!("no\nx = 1\n{long}\n/stats\n/reset\nx = 1\n");
    let (said, errors) = chat(model.path(), &["--max-new-tokens", "8"], &input);
    let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("smart-run:")).collect();
    assert_eq!(lines.len(), 2, "{errors}");
    assert_eq!(lines[0], "smart-run: the chat template refuses the conversation: not this");
    assert!(lines[1].contains("the context of 64 tokens is full") && lines[1].contains("/reset"), "{errors}");
    // The refused and the long message are no part of the conversation.
    assert!(said.contains("of 64 tokens, 2 messages"), "{said}");
    let answer = generated(model.path(), &["--max-new-tokens", "8"], &[Message::new("user", "x = 1")]);
    assert!(said.starts_with(&format!("{answer}\n")) && said.ends_with(&format!("\n{answer}\n")), "{said}");
    // An answer is cut where the context ends.
    let (_, errors) = chat(model.path(), &["--max-new-tokens", "1000"], "x = 1\n");
    assert!(errors.contains("the context of 64 tokens is full; /reset"), "{errors}");
}

/// Fails with exit code 2 and one sentence, which is returned.
fn is_refused(arguments: &[&str], input: &str) -> String {
    let output = smart_run(arguments, input);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{arguments:?}: {said}");
    said
}

#[test]
fn what_cannot_chat_says_why() {
    let said = is_refused(&["chat"], "");
    assert!(said.contains("give --model"), "{said}");
    let demo = in_repository("assets/demo/target");
    let said = is_refused(&["chat", "--model", &demo], "");
    assert!(said.contains("no chat template here") && said.contains("smart-run generate"), "{said}");
    let broken = chat_model("{% include 'a' %}", 2048);
    let said = is_refused(&["chat", "--model", broken.path().to_str().unwrap()], "");
    assert!(said.contains("tokenizer_config.json") && said.contains("line 1: syntax error"), "{said}");
    let model = chat_model(TEMPLATE, 2048);
    let long = "x".repeat((1 << 20) + 1);
    let said = is_refused(&["chat", "--model", model.path().to_str().unwrap(), "--device", "host"], &long);
    assert!(said.contains("longer than 1 MiB"), "{said}");
    fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    let said = is_refused(&["chat", "--model", model.path().to_str().unwrap()], "");
    assert!(said.contains("no tokenizer.json here"), "{said}");
    let said = is_refused(
        &["generate", "--model", model.path().to_str().unwrap(), "--prompt-ids", "1", "--stop", "x"],
        "",
    );
    assert!(said.contains("--stop needs a tokenizer"), "{said}");
}

/// A tokenizer of another model: its ids are not looked up where there is nothing.
#[test]
fn a_tokenizer_of_another_model_is_named() {
    let model = chat_model(TEMPLATE, 2048);
    let path = model.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    let mut token = added[0].clone();
    token["id"] = json!(4096);
    token["content"] = json!("<|other|>");
    added.push(token);
    fs::write(&path, tokenizer.to_string()).unwrap();
    let model = model.path().to_str().unwrap();
    let said = is_refused(&["generate", "--model", model, "--prompt", "a <|other|>"], "");
    assert!(said.contains("\"<|other|>\" with the id 4096") && said.contains("vocabulary of 4096"), "{said}");
    let output = smart_run(&["chat", "--model", model, "--device", "host"], "a <|other|>\n");
    assert!(output.status.success() && text(&output.stderr).contains("with the id 4096"));
}
