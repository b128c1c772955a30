//! Linear layers: `out = x weight^T + bias`, for one to a few hundred token rows, and with a SwiGLU behind them. See `kernels/linear.cu` and, for other
//! ways to its bits, `kernels/linear_bulk.cu`; `kernels/linear_wgmma.cu` for the family of
//! [`TensorCoreFamily::Wgmma`](crate::device::TensorCoreFamily::Wgmma).

mod tiles;
mod tuning;

use tiles::{Grid, MAX_SPLIT_ROWS, Rules, Splits, splits, tickets_len, workspace_len};
pub use tuning::{TunedLaunch, TunedLayer, TunedSums};
use tuning::{Tuning, Way};

use super::digest::{check_digests, draft_digest};
use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor, TensorMap};
use crate::error::Result;

/// Operands of [`linear`] and [`linear_swiglu`].
#[derive(Clone, Copy)]
pub struct LinearArgs<'a> {
    /// Token rows `[T, K]`; a column view is fine.
    pub x: &'a Tensor,
    /// `[N, K]`, the dtype of `x`.
    pub weight: &'a Tensor,
    /// `[N]`, the dtype of `x`.
    pub bias: Option<&'a Tensor>,
    /// Output `[T, N]` in the dtype of `x` or in f32; a column view is fine. Of [`linear_swiglu`] `[T, N / 2]` in the dtype of `x`.
    pub out: &'a Tensor,
    /// Room for this weight and number of rows.
    pub workspace: &'a LinearWorkspace,
}

/// Scratch of linear layers that cut K: what the parts come to, and who is last to bring its part. Launches on one stream share it.
pub struct LinearWorkspace {
    /// f32; its content does not matter between launches.
    pub partial: Tensor,
    /// i32, one for each tile of outputs; zeros between launches.
    tickets: Tensor,
    /// What has been measured of the launches that use it.
    tuning: Tuning,
}

impl LinearWorkspace {
    /// For passes of up to `max_rows` rows through weights of these shapes `[n, k]`; `partial` has at least `least` elements.
    ///
    /// # Errors
    /// A lack of memory.
    pub fn new(
        device: &Device,
        max_rows: usize,
        shapes: impl IntoIterator<Item = (usize, usize)>,
        least: usize,
    ) -> Result<Self> {
        let (mut partial, mut tickets) = (least, 0);
        for (n, k) in shapes {
            partial = partial.max(workspace_len(max_rows, n, k));
            tickets = tickets.max(tickets_len(n, k));
        }
        Ok(Self {
            partial: Tensor::uninit(device, DType::F32, &[partial])?,
            tickets: Tensor::zeros(device, DType::I32, &[tickets])?,
            tuning: Tuning::default(),
        })
    }
}

/// Rows of an f32 launch's tile, tokens and weights of a CTA, and its threads.
const F32_TILE: (usize, usize) = (8, 16);
const F32_THREADS: u32 = 128;

/// Computes `out[t] = x[t] weight^T + bias`, accumulated in f32 and rounded once.
///
/// A row's bits depend on that row, the weight and the bias alone, not on the other rows of the pass.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit, or if 16-bit rows are not 16-byte aligned (K or the
/// row stride of `x` not a multiple of 8).
pub fn linear(device: &Device, args: LinearArgs) -> Result<()> {
    check_and_launch(device, args, Epilogue::Plain)
}

/// As [`linear`], of logits: f32 `out` without gaps between its rows, and their `digests`, as [`digest_buffer`](super::digest::digest_buffer) makes
/// them, of T rows. Where K is not cut the layer itself leaves the digests, while it has the logits at hand.
///
/// # Errors
/// As [`linear`].
pub fn head(device: &Device, args: LinearArgs, digests: &Tensor) -> Result<()> {
    let mut dims = Dims::new("head");
    dims.rows("x", args.x, args.x.dtype(), &["T", "K"])?;
    dims.dense("weight", args.weight, args.x.dtype(), &["N", "K"])?;
    dims.dense("out", args.out, DType::F32, &["T", "N"])?;
    let (n, k) = (dims.get("N"), dims.get("K"));
    check_digests(&dims, digests, dims.get("T"), n)?;
    if args.x.dtype() != DType::F32 && splits(n, k).count == 1 {
        return check_and_launch(device, args, Epilogue::Head(digests));
    }
    linear(device, args)?;
    draft_digest(device, args.out, digests)
}

/// What becomes of the sums of a layer.
#[derive(Clone, Copy)]
enum Epilogue<'a> {
    Plain,
    Swiglu,
    /// Their digests, too.
    Head(&'a Tensor),
}

impl<'a> Epilogue<'a> {
    fn is_gated(self) -> bool {
        matches!(self, Self::Swiglu)
    }

    fn digests(self) -> Option<&'a Tensor> {
        match self {
            Self::Head(digests) => Some(digests),
            Self::Plain | Self::Swiglu => None,
        }
    }
}

/// Rows of gate, then of up, that take turns in the weight of [`linear_swiglu`].
pub const GATE_ROWS: usize = 8;

/// Computes `out[t] = silu(gate(x[t])) * up(x[t])`, where gate and up are the two halves of `x weight^T + bias`, whose rows take turns:
/// [`GATE_ROWS`] of gate, then as many of up. The bits are those of writing both, rounded, and reading them again.
///
/// # Errors
/// As [`linear`]; N must be a multiple of 16.
pub fn linear_swiglu(device: &Device, args: LinearArgs) -> Result<()> {
    check_and_launch(device, args, Epilogue::Swiglu)
}

fn check_and_launch(device: &Device, args: LinearArgs, epilogue: Epilogue) -> Result<()> {
    let (dtype, gated) = (args.x.dtype(), epilogue.is_gated());
    let mut dims = Dims::new(if gated { "linear_swiglu" } else { "linear" });
    dims.rows("x", args.x, dtype, &["T", "K"])?;
    dims.dense("weight", args.weight, dtype, &["N", "K"])?;
    if let Some(bias) = args.bias {
        dims.dense("bias", bias, dtype, &["N"])?;
    }
    let (rows, n, k) = (dims.get("T"), dims.get("N"), dims.get("K"));
    if gated {
        dims.require(n.is_multiple_of(2 * GATE_ROWS), "weight", || {
            (format!("rows in turns of {GATE_ROWS}, gate and up"), format!("{n} rows"))
        })?;
        dims = dims.fix("N/2", n / 2);
        dims.rows("out", args.out, dtype, &["T", "N/2"])?;
    } else {
        let out_dtype = if args.out.dtype() == DType::F32 { DType::F32 } else { dtype };
        dims.rows("out", args.out, out_dtype, &["T", "N"])?;
    }
    dims.variant("x", dtype, ["linear_*_bf16", "linear_*_f16", "linear_*_f32"])?;
    if rows == 0 || n == 0 {
        return Ok(());
    }
    if dtype == DType::F32 {
        return launch_f32(device, &args, gated);
    }

    let stride = args.x.row_stride();
    let aligned = [args.x, args.weight].iter().all(|view| view.ptr().is_multiple_of(16));
    dims.require(
        aligned && k.is_multiple_of(8) && (stride.is_multiple_of(8) || rows == 1),
        "x and weight",
        || {
            (
                "16-byte aligned rows (K and the row stride multiples of 8)".into(),
                format!("K={k}, row stride {stride}"),
            )
        },
    )?;
    let splits = splits(n, k);
    let LinearWorkspace { partial, tickets, .. } = args.workspace;
    let needed = (workspace_len(rows, n, k), tickets_len(n, k));
    dims.require(
        partial.num_elements() >= needed.0 && tickets.num_elements() >= needed.1,
        "workspace",
        || {
            (
                format!("at least {} partial sums and {} tickets", needed.0, needed.1),
                format!("{partial:?}, {tickets:?}"),
            )
        },
    )?;
    if splits.count == 1 {
        return launch(device, &args, splits, epilogue);
    }
    for start in (0..rows).step_by(MAX_SPLIT_ROWS) {
        let chunk = start..rows.min(start + MAX_SPLIT_ROWS);
        let (x, out) = (&args.x.rows(chunk.clone()), &args.out.rows(chunk));
        launch(device, &LinearArgs { x, out, ..args }, splits, epilogue)?;
    }
    Ok(())
}

/// One launch of the 16-bit kernel, as measurements or else rules say. Operands are checked.
fn launch(device: &Device, args: &LinearArgs, splits: Splits, epilogue: Epilogue) -> Result<()> {
    let [rows, n, k] = [args.x.dim(0), args.weight.dim(0), args.weight.dim(1)];
    let way = args.workspace.tuning.way(&Rules::of(device), rows, (n, k), epilogue.is_gated());
    launch_as(device, args, splits, epilogue, way)
}

/// The same in a given way; without clusters where these cannot be.
fn launch_as(
    device: &Device,
    args: &LinearArgs,
    splits: Splits,
    epilogue: Epilogue,
    Way { tile, most_sharing }: Way,
) -> Result<()> {
    let [rows, n, k] = [args.x.dim(0), args.weight.dim(0), args.weight.dim(1)];
    let kernel = tile.kernel(args.x.dtype(), epilogue.is_gated());
    let apart = Grid::apart(tile, rows, n, splits);
    let clusters = apart.in_clusters(device, kernel, tile, most_sharing)?;
    let Grid { blocks, cluster } = clusters.unwrap_or(apart);
    // In a cluster parts need no memory.
    let workspace = Some(args.workspace).filter(|_| splits.count > 1 && clusters.is_none());
    let launch_args = LaunchArgs::new().overlapping().in_clusters(cluster);
    let launch_args = match tile.bulk {
        true => launch_args
            .tensor_map(&TensorMap::new(args.x, tile.tokens / cluster[1] as usize)?)
            .tensor_map(&TensorMap::of_weights(args.weight, tile.weights)?),
        false => launch_args.ptr(args.x).ptr(args.weight),
    };
    let launch_args = launch_args
        .ptr_or_null(args.bias)
        .ptr(args.out)
        .ptr_or_null(workspace.map(|workspace| &workspace.partial))
        .i32(rows)
        .i32(n)
        .i32(k);
    let launch_args = if tile.bulk { launch_args } else { launch_args.i32(args.x.row_stride()) };
    let launch_args = launch_args
        .i32(args.out.row_stride())
        .i32(splits.tiles_each)
        .i32(usize::from(args.out.dtype() == DType::F32))
        .ptr_or_null(workspace.map(|workspace| &workspace.tickets))
        .ptr_or_null(epilogue.digests());
    let launch_args = if tile.bulk { launch_args.i32(cluster[1] as usize) } else { launch_args };
    // SAFETY: arguments in the order of linear.cu, of linear_ring.cuh where the copy engine brings tiles; x is [rows, k], weight [n, k], bias [n], out [rows, n] or [rows, n / 2]
    // with the strides given, rows 16-byte aligned, all checked by the caller; reads and writes outside are
    // predicated by rows, n and k, or by the maps. Written: out, and with splits that do not meet in a cluster the first splits * rows * n partial
    // sums and a ticket for each tile, of which there are that many; digests, which head() has checked, of a launch without splits. Tickets are zeros: they were made so, and every launch leaves them so.
    unsafe { device.launch(kernel, blocks, [tile.threads, 1, 1], tile.shared_bytes(), &launch_args) }
}

/// The f32 kernel, which has no splits and no alignment rule. Operands are checked.
fn launch_f32(device: &Device, args: &LinearArgs, gated: bool) -> Result<()> {
    let [rows, n, k] = [args.x.dim(0), args.weight.dim(0), args.weight.dim(1)];
    let launch_args = LaunchArgs::new()
        .overlapping()
        .ptr(args.x)
        .ptr(args.weight)
        .ptr_or_null(args.bias)
        .ptr(args.out)
        .i32(rows)
        .i32(n)
        .i32(k)
        .i32(args.x.row_stride())
        .i32(args.out.row_stride());
    let kernel = if gated { "linear_swiglu_f32" } else { "linear_f32" };
    let grid = [rows.div_ceil(F32_TILE.0) as u32, n.div_ceil(F32_TILE.1) as u32, 1];
    // SAFETY: arguments in the order of linear.cu; shapes and strides are checked by the caller; rows past the
    // end are clamped for reads and skipped for writes. Written: out.
    unsafe { device.launch(kernel, grid, [F32_THREADS, 1, 1], 0, &launch_args) }
}
