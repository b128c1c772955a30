//! Layer normalisation with the residual add before it. See `kernels/layernorm.cu`.

use super::shape::{Dims, row_threads};
use crate::device::{Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Operands of [`layernorm`], all of one dtype.
pub struct LayerNormArgs<'a> {
    /// The residual stream `[T, H]`, read, and written if there is a `delta`.
    pub residual: &'a Tensor,
    /// `[T, H]`, added to the residual first.
    pub delta: Option<&'a Tensor>,
    /// `[H]`.
    pub weight: &'a Tensor,
    /// `[H]`.
    pub bias: &'a Tensor,
    /// Output `[T, H]`; `residual` itself is fine where there is no `delta`.
    pub out: &'a Tensor,
    /// Added to the variance.
    pub eps: f32,
}

/// Computes `residual += delta` and `out = (residual - mean) * rsqrt(var + eps) * weight + bias`.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn layernorm(device: &Device, args: LayerNormArgs) -> Result<()> {
    let dtype = args.residual.dtype();
    let mut dims = Dims::new("layernorm");
    for (name, tensor) in [("residual", Some(args.residual)), ("delta", args.delta), ("out", Some(args.out))]
    {
        if let Some(tensor) = tensor {
            dims.dense(name, tensor, dtype, &["T", "H"])?;
        }
    }
    dims.dense("weight", args.weight, dtype, &["H"])?;
    dims.dense("bias", args.bias, dtype, &["H"])?;
    let kernel = dims.variant("residual", dtype, ["layernorm_bf16", "layernorm_f16", "layernorm_f32"])?;
    let (rows, hidden_size) = (dims.get("T"), dims.get("H"));
    if rows == 0 || hidden_size == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .ptr(args.residual)
        .ptr_or_null(args.delta)
        .ptr(args.weight)
        .ptr(args.bias)
        .ptr(args.out)
        .i32(hidden_size)
        .f32(args.eps);
    let block = [row_threads(hidden_size, dtype), 1, 1];
    // SAFETY: arguments in the order of layernorm.cu; every matrix is a dense [T, H], weight and bias are [H], checked above;
    // one CTA a row touches H elements of it. Written: out, and residual if there is a delta.
    unsafe { device.launch(kernel, [rows as u32, 1, 1], block, 0, &launch_args) }
}
