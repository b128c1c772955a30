//! Text to token ids and back, over the model's `tokenizer.json`; conversations to text, by the model's chat template.
//!
//! Grammars over tokens, which say what a text may go on with ([`GrammarCompiler`]), are here, too.
//!
//! [`Tokenizer`] is the fence around the crate `tokenizers`: no other module names it. It knows nothing of models; whether
//! an id is within a model's vocabulary is for its caller to check.
#![forbid(unsafe_code)]

mod bounded;
mod chat_template;
mod fence;
mod grammar;
mod merges;
mod message;
mod stop;
mod stream;
mod token_bytes;
mod token_texts;
mod tokenizer;

pub use crate::fence::silence_fenced_panics;
pub use chat_template::{ChatTemplate, chat_template_file};
pub use grammar::{Grammar, GrammarCompiler, GrammarSpec};
pub use message::{Content, Message, Part};
pub use stop::{StopStream, StopStrings};
pub use stream::TokenStream;
pub use token_texts::TokenTexts;
pub use tokenizer::Tokenizer;
