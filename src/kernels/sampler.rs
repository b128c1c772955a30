//! Launch wrapper of `kernels/sampler.cu`: the next token of every row of logits.

use super::shape::Dims;
use super::slices::{SliceWorkspace, num_slices};
use crate::device::{ClusterLaunch, DType, Device, LaunchArgs, MAX_CLUSTER, Tensor};
use crate::error::Result;
use crate::sampling::SamplingParams;

/// Vocabularies are smaller, so that the masses of all tokens add up within 64 bits.
pub(super) const MAX_VOCAB_SIZE: usize = 1 << 18;
/// With more rows every one has a block of its own: they keep a GPU busy, and blocks over slices would leave at once where rows are filtered.
const MAX_SLICED_ROWS: usize = 64;
/// What a block leaves of its slice, u64.
const SLICE_WORDS: usize = 2;
/// Blocks that filtered rows are cut into, all together: about the multiprocessors of a large GPU, as a block takes one of them whole. More would come to
/// as many logits a multiprocessor, and to meetings.
const MAX_PARTS: usize = 128;
/// Weights that a part of a row keeps in shared memory at most, by fours: 80 KB, which with the kernel's own is below the 99 KB of the smallest GPU.
const MAX_KEPT_QUADS: usize = 5 * 1024;

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
    /// Room for this many rows and logits.
    pub workspace: &'a SliceWorkspace,
}

/// The workspace of [`sample`] for up to `max_rows` rows of `vocab_size` logits.
///
/// # Errors
/// A lack of memory.
pub fn sample_workspace(device: &Device, max_rows: usize, vocab_size: usize) -> Result<SliceWorkspace> {
    SliceWorkspace::new(device, max_rows.min(MAX_SLICED_ROWS), vocab_size, SLICE_WORDS)
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
    let Shape { blocks, parts, kept_quads } = Shape::of_launch(device, num_rows, vocab_size)?;
    let scratch = match blocks[1] {
        1 => None,
        _ => args.workspace.of_launch(&dims, num_rows, vocab_size, SLICE_WORDS)?,
    };
    let launch_args = LaunchArgs::new()
        .overlapping()
        .in_clusters([1, parts, 1])
        .ptr(args.logits)
        .ptr(args.row_sequence)
        .ptr(args.params)
        .ptr(args.positions)
        .ptr(args.out)
        .ptr_or_null(scratch.map(|(found, _)| found))
        .ptr_or_null(scratch.map(|(_, tickets)| tickets))
        .i32(vocab_size)
        .i32(kept_quads);
    // SAFETY: arguments in the order of sample_f32; a block a row or a row and slice, so every access to [T, V] and [T]
    // is in bounds by the checks above, to the workspace by of_launch, to shared memory by kept_quads; row_sequence must hold
    // indices below B, which the caller owns. Writes `out` and the workspace only.
    unsafe {
        let threads = [block_size(vocab_size), 1, 1];
        device.launch("sample_f32", blocks, threads, shared_bytes(kept_quads), &launch_args)
    }
}

/// How a launch lies over its rows. The result does not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    blocks: [u32; 3],
    /// Blocks of a cluster, the first of which share a row with top-k or top-p.
    parts: u32,
    /// Weights that each of them keeps in shared memory, by fours.
    kept_quads: usize,
}

impl Shape {
    /// A block a slice where there are few rows, else a block a row.
    fn apart(num_rows: usize, vocab_size: usize) -> Self {
        let slices = if num_rows <= MAX_SLICED_ROWS { num_slices(vocab_size) } else { 1 };
        Self { blocks: [num_rows as u32, slices as u32, 1], parts: 1, kept_quads: 0 }
    }

    /// The same in whole clusters, whose last may have blocks behind the slices.
    fn in_parts(self, vocab_size: usize, parts: usize) -> Self {
        let [rows, slices, _] = self.blocks;
        let kept_quads = vocab_size.div_ceil(4).div_ceil(parts).min(MAX_KEPT_QUADS);
        let parts = parts as u32;
        Self { blocks: [rows, slices.next_multiple_of(parts), 1], parts, kept_quads }
    }

    /// In clusters of as many parts as slices, multiprocessors and the device allow.
    fn of_launch(device: &Device, num_rows: usize, vocab_size: usize) -> Result<Self> {
        let apart = Self::apart(num_rows, vocab_size);
        let most = (apart.blocks[1] as usize).min(MAX_PARTS / num_rows).min(MAX_CLUSTER);
        for parts in [8, 4, 2].into_iter().filter(|&parts| parts <= most) {
            let shape = apart.in_parts(vocab_size, parts);
            let launch = ClusterLaunch {
                grid: shape.blocks,
                threads: block_size(vocab_size),
                shared_bytes: shared_bytes(shape.kept_quads),
                cluster: [1, shape.parts, 1],
            };
            if device.runs_clusters("sample_f32", launch)? {
                return Ok(shape);
            }
        }
        Ok(apart)
    }
}

/// Of weights that a part keeps.
fn shared_bytes(kept_quads: usize) -> u32 {
    (kept_quads * size_of::<[f32; 4]>()) as u32
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
    use crate::device::DeviceChoice;

    #[test]
    fn params_have_the_kernels_layout() {
        let params = SamplingParams { temperature: 1.0, top_p: 2.0, min_p: 3.0, top_k: 4, seed: 5 << 32 | 6 };
        let words: [u32; 6] = bytemuck::cast(SamplerParams::from(&params));
        assert_eq!(words, [1.0f32.to_bits(), 2.0f32.to_bits(), 3.0f32.to_bits(), 4, 6, 5]);
        assert_eq!(SamplerParams::BYTES, 24);
    }

    #[test]
    fn few_rows_have_a_block_a_slice() {
        let blocks = |num_rows, vocab_size| Shape::apart(num_rows, vocab_size).blocks;
        assert_eq!(blocks(64, 128_256), [64, 32, 1]);
        assert_eq!(blocks(65, 128_256), [65, 1, 1]);
        assert_eq!(blocks(1, 4096), [1, 1, 1]);
        // Every slice has a thread of the block that puts them together.
        assert!([4097, 16_384, MAX_VOCAB_SIZE - 1].iter().all(|&v| blocks(1, v)[1] <= block_size(v)));
    }

    #[test]
    fn filtered_rows_are_cut_where_multiprocessors_are_left() {
        let device = Device::open(DeviceChoice::Host).unwrap();
        let of = |device: &Device, num_rows, vocab_size| {
            let Shape { blocks, parts, kept_quads } = Shape::of_launch(device, num_rows, vocab_size).unwrap();
            (blocks, parts, kept_quads)
        };
        let parted = |num_rows, vocab_size| of(&device, num_rows, vocab_size);
        assert_eq!(parted(1, 128_256), ([1, 32, 1], 8, 4008));
        assert_eq!(parted(16, 128_256), ([16, 32, 1], 8, 4008));
        assert_eq!(parted(17, 128_256), ([17, 32, 1], 4, 5120), "a part keeps what fits");
        assert_eq!(parted(64, 152_064), ([64, 38, 1], 2, 5120));
        assert_eq!(parted(65, 152_064), ([65, 1, 1], 1, 0), "a block a row");
        // Clusters are whole, and have a slice a block at least.
        assert_eq!(parted(1, 3 * 4096), ([1, 4, 1], 2, 1536));
        assert_eq!(parted(1, 4097), ([1, 2, 1], 2, 513));
        assert_eq!(parted(1, 4096), ([1, 1, 1], 1, 0));
        assert_eq!(of(&device.with_clusters(false), 1, 128_256), ([1, 32, 1], 1, 0));
    }

    /// The kernel's own memory is 18 KB, or a little less (`make spills` prints it), and no GPU has less than 99 KB.
    #[test]
    fn weights_fit_beside_the_kernels_own_memory() {
        assert!(shared_bytes(MAX_KEPT_QUADS) + (18 << 10) <= 99 << 10);
        assert_eq!(shared_bytes(1000), 16_000);
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
