//! The tokenizer: encode a prompt, decode ids.

use std::path::PathBuf;
use std::sync::Arc;

use tokenizers::ModelWrapper;

use super::fence::fenced;
use super::token_bytes::TokenBytes;
use super::{StopStream, StopStrings, TokenStream, merges};
use crate::config::ModelSource;
use crate::{Error, Result};

const FILE: &str = "tokenizer.json";

/// A model's tokenizer. Clones share it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    /// `None` where the decoder makes a text of all tokens together only.
    bytes: Option<TokenBytes>,
}

impl Tokenizer {
    /// The tokenizer of `source`; `None` if the model has no `tokenizer.json`.
    pub fn open(source: &ModelSource) -> Result<Option<Self>> {
        source.read_optional(FILE)?.map(|json| Self::from_json(source.path(FILE), &json)).transpose()
    }

    /// A tokenizer from the content of a `tokenizer.json`; `path` stands for it in messages.
    ///
    /// Truncation, padding and random merges (dropout) that the file asks for are switched off: a prompt is taken whole, as
    /// it is, and always becomes the same ids.
    pub fn from_json(path: impl Into<PathBuf>, json: &[u8]) -> Result<Self> {
        let path = path.into();
        merges::check(json).map_err(|reason| Error::format(&path, reason))?;
        let tokenizer = fenced(&path, || {
            let mut tokenizer = tokenizers::Tokenizer::from_bytes(json)?;
            tokenizer.with_padding(None);
            tokenizer.with_truncation(None)?;
            if let ModelWrapper::BPE(model) = tokenizer.get_model()
                && model.dropout.is_some()
            {
                let mut model = model.clone();
                model.dropout = None;
                tokenizer.with_model(model);
            }
            // A trial: parts that contradict each other show at load, not after minutes of it.
            let ids = tokenizer.encode("a", true)?;
            tokenizer.decode(ids.get_ids(), true)?;
            Ok(tokenizer)
        })?;
        let bytes = tokenizer.get_decoder().and_then(TokenBytes::of);
        Ok(Tokenizer { shared: Arc::new(Shared { path, tokenizer, bytes }) })
    }

    /// Token ids of `text`, with the special tokens that the model expects around a prompt if `add_special`.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<i32>> {
        let Shared { path, tokenizer, .. } = &*self.shared;
        let encoding = fenced(path, || tokenizer.encode(text, add_special))?;
        let to_i32 = |&id: &u32| {
            i32::try_from(id)
                .map_err(|_| Error::format(path, format!("the token id {id} is impossibly large")))
        };
        encoding.get_ids().iter().map(to_i32).collect()
    }

    /// Text of `ids`, special tokens left out. Bytes that are not UTF-8 become `U+FFFD`; ids that the tokenizer does not
    /// know have no text.
    pub fn decode(&self, ids: &[i32]) -> Result<String> {
        let Shared { path, tokenizer, .. } = &*self.shared;
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        fenced(path, || tokenizer.decode(&ids, true))
    }

    /// How the vocabulary spells `id`, special tokens included: `Ġimport`, `<0x0A>`, `</s>`; `None` for an unknown id.
    pub fn spelling(&self, id: i32) -> Option<String> {
        self.shared.tokenizer.id_to_token(u32::try_from(id).ok()?)
    }

    /// The bytes that `id` stands for within a text; those of all ids, joined, are the text. `None` for special tokens, which
    /// are no text, for unknown ids, and for all ids of a tokenizer without [bytes of tokens](Self::check_token_bytes).
    ///
    /// Decoders that drop the space in front of a text do so only there: the first token's bytes still have it.
    pub fn token_bytes(&self, id: i32) -> Option<Vec<u8>> {
        let Shared { path, tokenizer, bytes } = &*self.shared;
        let (bytes, spelling) = (bytes.as_ref()?, self.spelling(id)?);
        if tokenizer.get_added_vocabulary().is_special_token(&spelling) {
            return None;
        }
        fenced(path, || Ok(bytes.bytes(&spelling))).ok()
    }

    /// Fails if tokens of this tokenizer have no bytes of their own.
    ///
    /// # Errors
    /// [`Error::Format`] for a decoder that is neither byte-level nor with a character for the space.
    pub fn check_token_bytes(&self) -> Result<()> {
        match self.shared.bytes {
            Some(_) => Ok(()),
            None => Err(Error::format(
                &self.shared.path,
                "the decoder of this tokenizer makes a text of all tokens together, so single tokens have no bytes; \
                 byte-level decoders and those with a character for the space have",
            )),
        }
    }

    /// Decodes ids one by one, as they are generated.
    pub fn stream(&self) -> TokenStream {
        TokenStream::new(self.clone())
    }

    /// Decodes ids one by one up to a stop string.
    pub fn stream_until(&self, stops: &StopStrings) -> StopStream {
        StopStream::new(self.clone(), stops.clone())
    }

    /// Whether a model of `vocab_size` tokens knows all of `ids`, which this tokenizer has made.
    ///
    /// # Errors
    /// [`Error::Format`] that names an id: the tokenizer is another model's.
    pub fn check_ids(&self, ids: &[i32], vocab_size: usize) -> Result<()> {
        match ids.iter().find(|&&id| usize::try_from(id).is_ok_and(|id| id >= vocab_size)) {
            None => Ok(()),
            Some(id) => Err(Error::format(
                &self.shared.path,
                format!(
                    "this tokenizer has the token {:?} with the id {id}, which the model's vocabulary of {vocab_size} lacks; \
                     take the tokenizer.json that came with the model",
                    self.spelling(*id).unwrap_or_default()
                ),
            )),
        }
    }

    /// One more than the largest token id, added tokens included.
    pub fn num_ids(&self) -> usize {
        self.shared.tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_taken_whole_and_always_becomes_the_same_ids() {
        let json = serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "a"},
            "model": {"type": "BPE", "dropout": 1.0, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        });
        let tokenizer = Tokenizer::from_json("tokenizer.json", json.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("ababa", true).unwrap(), [2, 2, 0]);
        assert_eq!(tokenizer.num_ids(), 3);
    }
}
