//! Text of a growing sequence of ids, piece by piece.

use super::Tokenizer;
use crate::Result;

/// Decodes ids one by one. The pieces, joined, are the text of all ids decoded at once: no character is split, and the
/// space that a tokenizer drops at the start of a text is dropped only there. (Where bytes are no UTF-8, tokenizers with
/// byte fallback give up the valid characters next to them too; a stream has them out by then.)
///
/// Each step decodes a short window: the ids of the last piece as context, and those after them. A text that ends in
/// `U+FFFD` may end in characters whose last bytes are still to come, so that much is held back.
#[derive(Debug)]
pub struct TokenStream {
    tokenizer: Tokenizer,
    /// Context, then the ids whose text is not all out yet.
    window: Vec<i32>,
    /// How many ids of `window` are context.
    context_len: usize,
    /// What is out of the window's text.
    emitted: String,
}

/// Ids without certain text after which the window is cut. Only ids of no text at all, or of bytes that are no UTF-8, come
/// in such runs: an incomplete character takes four ids at most.
const LONG_RUN: usize = 32;
/// Ids with bytes of such a run that are kept.
const KEPT_OF_RUN: usize = 8;

impl TokenStream {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        TokenStream { tokenizer, window: Vec::new(), context_len: 0, emitted: String::new() }
    }

    /// Takes the next id; returns the text that is now certain, if there is any.
    pub fn push(&mut self, id: i32) -> Result<Option<String>> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window)?;
        let long_run = self.window.len() > self.context_len + LONG_RUN;
        let certain = if long_run {
            text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text)
        } else {
            text.trim_end_matches(char::REPLACEMENT_CHARACTER)
        };
        let all_certain = certain.len() == text.len();
        let piece = match certain.strip_prefix(&self.emitted) {
            Some(piece) => piece.to_string(),
            // The tokenizer has taken back what is out, for bytes that it now sees are no UTF-8.
            None if all_certain => self.tokenizer.decode(&self.window[self.context_len..])?,
            None => String::new(),
        };
        if all_certain && !piece.is_empty() {
            self.window.drain(..self.context_len);
            self.context_len = self.window.len();
            self.emitted = self.tokenizer.decode(&self.window)?;
        } else if long_run {
            self.cut_run(&text[certain.len()..])?;
        } else {
            self.emitted.push_str(&piece);
        }
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// Ends the sequence; returns the text that was held back, if there is any.
    pub fn finish(self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.window)?;
        let piece = match text.strip_prefix(&self.emitted) {
            Some(piece) => piece.to_string(),
            None => self.tokenizer.decode(&self.window[self.context_len..])?,
        };
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// Shortens a long run of ids to its end, so that a step's work stays bounded.
    fn cut_run(&mut self, held_back: &str) -> Result<()> {
        // The very first id stays even where there is no context: it decides whether a leading space is dropped.
        let context_len = self.context_len.max(1);
        let mut run = self.window.split_off(context_len);
        // With ids of no text nothing is lost, wherever they stand: the byte in front of them may be waiting for the rest of its character.
        // Asked twice over, as a tokenizer may drop the space that a text begins with.
        for id in std::mem::take(&mut run) {
            if !self.tokenizer.decode(&[id, id])?.is_empty() {
                run.push(id);
            }
        }
        self.window.extend(run.split_off(run.len().saturating_sub(KEPT_OF_RUN)));
        self.context_len = context_len;
        let text = self.tokenizer.decode(&self.window)?;
        self.emitted = text.strip_suffix(held_back).unwrap_or(&text).to_string();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte-level BPE as Llama 3 has it: ids 0..=255 are bytes, 256 is special, 257 and 258 are longer tokens.
    fn byte_level() -> Tokenizer {
        let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let mut shifted = 256..;
        let mut vocab = serde_json::Map::new();
        for byte in 0..=255u8 {
            let code = if printable(byte) { u32::from(byte) } else { shifted.next().unwrap() };
            vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
        }
        vocab.insert("ab".into(), 257.into());
        vocab.insert("Ġa".into(), 258.into());
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{"id": 256, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
                              "rstrip": false, "normalized": false}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["Ġ", "a"]]},
        });
        Tokenizer::from_json("tokenizer.json", json.to_string().as_bytes()).unwrap()
    }

    /// SentencePiece-like BPE as Llama 2 has it: `▁` for a space, which is dropped in front, and `<0xNN>` for bytes.
    fn sentence_piece() -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        for (id, token) in ["<unk>", "▁", "▁hello", "lo", "<0xC3>", "<0xA9>", "▁▁"].iter().enumerate()
        {
            vocab.insert(token.to_string(), id.into());
        }
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{"id": 7, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
                              "rstrip": false, "normalized": false}],
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "unk_token": "<unk>"},
        });
        Tokenizer::from_json("tokenizer.json", json.to_string().as_bytes()).unwrap()
    }

    fn pieces(tokenizer: &Tokenizer, ids: &[i32]) -> Vec<String> {
        let mut stream = tokenizer.stream();
        let mut pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
        pieces.extend(stream.finish().unwrap());
        pieces
    }

    #[test]
    fn a_character_comes_out_whole() {
        let euro: Vec<i32> = "a€b".bytes().map(i32::from).collect();
        assert_eq!(pieces(&byte_level(), &euro), ["a", "€", "b"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_and_a_cut_character_comes_at_the_end() {
        let bytes = [0xE2, 0x82, b'a', 0xE2, 0x82].map(i32::from);
        assert_eq!(pieces(&byte_level(), &bytes), ["\u{FFFD}a", "\u{FFFD}"]);
        assert_eq!(pieces(&sentence_piece(), &[4, 5, 4, 2]), ["é", "\u{FFFD} hello"]);
    }

    /// Found by fuzzing: the byte was cut off with the run behind it.
    #[test]
    fn a_long_run_without_text_loses_no_byte_in_front_of_it() {
        let tokenizer = byte_level();
        for (before, after) in
            [(&[97, 0xC3][..], &[98][..]), (&[97, 0xE2], &[0x82, 0xAC]), (&[0xE2, 0x82], &[0xAC])]
        {
            let ids = [before, &[256; 100], after].concat();
            assert_eq!(pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids).unwrap(), "{before:?}");
        }
    }

    #[test]
    fn only_the_first_space_is_dropped() {
        let tokenizer = sentence_piece();
        assert_eq!(pieces(&tokenizer, &[2, 2, 1, 2]), ["hello", " hello", " ", " hello"]);
        assert_eq!(pieces(&tokenizer, &[7, 1, 2, 7, 2]), [" hello", " hello"]);
        assert_eq!(pieces(&tokenizer, &[2, 4, 5, 3]), ["hello", "é", "lo"]);
    }

    #[test]
    fn the_window_stays_short_in_runs_without_text() {
        for (tokenizer, id) in
            [(byte_level(), 256), (byte_level(), 0x80), (sentence_piece(), 7), (sentence_piece(), 5)]
        {
            let mut stream = tokenizer.stream();
            for _ in 0..1000 {
                stream.push(id).unwrap();
                assert!(stream.window.len() <= LONG_RUN + KEPT_OF_RUN, "{}", stream.window.len());
            }
        }
    }

    /// Ids of [`sentence_piece`] that are text by themselves, and the two bytes of an `é`.
    const CHARACTERS: &[&[i32]] = &[&[0], &[1], &[2], &[3], &[6], &[7], &[4, 5]];

    proptest::proptest! {
        #[test]
        fn pieces_join_to_the_whole_text(ids in proptest::collection::vec(0..259i32, 0..120)) {
            let tokenizer = byte_level();
            proptest::prop_assert_eq!(pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids).unwrap());
        }

        #[test]
        fn pieces_join_to_the_whole_text_under_sentence_piece(
            tokens in proptest::collection::vec(proptest::sample::select(CHARACTERS), 0..60)
        ) {
            let (tokenizer, ids) = (sentence_piece(), tokens.concat());
            proptest::prop_assert_eq!(pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids).unwrap());
        }

        #[test]
        fn stray_bytes_do_not_swallow_other_text(ids in proptest::collection::vec(0..8i32, 0..60)) {
            let tokenizer = sentence_piece();
            let readable = |text: String| text.replace(['é', char::REPLACEMENT_CHARACTER], "");
            let (streamed, whole) = (pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids).unwrap());
            proptest::prop_assert_eq!(readable(streamed), readable(whole));
        }
    }
}
