//! Bytes of single tokens, by the tokenizer's decoder.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Decoder, normalizers::Replace};

/// What a decoder makes of one token within a text: its bytes, whatever is in front of it or behind it.
///
/// A character may span tokens, so that only bytes, not texts, join to the whole. Steps that look at the text's ends alone (the
/// space that is dropped in front of it) are left out: they do not concern a token within.
#[derive(Debug)]
pub(super) struct TokenBytes {
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    /// Characters that stand for bytes, as GPT-2 has them.
    ByteLevel,
    /// `<0x0A>` for a byte.
    ByteFallback,
    /// A character for the space.
    Metaspace(char),
    Replace(Replace),
}

impl TokenBytes {
    /// `None` for a decoder whose tokens have no bytes of their own: it puts spaces between words, or drops repetitions.
    pub fn of(decoder: &DecoderWrapper) -> Option<Self> {
        let decoders = match decoder {
            DecoderWrapper::Sequence(sequence) => sequence.get_decoders(),
            single => std::slice::from_ref(single),
        };
        let (mut steps, mut fused) = (Vec::new(), false);
        for decoder in decoders {
            match decoder {
                DecoderWrapper::Fuse(_) => fused = true,
                DecoderWrapper::Strip(_) if fused => (),
                DecoderWrapper::ByteLevel(_) if !fused => {
                    steps.push(Step::ByteLevel);
                    // It joins all tokens to one text.
                    fused = true;
                }
                DecoderWrapper::ByteFallback(_) if !fused => steps.push(Step::ByteFallback),
                DecoderWrapper::Metaspace(metaspace) if !fused => {
                    steps.push(Step::Metaspace(metaspace.get_replacement()));
                }
                DecoderWrapper::Replace(replace) if !fused => steps.push(Step::Replace(replace.clone())),
                _ => return None,
            }
        }
        Some(Self { steps })
    }

    /// Bytes of the token that the vocabulary spells so.
    pub fn bytes(&self, spelling: &str) -> Vec<u8> {
        let mut text = spelling.to_owned();
        for step in &self.steps {
            match step {
                Step::ByteLevel => {
                    // An added token may hold other characters; it stands for itself then.
                    let bytes: Option<Vec<u8>> = text.chars().map(byte_of).collect();
                    return bytes.unwrap_or_else(|| text.into_bytes());
                }
                Step::ByteFallback => {
                    if let Some(byte) = fallback_byte(&text) {
                        return vec![byte];
                    }
                }
                Step::Metaspace(replacement) => text = text.replace(*replacement, " "),
                Step::Replace(replace) => {
                    if let Ok(tokens) = replace.decode_chain(vec![text.clone()]) {
                        text = tokens.concat();
                    }
                }
            }
        }
        text.into_bytes()
    }
}

/// The byte that a character stands for in byte-level vocabularies: printable Latin-1 characters for themselves, those from
/// U+0100 on for the others in turn.
fn byte_of(character: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(character) {
        code @ 0..=0xFF => Some(code as u8).filter(|&byte| printable(byte)),
        code => (0..=0xFF).filter(|&byte| !printable(byte)).nth(code as usize - 0x100),
    }
}

fn fallback_byte(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(decoder: serde_json::Value) -> Option<TokenBytes> {
        TokenBytes::of(&serde_json::from_value(decoder).unwrap())
    }

    #[test]
    fn byte_level_tokens_are_bytes_and_added_tokens_their_text() {
        let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        for decoder in [byte_level.clone(), serde_json::json!({"type": "Sequence", "decoders": [byte_level]})]
        {
            let bytes = of(decoder).unwrap();
            assert_eq!(bytes.bytes("Ġimport"), b" import");
            assert_eq!(bytes.bytes("âĤ"), [0xE2, 0x82]);
            assert_eq!(bytes.bytes("ÿŃ"), [0xFF, 0xAD]);
            assert_eq!(bytes.bytes("<tool call>"), b"<tool call>");
        }
    }

    #[test]
    fn sentence_piece_tokens_keep_their_space_and_bytes_fall_back() {
        let llama2 = serde_json::json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let metaspace = serde_json::json!({"type": "Sequence", "decoders": [
            {"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}]});
        for decoder in [llama2, metaspace] {
            let bytes = of(decoder).unwrap();
            assert_eq!(bytes.bytes("▁hello▁"), b" hello ");
            assert_eq!(bytes.bytes("<0x0A>"), b"\n");
            assert_eq!(bytes.bytes("<0xff>"), [0xFF]);
            assert_eq!(bytes.bytes("<0x0>"), b"<0x0>");
            assert_eq!(bytes.bytes("é"), "é".as_bytes());
        }
    }

    #[test]
    fn decoders_that_join_words_have_no_bytes_of_tokens() {
        assert!(of(serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true})).is_none());
        assert!(of(serde_json::json!({"type": "BPEDecoder", "suffix": "</w>"})).is_none());
    }
}
