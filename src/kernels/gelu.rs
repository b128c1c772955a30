//! The activations of feed-forward layers that have no gate. See `kernels/gelu.cu`.

use super::shape::{Dims, vector_len};
use crate::device::{Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Which of the functions that go by the name (arXiv 1606.08415).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// `x / 2 (1 + erf(x / sqrt(2)))`.
    Erf,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    Tanh,
    /// `x / (1 + exp(-1.702 x))`.
    Quick,
}

const THREADS: usize = 256;

/// Computes `out = gelu(x)` element by element, both `[T, I]` without gaps and of one dtype; `out` may be `x`.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn gelu(device: &Device, function: Gelu, x: &Tensor, out: &Tensor) -> Result<()> {
    let dtype = x.dtype();
    let mut dims = Dims::new("gelu");
    dims.dense("x", x, dtype, &["T", "I"])?;
    dims.dense("out", out, dtype, &["T", "I"])?;
    let len = x.num_elements();
    dims.require(i32::try_from(len).is_ok(), "x", || ("at most 2^31 elements".into(), format!("{len}")))?;
    let names = match function {
        Gelu::Erf => ["gelu_erf_bf16", "gelu_erf_f16", "gelu_erf_f32"],
        Gelu::Tanh => ["gelu_tanh_bf16", "gelu_tanh_f16", "gelu_tanh_f32"],
        Gelu::Quick => ["gelu_quick_bf16", "gelu_quick_f16", "gelu_quick_f32"],
    };
    let kernel = dims.variant("x", dtype, names)?;
    if len == 0 {
        return Ok(());
    }
    let grid = [len.div_ceil(THREADS * vector_len(dtype)) as u32, 1, 1];
    let launch_args = LaunchArgs::new().ptr(x).ptr(out).i32(len);
    // SAFETY: arguments in the order of gelu.cu; x and out hold len elements each; threads past the end leave. Written: out.
    unsafe { device.launch(kernel, grid, [THREADS as u32, 1, 1], 0, &launch_args) }
}
