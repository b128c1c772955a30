//! Brings weights into the second-level cache before they are asked for. See `kernels/prefetch.cu`.

use super::shape::Dims;
use crate::device::{Device, LaunchArgs, Tensor};
use crate::error::Result;

/// What one thread asks for at a time.
const SECTOR_BYTES: usize = 32;
const THREADS: usize = 256;
/// Enough that every multiprocessor of a large GPU has one, few enough that each has something to do.
const MOST_BLOCKS: usize = 132;

/// Has the device bring the first `bytes` bytes of `weights` into its cache, or all if there are fewer, once it has done what was issued before.
/// Nothing waits for that.
///
/// # Errors
/// [`crate::Error::Shape`] for a tensor with gaps between its rows; a failure of the driver.
pub fn prefetch(device: &Device, weights: &Tensor, bytes: usize) -> Result<()> {
    Dims::new("prefetch").require(weights.is_contiguous(), "weights", || {
        ("rows without gaps".into(), format!("{weights:?}"))
    })?;
    // Whole sectors: what is behind the last belongs to nobody.
    let sectors = (bytes.min(weights.num_bytes()) / SECTOR_BYTES).min(i32::MAX as usize);
    if sectors == 0 {
        return Ok(());
    }
    let blocks = sectors.div_ceil(THREADS).min(MOST_BLOCKS);
    let launch_args = LaunchArgs::new().overlapping().ptr(weights).i32(sectors);
    // SAFETY: arguments in the order of prefetch.cu; 32 bytes for each of `sectors` are inside of the tensor. Nothing is written.
    unsafe { device.launch("prefetch", [blocks as u32, 1, 1], [THREADS as u32, 1, 1], 0, &launch_args) }
}
