//! Launch wrapper of `kernels/verify.cu`: which path of every draft tree the target's draws accept.

use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Most nodes of a sequence in a pass, the root included.
pub const MAX_NODES: usize = 256;

/// Arguments of [`verify_walk`].
pub struct VerifyWalkArgs<'a> {
    /// I32 `[B + 1]`: sequence b owns rows `seq_start[b]..seq_start[b + 1]`, at most 256 of them; the first is
    /// its root.
    pub seq_start: &'a Tensor,
    /// I32 `[T]`: tokens of the nodes.
    pub tokens: &'a Tensor,
    /// I32 `[T]`: parent's index within the sequence; -1 for the root. Parents come before children.
    pub parents: &'a Tensor,
    /// I32 `[T]`: the token the target draws after each node.
    pub drawn: &'a Tensor,
    /// Out, I32 `[B, N]`: indices within the sequence of the accepted nodes, ascending, root excluded; the first N of a longer path.
    /// Entries from `accepted_len` on keep what they held.
    pub accepted: &'a Tensor,
    /// Out, I32 `[B]`.
    pub accepted_len: &'a Tensor,
    /// Out, I32 `[B]`: the draw at the last accepted node; -1 for a sequence without rows.
    pub bonus: &'a Tensor,
}

/// Walks every tree of the batch from its root along the drawn tokens.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn verify_walk(device: &Device, args: VerifyWalkArgs) -> Result<()> {
    let mut dims = Dims::new("verify_walk");
    dims.dense("seq_start", args.seq_start, DType::I32, &["B+1"])?;
    dims.dense("tokens", args.tokens, DType::I32, &["T"])?;
    dims.dense("parents", args.parents, DType::I32, &["T"])?;
    dims.dense("drawn", args.drawn, DType::I32, &["T"])?;
    dims.dense("accepted", args.accepted, DType::I32, &["B", "N"])?;
    dims.dense("accepted_len", args.accepted_len, DType::I32, &["B"])?;
    dims.dense("bonus", args.bonus, DType::I32, &["B"])?;
    let num_sequences = dims.get("B");
    dims.require(dims.get("B+1") == num_sequences + 1, "seq_start", || {
        (format!("B + 1 entries with B={num_sequences}"), format!("{}", dims.get("B+1")))
    })?;
    if num_sequences == 0 {
        return Ok(());
    }
    let launch_args = LaunchArgs::new()
        .overlapping()
        .ptr(args.seq_start)
        .ptr(args.tokens)
        .ptr(args.parents)
        .ptr(args.drawn)
        .ptr(args.accepted)
        .ptr(args.accepted_len)
        .ptr(args.bonus)
        .i32(dims.get("N"));
    // SAFETY: arguments in the order of verify_walk; one warp a sequence, so accesses to [B] and [B, N] are
    // in bounds by the checks above. The caller owns that seq_start ascends to T. Writes the three outputs
    // only.
    unsafe { device.launch("verify_walk", [num_sequences as u32, 1, 1], [32, 1, 1], 0, &launch_args) }
}
