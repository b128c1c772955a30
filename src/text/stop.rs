//! Stop strings: where a text that grows is to end.

use std::collections::VecDeque;

use super::{TokenStream, Tokenizer};
use crate::{Error, Result};

/// Texts that end a generation, none of them part of the answer.
///
/// What they mean does not depend on how a text is cut into tokens: generation stops at the first character that ends a stop
/// string; if it ends several, the one that began first counts. The text before that beginning is the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopStrings {
    strings: Vec<String>,
}

impl StopStrings {
    /// These strings; none at all stops nothing.
    ///
    /// # Errors
    /// [`Error::Input`] if one of them is empty.
    pub fn new(strings: Vec<String>) -> Result<Self> {
        if strings.iter().any(String::is_empty) {
            return Err(Error::Input("a stop string is empty: it would stop every text".into()));
        }
        Ok(Self { strings })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Where in `text` a stop string begins that ends in `text[from..]`: see the type.
    fn find(&self, text: &str, from: usize) -> Option<usize> {
        let ends = text[from..].char_indices().map(|(at, character)| from + at + character.len_utf8());
        for end in ends {
            let found = self.strings.iter().filter(|string| text[..end].ends_with(string.as_str()));
            if let Some(longest) = found.map(String::len).max() {
                return Some(end - longest);
            }
        }
        None
    }

    /// Where the longest end of `text` begins that may become a stop string.
    fn possible_start(&self, text: &str) -> usize {
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let tails = text.char_indices().map(|(at, _)| at).filter(|at| text.len() - at < longest);
        let mut possible =
            tails.filter(|&at| self.strings.iter().any(|string| string.starts_with(&text[at..])));
        possible.next().unwrap_or(text.len())
    }
}

/// Decodes ids one by one, as [`TokenStream`] does, up to a stop string. What may become a stop string is held back until it is
/// known, so no part of one is ever handed out.
#[derive(Debug)]
pub struct StopStream {
    stream: Option<TokenStream>,
    stops: StopStrings,
    /// Text that is certain, but may begin a stop string.
    held: String,
    /// Bytes handed out.
    shown: usize,
    stopped: bool,
    /// Ids pushed.
    pushed: usize,
    /// Ids that count: see [`StopStream::num_ids`].
    counted: usize,
    /// Bytes of certain text after an id, and how many ids that makes, as long as that text is held.
    pending: VecDeque<(usize, usize)>,
}

impl StopStream {
    pub(super) fn new(tokenizer: Tokenizer, stops: StopStrings) -> Self {
        Self {
            stream: Some(TokenStream::new(tokenizer)),
            stops,
            held: String::new(),
            shown: 0,
            stopped: false,
            pushed: 0,
            counted: 0,
            pending: VecDeque::new(),
        }
    }

    /// Takes the next id; returns the text that is now part of the answer, if there is any. After a stop string nothing counts.
    pub fn push(&mut self, id: i32) -> Result<Option<String>> {
        if self.stopped {
            return Ok(None);
        }
        let Some(stream) = &mut self.stream else { return Ok(None) };
        let piece = stream.push(id)?;
        self.pushed += 1;
        Ok(piece.and_then(|piece| self.take(&piece)))
    }

    /// Ends the text; returns what was held back of it, if there is any.
    pub fn finish(&mut self) -> Result<Option<String>> {
        let Some(stream) = self.stream.take() else { return Ok(None) };
        let mut rest = String::new();
        if !self.stopped {
            rest = stream.finish()?.and_then(|piece| self.take(&piece)).unwrap_or_default();
        }
        if !self.stopped {
            rest.push_str(&std::mem::take(&mut self.held));
            self.shown += rest.len();
            self.counted = self.pushed;
        }
        Ok(Some(rest).filter(|rest| !rest.is_empty()))
    }

    /// Whether a stop string has ended the text.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// How many of the ids count, known once the text has ended: all of them, or those up to the last whose text lies before the stop
    /// string as a whole. Of an id within which the stop string begins, the text before it is in the answer, but the id does not count.
    pub fn num_ids(&self) -> usize {
        self.counted
    }

    /// Adds certain text, and hands out what cannot be part of a stop string.
    fn take(&mut self, piece: &str) -> Option<String> {
        let from = self.held.len();
        self.held.push_str(piece);
        self.pending.push_back((self.shown + self.held.len(), self.pushed));
        let end = match self.stops.find(&self.held, from) {
            Some(start) => {
                self.stopped = true;
                start
            }
            None => self.stops.possible_start(&self.held),
        };
        let text: String = self.held.drain(..end).collect();
        self.shown += text.len();
        while let Some(&(_, ids)) = self.pending.front().filter(|(bytes, _)| *bytes <= self.shown) {
            self.counted = ids;
            self.pending.pop_front();
        }
        Some(text).filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids are the letters of `VOCABULARY`: single ones, and some that stop strings begin, end and lie within.
    const VOCABULARY: [&str; 9] = ["a", "b", "c", "ab", "ca", "bcab", "é", "aaa", "<s>"];

    fn tokenizer() -> Tokenizer {
        let vocab: serde_json::Map<String, serde_json::Value> =
            VOCABULARY.iter().enumerate().map(|(id, token)| (token.to_string(), id.into())).collect();
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{"id": 8, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
                              "rstrip": false, "normalized": false}],
            "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        Tokenizer::from_json("tokenizer.json", json.to_string().as_bytes()).unwrap()
    }

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(strings.iter().map(|string| string.to_string()).collect()).unwrap()
    }

    /// What came out at each id and at the end, and the ids that count.
    fn streamed(ids: &[i32], stops: &StopStrings) -> (Vec<String>, bool, usize) {
        let mut stream = tokenizer().stream_until(stops);
        let mut pieces: Vec<String> =
            ids.iter().map(|&id| stream.push(id).unwrap().unwrap_or_default()).collect();
        pieces.push(stream.finish().unwrap().unwrap_or_default());
        (pieces, stream.stopped(), stream.num_ids())
    }

    #[test]
    fn a_possible_stop_string_is_held_back() {
        let (pieces, stopped, ids) = streamed(&[0, 1, 0, 1, 2, 0], &stops(&["abc"]));
        assert_eq!(
            (pieces, stopped, ids),
            (["", "", "ab", "", "", "", ""].map(String::from).to_vec(), true, 2)
        );
        let (pieces, stopped, ids) = streamed(&[0, 1], &stops(&["abc"]));
        assert_eq!((pieces, stopped, ids), (["", "", "ab"].map(String::from).to_vec(), false, 2));
    }

    #[test]
    fn an_id_within_which_it_begins_does_not_count_but_its_text_does() {
        let (pieces, stopped, ids) = streamed(&[6, 5, 0], &stops(&["ca"]));
        assert_eq!((pieces.concat(), stopped, ids), ("éb".to_owned(), true, 1));
        // Nor does an id without text between the answer and the stop string.
        let (pieces, stopped, ids) = streamed(&[6, 8, 2], &stops(&["c"]));
        assert_eq!((pieces.concat(), stopped, ids), ("é".to_owned(), true, 1));
    }

    #[test]
    fn without_stop_strings_all_ids_count() {
        let (pieces, stopped, ids) = streamed(&[0, 8, 6, 8], &StopStrings::default());
        assert_eq!((pieces.concat(), stopped, ids), ("aé".to_owned(), false, 4));
        assert!(StopStrings::new(vec!["a".into(), String::new()]).is_err());
    }

    /// The definition: the shortest text that ends in a stop string, cut before the longest of those.
    fn naive<'a>(text: &'a str, strings: &[String]) -> (&'a str, bool) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let found = strings.iter().filter(|string| text[..end].ends_with(string.as_str()));
            if let Some(longest) = found.max_by_key(|string| string.len()) {
                return (&text[..end - longest.len()], true);
            }
        }
        (text, false)
    }

    proptest::proptest! {
        #[test]
        fn streams_stop_where_the_definition_says(
            ids in proptest::collection::vec(0..9i32, 0..30),
            strings in proptest::collection::vec("[abcé]{1,5}", 0..4),
        ) {
            let text: String = ids.iter().filter(|&&id| id != 8).map(|&id| VOCABULARY[id as usize]).collect();
            let (expected, stops_there) = naive(&text, &strings);
            let (pieces, stopped, num_ids) = streamed(&ids, &StopStrings::new(strings.clone()).unwrap());
            proptest::prop_assert_eq!(pieces.concat(), expected);
            proptest::prop_assert_eq!(stopped, stops_there);
            // What is out at any time cannot be taken back: it is a beginning of every answer that is still possible.
            let mut seen = 0;
            for (count, piece) in pieces.iter().enumerate().take(ids.len()) {
                seen += piece.len();
                let so_far: String =
                    ids[..=count].iter().filter(|&&id| id != 8).map(|&id| VOCABULARY[id as usize]).collect();
                let held = &naive(&so_far, &strings).0[seen..];
                proptest::prop_assert!(
                    stopped || held.is_empty() || strings.iter().any(|string| string.starts_with(held)),
                    "{:?} is held for nothing", held
                );
            }
            // The ids that count are the most whose text is within the answer, none of them for nothing.
            let lengths: Vec<usize> = (0..=ids.len())
                .map(|count| ids[..count].iter().filter(|&&id| id != 8).map(|&id| VOCABULARY[id as usize].len()).sum())
                .collect();
            let expected_ids = if stopped {
                (0..=ids.len()).rfind(|&n| lengths[n] <= expected.len() && (n == 0 || lengths[n] > lengths[n - 1])).unwrap()
            } else {
                ids.len()
            };
            proptest::prop_assert_eq!(num_ids, expected_ids);
        }
    }
}
