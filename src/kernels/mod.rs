//! Typed, shape-checked launch wrappers: one module per `kernels/*.cu`, the only code that launches.

pub mod advance_rows;
#[doc(hidden)]
pub mod ceilings;
pub mod control;
pub mod copy_rows;
pub mod digest;
pub mod draft;
pub mod draft_noise;
pub mod embedding;
pub mod gather_norm;
pub mod gather_rows;
pub mod gelu;
pub mod host_words;
pub mod kv_compact;
pub mod layernorm;
pub mod linear;
pub mod mailbox;
pub mod penalties;
pub mod prefetch;
#[doc(hidden)]
pub mod prims_check;
pub mod rmsnorm;
pub mod rope;
pub mod sampler;
mod shape;
pub mod silu_residual;
pub mod slices;
pub mod token_mask;
pub mod tree_attention;
pub mod verify;
pub mod vision_attention;
pub mod vision_rope;
