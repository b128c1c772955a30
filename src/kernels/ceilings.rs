//! What the machine allows at best: reads, launches and conditions without anything else. See `kernels/ceilings.cu` and `kernels/while_condition.cu`.

use super::shape::Dims;
use crate::device::{Branch, ConditionalGraph, DType, Device, LaunchArgs, Tensor, TensorMap};
use crate::error::Result;

/// Words that a block reads at a time.
pub const PIECE: usize = 8192;

const THREADS: u32 = 256;
/// Two pieces of the asynchronous reader.
const STAGES_BYTES: u32 = 2 * 4 * PIECE as u32;
/// Rows of half a piece, of 128 bytes.
const BOX_ROWS: usize = PIECE / 2 / 32;

/// How the words come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Loads into registers, eight of 16 bytes in flight a thread.
    Registers,
    /// `cp.async` into shared memory, a piece ahead.
    Shared,
    /// Bulk copies into shared memory, four half pieces in flight. On Hopper, and on the host driver.
    Bulk,
}

/// What is read, how often, and by whom.
pub struct ReadArgs<'a> {
    /// i32 `[words]`, a multiple of [`PIECE`].
    pub x: &'a Tensor,
    /// i32 `[blocks]`: what each block's words add up to, modulo 2^32; its length is the grid.
    pub out: &'a Tensor,
    /// How often `x` is read.
    pub passes: usize,
    /// By how many blocks the reader of a piece changes from pass to pass.
    pub shift: usize,
    /// Whether it may start before the launches before it have ended, as [`LaunchArgs::overlapping`].
    pub overlaps: bool,
}

/// Reads `args.x`.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn read(device: &Device, reader: Reader, args: &ReadArgs) -> Result<()> {
    let mut dims = Dims::new("ceiling_read");
    dims.dense("x", args.x, DType::I32, &["words"])?;
    dims.dense("out", args.out, DType::I32, &["blocks"])?;
    let words = dims.get("words");
    dims.require(words.is_multiple_of(PIECE), "x", || {
        (format!("a multiple of {PIECE} words"), format!("{words}"))
    })?;
    dims.require(args.passes < 1 << 15 && args.shift < 1 << 15, "passes", || {
        ("passes and shift below 2^15".into(), format!("{} and {}", args.passes, args.shift))
    })?;
    dims.require(reader != Reader::Bulk || words > 0, "x", || ("a word at least".into(), "0".into()))?;
    let blocks = dims.get("blocks");
    if blocks == 0 {
        return Ok(());
    }
    let (kernel, threads, shared) = match reader {
        Reader::Registers => ("ceiling_read", THREADS, 0),
        Reader::Shared => ("ceiling_read_async", THREADS, STAGES_BYTES),
        // A warp that asks for boxes; four of them.
        Reader::Bulk => ("ceiling_read_bulk", THREADS + 32, STAGES_BYTES),
    };
    let launch_args = launch_args(args.overlaps);
    let launch_args = match reader {
        Reader::Bulk => {
            let rows = args.x.retype(DType::Bf16, &[words / 32, 64]);
            launch_args.tensor_map(&TensorMap::of_weights(&rows, BOX_ROWS)?)
        }
        _ => launch_args.ptr(args.x),
    };
    let launch_args = launch_args.ptr(args.out).i32(words / PIECE).i32(args.passes).i32(args.shift);
    // SAFETY: arguments in the order of ceilings.cu; only whole pieces of x are read, and out has an element a block. Written: out.
    unsafe { device.launch(kernel, [blocks as u32, 1, 1], [threads, 1, 1], shared, &launch_args) }
}

/// A launch that does nothing; `overlaps` as in [`ReadArgs::overlaps`].
///
/// # Errors
/// The driver's.
pub fn empty(device: &Device, overlaps: bool) -> Result<()> {
    // SAFETY: the kernel has no parameters and touches no memory.
    unsafe { device.launch("ceiling_empty", [1, 1, 1], [32, 1, 1], 0, &launch_args(overlaps)) }
}

fn launch_args(overlaps: bool) -> LaunchArgs {
    if overlaps { LaunchArgs::new().overlapping() } else { LaunchArgs::new() }
}

/// Adds a loop to `graph` that launches one small kernel again and again, until `counter` (i32 `[1]`), which it counts down from
/// what it is by then, is 0. It must not be 0 at first.
pub fn count_down(device: &Device, graph: &mut ConditionalGraph, counter: &Tensor) -> Result<()> {
    Dims::new("while_count_down").fix("one", 1).dense("counter", counter, DType::I32, &["one"])?;
    graph.branch(Branch::While, 1, |_, condition| {
        let args = LaunchArgs::new().ptr(counter).u64(condition);
        // SAFETY: arguments in the order of while_condition.cu; the condition is that of the node whose body this is. Written: counter.
        unsafe { device.launch("while_count_down", [1, 1, 1], [32, 1, 1], 0, &args) }
    })
}
