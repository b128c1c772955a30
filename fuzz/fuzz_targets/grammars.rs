//! Grammars from strangers: compiled and walked, or refused in one sentence; what a mask allows is what single tokens are told.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use smart_run::config::{ModelConfig, ModelSource};
use smart_run::text::{Grammar, GrammarCompiler, GrammarSpec, Tokenizer};

/// Steps of a walk.
const STEPS: usize = 24;

struct Model {
    compiler: GrammarCompiler,
    vocab_size: usize,
}

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/demo/target");
    let source = ModelSource::from(demo.as_path());
    let config = ModelConfig::from_hf(&source).unwrap();
    let tokenizer = Tokenizer::open(&source).unwrap().unwrap();
    let vocab_size = config.geometry.vocab_size;
    let compiler = GrammarCompiler::new(&tokenizer, vocab_size, &config.eos_token_ids).unwrap();
    smart_run::text::silence_fenced_panics();
    Model { compiler, vocab_size }
});

fuzz_target!(|data: &[u8]| {
    let [kind, turn, spec @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(spec) else { return };
    let spec = match kind % 4 {
        0 => GrammarSpec::Regex(text.into()),
        1 => GrammarSpec::Lark(text.into()),
        kind => {
            let Ok(schema) = serde_json::from_str(text) else { return };
            match kind {
                2 => GrammarSpec::JsonSchema(schema),
                _ => GrammarSpec::TaggedJson {
                    open: "<a>\n".into(),
                    schema,
                    close: "\n</a>".into(),
                    many: turn % 2 == 0,
                },
            }
        }
    };
    match MODEL.compiler.compile(&spec) {
        Ok(mut grammar) => walk(&mut grammar, usize::from(*turn)),
        Err(error) => assert!(error.is_input() && !error.to_string().contains('\n'), "{error}"),
    }
});

/// Follows tokens that the grammar allows, chosen by `turn`.
fn walk(grammar: &mut Grammar, turn: usize) {
    let mut mask = vec![0; MODEL.vocab_size.div_ceil(32)];
    for step in 0..STEPS {
        if grammar.allowed(&mut mask).is_err() || grammar.is_complete() {
            return;
        }
        let allowed: Vec<i32> = (0..MODEL.vocab_size as i32)
            .filter(|&token| mask[token as usize / 32] >> (token % 32) & 1 == 1)
            .collect();
        let Some(&token) = allowed.get((turn * 31 + step * 17) % allowed.len().max(1)) else {
            panic!("nothing may follow, not even the end");
        };
        assert!(grammar.accepts(token), "the mask allows {token}, the grammar does not accept it");
        if grammar.push(token).is_err() {
            return;
        }
        // A push and a pop leave no trace.
        if step % 3 == 0 {
            let before = mask.clone();
            if grammar.pop(1).is_err() || grammar.allowed(&mut mask).is_err() {
                return;
            }
            assert_eq!(mask, before);
            grammar.push(token).unwrap();
        }
    }
}
