//! Tokenizers as Llama 2 has them (spaces as `▁`, bytes for unknown characters) against the Python library `tokenizers`, whole and as streams.

use std::path::Path;

use serde_json::Value;
use smart_run::text::Tokenizer;

const NAMES: [&str; 2] = ["llama2_bpe", "llama2_unigram"];

fn open(name: &str) -> Tokenizer {
    let path = folder().join(format!("{name}.json"));
    Tokenizer::from_json(&path, &std::fs::read(&path).unwrap()).unwrap()
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers")
}

/// Text, ids, decoded text.
fn pairs(name: &str) -> Vec<(String, Vec<i32>, String)> {
    let expected = std::fs::read(folder().join(format!("{name}.expected.json"))).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let ids =
        |value: &Value| value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect();
    let pairs = expected["pairs"].as_array().unwrap().iter();
    pairs.map(|pair| (text(&pair["text"]), ids(&pair["ids"]), text(&pair["decoded"]))).collect()
}

fn pieces(tokenizer: &Tokenizer, ids: &[i32]) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    pieces.extend(stream.finish().unwrap());
    pieces
}

#[test]
fn texts_become_the_ids_and_come_back_as_python_says() {
    for name in NAMES {
        let (tokenizer, pairs) = (open(name), pairs(name));
        assert_eq!(pairs.len(), 200);
        for (text, ids, decoded) in pairs {
            assert_eq!(tokenizer.encode(&text, true).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(tokenizer.encode(&text, false).unwrap(), ids[1..], "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{name}: {text:?}");
        }
    }
}

/// The pieces of a stream join to the whole text, and none holds a part of a character.
#[test]
fn streams_of_bytes_emit_whole_characters() {
    for name in NAMES {
        let tokenizer = open(name);
        for (text, ids, decoded) in pairs(name) {
            let pieces = pieces(&tokenizer, &ids);
            assert_eq!(pieces.concat(), decoded, "{name}: {text:?}");
            let replaced = pieces.iter().any(|piece| piece.contains(char::REPLACEMENT_CHARACTER));
            assert!(
                !replaced || text.contains(char::REPLACEMENT_CHARACTER),
                "{name}: {text:?} as {pieces:?}"
            );
        }
    }
}

#[test]
fn an_emoji_comes_out_with_its_last_byte_and_a_cut_one_at_the_end() {
    for name in NAMES {
        let tokenizer = open(name);
        let ids = tokenizer.encode("the 🙂🎉", true).unwrap();
        let is_byte = |id: &&i32| tokenizer.spelling(**id).is_some_and(|token| token.starts_with("<0x"));
        assert_eq!(ids.iter().filter(is_byte).count(), 8, "{name}: two characters of four bytes");
        let mut stream = tokenizer.stream();
        let steps: Vec<Option<String>> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        let (text, emoji) = steps.split_at(steps.len() - 8);
        assert_eq!(text.iter().flatten().cloned().collect::<String>(), "the ", "{name}");
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(emoji, [None, None, None, some("🙂"), None, None, None, some("🎉")], "{name}");
        assert_eq!(stream.finish().unwrap(), None, "{name}");

        let cut = pieces(&tokenizer, &ids[..ids.len() - 1]).concat();
        assert!(cut.starts_with("the 🙂\u{FFFD}") && !cut.contains('🎉'), "{name}: {cut:?}");
        // What follows broken bytes is text again.
        let broken = [&ids[..ids.len() - 1], &tokenizer.encode(" fox", false).unwrap()].concat();
        let text = pieces(&tokenizer, &broken).concat();
        assert!(text.starts_with("the 🙂") && text.ends_with(" fox"), "{name}: {text:?}");
    }
}
