//! Plain oracles of the kernels, one module a kernel: slices in, vectors out, f64 inside, written to be read.
//! They know no dtype; where a kernel rounds in the middle, the rounding is an argument.
#![forbid(unsafe_code)]

pub mod advance_rows;
pub mod ceilings;
pub mod copy_rows;
pub mod draft;
pub mod draft_noise;
pub mod embedding;
pub mod gather_rows;
pub mod gelu;
pub mod kv_compact;
pub mod layernorm;
pub mod linear;
pub mod penalties;
pub mod prims_check;
pub mod rmsnorm;
pub mod rope;
pub mod sampler;
pub mod silu_residual;
pub mod swiglu;
pub mod token_mask;
pub mod tree_attention;
pub mod verify;
pub mod vision_attention;
pub mod vision_rope;
