//! Token embedding look-up. See `kernels/embedding.cu`.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Operands of [`embedding`].
pub struct EmbeddingArgs<'a> {
    /// i32 `[T]`; a token outside the table gives a row of zeros.
    pub tokens: &'a Tensor,
    /// `[V, H]`.
    pub table: &'a Tensor,
    /// Output `[T, H]`, the dtype of the table; a column view is fine.
    pub out: &'a Tensor,
}

/// Copies the table row of each token.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn embedding(device: &Device, args: EmbeddingArgs) -> Result<()> {
    let dtype = args.table.dtype();
    let mut dims = Dims::new("embedding");
    dims.dense("tokens", args.tokens, DType::I32, &["T"])?;
    dims.dense("table", args.table, dtype, &["V", "H"])?;
    dims.rows("out", args.out, dtype, &["T", "H"])?;
    let kernel = dims.variant("table", dtype, ["embedding_bf16", "embedding_f16", "embedding_f32"])?;
    let rows = dims.get("T");
    if rows == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .overlapping()
        .ptr(args.tokens)
        .ptr(args.table)
        .ptr(args.out)
        .i32(dims.get("V"))
        .i32(dims.get("H"))
        .i32(args.out.row_stride());
    // SAFETY: arguments in the order of embedding.cu; shapes are checked above, and tokens outside the table
    // are not looked up by the kernel. Written: out.
    unsafe { device.launch(kernel, [rows as u32, 1, 1], [128, 1, 1], 0, &launch_args) }
}
