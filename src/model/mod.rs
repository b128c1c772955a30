//! Target networks: weights and the order of launches of one pass.
#![forbid(unsafe_code)]

mod decoder;
mod dummy;
mod layers;
mod load;
mod pass;
mod row;
pub mod vision;

pub use decoder::{Decoder, Taps};
pub(crate) use layers::{AttentionKind, AttentionShape, AttentionWeights, Mlp, Scratch, ScratchSize, attend};
pub use load::Progress;
pub(crate) use load::WeightLoader;
pub use pass::{Pass, PassShape};
pub use row::{MAX_ROWS_PER_SEQUENCE, Rotary, Row, causal_words, text_rotary};
