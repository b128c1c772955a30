//! Copies rows of one matrix to rows of another. See `kernels/copy_rows.cu`.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Operands of [`copy_rows`].
pub struct CopyRowsArgs<'a> {
    /// `[S, H]` of any dtype with 2 or 4 bytes; a column view is fine.
    pub src: &'a Tensor,
    /// i32 `[n, 2]`: from which row of `src` to which row of `out`. A move from or to an index outside is left out; no two go to the
    /// same row.
    pub moves: &'a Tensor,
    /// In and out, `[R, H]`, the dtype of `src`, not overlapping it; a column view is fine.
    pub out: &'a Tensor,
}

/// Copies `out[to] = src[from]` for every move.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn copy_rows(device: &Device, args: CopyRowsArgs) -> Result<()> {
    let dtype = args.src.dtype();
    let mut dims = Dims::new("copy_rows").fix("2", 2);
    dims.rows("src", args.src, dtype, &["S", "H"])?;
    dims.dense("moves", args.moves, DType::I32, &["n", "2"])?;
    dims.rows("out", args.out, dtype, &["R", "H"])?;
    let kernel = dims.by_width("src", dtype, ["copy_rows_b16", "copy_rows_b32"])?;
    let moves = dims.get("n");
    if moves == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .overlapping()
        .ptr(args.src)
        .ptr(args.moves)
        .ptr(args.out)
        .i32(dims.get("S"))
        .i32(dims.get("R"))
        .i32(dims.get("H"))
        .i32(args.src.row_stride())
        .i32(args.out.row_stride());
    // SAFETY: arguments in the order of copy_rows.cu; shapes are checked above, and the kernel looks at no index outside src or out.
    // Written: rows of out.
    unsafe { device.launch(kernel, [moves as u32, 1, 1], [128, 1, 1], 0, &launch_args) }
}
