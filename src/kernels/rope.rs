//! Rotary position embedding of q and k, and the write of k and v into the cache. See `kernels/rope.cu`.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Operands of [`rope_kv_write`]; tensors without a dtype below are of the model's.
pub struct RopeArgs<'a> {
    /// `[T, (num_q_heads + 2 num_kv_heads) * head_dim]`: all heads of q, then of k, then of v.
    pub qkv: &'a Tensor,
    /// Output `[T, num_q_heads * head_dim]`: q rotated.
    pub q_out: &'a Tensor,
    /// `[pages, num_kv_heads, page_size, head_dim]` of one layer; row `slots[t]` receives k rotated.
    pub k_cache: &'a Tensor,
    /// Like `k_cache`; receives v as it is.
    pub v_cache: &'a Tensor,
    /// f32 `[max_position, head_dim]`: the cosines of a position, then its sines.
    pub cos_sin: &'a Tensor,
    /// i32 `[T]`, with `sections` `[3, T]`; clamped to the table.
    pub positions: &'a Tensor,
    /// M-RoPE (Qwen2-VL, arXiv 2409.12191): how many pairs of a head turn by the first, the second and the third position, all in
    /// all `head_dim / 2`.
    pub sections: Option<[usize; 3]>,
    /// i32 `[T]`: `page * page_size + offset`. A row whose slot lies outside the cache writes no k and v.
    pub slots: &'a Tensor,
    /// Query heads.
    pub num_q_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head, even.
    pub head_dim: usize,
    /// Normalises every head of q and of k before it is rotated.
    pub norm: Option<HeadNorm<'a>>,
}

/// RMSNorm of each head of q and k, as in Qwen3: over `head_dim` elements, rounded before and after the weight.
#[derive(Clone, Copy)]
pub struct HeadNorm<'a> {
    /// `[head_dim]`, of q heads.
    pub q: &'a Tensor,
    /// `[head_dim]`, of k heads.
    pub k: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

/// Shared memory that a launch may take without asking.
const MAX_SHARED_BYTES: usize = 48 << 10;

/// Normalises each q and k head if a norm is given, rotates its pairs `(i, i + head_dim / 2)` by its row's position, and
/// stores k and v.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit, or `head_dim` is odd.
pub fn rope_kv_write(device: &Device, args: RopeArgs) -> Result<()> {
    let dtype = args.qkv.dtype();
    let RopeArgs { num_q_heads, num_kv_heads, head_dim, .. } = args;
    let mut dims = Dims::new("rope_kv_write")
        .fix("3", 3)
        .fix("num_kv_heads", num_kv_heads)
        .fix("head_dim", head_dim)
        .fix("q_width", num_q_heads * head_dim)
        .fix("qkv_width", (num_q_heads + 2 * num_kv_heads) * head_dim);
    dims.dense("qkv", args.qkv, dtype, &["T", "qkv_width"])?;
    dims.dense("q_out", args.q_out, dtype, &["T", "q_width"])?;
    for (name, cache) in [("k_cache", args.k_cache), ("v_cache", args.v_cache)] {
        dims.dense(name, cache, dtype, &["pages", "num_kv_heads", "page_size", "head_dim"])?;
    }
    dims.dense("cos_sin", args.cos_sin, DType::F32, &["max_position", "head_dim"])?;
    let axes: &[&'static str] = if args.sections.is_some() { &["3", "T"] } else { &["T"] };
    dims.dense("positions", args.positions, DType::I32, axes)?;
    let sections = args.sections.unwrap_or([head_dim / 2, 0, 0]);
    dims.require(sections.iter().sum::<usize>() == head_dim / 2, "sections", || {
        (format!("{} pairs in all", head_dim / 2), format!("{sections:?}"))
    })?;
    dims.dense("slots", args.slots, DType::I32, &["T"])?;
    dims.require(head_dim % 2 == 0, "head_dim", || ("an even number".into(), format!("{head_dim}")))?;
    let (page_size, max_position) = (dims.get("page_size"), dims.get("max_position"));
    let num_slots = dims.get("pages") * page_size;
    dims.require(
        page_size > 0 && max_position > 0 && i32::try_from(num_slots).is_ok(),
        "cos_sin and cache",
        || {
            (
                "at least one position, and 1 to 2^31 slots".into(),
                format!("{max_position} positions, {num_slots} slots"),
            )
        },
    )?;
    if let Some(norm) = &args.norm {
        dims.dense("norm.q", norm.q, dtype, &["head_dim"])?;
        dims.dense("norm.k", norm.k, dtype, &["head_dim"])?;
    }
    let shared_bytes = args.norm.map_or(0, |_| (num_q_heads + num_kv_heads) * size_of::<f32>());
    dims.require(shared_bytes <= MAX_SHARED_BYTES, "norm", || {
        (format!("at most {} heads", MAX_SHARED_BYTES / size_of::<f32>()), format!("{num_q_heads} of q"))
    })?;
    let names = ["rope_kv_write_bf16", "rope_kv_write_f16", "rope_kv_write_f32"];
    let kernel = dims.variant("qkv", dtype, names)?;
    let rows = dims.get("T");
    if rows == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .overlapping()
        .ptr(args.qkv)
        .ptr(args.q_out)
        .ptr(args.k_cache)
        .ptr(args.v_cache)
        .ptr(args.cos_sin)
        .ptr(args.positions)
        .ptr(args.slots)
        .ptr_or_null(args.norm.map(|norm| norm.q))
        .ptr_or_null(args.norm.map(|norm| norm.k))
        .i32(num_q_heads)
        .i32(num_kv_heads)
        .i32(head_dim)
        .i32(page_size)
        .i32(num_slots)
        .i32(max_position)
        .i32(if args.sections.is_some() { rows } else { 0 })
        .i32(sections[0])
        .i32(sections[0] + sections[1])
        .f32(args.norm.map_or(0.0, |norm| norm.eps));
    // SAFETY: arguments in the order of rope.cu; all shapes are checked above; positions are clamped to the
    // table and slots outside the cache are skipped by the kernel; with a norm the shared memory holds a scale
    // a q or k head. Written: q_out, and rows `slots[..]` of both caches.
    unsafe { device.launch(kernel, [rows as u32, 1, 1], [128, 1, 1], shared_bytes as u32, &launch_args) }
}
