//! Grammars over tokens: what may follow in a text that has to be JSON, or match a regular expression or a context-free grammar.
//!
//! [`GrammarCompiler`] is the fence around the crate `llguidance`: no other module names it. Its lexer and Earley parser run on
//! bytes; here they meet the vocabulary of a model. Three properties hold:
//!
//! - The tokens of [`Grammar::allowed`] are exactly those that [`Grammar::accepts`]: whatever tokens spell a text, not one spelling.
//! - A push and a pop cancel out, so that a draft tree is walked depth first with one grammar.
//! - Grammars come from strangers. Compilation is bounded in input, stack and time (`compile.rs`), a step in the work of lexer and
//!   parser and in their memory (`limits`); a grammar that asks for more is one sentence, as is a panic of the crate.
//!
//! Grammars tell where a text *may* end; whether it gets there is the model's affair. White space between JSON's parts is bounded
//! (`schema::WHITE_SPACE`), as a model that likes it would never stop.

mod compile;
mod limits;
mod schema;
mod state;
mod vocabulary;

use std::sync::Arc;

pub use state::Grammar;
use vocabulary::Vocabulary;

use super::Tokenizer;
use crate::Result;

/// What a text has to be.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSpec {
    /// Any JSON object.
    JsonObject,
    /// JSON that is valid under this schema; properties come in the schema's order. References stay within it (`#/$defs/...`).
    JsonSchema(serde_json::Value),
    /// JSON that is valid under `schema` between the texts `open` and `close`; with `many`, one such or several, a line end between two.
    TaggedJson {
        /// In front of the JSON.
        open: String,
        /// As of [`GrammarSpec::JsonSchema`].
        schema: serde_json::Value,
        /// Behind the JSON.
        close: String,
        /// Several are possible.
        many: bool,
    },
    /// The whole text matches this expression, in the syntax of the crate `regex`.
    Regex(String),
    /// A context-free grammar in llguidance's dialect of Lark, with the rule `start`; without `%json`, `stop`, `max_tokens` and
    /// special tokens.
    Lark(String),
}

/// Compiles grammars for one model: it knows the bytes of every token. Clones share them.
#[derive(Debug, Clone)]
pub struct GrammarCompiler {
    vocabulary: Arc<Vocabulary>,
}

impl GrammarCompiler {
    /// A compiler for a model of `vocab_size` tokens, `eos` among them: those that end a text, which are never part of it. This
    /// sorts the vocabulary and takes up to a second: do it once a model.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) for a tokenizer whose single tokens have no bytes;
    /// [`Error::Input`](crate::Error::Input) for an end-of-sequence token outside the vocabulary.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize, eos: &[i32]) -> Result<Self> {
        Ok(Self { vocabulary: Arc::new(Vocabulary::new(tokenizer, vocab_size, eos)?) })
    }

    /// A grammar at the beginning of its text.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input), one sentence: not a schema, expression or grammar, one that no text satisfies, one
    /// with keywords that cannot be enforced (`not`, `if`, `uniqueItems`, a `oneOf` whose options overlap), or one too large.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Grammar> {
        Grammar::new(Arc::clone(&self.vocabulary), compile::compile(&self.vocabulary, spec)?)
    }
}
