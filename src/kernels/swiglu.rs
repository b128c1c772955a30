//! The gated activation of a SwiGLU layer. See `kernels/swiglu.cu`.

use super::shape::{Dims, vector_len};
use crate::device::{Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Operands of [`swiglu`], both of one dtype.
pub struct SwigluArgs<'a> {
    /// `[T, 2 I]`: the gate in the first I columns, then up.
    pub gate_up: &'a Tensor,
    /// Output `[T, I]`.
    pub out: &'a Tensor,
}

const THREADS: usize = 128;

/// Computes `out = silu(gate) * up`, in f32 with one rounding.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn swiglu(device: &Device, args: SwigluArgs) -> Result<()> {
    let dtype = args.out.dtype();
    let mut dims = Dims::new("swiglu");
    dims.rows("out", args.out, dtype, &["T", "I"])?;
    let (rows, intermediate_size) = (dims.get("T"), dims.get("I"));
    let mut dims = dims.fix("2I", 2 * intermediate_size);
    dims.rows("gate_up", args.gate_up, dtype, &["T", "2I"])?;
    let kernel = dims.variant("out", dtype, ["swiglu_bf16", "swiglu_f16", "swiglu_f32"])?;
    if rows == 0 || intermediate_size == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .ptr(args.gate_up)
        .ptr(args.out)
        .i32(intermediate_size)
        .i32(args.gate_up.row_stride())
        .i32(args.out.row_stride());
    let grid = [rows as u32, intermediate_size.div_ceil(THREADS * vector_len(dtype)) as u32, 1];
    // SAFETY: arguments in the order of swiglu.cu; gate_up is [T, 2 I] and out [T, I] with the strides given,
    // checked above; threads past I leave. Written: out.
    unsafe { device.launch(kernel, grid, [THREADS as u32, 1, 1], 0, &launch_args) }
}
