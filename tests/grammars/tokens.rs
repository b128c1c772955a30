//! Bytes of tokens.

use serde_json::Value;

use crate::vocabularies::{all, tokenizer};

/// The space in front of a text, which Llama 2's decoder drops.
fn without_first_space<'a>(bytes: &'a [u8], name: &str) -> &'a [u8] {
    if name == "demo" { bytes } else { bytes.strip_prefix(b" ").unwrap_or(bytes) }
}

#[test]
fn bytes_join_to_the_decoded_text() {
    for name in ["llama2_bpe", "llama2_unigram"] {
        let folder = "tests/golden/tokenizers";
        let tokenizer = tokenizer(&format!("{folder}/{name}.json"));
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(folder)
            .join(format!("{name}.expected.json"));
        let expected: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let pairs = expected["pairs"].as_array().unwrap();
        assert_eq!(pairs.len(), 200);
        for pair in pairs {
            let ids: Vec<i32> = serde_json::from_value(pair["ids"].clone()).unwrap();
            let bytes: Vec<u8> = ids.iter().filter_map(|&id| tokenizer.token_bytes(id)).flatten().collect();
            let decoded = pair["decoded"].as_str().unwrap();
            assert_eq!(without_first_space(&bytes, name), decoded.as_bytes(), "{name}: {pair}");
        }
    }
}

#[test]
fn bytes_join_to_texts_in_many_scripts() {
    let texts =
        ["def f(x):\n    return x\t# ¼ größe", "日本語 🙂🎉 ﷽", " \u{0}\u{7f}\r\n  end  ", "▁Ġ<0x41><s>"];
    for vocabulary in all() {
        for text in texts {
            let ids = vocabulary.tokenizer.encode(text, true).unwrap();
            let decoded = vocabulary.tokenizer.decode(&ids).unwrap();
            let bytes = vocabulary.bytes(&ids);
            assert_eq!(
                without_first_space(&bytes, vocabulary.name),
                decoded.as_bytes(),
                "{}: {text:?}",
                vocabulary.name
            );
        }
    }
}

#[test]
fn special_and_unknown_tokens_have_no_bytes() {
    for vocabulary in all() {
        for id in [-1, i32::MAX, vocabulary.eos[0], 0, vocabulary.tokenizer.num_ids() as i32] {
            assert_eq!(vocabulary.tokenizer.token_bytes(id), None, "{}: {id}", vocabulary.name);
        }
        let with_bytes =
            (0..vocabulary.size as i32).filter(|&id| vocabulary.tokenizer.token_bytes(id).is_some());
        assert_eq!(
            with_bytes.count(),
            vocabulary.tokenizer.num_ids() - if vocabulary.name == "demo" { 2 } else { 3 }
        );
    }
}
