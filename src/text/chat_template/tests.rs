//! Where templates come from, what they may ask for, and what happens to those that ask for too much.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

/// A model folder of these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn open(files: &[(&str, &str)]) -> Result<Option<ChatTemplate>> {
    ChatTemplate::open(&folder(files).path().into())
}

fn render_with(source: &str, messages: &[Message], tools: Option<&Value>) -> Result<String> {
    open(&[(OWN_FILE, source)])?.unwrap().render(messages, tools, true)
}

fn render(source: &str) -> Result<String> {
    render_with(source, &hello(), None)
}

fn hello() -> [Message; 1] {
    [Message::new("user", "hello")]
}

#[test]
fn files_are_asked_in_the_order_of_transformers() {
    let mut files = vec![("chat_template.json", r#"{"chat_template": "processor"}"#)];
    let text = |files: &[(&str, &str)]| {
        open(files).unwrap().map(|template| template.render(&hello(), None, true).unwrap())
    };
    assert_eq!(text(&[]), None);
    assert_eq!(text(&[("tokenizer_config.json", r#"{"chat_template": null}"#)]), None);
    assert_eq!(text(&files).unwrap(), "processor");
    files.push(("tokenizer_config.json", r#"{"chat_template": "tokenizer"}"#));
    assert_eq!(text(&files).unwrap(), "tokenizer");
    files.push(("chat_template.jinja", "a\r\nfile\r"));
    assert_eq!(text(&files).unwrap(), "a\nfile");
}

#[test]
fn of_a_list_the_default_counts_and_with_tools_that_for_tools() {
    let list = json!({"chat_template": [{"name": "rag", "template": "{% no jinja"}, {"name": "default", "template": "d"},
                                        {"name": "tool_use", "template": "{{ tools|length }}"}]});
    let template = open(&[("tokenizer_config.json", &list.to_string())]).unwrap().unwrap();
    assert_eq!(template.render(&hello(), None, true).unwrap(), "d");
    assert_eq!(template.render(&hello(), Some(&json!([{}, {}])), true).unwrap(), "2");
    for wrong in [r#"[{"name": "rag", "template": "a"}]"#, r#"[{"name": "default"}]"#, "3", "{}"] {
        let config = format!(r#"{{"chat_template": {wrong}}}"#);
        let error = open(&[("tokenizer_config.json", &config)]).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("tokenizer_config.json"), "{error}");
    }
}

#[test]
fn special_tokens_are_texts_or_objects() {
    let template = open(&[
        (OWN_FILE, "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token is defined }}"),
        (
            "tokenizer_config.json",
            r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "unk_token": null}"#,
        ),
        ("special_tokens_map.json", r#"{"eos_token": "<other>", "pad_token": {"content": "<pad>"}}"#),
    ]);
    assert_eq!(template.unwrap().unwrap().render(&hello(), None, true).unwrap(), "<s>|</s>|<pad>|False");
    let error = open(&[(OWN_FILE, ""), ("tokenizer_config.json", r#"{"bos_token": 3}"#)]).unwrap_err();
    assert!(error.to_string().contains("`bos_token` should be a text"), "{error}");
}

#[test]
fn generation_blocks_print_their_body() {
    let source = "{% set x = 1 %}{%- generation %}{% set x = 2 %}a{{ x }}{% endgeneration -%}\n{{ x }}";
    assert_eq!(render(source).unwrap(), "a21");
}

#[test]
fn reasoning_is_known_by_the_names_of_transformers() {
    let source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}";
    for (fields, expected) in [
        (json!({"reasoning": "a"}), "a a"),
        (json!({"thinking": "a"}), "a a"),
        (json!({"reasoning_content": null, "thinking": "b", "reasoning": "c"}), "b b"),
        (json!({"reasoning_content": "a", "thinking": "b"}), "a b"),
        (json!({"reasoning_content": null}), " "),
    ] {
        let mut message = Message::new("assistant", "");
        message.fields = fields.as_object().unwrap().clone();
        assert_eq!(render_with(source, &[message], None).unwrap(), expected, "{fields}");
    }
}

#[test]
fn nothing_said_is_no_conversation() {
    let error = render_with("a", &[], None).unwrap_err();
    assert!(error.to_string().contains("the conversation is empty"), "{error}");
}

#[test]
fn the_date_is_that_of_the_clock() {
    let template = open(&[(OWN_FILE, "{{ strftime_now('%d %b %Y %H:%M') }}")]).unwrap().unwrap();
    let template = template.at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_721_952_000));
    assert_eq!(template.render(&hello(), None, true).unwrap(), "26 Jul 2024 00:00");
    let year: i32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!(year > 2024);
    assert!(render("{{ strftime_now('%!') }}").unwrap_err().to_string().contains("strftime_now"));
}

#[test]
fn a_refusal_is_passed_on_in_the_templates_words() {
    let error = render("{{ raise_exception('Roles must\nalternate') }}").unwrap_err();
    assert!(error.is_input());
    assert_eq!(error.to_string(), "the chat template refuses the conversation: Roles must alternate");
}

/// Rendering ends within a second; the rest is slack for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(4);

/// Stops at once, with one sentence that names the file, and is the input's fault.
fn is_refused(source: &str) -> String {
    let start = Instant::now();
    let error = render(source).expect_err(source);
    assert!(start.elapsed() < AT_ONCE, "{source}: {:?}", start.elapsed());
    let said = error.to_string();
    assert!(
        error.is_input() && said.contains(OWN_FILE) && !said.contains('\n') && said.len() < 700,
        "{said}"
    );
    said
}

#[test]
fn what_reads_files_is_refused_by_name() {
    for tag in ["include '/etc/passwd'", "import 'a' as a", "from 'a' import b", "extends 'a'", "block a"] {
        let said = is_refused(&format!("a\n{{% {tag} %}}"));
        assert!(said.contains("line 2: syntax error: unknown statement"), "{said}");
    }
}

#[test]
fn broken_templates_are_one_sentence() {
    for (source, expected) in [
        ("{% if %}", "line 1: syntax error"),
        ("\n{{ 'a' + 1 }}", "line 2: invalid operation"),
        ("{{ messages[0].a.b }}", "undefined"),
        ("{{ nothing() }}", "unknown function: nothing"),
        ("{{ 'a'|nothing }}", "unknown filter"),
        ("{{ messages|tojson(indent=1000000000) }}", "indent should be"),
    ] {
        let said = is_refused(source);
        assert!(said.contains(expected), "{expected:?} is not in {said:?}");
    }
    assert!(open(&[(OWN_FILE, &"a".repeat(MAX_SOURCE_BYTES + 1))]).is_err());
}

#[test]
fn endless_work_is_cut_short() {
    for source in [
        "{% for i in range(10**12) %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ 'a' * 10**12 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='a') %}{% for i in range(20) %}{% set ns.x = ns.x.replace('a', 'aaaaaaaa') %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for a in [[[1]]] recursive %}{{ loop([[a]]) }}{% endfor %}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ ('a' * 100000).split('a') * 100000 }}",
    ] {
        is_refused(source);
    }
    let deep = "(".repeat(100_000);
    is_refused(&format!("{{{{ {deep} }}}}"));
    is_refused(&"{% if true %}".repeat(9_000));
    is_refused(&format!("{{{{ {}1{} }}}}", "[".repeat(50_000), "]".repeat(50_000)));
}

/// Nothing in these is counted by the engine's fuel; whether they end in time is the machine's matter, but nobody waits.
#[test]
fn uncounted_work_is_not_waited_for() {
    for source in [
        format!("{{{{ a{} }}}}", "~a".repeat(60_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(30_000)),
        "{% set ns = namespace(x=[1]) %}{% for i in range(20000) %}{% set ns.x = ns.x[:] %}{% endfor %}{{ ns.x }}".into(),
    ] {
        let start = Instant::now();
        let _ = render(&source);
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    }
}

/// Values that nest deeper than a stack is high, made one level at a time.
#[test]
fn deep_values_do_not_end_the_process() {
    for source in [
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x == [ns.x] }}",
        "{% set ns = namespace(x=1) %}{% for i in range(90000) %}{% set ns.x = ns.x|map('string') %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(90000) %}{% set ns.x = ns.x|map('string') %}{% endfor %}{{ ns.x|list }}",
    ] {
        let nested = source.replace("[ns.x] %}", &format!("{}ns.x{} %}}", "[".repeat(60), "]".repeat(60)));
        for source in [source, &nested, &source.replace("90000", "20000"), &nested.replace("90000", "2000")] {
            let _ = render(source);
        }
    }
}

/// A long conversation is work, too, and no reason to stop.
#[test]
fn long_conversations_have_room() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content|trim }}{% for later in messages[loop.index0:][:20] %}\
                  {% if later.role == 'none' %}{% break %}{% endif %}{% endfor %}\n{% endfor %}";
    let messages: Vec<Message> = (0..2000).map(|_| Message::new("user", "word ".repeat(200))).collect();
    let text = render_with(source, &messages, None).unwrap();
    assert_eq!(text.len(), 2000 * ("<user>".len() + 999));
}
