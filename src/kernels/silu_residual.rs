//! The residual block of a Medusa head, behind its linear layer. See `kernels/silu_residual.cu`.

use super::shape::{Dims, vector_len};
use crate::device::{Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Operands of [`silu_residual`], all of one dtype.
pub struct SiluResidualArgs<'a> {
    /// `[T, H]`: what every group adds to; a column view is fine.
    pub x: &'a Tensor,
    /// `[T, G H]`: G groups side by side; a column view is fine.
    pub y: &'a Tensor,
    /// Output `[T, G H]`; may be `y`, or `x` where G is 1.
    pub out: &'a Tensor,
}

const THREADS: usize = 128;

/// Computes `out = x + silu(y)` for every group of H columns of `y`, in f32 with one rounding.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn silu_residual(device: &Device, args: SiluResidualArgs) -> Result<()> {
    let dtype = args.out.dtype();
    let mut dims = Dims::new("silu_residual");
    dims.rows("x", args.x, dtype, &["T", "H"])?;
    dims.rows("y", args.y, dtype, &["T", "GH"])?;
    dims.rows("out", args.out, dtype, &["T", "GH"])?;
    let (rows, hidden, width) = (dims.get("T"), dims.get("H"), dims.get("GH"));
    let kernel =
        dims.variant("out", dtype, ["silu_residual_bf16", "silu_residual_f16", "silu_residual_f32"])?;
    dims.require(width.is_multiple_of(hidden.max(1)), "y", || {
        (format!("groups of {hidden} columns"), format!("{width} columns"))
    })?;
    if rows == 0 || width == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .overlapping()
        .ptr(args.x)
        .ptr(args.y)
        .ptr(args.out)
        .i32(hidden)
        .i32(args.x.row_stride())
        .i32(args.y.row_stride())
        .i32(args.out.row_stride());
    let blocks = hidden.div_ceil(THREADS * vector_len(dtype)) as u32;
    let grid = [rows as u32, blocks, (width / hidden) as u32];
    // SAFETY: arguments in the order of silu_residual.cu; x is [T, H], y and out are [T, G H] with the strides given,
    // checked above; threads past H leave. Written: out, each element by the thread that has read x and y there.
    unsafe { device.launch(kernel, grid, [THREADS as u32, 1, 1], 0, &launch_args) }
}
