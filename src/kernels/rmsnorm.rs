//! RMS normalisation with the residual add before it. See `kernels/rmsnorm.cu`.

use super::shape::{Dims, row_threads};
use crate::device::{Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Operands of [`rmsnorm`], all of one dtype.
pub struct RmsNormArgs<'a> {
    /// The residual stream `[T, H]`, read, and written if there is a `delta`.
    pub residual: &'a Tensor,
    /// `[T, H]`, added to the residual first.
    pub delta: Option<&'a Tensor>,
    /// `[H]`.
    pub weight: &'a Tensor,
    /// Output `[T, H]`; a column view is fine.
    pub out: &'a Tensor,
    /// Output `[T, H]`: the residual after the add; a column view is fine.
    pub tap: Option<&'a Tensor>,
    /// Added to the mean square.
    pub eps: f32,
}

/// Computes `residual += delta`, `tap = residual` and
/// `out = residual * rsqrt(mean(residual^2) + eps) * weight`.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn rmsnorm(device: &Device, args: RmsNormArgs) -> Result<()> {
    let dtype = args.residual.dtype();
    let mut dims = Dims::new("rmsnorm");
    dims.rows("residual", args.residual, dtype, &["T", "H"])?;
    for (name, tensor) in [("delta", args.delta), ("out", Some(args.out)), ("tap", args.tap)] {
        if let Some(tensor) = tensor {
            dims.rows(name, tensor, dtype, &["T", "H"])?;
        }
    }
    dims.dense("weight", args.weight, dtype, &["H"])?;
    let kernel = dims.variant("residual", dtype, ["rmsnorm_bf16", "rmsnorm_f16", "rmsnorm_f32"])?;
    let (rows, hidden_size) = (dims.get("T"), dims.get("H"));
    if rows == 0 || hidden_size == 0 {
        return Ok(());
    }
    let stride = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::row_stride);
    let launch_args = LaunchArgs::new()
        .overlapping()
        .ptr(args.residual)
        .ptr_or_null(args.delta)
        .ptr(args.weight)
        .ptr(args.out)
        .ptr_or_null(args.tap)
        .i32(hidden_size)
        .i32(args.residual.row_stride())
        .i32(stride(args.delta))
        .i32(args.out.row_stride())
        .i32(stride(args.tap))
        .f32(args.eps);
    let block = [row_threads(hidden_size, dtype), 1, 1];
    // SAFETY: arguments in the order of rmsnorm.cu; every matrix is [T, H] with the stride given, weight is
    // [H], checked above; one CTA a row touches H elements of it. Written: out, tap, and residual if there is
    // a delta.
    unsafe { device.launch(kernel, [rows as u32, 1, 1], block, 0, &launch_args) }
}
