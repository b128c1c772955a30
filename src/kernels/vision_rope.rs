//! Rotary position embedding of patches. See `kernels/vision_rope.cu`.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Operands of [`vision_rope`].
pub struct VisionRopeArgs<'a> {
    /// `[T, 3 * num_heads * head_dim]`: all heads of q, then of k, then of v; q and k are rotated in place.
    pub qkv: &'a Tensor,
    /// f32 `[max_position, head_dim / 2]`: the cosines of a position, then its sines, `head_dim / 4` each.
    pub cos_sin: &'a Tensor,
    /// i32 `[2, T]`: the patch's row in the picture, then its column; clamped to the table.
    pub positions: &'a Tensor,
    /// Attention heads.
    pub num_heads: usize,
    /// Elements of a head: a multiple of 4.
    pub head_dim: usize,
}

/// Rotates the pairs `(i, i + head_dim / 2)` of q and k: the first half of them by the patch's row, the second by its column.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn vision_rope(device: &Device, args: VisionRopeArgs) -> Result<()> {
    let dtype = args.qkv.dtype();
    let VisionRopeArgs { num_heads, head_dim, .. } = args;
    let mut dims = Dims::new("vision_rope")
        .fix("2", 2)
        .fix("head_dim / 2", head_dim / 2)
        .fix("3 width", 3 * num_heads * head_dim);
    dims.dense("qkv", args.qkv, dtype, &["T", "3 width"])?;
    dims.dense("cos_sin", args.cos_sin, DType::F32, &["max_position", "head_dim / 2"])?;
    dims.dense("positions", args.positions, DType::I32, &["2", "T"])?;
    dims.require(head_dim > 0 && head_dim % 4 == 0, "head_dim", || {
        ("a multiple of 4".into(), format!("{head_dim}"))
    })?;
    let max_position = dims.get("max_position");
    dims.require(max_position > 0 && i32::try_from(max_position * head_dim).is_ok(), "cos_sin", || {
        ("1 to 2^31 elements".into(), format!("{max_position} positions"))
    })?;
    let kernel = dims.variant("qkv", dtype, ["vision_rope_bf16", "vision_rope_f16", "vision_rope_f32"])?;
    let rows = dims.get("T");
    if rows == 0 || num_heads == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .ptr(args.qkv)
        .ptr(args.cos_sin)
        .ptr(args.positions)
        .i32(num_heads)
        .i32(head_dim)
        .i32(max_position);
    // SAFETY: arguments in the order of vision_rope.cu; shapes are checked above and positions are clamped to the table by the
    // kernel. Written: the q and k columns of qkv.
    unsafe { device.launch(kernel, [rows as u32, 1, 1], [128, 1, 1], 0, &launch_args) }
}
