//! Launch wrapper of `kernels/draft_noise.cu`: the noise of the draws that drafts are to foresee.

use super::digest::{check_digests, num_digests};
use super::sampler::{MAX_VOCAB_SIZE, SamplerParams};
use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;
use crate::sampling::DIGEST_LEN;

const THREADS: usize = 256;
/// Blocks of a row, each of which looks at all of its digests.
const MAX_BLOCKS_OF_ROW: usize = 32;

/// Arguments of [`draft_noise`].
pub struct DraftNoiseArgs<'a> {
    /// In and out, F32 `[R, Vd]`, Vd < 2^18.
    pub logits: &'a Tensor,
    /// Their digests as they come, as [`digest_buffer`](super::digest::digest_buffer) makes them.
    pub digests: &'a Tensor,
    /// Out, the same of the logits as they leave; other memory.
    pub out_digests: &'a Tensor,
    /// I32 `[Vd]`: target id = draft id + offset; none where the ids are equal.
    pub d2t: Option<&'a Tensor>,
    /// I32 `[R, 2]`, of each row the draw that it foresees: its sequence's entry in `params`, -1 for a row that is left alone, and the absolute position
    /// of the token to be drawn.
    pub draws: &'a Tensor,
    /// U8 `[B, 24]`: [`SamplerParams`] one behind the other.
    pub params: &'a Tensor,
}

/// `DraftNoiseParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DraftNoiseParams {
    pointers: [u64; 6],
    vocab_size: i32,
    padding: i32,
}

/// Adds to every logit its token's noise times the temperature, where the row's sequence samples, and makes the digests anew.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn draft_noise(device: &Device, args: DraftNoiseArgs) -> Result<()> {
    let mut dims = Dims::new("draft_noise").fix("24", SamplerParams::BYTES).fix("2", 2);
    dims.dense("logits", args.logits, DType::F32, &["R", "Vd"])?;
    let (num_rows, vocab_size) = (dims.get("R"), dims.get("Vd"));
    check_digests(&dims, args.digests, num_rows, vocab_size)?;
    check_digests(&dims, args.out_digests, num_rows, vocab_size)?;
    dims.require(num_rows == 0 || args.digests.ptr() != args.out_digests.ptr(), "out_digests", || {
        ("other memory than the digests".into(), "the same".into())
    })?;
    if let Some(d2t) = args.d2t {
        dims.dense("d2t", d2t, DType::I32, &["Vd"])?;
    }
    dims.dense("draws", args.draws, DType::I32, &["R", "2"])?;
    dims.dense("params", args.params, DType::U8, &["B", "24"])?;
    dims.require((1..MAX_VOCAB_SIZE).contains(&vocab_size), "logits", || {
        (format!("0 < Vd < {MAX_VOCAB_SIZE}"), format!("Vd={vocab_size}"))
    })?;
    if num_rows == 0 {
        return Ok(());
    }
    let pointers = [
        Some(args.logits),
        Some(args.digests),
        Some(args.out_digests),
        args.d2t,
        Some(args.draws),
        Some(args.params),
    ]
    .map(|tensor| tensor.map_or(0, Tensor::ptr));
    let params = DraftNoiseParams { pointers, vocab_size: vocab_size as i32, padding: 0 };
    let blocks = num_digests(vocab_size).div_ceil(THREADS * 4 / DIGEST_LEN).min(MAX_BLOCKS_OF_ROW);
    let grid = [num_rows as u32, blocks as u32, 1];
    // SAFETY: the struct has the fields of DraftNoiseParams in order; a block's rows are below R, its slices below those of a row; the shapes were
    // checked above. The caller owns that the sequences of `draws` are below B, and that the digests are of these logits. Writes the logits
    // and `out_digests`, which no block reads but for the logits of its own slices.
    unsafe {
        device.launch(
            "draft_noise_f32",
            grid,
            [THREADS as u32, 1, 1],
            0,
            &LaunchArgs::new().overlapping().pod(&params),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_struct_has_the_kernels_layout() {
        assert_eq!(size_of::<DraftNoiseParams>(), 56);
    }
}
