//! Launch wrapper of `kernels/token_mask.cu`: bans tokens by a bit mask, row by row.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Words of a mask over `vocab_size` tokens.
pub fn mask_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}

/// Arguments of [`token_mask`].
pub struct TokenMaskArgs<'a> {
    /// In and out, F32 `[T, Vd]`.
    pub logits: &'a Tensor,
    /// I32 `[M, W]`, the bits of u32 words: bit `t % 32` of word `t / 32` allows token t. `W = ceil(Vd / 32)` without `d2t`; with it the words
    /// hold every target id that it names.
    pub masks: &'a Tensor,
    /// I32 `[M]`: the row of each mask, each row at most once.
    pub mask_row: &'a Tensor,
    /// I32 `[Vd]`: offsets from a drafter's ids to the target's; `None` where they are equal.
    pub d2t: Option<&'a Tensor>,
}

/// Sets the logits of tokens that a row's mask does not allow to minus infinity, in place.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn token_mask(device: &Device, args: TokenMaskArgs) -> Result<()> {
    let mut dims = Dims::new("token_mask");
    dims.dense("logits", args.logits, DType::F32, &["T", "Vd"])?;
    dims.dense("masks", args.masks, DType::I32, &["M", "W"])?;
    dims.dense("mask_row", args.mask_row, DType::I32, &["M"])?;
    if let Some(d2t) = args.d2t {
        dims.dense("d2t", d2t, DType::I32, &["Vd"])?;
    }
    let (vocab_size, num_masks, num_words) = (dims.get("Vd"), dims.get("M"), dims.get("W"));
    let wanted = mask_words(vocab_size);
    dims.require(num_words == wanted || args.d2t.is_some(), "masks", || {
        (format!("{wanted} words for {vocab_size} tokens"), format!("{num_words}"))
    })?;
    if num_masks == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .ptr(args.logits)
        .ptr(args.masks)
        .ptr(args.mask_row)
        .ptr_or_null(args.d2t)
        .i32(vocab_size)
        .i32(num_words);
    let grid = [wanted.div_ceil(128) as u32, num_masks as u32, 1];
    // SAFETY: arguments in the order of token_mask_f32; threads past the logits leave. The caller owns that mask_row holds rows below T,
    // and that d2t leads to ids that the masks have bits for. Writes logits only.
    unsafe { device.launch("token_mask_f32", grid, [128, 1, 1], 0, &launch_args) }
}
