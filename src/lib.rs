//! `smart_run`: tree speculative decoding that drafts a tree where it pays, as large as it pays, and decodes plainly elsewhere.
//!
//! Start at `engine::Engine`.
//!
//! Layers, each importing only those below it:
//! `serve` -> `service` -> `engine` -> {`control`, `drafter`, `model`} -> `kernels` -> `device` -> cudarc.
//! [`tree`], [`control`] and [`replay`] import no CUDA and build alone (`default-features = false`).
#![deny(missing_docs, unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod conditions;
pub mod control;
pub mod error;
pub mod replay;
pub mod tree;

#[cfg(feature = "engine")]
pub mod config;
#[cfg(feature = "engine")]
pub mod device;
#[cfg(feature = "engine")]
mod drafter;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "engine")]
mod fence;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(feature = "engine")]
pub mod image;
#[cfg(feature = "engine")]
pub mod kernels;
#[cfg(feature = "engine")]
mod kv_cache;
#[cfg(feature = "engine")]
mod model;
#[cfg(feature = "engine")]
mod pages;
#[cfg(feature = "engine")]
#[doc(hidden)]
pub mod reference;
#[cfg(feature = "engine")]
pub mod sampling;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "engine")]
pub mod service;
#[cfg(feature = "engine")]
mod switch;
#[cfg(feature = "engine")]
pub mod text;
#[cfg(feature = "engine")]
pub mod weights;

pub use error::{Error, Result};
#[cfg(feature = "engine")]
pub use model::vision;

/// The commit this was built from (release builds in a checkout), else the version: what measurements are recorded with.
pub const COMMIT: &str = match option_env!("SMART_COMMIT") {
    Some(commit) => commit,
    None => concat!("version ", env!("CARGO_PKG_VERSION")),
};
