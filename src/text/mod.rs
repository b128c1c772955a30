//! Text to token ids and back, over the model's `tokenizer.json`; conversations to text, by the model's chat template.
//!
//! [`Tokenizer`] is the fence around the crate `tokenizers`: no other module names it. It knows nothing of models; whether
//! an id is within a model's vocabulary is for its caller to check.
#![forbid(unsafe_code)]

mod chat_template;
mod fence;
mod merges;
mod message;
mod stop;
mod stream;
mod tokenizer;

pub use chat_template::{ChatTemplate, chat_template_file};
#[cfg(feature = "hub")]
pub(crate) use fence::caught;
pub use fence::silence_fenced_panics;
pub use message::{Content, Message, Part};
pub use stop::{StopStream, StopStrings};
pub use stream::TokenStream;
pub use tokenizer::Tokenizer;
