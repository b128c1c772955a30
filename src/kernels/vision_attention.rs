//! Bidirectional attention of vision towers. See `kernels/vision_attention.cu`.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Widths of a head that the tensor-core entry points are built for; a head runs in the next wider one.
const BUILT_FOR: [usize; 4] = [32, 64, 80, 128];

/// Keys that shared memory holds twice, and what a row of it takes beyond the head.
const TILE_KEYS: usize = 64;
const ROW_PADDING: usize = 8;

/// Operands of [`vision_attention`]; tensors without a dtype below are of the model's.
pub struct VisionAttentionArgs<'a> {
    /// `[T, 3 * num_heads * head_dim]`: all heads of q, then of k, then of v.
    pub qkv: &'a Tensor,
    /// i32 `[segments + 1]`, ascending from 0 to T: a row sees the rows of its segment.
    pub seq_start: &'a Tensor,
    /// Output `[T, num_heads * head_dim]`.
    pub out: &'a Tensor,
    /// Rows of the longest segment.
    pub max_rows: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Elements of a head: a multiple of 8, at most 128.
    pub head_dim: usize,
    /// Scores are multiplied by this.
    pub sm_scale: f32,
}

/// Computes `softmax(sm_scale q k^T) v` within every segment.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn vision_attention(device: &Device, args: VisionAttentionArgs) -> Result<()> {
    let dtype = args.qkv.dtype();
    let VisionAttentionArgs { num_heads, head_dim, max_rows, .. } = args;
    let width = num_heads * head_dim;
    let mut dims = Dims::new("vision_attention").fix("width", width).fix("3 width", 3 * width);
    dims.dense("qkv", args.qkv, dtype, &["T", "3 width"])?;
    dims.dense("out", args.out, dtype, &["T", "width"])?;
    dims.dense("seq_start", args.seq_start, DType::I32, &["segments + 1"])?;
    let built_for = BUILT_FOR.into_iter().find(|&built_for| head_dim <= built_for);
    dims.require(head_dim % 8 == 0 && built_for.is_some(), "head_dim", || {
        ("a multiple of 8 up to 128".into(), format!("{head_dim}"))
    })?;
    dims.require(args.sm_scale.is_finite() && args.sm_scale > 0.0, "sm_scale", || {
        ("a positive number".into(), format!("{}", args.sm_scale))
    })?;
    let (rows, segments) = (dims.get("T"), dims.get("segments + 1").saturating_sub(1));
    dims.require(segments <= MAX_GRID_YZ && num_heads <= MAX_GRID_YZ, "segments", || {
        (format!("at most {MAX_GRID_YZ}"), format!("{segments} of {num_heads} heads"))
    })?;
    let name = dims.variant("qkv", dtype, ["bf16", "f16", "f32"])?;
    if rows == 0 || segments == 0 || max_rows == 0 || num_heads == 0 {
        return Ok(());
    }
    let built_for = built_for.unwrap_or(head_dim);
    let (kernel, rows_per_cta, shared_bytes) = match dtype {
        DType::F32 => (format!("vision_attention_{name}"), 4, 0),
        _ => {
            // Two tiles in flight, each of keys and of values.
            let elements = 2 * 2 * TILE_KEYS * (built_for + ROW_PADDING);
            (format!("vision_attention_{name}_hd{built_for}"), 64, elements * dtype.size_in_bytes())
        }
    };
    let launch_args = LaunchArgs::new()
        .ptr(args.qkv)
        .ptr(args.seq_start)
        .ptr(args.out)
        .i32(num_heads)
        .i32(head_dim)
        .f32(args.sm_scale * std::f32::consts::LOG2_E);
    let grid = [max_rows.div_ceil(rows_per_cta) as u32, num_heads as u32, segments as u32];
    // SAFETY: arguments in the order of vision_attention.cu; shapes and the head are checked above, the shared memory holds
    // the entry point's ring. The caller's seq_start must ascend from 0 to T, its segments at most max_rows long. Written: out.
    unsafe { device.launch(&kernel, grid, [128, 1, 1], shared_bytes as u32, &launch_args) }
}

/// Largest grid size in y and z.
const MAX_GRID_YZ: usize = 65535;
