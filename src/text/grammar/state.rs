//! A text in the making under a grammar.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llguidance::earley::{BiasComputer, Parser, ParserRecognizer};
use llguidance::toktrie::{Recognizer, SimpleVob, TokTrie};

use super::vocabulary::Vocabulary;
use crate::{Error, Result, fence};

/// A text in the making under a grammar: which tokens may come next, token by token, forwards and backwards. Clones share nothing
/// but the vocabulary.
///
/// A text that asks for more work than a step is given ends the grammar: from then on every call fails with the same sentence.
pub struct Grammar {
    vocabulary: Arc<Vocabulary>,
    /// Why it ended, in place of the parser.
    parser: std::result::Result<Box<Parser>, String>,
    tokens: Vec<i32>,
    /// Nothing may follow but the end.
    complete: bool,
}

impl Grammar {
    /// The beginning of a text under `parser`, which is there.
    ///
    /// # Errors
    /// [`Error::Input`] if no text begins so.
    pub(super) fn new(vocabulary: Arc<Vocabulary>, parser: Parser) -> Result<Self> {
        let mut grammar =
            Self { vocabulary, parser: Ok(Box::new(parser)), tokens: Vec::new(), complete: false };
        grammar.settle()?;
        let mut mask = vec![0; grammar.vocabulary.mask_len()];
        grammar.allowed(&mut mask)?;
        Ok(grammar)
    }

    /// Words of a mask: `ceil(vocab_size / 32)`.
    pub fn mask_len(&self) -> usize {
        self.vocabulary.mask_len()
    }

    /// Sets bit `t % 32` of word `t / 32` of `mask` for every token `t` that may come next, and clears all others. Where the text may
    /// end, all end-of-sequence tokens are among them; after one of them, they alone.
    ///
    /// # Errors
    /// [`Error::Shape`] for a mask of other than `ceil(vocab_size / 32)` words; [`Error::Input`] where the vocabulary has no token
    /// that the text could go on with, and for a grammar that asks for too much work.
    pub fn allowed(&mut self, mask: &mut [u32]) -> Result<()> {
        let mask_len = self.vocabulary.mask_len();
        if mask.len() != mask_len {
            return Err(Error::Shape {
                what: "the mask of a grammar".into(),
                expected: format!("{mask_len} words"),
                got: format!("{} words", mask.len()),
            });
        }
        if self.has_ended() {
            mask.fill(0);
            self.allow_end(mask);
            return Ok(());
        }
        let vocabulary = Arc::clone(&self.vocabulary);
        let (set, may_end) = self.step(|parser| {
            let set = parser.compute_bias(&vocabulary.masks, &[]);
            (set, parser.is_accepting())
        })?;
        mask.copy_from_slice(&set.as_slice()[..mask_len]);
        for (&twin, &token) in &vocabulary.twins {
            if mask[token as usize / 32] >> (token % 32) & 1 == 1 {
                mask[twin as usize / 32] |= 1 << (twin % 32);
            }
        }
        if may_end {
            self.allow_end(mask);
        } else if mask.iter().all(|&word| word == 0) {
            return Err(Error::Input(
                "no text satisfies the grammar: none of the vocabulary's tokens may come next".into(),
            ));
        }
        Ok(())
    }

    /// Whether `token` may come next; cheaper than a whole mask. `false`, too, for a grammar that has ended with an error.
    pub fn accepts(&mut self, token: i32) -> bool {
        let vocabulary = Arc::clone(&self.vocabulary);
        if vocabulary.is_eos(token) {
            return self.has_ended() || self.step(|parser| parser.is_accepting()).unwrap_or(false);
        }
        let Some((_, bytes)) = vocabulary.text(token) else { return false };
        if self.has_ended() {
            return false;
        }
        let probe = Probe { trie: vocabulary.tokens.tok_trie(), bytes, accepted: AtomicBool::new(false) };
        let outcome = self.step(|parser| parser.compute_bias(&probe, bytes));
        outcome.is_ok() && probe.accepted.into_inner()
    }

    /// Appends `token`.
    ///
    /// # Errors
    /// [`Error::Input`] for a token that may not come next (the text stays as it is), and for a grammar that asks for too much work.
    pub fn push(&mut self, token: i32) -> Result<()> {
        if !self.accepts(token) {
            // A grammar that has ended says why.
            self.step(|_| ())?;
            return Err(Error::Input(format!("the token {token} may not come next under the grammar")));
        }
        let vocabulary = Arc::clone(&self.vocabulary);
        if let Some((id, bytes)) = vocabulary.text(token) {
            let pushed = self.step(|parser| parser.apply_token(bytes, id))?;
            match pushed {
                Ok(0) => (),
                Ok(_) => return Err(self.end("it takes back bytes of the text".into())),
                Err(error) => return Err(self.end(error.to_string())),
            }
        }
        self.tokens.push(token);
        self.settle()
    }

    /// Takes back the last `count` tokens.
    ///
    /// # Errors
    /// [`Error::Input`] for more tokens than there are, and for a grammar that has ended.
    pub fn pop(&mut self, count: usize) -> Result<()> {
        // A grammar that has ended says why.
        self.step(|_| ())?;
        let Some(left) = self.tokens.len().checked_sub(count) else {
            return Err(Error::Input(format!(
                "{count} tokens cannot be taken back from a text of {}",
                self.tokens.len()
            )));
        };
        let num_bytes = self.tokens[left..]
            .iter()
            .filter_map(|&token| self.vocabulary.text(token))
            .map(|(_, bytes)| bytes.len())
            .sum();
        if let Err(error) = self.step(|parser| parser.rollback(num_bytes))? {
            return Err(self.end(error.to_string()));
        }
        self.tokens.truncate(left);
        self.settle()
    }

    /// Whether nothing may follow but the end.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether an end-of-sequence token is out.
    fn has_ended(&self) -> bool {
        self.tokens.last().is_some_and(|&token| self.vocabulary.is_eos(token))
    }

    fn allow_end(&self, mask: &mut [u32]) {
        for &token in self.vocabulary.eos() {
            mask[token as usize / 32] |= 1 << (token % 32);
        }
    }

    /// After the text has changed.
    fn settle(&mut self) -> Result<()> {
        let has_ended = self.has_ended();
        self.complete = self.step(|parser| {
            // Masks are kept by the parser's row, which a text that was taken back may have left to another.
            parser.invalidate_bias_cache();
            has_ended || !parser.can_advance() && parser.is_accepting()
        })?;
        Ok(())
    }

    /// Work of the parser, behind the fence.
    fn step<T>(&mut self, work: impl FnOnce(&mut Parser) -> T) -> Result<T> {
        let parser = match &mut self.parser {
            Ok(parser) => parser,
            Err(reason) => return Err(Error::Input(reason.clone())),
        };
        let outcome = fence::fenced(|| {
            let value = work(parser);
            (value, parser.get_error())
        });
        match outcome {
            Some((value, None)) => Ok(value),
            Some((_, Some(error))) => Err(self.end(error.message())),
            None => Err(self.end("the parser gives up on it".into())),
        }
    }

    /// Ends the grammar.
    fn end(&mut self, reason: String) -> Error {
        let reason = format!("the grammar cannot be followed any further at this text: {reason}");
        self.parser = Err(reason.clone());
        Error::Input(reason)
    }
}

impl Clone for Grammar {
    fn clone(&self) -> Self {
        let parser = match &self.parser {
            Ok(parser) => fence::fenced(|| Box::new(parser.deep_clone()))
                .ok_or_else(|| "the grammar could not be copied".to_owned()),
            Err(reason) => Err(reason.clone()),
        };
        Self {
            vocabulary: Arc::clone(&self.vocabulary),
            parser,
            tokens: self.tokens.clone(),
            complete: self.complete,
        }
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Grammar")
            .field("num_tokens", &self.tokens.len())
            .field("complete", &self.complete)
            .field("error", &self.parser.as_ref().err())
            .finish_non_exhaustive()
    }
}

/// One token in place of a mask, under the limits of a mask.
struct Probe<'a> {
    trie: &'a TokTrie,
    bytes: &'a [u8],
    accepted: AtomicBool,
}

impl BiasComputer for Probe<'_> {
    fn compute_bias(&self, recognizer: &mut ParserRecognizer<'_>, _start: &[u8]) -> SimpleVob {
        recognizer.trie_started("token");
        let accepted = self.bytes.iter().all(|&byte| recognizer.try_push_byte(byte));
        recognizer.trie_finished();
        self.accepted.store(accepted, Ordering::Relaxed);
        SimpleVob::new()
    }

    fn trie(&self) -> &TokTrie {
        self.trie
    }
}
