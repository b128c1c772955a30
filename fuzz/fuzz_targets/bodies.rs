//! Bodies of HTTP requests, from bytes to what the engine is asked: read or refused as the client's fault, never as the server's.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use smart_run::serve::fuzzing::Bodies;

static BODIES: LazyLock<Bodies> = LazyLock::new(|| {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/demo/target");
    let template = "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(demo.join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    smart_run::text::silence_fenced_panics();
    Bodies::open(folder.path())
});

fuzz_target!(|data: &[u8]| {
    let Some((kind, body)) = data.split_first() else { return };
    let status = match kind % 4 {
        0 => BODIES.completion(body),
        1 | 2 => BODIES.chat(body),
        _ => BODIES.tokenize(body),
    };
    assert!(status == 200 || (400..500).contains(&status), "{status}");
});
