//! Kernel tests, one module a kernel: table of risky cases against the oracle in `smart_run::reference`, in
//! every mode of the device (a GPU; or emulated and as native twin), under random schedules, and bit equality
//! of a row whatever else is in the pass.
#[path = "../common/mod.rs"]
pub(crate) mod common;

mod advance_rows;
mod ceilings;
mod control;
mod copy_rows;
mod digest;
mod draft;
mod draft_noise;
mod embedding;
mod gather_norm;
mod gather_rows;
mod gelu;
mod host_words;
mod kv_compact;
mod layernorm;
mod linear;
mod linear_swiglu;
mod penalties;
mod prefetch;
mod prims;
mod rmsnorm;
mod rope;
mod sampler;
mod silu_residual;
mod token_mask;
mod tree_attention;
mod verify;
mod vision_attention;
mod vision_rope;
