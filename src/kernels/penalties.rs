//! Launch wrappers of `kernels/penalties.cu`: what repeated tokens cost, and biases of single tokens.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;
use crate::sampling::Penalties;

/// What repetition costs one sequence, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PenaltyParams {
    /// 1: none.
    pub repetition: f32,
    /// 0: none.
    pub presence: f32,
    /// 0: none.
    pub frequency: f32,
    /// Tokens with a bias of their own.
    pub num_biases: i32,
}

impl PenaltyParams {
    /// Bytes of one entry: the second dimension of [`PenaliseArgs::params`].
    pub const BYTES: usize = size_of::<Self>();

    /// `penalties`, and so many biases.
    pub fn new(penalties: &Penalties, num_biases: usize) -> Self {
        let &Penalties { repetition, presence, frequency } = penalties;
        Self { repetition, presence, frequency, num_biases: num_biases as i32 }
    }

    /// The parameters of a batch in device memory, U8 `[S, BYTES]`.
    pub fn upload(device: &Device, batch: &[PenaltyParams]) -> Result<Tensor> {
        Tensor::from_slice::<u8>(device, bytemuck::cast_slice(batch), &[batch.len(), Self::BYTES])
    }

    /// Whether the kernel leaves the sequence's logits alone.
    pub fn change_nothing(&self) -> bool {
        *self == Self::new(&Penalties::default(), 0)
    }
}

/// Arguments of [`penalise`].
pub struct PenaliseArgs<'a> {
    /// In and out, F32 `[T, V]`, a row a node.
    pub logits: &'a Tensor,
    /// I32 `[T]`: the row's sequence.
    pub row_sequence: &'a Tensor,
    /// U8 `[S, 16]`: [`PenaltyParams`] one behind the other.
    pub params: &'a Tensor,
    /// I32 `[S, V]`: see [`count_tokens`].
    pub counts: &'a Tensor,
    /// I32 `[S, M]`: each sequence's tokens with a bias, each once.
    pub bias_tokens: &'a Tensor,
    /// F32 `[S, M]`.
    pub bias_values: &'a Tensor,
    /// I32 `[B + 1]`: sequence b owns nodes `seq_start[b]..seq_start[b + 1]`.
    pub seq_start: &'a Tensor,
    /// I32 `[T]`: tokens of the nodes.
    pub tokens: &'a Tensor,
    /// I32 `[T]`: parent's index within the sequence; -1 for the root.
    pub parents: &'a Tensor,
}

/// Penalises repeated tokens at every node and adds biases, in place. The root's token is in the counts already, those of the nodes on the
/// way to a row are added to them.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn penalise(device: &Device, args: PenaliseArgs) -> Result<()> {
    let mut dims = Dims::new("penalise").fix("16", PenaltyParams::BYTES);
    dims.dense("logits", args.logits, DType::F32, &["T", "V"])?;
    dims.dense("row_sequence", args.row_sequence, DType::I32, &["T"])?;
    dims.dense("params", args.params, DType::U8, &["S", "16"])?;
    dims.dense("counts", args.counts, DType::I32, &["S", "V"])?;
    dims.dense("bias_tokens", args.bias_tokens, DType::I32, &["S", "M"])?;
    dims.dense("bias_values", args.bias_values, DType::F32, &["S", "M"])?;
    dims.dense("seq_start", args.seq_start, DType::I32, &["B+1"])?;
    dims.dense("tokens", args.tokens, DType::I32, &["T"])?;
    dims.dense("parents", args.parents, DType::I32, &["T"])?;
    let (num_rows, vocab_size, most) = (dims.get("T"), dims.get("V"), dims.get("S"));
    dims.require(dims.get("B+1") <= most + 1, "seq_start", || {
        (format!("at most {most} sequences"), format!("{} entries", dims.get("B+1")))
    })?;
    if num_rows == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .ptr(args.logits)
        .ptr(args.row_sequence)
        .ptr(args.params)
        .ptr(args.counts)
        .ptr(args.bias_tokens)
        .ptr(args.bias_values)
        .ptr(args.seq_start)
        .ptr(args.tokens)
        .ptr(args.parents)
        .i32(vocab_size)
        .i32(dims.get("M"));
    let threads = if vocab_size < 1024 { 64 } else { 512 };
    // SAFETY: arguments in the order of penalise_f32; one block a row, so accesses to [T, V] and [T] are in bounds by the checks above.
    // The caller owns that row_sequence holds indices below B, that tokens and bias tokens are below V, num_biases at most M, and
    // that parents come before their children. Writes logits only.
    unsafe { device.launch("penalise_f32", [num_rows as u32, 1, 1], [threads, 1, 1], 0, &launch_args) }
}

/// Adds tokens to the counts that [`penalise`] goes by: I32 `[n, 3]` entries (sequence, token, 0 for one of the prompt and 1 for an emitted
/// one) to I32 `[S, V]` counts.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn count_tokens(device: &Device, entries: &Tensor, counts: &Tensor) -> Result<()> {
    let mut dims = Dims::new("count_tokens").fix("3", 3);
    dims.dense("entries", entries, DType::I32, &["n", "3"])?;
    dims.dense("counts", counts, DType::I32, &["S", "V"])?;
    let num_entries = dims.get("n");
    if num_entries == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new().ptr(entries).ptr(counts).i32(num_entries).i32(dims.get("V"));
    let blocks = num_entries.div_ceil(256) as u32;
    // SAFETY: arguments in the order of count_tokens; threads past the entries leave. The caller owns that sequences are below S and tokens
    // below V. Writes counts only.
    unsafe { device.launch("count_tokens", [blocks, 1, 1], [256, 1, 1], 0, &launch_args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_have_the_kernels_layout() {
        let params = PenaltyParams::new(&Penalties { repetition: 1.0, presence: 2.0, frequency: 3.0 }, 4);
        let words: [u32; 4] = bytemuck::cast(params);
        assert_eq!(words, [1.0f32.to_bits(), 2.0f32.to_bits(), 3.0f32.to_bits(), 4]);
        assert!(!params.change_nothing());
        assert!(PenaltyParams::new(&Penalties::default(), 0).change_nothing());
        assert!(!PenaltyParams::new(&Penalties::default(), 1).change_nothing());
    }
}
