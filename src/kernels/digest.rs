//! Digests of rows of logits: what a head leaves behind them, so that [`draft_topk`](super::draft::draft_topk) need not read them all again.
//! `kernels/digest.cuh` says what they are.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;
use crate::sampling::DIGEST_LEN;

/// Threads of a block of [`draft_digest`].
const DIGEST_THREADS: usize = 256;

/// Digests that a row of logits has.
pub(super) fn num_digests(vocab_size: usize) -> usize {
    vocab_size.div_ceil(DIGEST_LEN)
}

/// Room for the digests of so many rows of logits, U64 `[rows, ceil(vocab_size / 64), 2]`: of every [`DIGEST_LEN`] logits the rank of the best
/// token and the mass. [`head`](super::linear::head) leaves them behind its logits.
///
/// # Errors
/// A lack of memory.
pub fn digest_buffer(device: &Device, rows: usize, vocab_size: usize) -> Result<Tensor> {
    Tensor::uninit(device, DType::U64, &[rows, num_digests(vocab_size), 2])
}

/// Checks that `digests` are those of so many rows of logits.
pub(super) fn check_digests(dims: &Dims, digests: &Tensor, rows: usize, vocab_size: usize) -> Result<()> {
    let shape = [rows, num_digests(vocab_size), 2];
    let fits = digests.dtype() == DType::U64 && digests.shape() == shape && digests.is_contiguous();
    dims.require(fits, "digests", || (format!("u64 {shape:?} without gaps"), format!("{digests:?}")))
}

/// Makes the digests of logits that no head has left any for, or that have changed since. `logits` are F32 `[R, Vd]`, `digests` as
/// [`digest_buffer`] makes them, of R rows.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn draft_digest(device: &Device, logits: &Tensor, digests: &Tensor) -> Result<()> {
    let mut dims = Dims::new("draft_digest");
    dims.dense("logits", logits, DType::F32, &["R", "Vd"])?;
    let (num_rows, vocab_size) = (dims.get("R"), dims.get("Vd"));
    check_digests(&dims, digests, num_rows, vocab_size)?;
    if num_rows == 0 || vocab_size == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new().overlapping().ptr(logits).ptr(digests).i32(vocab_size);
    let blocks = num_digests(vocab_size).div_ceil(DIGEST_THREADS * 4 / DIGEST_LEN);
    let grid = [num_rows as u32, blocks as u32, 1];
    // SAFETY: arguments in the order of draft_digest_f32; 16 threads a digest, and those behind the last of a row do nothing; sizes are checked
    // above. Writes `digests` only.
    unsafe { device.launch("draft_digest_f32", grid, [DIGEST_THREADS as u32, 1, 1], 0, &launch_args) }
}
