//! Target networks: weights and the order of launches of one pass. One file an architecture.
#![forbid(unsafe_code)]

mod layers;
mod llama;
mod load;
mod pass;

pub(crate) use layers::{AttentionShape, AttentionWeights, Mlp, Scratch, ScratchSize, attend};
pub use llama::{Llama, Taps};
pub use load::Progress;
pub(crate) use load::WeightLoader;
pub use pass::{MAX_ROWS_PER_SEQUENCE, Pass, Row, causal_words};
