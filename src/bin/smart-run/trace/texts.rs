//! Texts of single tokens.

use std::collections::{BTreeMap, BTreeSet};

use smart_run::Result;
use smart_run::text::Tokenizer;

/// Says what a token reads as within a text.
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

    /// What `id` reads as; the vocabulary's spelling for special tokens and for parts of a character.
    fn text(&self, id: i32) -> Result<Option<String>> {
        let Some(spelling) = self.tokenizer.spelling(id) else { return Ok(None) };
        let within = self.tokenizer.decode(&[&self.before[..], &[id]].concat())?;
        let text = match within.strip_prefix(&self.before_text) {
            Some(text) => text.to_owned(),
            None => self.tokenizer.decode(&[id])?,
        };
        let is_text = !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER);
        Ok(Some(if is_text { text } else { spelling }))
    }
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
        let texts = TokenTexts::new(tokenizer).unwrap().of(&[-1, 0, 1, 2, 3, 4, 5, 6].into()).unwrap();
        let expected = [(0, "a"), (1, " hello"), (2, "<0xC3>"), (3, "\n"), (4, " "), (5, "</s>")];
        assert_eq!(texts, expected.map(|(id, text)| (id, text.to_owned())).into());
    }
}
