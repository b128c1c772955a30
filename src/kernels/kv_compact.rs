//! Compaction of the K/V cache after verification. See `kernels/kv_compact.cu`.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Operands of [`kv_compact`], for `B` sequences.
pub struct KvCompactArgs<'a> {
    /// In and out, `[layers, 2, pages, num_kv_heads, page_size, head_dim]` of a model dtype: K and V of all layers.
    pub kv: &'a Tensor,
    /// i32 `[B, max_pages]`.
    pub page_table: &'a Tensor,
    /// i32 `[B]`: KV position of each tree's root.
    pub prefix_len: &'a Tensor,
    /// i32 `[B, N]`: node indices of the accepted path, ascending, the root excluded.
    pub accepted: &'a Tensor,
    /// i32 `[B]`: how many entries of a row of `accepted` count.
    pub accepted_len: &'a Tensor,
    /// The most that a sequence has accepted, at most N (a bound is enough).
    pub max_accepted: usize,
}

/// The kernel's `KvCompactParams`, field by field.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    kv: u64,
    page_table: u64,
    prefix_len: u64,
    accepted: u64,
    accepted_len: u64,
    num_pages: i32,
    num_kv_heads: i32,
    page_size: i32,
    row_pieces: i32,
    max_pages: i32,
    accepted_stride: i32,
    max_accepted: i32,
    /// To the struct's alignment, as the compiler of the kernel pads it.
    padding: i32,
}

const MAX_THREADS: usize = 128;
const MAX_GRID_YZ: usize = 65535;

/// Grid x and threads for so many 16-byte columns.
fn geometry(columns: usize) -> (u32, u32) {
    let threads = columns.next_multiple_of(32).min(MAX_THREADS);
    (columns.div_ceil(threads) as u32, threads as u32)
}

/// Moves KV position `prefix_len + accepted[i]` to `prefix_len + 1 + i` in every layer, for K and V, so that the accepted
/// path lies as plain decoding would have written it.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn kv_compact(device: &Device, args: KvCompactArgs) -> Result<()> {
    let dtype = args.kv.dtype();
    let num_sequences = args.prefix_len.num_elements();
    let mut dims = Dims::new("kv_compact").fix("B", num_sequences).fix("2", 2);
    dims.dense("kv", args.kv, dtype, &["layers", "2", "pages", "num_kv_heads", "page_size", "head_dim"])?;
    dims.dense("page_table", args.page_table, DType::I32, &["B", "max_pages"])?;
    dims.dense("prefix_len", args.prefix_len, DType::I32, &["B"])?;
    dims.dense("accepted", args.accepted, DType::I32, &["B", "N"])?;
    dims.dense("accepted_len", args.accepted_len, DType::I32, &["B"])?;
    let row_bytes = dims.get("head_dim") * dtype.size_in_bytes();
    dims.require(row_bytes.is_multiple_of(16), "head_dim", || {
        ("a multiple of 16 bytes".into(), format!("{row_bytes} bytes"))
    })?;
    dims.require(args.max_accepted <= dims.get("N"), "max_accepted", || {
        (format!("at most {}", dims.get("N")), format!("{}", args.max_accepted))
    })?;
    let planes = 2 * dims.get("layers");
    dims.require(planes <= MAX_GRID_YZ && num_sequences <= MAX_GRID_YZ, "layers and B", || {
        (format!("at most {MAX_GRID_YZ} planes and sequences"), format!("{planes} and {num_sequences}"))
    })?;
    let row_pieces = row_bytes / 16;
    let columns = dims.get("num_kv_heads") * row_pieces;
    if args.max_accepted == 0 || columns == 0 || planes == 0 || num_sequences == 0 {
        return Ok(());
    }
    let params = Params {
        kv: args.kv.ptr(),
        page_table: args.page_table.ptr(),
        prefix_len: args.prefix_len.ptr(),
        accepted: args.accepted.ptr(),
        accepted_len: args.accepted_len.ptr(),
        num_pages: dims.get("pages") as i32,
        num_kv_heads: dims.get("num_kv_heads") as i32,
        page_size: dims.get("page_size") as i32,
        row_pieces: row_pieces as i32,
        max_pages: dims.get("max_pages") as i32,
        accepted_stride: dims.get("N") as i32,
        max_accepted: args.max_accepted as i32,
        padding: 0,
    };
    let (blocks, threads) = geometry(columns);
    let grid = [blocks, planes as u32, num_sequences as u32];
    // SAFETY: the one argument is laid out as the kernel's KvCompactParams, sizes checked above. The device arrays must
    // keep to their contract: accepted nodes ascending and inside the sequence's pages. Written: rows of kv.
    unsafe {
        device.launch("kv_compact", grid, [threads, 1, 1], 0, &LaunchArgs::new().overlapping().pod(&params))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_for_every_column() {
        assert_eq!(geometry(16), (1, 32));
        assert_eq!(geometry(128), (1, 128));
        assert_eq!(geometry(129), (2, 128));
    }
}
