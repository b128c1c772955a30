//! Checkpoints: safetensors or PyTorch files, mapped into memory and handed out tensor by tensor.
//!
//! [`Checkpoint::open`] validates every header before anything is read, so a [`TensorView`] can be trusted: its bytes are
//! there and match its dtype and shape. A loader asks for each tensor by name and calls [`Checkpoint::finish`] at the end,
//! which fails on tensors that nobody asked for. This module knows no model and no device.

mod checkpoint;
mod entry;
mod header;
mod integers;
mod storage;
mod torch;
mod view;
mod writer;

pub use checkpoint::{Checkpoint, FileFormat, TensorInfo};
pub(crate) use integers::read_integers;
pub use safetensors::Dtype as StoredType;
pub use view::TensorView;
pub use writer::{WriteOptions, WriteProgress};
