//! Makes a plain pass the one behind it. See `kernels/advance_rows.cu`.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Operands of [`advance_rows`]: `n` rows of a pass of `width` rows and `B` sequences, of which each has one row at most, its root.
pub struct AdvanceRowsArgs<'a> {
    /// I32 `[n]`: what was drawn behind each row; -1 is nothing.
    pub drawn: &'a Tensor,
    /// I32 `[n]`.
    pub row_sequence: &'a Tensor,
    /// I32 `[B, max_pages]`, with the pages of the next positions.
    pub page_table: &'a Tensor,
    /// Tokens a page.
    pub page_size: usize,
    /// Out, i32 `[n]`.
    pub tokens: &'a Tensor,
    /// In and out, i32 `[axes, width]`: rotary positions.
    pub positions: &'a Tensor,
    /// Out, i32 `[n]`: K/V slots.
    pub slots: &'a Tensor,
    /// In and out, i32 `[n]`: position of the token that is drawn next.
    pub draw_positions: &'a Tensor,
    /// In and out, i32 `[B]`.
    pub prefix_len: &'a Tensor,
}

/// `AdvanceRowsParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    pointers: [u64; 8],
    num_rows: i32,
    axes: i32,
    width: i32,
    max_pages: i32,
    page_size: i32,
    padding: i32,
}

/// Moves every row to the next position of its sequence; its token is what was drawn.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn advance_rows(device: &Device, args: AdvanceRowsArgs) -> Result<()> {
    let mut dims = Dims::new("advance_rows");
    dims.dense("drawn", args.drawn, DType::I32, &["n"])?;
    dims.dense("row_sequence", args.row_sequence, DType::I32, &["n"])?;
    dims.dense("page_table", args.page_table, DType::I32, &["B", "max_pages"])?;
    dims.dense("tokens", args.tokens, DType::I32, &["n"])?;
    dims.dense("positions", args.positions, DType::I32, &["axes", "width"])?;
    dims.dense("slots", args.slots, DType::I32, &["n"])?;
    dims.dense("draw_positions", args.draw_positions, DType::I32, &["n"])?;
    dims.dense("prefix_len", args.prefix_len, DType::I32, &["B"])?;
    let (num_rows, width) = (dims.get("n"), dims.get("width"));
    dims.require(num_rows <= width, "positions", || {
        (format!("at least {num_rows} columns"), format!("{width}"))
    })?;
    dims.require(args.page_size > 0, "page_size", || ("at least 1".into(), "0".into()))?;
    if num_rows == 0 {
        return Ok(());
    }
    let params = Params {
        pointers: [
            args.drawn,
            args.row_sequence,
            args.page_table,
            args.tokens,
            args.positions,
            args.slots,
            args.draw_positions,
            args.prefix_len,
        ]
        .map(Tensor::ptr),
        num_rows: num_rows as i32,
        axes: dims.get("axes") as i32,
        width: width as i32,
        max_pages: dims.get("max_pages") as i32,
        page_size: args.page_size as i32,
        padding: 0,
    };
    let block = 64;
    let grid = num_rows.div_ceil(block) as u32;
    // SAFETY: the struct has the fields of AdvanceRowsParams in order; rows are bounded by num_rows, the shapes were checked above. The
    // caller owns that row_sequence lies below B and that the page table covers the next positions. Written: tokens, positions, slots,
    // draw_positions, prefix_len.
    unsafe {
        device.launch(
            "advance_rows",
            [grid, 1, 1],
            [block as u32, 1, 1],
            0,
            &LaunchArgs::new().overlapping().pod(&params),
        )
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn params_have_the_kernels_layout() {
        assert_eq!(size_of::<super::Params>(), 88);
    }
}
