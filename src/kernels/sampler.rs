//! Launch wrapper of `kernels/sampler.cu`: the next token of every row of logits.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;
use crate::sampling::SamplingParams;

/// Vocabularies are smaller, so that the masses of all tokens add up within 64 bits.
pub(super) const MAX_VOCAB_SIZE: usize = 1 << 18;

/// How one sequence samples, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SamplerParams {
    /// 0: argmax.
    pub temperature: f32,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    /// 0: off.
    pub top_k: i32,
    /// Selects the noise.
    pub seed: u64,
}

impl SamplerParams {
    /// Bytes of one entry: the second dimension of [`SampleArgs::params`].
    pub const BYTES: usize = size_of::<Self>();

    /// The parameters of a batch in device memory, U8 `[B, BYTES]`.
    pub fn upload(device: &Device, batch: &[SamplerParams]) -> Result<Tensor> {
        Tensor::from_slice::<u8>(device, bytemuck::cast_slice(batch), &[batch.len(), Self::BYTES])
    }
}

impl From<&SamplingParams> for SamplerParams {
    fn from(params: &SamplingParams) -> Self {
        let &SamplingParams { temperature, top_p, top_k, min_p, seed } = params;
        Self { temperature, top_p, min_p, top_k: i32::try_from(top_k).unwrap_or(i32::MAX), seed }
    }
}

/// Arguments of [`sample`].
pub struct SampleArgs<'a> {
    /// F32 `[T, V]`, V < 2^18.
    pub logits: &'a Tensor,
    /// I32 `[T]`: the row's entry in `params`.
    pub row_sequence: &'a Tensor,
    /// U8 `[B, 24]`: [`SamplerParams`] one behind the other.
    pub params: &'a Tensor,
    /// I32 `[T]`: absolute position of the token being drawn.
    pub positions: &'a Tensor,
    /// Out, I32 `[T]`: the token; -1 where no logit is a number above -inf.
    pub out: &'a Tensor,
}

/// Draws (or, at temperature 0, finds) the next token of each row. The token of a row depends on the row, its
/// parameters and its position alone.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn sample(device: &Device, args: SampleArgs) -> Result<()> {
    let mut dims = Dims::new("sample").fix("24", SamplerParams::BYTES);
    dims.dense("logits", args.logits, DType::F32, &["T", "V"])?;
    dims.dense("row_sequence", args.row_sequence, DType::I32, &["T"])?;
    dims.dense("params", args.params, DType::U8, &["B", "24"])?;
    dims.dense("positions", args.positions, DType::I32, &["T"])?;
    dims.dense("out", args.out, DType::I32, &["T"])?;
    let (num_rows, vocab_size) = (dims.get("T"), dims.get("V"));
    dims.require((1..MAX_VOCAB_SIZE).contains(&vocab_size), "logits", || {
        (format!("0 < V < {MAX_VOCAB_SIZE}"), format!("V={vocab_size}"))
    })?;
    if num_rows == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .overlapping()
        .ptr(args.logits)
        .ptr(args.row_sequence)
        .ptr(args.params)
        .ptr(args.positions)
        .ptr(args.out)
        .i32(vocab_size);
    // SAFETY: arguments in the order of sample_f32; one block a row, so every access to [T, V] and [T] is in
    // bounds by the checks above; row_sequence must hold indices below B, which the caller owns. Writes `out`
    // only.
    unsafe {
        device.launch("sample_f32", [num_rows as u32, 1, 1], [block_size(vocab_size), 1, 1], 0, &launch_args)
    }
}

/// Threads a row: enough to keep many loads in flight over a large vocabulary, few for a small one. The
/// result does not depend on it.
fn block_size(vocab_size: usize) -> u32 {
    match vocab_size {
        0..1024 => 64,
        1024..16384 => 256,
        _ => 1024,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_have_the_kernels_layout() {
        let params = SamplingParams { temperature: 1.0, top_p: 2.0, min_p: 3.0, top_k: 4, seed: 5 << 32 | 6 };
        let words: [u32; 6] = bytemuck::cast(SamplerParams::from(&params));
        assert_eq!(words, [1.0f32.to_bits(), 2.0f32.to_bits(), 3.0f32.to_bits(), 4, 6, 5]);
        assert_eq!(SamplerParams::BYTES, 24);
    }

    #[test]
    fn blocks_are_whole_warps_up_to_the_kernels_bound() {
        assert!(
            [1, 1000, 4096, 152_064]
                .iter()
                .all(|&v| block_size(v).is_multiple_of(32) && block_size(v) <= 1024)
        );
    }
}
