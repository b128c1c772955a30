//! Words between device memory and mapped memory of the host. See `kernels/host_words.cu`.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Threads of a block.
const BLOCK: usize = 1024;
/// Most blocks of a fetch: what is under way with so many hides the bus.
const MAX_BLOCKS: usize = 16;

/// Copies `out[i] = src[i]`, both i32 `[n]`; `src` usually [`crate::device::PinnedBuffer::mapped`]. The words must stay as they are until the
/// device has passed this point.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn fetch_words(device: &Device, src: &Tensor, out: &Tensor) -> Result<()> {
    let mut dims = Dims::new("fetch_words");
    dims.dense("src", src, DType::I32, &["n"])?;
    dims.dense("out", out, DType::I32, &["n"])?;
    let n = dims.get("n");
    if n == 0 {
        return Ok(());
    }
    let grid = n.div_ceil(BLOCK).min(MAX_BLOCKS) as u32;
    let launch_args = LaunchArgs::new().overlapping().ptr(src).ptr(out).i32(n);
    // SAFETY: arguments in the order of fetch_words; both arrays have n words by the checks above. Writes `out`.
    unsafe { device.launch("fetch_words", [grid, 1, 1], [BLOCK as u32, 1, 1], 0, &launch_args) }
}

/// Operands of [`post_words`].
pub struct PostWordsArgs<'a> {
    /// i32 `[n]`.
    pub src: &'a Tensor,
    /// Out, i32 `[n]`, mapped memory of the host.
    pub out: &'a Tensor,
    /// Out, i32 `[1]`, mapped memory of the host: what is watched.
    pub flag: &'a Tensor,
    /// What `flag` becomes once `out` is there.
    pub ticket: i32,
}

/// Copies `out[i] = src[i]`, then raises the flag; with no words the flag alone.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn post_words(device: &Device, args: PostWordsArgs) -> Result<()> {
    let mut dims = Dims::new("post_words").fix("1", 1);
    dims.dense("src", args.src, DType::I32, &["n"])?;
    dims.dense("out", args.out, DType::I32, &["n"])?;
    dims.dense("flag", args.flag, DType::I32, &["1"])?;
    let n = dims.get("n");
    let launch_args =
        LaunchArgs::new().overlapping().ptr(args.src).ptr(args.out).ptr(args.flag).pod(&args.ticket).i32(n);
    let block = n.next_multiple_of(32).clamp(32, BLOCK) as u32;
    // SAFETY: arguments in the order of post_words; both arrays have n words and the flag one by the checks above. Writes `out` and `flag`.
    unsafe { device.launch("post_words", [1, 1, 1], [block, 1, 1], 0, &launch_args) }
}
