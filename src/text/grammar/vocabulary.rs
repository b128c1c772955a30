//! The tokens of a model as bytes, in the order that lexer and parser walk them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::text::Tokenizer;
use crate::{Error, Result, fence};

/// Tokens are 24 bits wide in the trie, the last value is taken.
const MAX_VOCAB_SIZE: usize = (1 << 24) - 1;
/// The trie is no deeper. Tokens beyond are hundreds of spaces in a row; shorter ones spell the same.
const MAX_TOKEN_BYTES: usize = 1000;
/// No byte of UTF-8; the crate marks its special tokens with it.
const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// A model's tokens. Special ones, those that end a text and the padded part of the vocabulary have no bytes.
pub struct Vocabulary {
    pub tokens: TokEnv,
    /// Computes masks faster than a walk through all tokens: sets of them that JSON often allows as a whole.
    pub masks: SlicedBiasComputer,
    /// Tokens of the same bytes as another, and that one, which stands for both in the trie.
    pub twins: HashMap<TokenId, TokenId>,
    eos: Vec<TokenId>,
    vocab_size: usize,
}

impl Vocabulary {
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize, eos: &[i32]) -> Result<Self> {
        tokenizer.check_token_bytes()?;
        if vocab_size == 0 || vocab_size > MAX_VOCAB_SIZE {
            return Err(Error::Input(format!(
                "grammars take vocabularies of 1 to {MAX_VOCAB_SIZE} tokens, not of {vocab_size}"
            )));
        }
        let eos_id = |&id: &i32| match u32::try_from(id) {
            Ok(token) if (token as usize) < vocab_size => Ok(token),
            _ => Err(Error::Input(format!(
                "the end-of-sequence token {id} is not in the vocabulary of {vocab_size} tokens"
            ))),
        };
        let eos = eos.iter().map(eos_id).collect::<Result<Vec<_>>>()?;

        let mut words = vec![Vec::new(); vocab_size];
        let (mut first_of, mut twins) = (HashMap::new(), HashMap::new());
        for (token, word) in (0..).zip(&mut words) {
            let bytes = if eos.contains(&token) { None } else { tokenizer.token_bytes(token as i32) };
            let is_text =
                |bytes: &Vec<u8>| (1..=MAX_TOKEN_BYTES).contains(&bytes.len()) && !bytes.contains(&MARKER);
            let Some(bytes) = bytes.filter(is_text) else { continue };
            let first = *first_of.entry(bytes.clone()).or_insert(token);
            if first == token {
                *word = bytes;
            } else {
                twins.insert(token, first);
            }
        }
        let built = fence::fenced(|| {
            let info = TokRxInfo::new(vocab_size as u32, INVALID_TOKEN);
            let tokens: TokEnv = Arc::new(Trie(TokTrie::from(&info, &words)));
            let masks = SlicedBiasComputer::new(&tokens, &SlicedBiasComputer::general_slices())
                .map_err(|error| error.to_string())?;
            Ok((tokens, masks))
        });
        let (tokens, masks) = built.unwrap_or_else(|| Err("they are too long or too many".into())).map_err(
            |reason: String| {
                Error::Input(format!("the tokens of this model make no vocabulary for grammars: {reason}"))
            },
        )?;
        Ok(Self { tokens, masks, twins, eos, vocab_size })
    }

    /// Words of a mask.
    pub fn mask_len(&self) -> usize {
        self.vocab_size.div_ceil(32)
    }

    /// Tokens that end a text.
    pub fn eos(&self) -> &[TokenId] {
        &self.eos
    }

    pub fn is_eos(&self, token: i32) -> bool {
        u32::try_from(token).is_ok_and(|token| self.eos.contains(&token))
    }

    /// The token that stands for `token` in the trie, and its bytes; `None` if it is no text.
    pub fn text(&self, token: i32) -> Option<(TokenId, &[u8])> {
        let token = u32::try_from(token).ok()?;
        let token = *self.twins.get(&token).unwrap_or(&token);
        Some((token, self.tokens.tok_trie().token(token))).filter(|(_, bytes)| !bytes.is_empty())
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Vocabulary")
            .field("vocab_size", &self.vocab_size)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

/// The trie as the crate wants it.
struct Trie(TokTrie);

impl TokenizerEnv for Trie {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(text)
    }

    /// A canonical tokenizer forces the one spelling that it would choose; here every spelling is allowed.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
