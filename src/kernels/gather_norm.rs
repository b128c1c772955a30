//! Rows by index, normed, of up to two matrices at once. See `kernels/gather_norm.cu`.

use super::shape::{Dims, row_threads};
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Most matrices of a launch.
pub const MAX_GATHER_PARTS: usize = 2;

/// One matrix of [`gather_norm`], all tensors of one dtype but the index.
#[derive(Clone, Copy)]
pub struct GatherNormPart<'a> {
    /// `[S, H]`; a column view is fine.
    pub src: &'a Tensor,
    /// i32 `[T]`: the row of `src` that each row is of, zeros where it lies outside; none: row r is of row r, and S is T.
    pub index: Option<&'a Tensor>,
    /// `[H]`; none: rows are copied.
    pub weight: Option<&'a Tensor>,
    /// Output `[T, H]`, not overlapping anything that is read; a column view is fine.
    pub out: &'a Tensor,
    /// A second output.
    pub copy: Option<RowCopy<'a>>,
}

/// What is kept of rows beside [`GatherNormPart::out`]: `[T, H]`, a column view perhaps.
#[derive(Clone, Copy)]
pub enum RowCopy<'a> {
    /// Rows as they were gathered.
    Gathered(&'a Tensor),
    /// Rows as they go out.
    Normed(&'a Tensor),
}

/// `GatherNormParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct GatherNormParams {
    src: [u64; MAX_GATHER_PARTS],
    index: [u64; MAX_GATHER_PARTS],
    weight: [u64; MAX_GATHER_PARTS],
    out: [u64; MAX_GATHER_PARTS],
    copy: [u64; MAX_GATHER_PARTS],
    num_src_rows: [i32; MAX_GATHER_PARTS],
    src_stride: [i32; MAX_GATHER_PARTS],
    out_stride: [i32; MAX_GATHER_PARTS],
    copy_stride: [i32; MAX_GATHER_PARTS],
    copies_out: [i32; MAX_GATHER_PARTS],
    hidden_size: i32,
    eps: f32,
}

/// Computes, for each of one or two parts, `out[r] = norm(src[index[r]]) * weight`, with `eps` added to the mean square.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit, or for another number of parts.
pub fn gather_norm(device: &Device, parts: &[GatherNormPart], eps: f32) -> Result<()> {
    let mut dims = Dims::new("gather_norm");
    dims.require((1..=MAX_GATHER_PARTS).contains(&parts.len()), "parts", || {
        (format!("1 to {MAX_GATHER_PARTS}"), parts.len().to_string())
    })?;
    let dtype = parts[0].src.dtype();
    let mut params = GatherNormParams { eps, ..GatherNormParams::default() };
    for (p, part) in parts.iter().enumerate() {
        // Every part has its own number of source rows.
        let name = if part.index.is_none() { "T" } else { ["S", "S of the second"][p] };
        dims.rows("src", part.src, dtype, &[name, "H"])?;
        if let Some(index) = part.index {
            dims.dense("index", index, DType::I32, &["T"])?;
            params.index[p] = index.ptr();
        }
        if let Some(weight) = part.weight {
            dims.dense("weight", weight, dtype, &["H"])?;
            params.weight[p] = weight.ptr();
        }
        dims.rows("out", part.out, dtype, &["T", "H"])?;
        if let Some(RowCopy::Gathered(copy) | RowCopy::Normed(copy)) = part.copy {
            dims.rows("copy", copy, dtype, &["T", "H"])?;
            (params.copy[p], params.copy_stride[p]) = (copy.ptr(), copy.row_stride() as i32);
        }
        params.copies_out[p] = i32::from(matches!(part.copy, Some(RowCopy::Normed(_))));
        (params.src[p], params.src_stride[p]) = (part.src.ptr(), part.src.row_stride() as i32);
        (params.out[p], params.out_stride[p]) = (part.out.ptr(), part.out.row_stride() as i32);
        params.num_src_rows[p] = part.src.dim(0) as i32;
    }
    let kernel = dims.variant("src", dtype, ["gather_norm_bf16", "gather_norm_f16", "gather_norm_f32"])?;
    let (rows, hidden_size) = (dims.get("T"), dims.get("H"));
    if rows == 0 || hidden_size == 0 {
        return Ok(());
    }
    params.hidden_size = hidden_size as i32;
    let (grid, block) = ([rows as u32, parts.len() as u32, 1], [row_threads(hidden_size, dtype), 1, 1]);
    // SAFETY: the struct has the fields of GatherNormParams in order; every matrix has rows of H elements with the stride given, as checked above; the
    // kernel looks at no index outside of src. A block a row and part, so accesses to [T, ..] are in bounds. Written: outputs and copies.
    unsafe { device.launch(kernel, grid, block, 0, &LaunchArgs::new().overlapping().pod(&params)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_have_the_kernels_layout() {
        assert_eq!(size_of::<GatherNormParams>(), 128);
    }
}
