//! Texts of single tokens.

use std::collections::{BTreeMap, BTreeSet};

use super::Tokenizer;
use crate::Result;

/// Says what a token reads as within a text.
#[derive(Debug, Clone)]
pub struct TokenTexts {
    tokenizer: Tokenizer,
    /// Ids in front of the token: some tokenizers drop the space that a text begins with.
    before: Vec<i32>,
    before_text: String,
}

impl TokenTexts {
    /// Texts by `tokenizer`.
    pub fn new(tokenizer: Tokenizer) -> Result<Self> {
        let before = tokenizer.encode("a", false)?;
        let before_text = tokenizer.decode(&before)?;
        Ok(Self { tokenizer, before, before_text })
    }

    /// The texts of `ids`; an id that the tokenizer does not know has none.
    pub fn of(&self, ids: &BTreeSet<i32>) -> Result<BTreeMap<i32, String>> {
        let mut texts = BTreeMap::new();
        for &id in ids {
            if let Some(text) = self.text(id)? {
                texts.insert(id, text);
            }
        }
        Ok(texts)
    }

    /// What `id` reads as; the vocabulary's spelling for special tokens and for parts of a character. `None` for an unknown id.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn text(&self, id: i32) -> Result<Option<String>> {
        let Some(spelling) = self.tokenizer.spelling(id) else { return Ok(None) };
        Ok(Some(self.whole_text(id)?.unwrap_or(spelling)))
    }

    /// The bytes that `id` adds to a text; those of the vocabulary's spelling for special tokens. `None` for an unknown id.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn bytes(&self, id: i32) -> Result<Option<Vec<u8>>> {
        let Some(spelling) = self.tokenizer.spelling(id) else { return Ok(None) };
        if let Some(text) = self.whole_text(id)? {
            return Ok(Some(text.into_bytes()));
        }
        let is_special = self.tokenizer.decode(&[id])?.is_empty();
        let part = if is_special { None } else { fallback_byte(&spelling).or_else(|| byte_level(&spelling)) };
        Ok(Some(part.unwrap_or_else(|| spelling.into_bytes())))
    }

    /// The text of `id` within a text, if it is whole characters.
    fn whole_text(&self, id: i32) -> Result<Option<String>> {
        let within = self.tokenizer.decode(&[&self.before[..], &[id]].concat())?;
        let text = match within.strip_prefix(&self.before_text) {
            Some(text) => text.to_owned(),
            None => self.tokenizer.decode(&[id])?,
        };
        let is_text = !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER);
        Ok(is_text.then_some(text))
    }
}

/// The byte of `<0xNN>`.
fn fallback_byte(spelling: &str) -> Option<Vec<u8>> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    Some(vec![u8::from_str_radix(digits, 16).ok()?])
}

/// The bytes of a spelling of byte-level BPE: printable characters of Latin-1 stand for themselves, those from U+0100 on for the other
/// bytes in turn.
fn byte_level(spelling: &str) -> Option<Vec<u8>> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let byte = |character: char| match u8::try_from(character) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => (0..=u8::MAX).filter(|&byte| !printable(byte)).nth((character as usize).checked_sub(256)?),
    };
    spelling.chars().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_keeps_its_space_and_a_special_token_its_name() {
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{"id": 5, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
                              "rstrip": false, "normalized": false}],
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": "a", "merges": [],
                      "vocab": {"a": 0, "\u{2581}hello": 1, "<0xC3>": 2, "<0x0A>": 3, "\u{2581}": 4}},
        });
        let tokenizer = Tokenizer::from_json("tokenizer.json", json.to_string().as_bytes()).unwrap();
        let texts = TokenTexts::new(tokenizer).unwrap();
        let bytes = [0, 1, 2, 4, 5, 6].map(|id| texts.bytes(id).unwrap());
        let expected = ["a", " hello", "\u{FF}", " ", "</s>"].map(|text| Some(text.as_bytes().to_vec()));
        assert_eq!(bytes[..2], expected[..2]);
        assert_eq!(bytes[2], Some(vec![0xC3]));
        assert_eq!(bytes[3..5], expected[3..5]);
        assert_eq!(bytes[5], None);
        let texts = texts.of(&[-1, 0, 1, 2, 3, 4, 5, 6].into()).unwrap();
        let expected = [(0, "a"), (1, " hello"), (2, "<0xC3>"), (3, "\n"), (4, " "), (5, "</s>")];
        assert_eq!(texts, expected.map(|(id, text)| (id, text.to_owned())).into());
    }

    #[test]
    fn parts_of_characters_are_bytes() {
        let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let mut shifted = 256..;
        let mut vocab = serde_json::Map::new();
        for byte in 0..=255u8 {
            let code = if printable(byte) { u32::from(byte) } else { shifted.next().unwrap() };
            vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
        }
        let json = serde_json::json!({
            "version": "1.0",
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        let tokenizer = Tokenizer::from_json("tokenizer.json", json.to_string().as_bytes()).unwrap();
        let texts = TokenTexts::new(tokenizer).unwrap();
        for byte in 0..=255u8 {
            assert_eq!(texts.bytes(byte.into()).unwrap(), Some(vec![byte]));
        }
    }
}
