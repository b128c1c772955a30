//! Picks rows of a matrix by index. See `kernels/gather_rows.cu`.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Operands of [`gather_rows`].
pub struct GatherRowsArgs<'a> {
    /// `[S, H]` of any dtype with 2 or 4 bytes; a column view is fine.
    pub src: &'a Tensor,
    /// i32 `[n]`; an index outside `src` gives a row of zeros.
    pub index: &'a Tensor,
    /// Output `[n, H]`, the dtype of `src`, not overlapping it; a column view is fine.
    pub out: &'a Tensor,
}

/// Copies `out[r] = src[index[r]]`.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn gather_rows(device: &Device, args: GatherRowsArgs) -> Result<()> {
    let dtype = args.src.dtype();
    let mut dims = Dims::new("gather_rows");
    dims.rows("src", args.src, dtype, &["S", "H"])?;
    dims.dense("index", args.index, DType::I32, &["n"])?;
    dims.rows("out", args.out, dtype, &["n", "H"])?;
    let kernel = dims.by_width("src", dtype, ["gather_rows_b16", "gather_rows_b32"])?;
    let rows = dims.get("n");
    if rows == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .overlapping()
        .ptr(args.src)
        .ptr(args.index)
        .ptr(args.out)
        .i32(dims.get("S"))
        .i32(dims.get("H"))
        .i32(args.src.row_stride())
        .i32(args.out.row_stride());
    // SAFETY: arguments in the order of gather_rows.cu; shapes are checked above, and indices outside src are
    // not looked up by the kernel. Written: out.
    unsafe { device.launch(kernel, [rows as u32, 1, 1], [128, 1, 1], 0, &launch_args) }
}
