//! Linear layers: `out = x weight^T + bias`, for one to a few hundred token rows, and with a SwiGLU behind them. See `kernels/linear.cu`, and
//! `kernels/linear_wgmma.cu` for the family of [`TensorCoreFamily::Wgmma`].

use super::shape::Dims;
use crate::device::{
    ClusterLaunch, DType, Device, LaunchArgs, MAX_CLUSTER, Tensor, TensorCoreFamily, TensorMap,
};
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
        })
    }
}

const TILE_K: usize = 64;
/// Rows of an f32 launch's tile, tokens and weights of a CTA, and its threads.
const F32_TILE: (usize, usize) = (8, 16);
const F32_THREADS: u32 = 128;
/// Weight rows of the narrow tiles of every family: what splits are reckoned by.
const NARROW_WEIGHTS: usize = 64;
/// CTAs that keep every SM of a large GPU busy with four. A constant: splits decide the order of additions,
/// so they may not depend on the machine.
const WANTED_CTAS: usize = 512;
/// Shortest split worth its partial sums, in k tiles (512 elements).
const MIN_SPLIT_TILES: usize = 8;
/// Rows of one launch with splits, which bounds the workspace; longer passes are cut.
const MAX_SPLIT_ROWS: usize = 256;

/// One instantiation of the kernel: its tile, its pipeline depth and its names.
struct Tile {
    tokens: usize,
    weights: usize,
    threads: u32,
    stages: usize,
    /// CTAs that share tokens, where they can run in a cluster and K is not cut; 1: none.
    sharing: u32,
    /// Of bf16 and f16, each plain and gated.
    kernels: [[&'static str; 2]; 2],
}

impl Tile {
    /// Of its stages, each a tile of weights and one of tokens.
    fn shared_bytes(&self) -> u32 {
        let row_bytes = TILE_K * DType::Bf16.size_in_bytes();
        (self.stages * (self.tokens + self.weights) * row_bytes) as u32
    }
}

/// A [`Tile`] with the names of its kernels.
macro_rules! tile {
    ($family:literal, $tokens:literal, $weights:literal, $threads:literal, $stages:literal, $sharing:literal $(, $suffix:literal)?) => {
        Tile {
            tokens: $tokens,
            weights: $weights,
            threads: $threads,
            stages: $stages,
            sharing: $sharing,
            kernels: [
                [
                    concat!("linear", $family, "_bf16_t", $tokens $(, $suffix)?),
                    concat!("linear_swiglu", $family, "_bf16_t", $tokens $(, $suffix)?),
                ],
                [
                    concat!("linear", $family, "_f16_t", $tokens $(, $suffix)?),
                    concat!("linear_swiglu", $family, "_f16_t", $tokens $(, $suffix)?),
                ],
            ],
        }
    };
}

/// In ascending order of tokens, of equals the one with most weights first; must match the instantiations in `kernels/linear.cu`.
const MMA_TILES: &[Tile] = &[
    tile!("", 8, 64, 128, 4, 1),
    tile!("", 16, 64, 128, 4, 1),
    tile!("", 32, 128, 256, 4, 1, "_w128"),
    tile!("", 32, 64, 128, 4, 1),
    tile!("", 64, 128, 256, 3, 1, "_w128"),
    tile!("", 64, 64, 128, 3, 1),
    tile!("", 128, 128, 128, 3, 1),
];

/// The same for `kernels/linear_wgmma.cu`.
const WGMMA_TILES: &[Tile] = &[
    tile!("_wgmma", 8, 64, 160, 5, 1),
    tile!("_wgmma", 16, 64, 160, 5, 1),
    tile!("_wgmma", 32, 128, 288, 5, 1, "_w128"),
    tile!("_wgmma", 32, 64, 160, 5, 1),
    tile!("_wgmma", 64, 256, 544, 5, 2, "_w256"),
    tile!("_wgmma", 64, 64, 160, 5, 2),
    tile!("_wgmma", 128, 256, 544, 4, 4, "_w256"),
    tile!("_wgmma", 128, 128, 288, 7, 4),
    tile!("_wgmma", 256, 128, 288, 4, 4),
];

fn tiles(family: TensorCoreFamily) -> &'static [Tile] {
    match family {
        TensorCoreFamily::Mma => MMA_TILES,
        TensorCoreFamily::Wgmma => WGMMA_TILES,
    }
}

/// How K is cut: a function of the weight's shape alone, because it decides the order of additions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Splits {
    count: usize,
    tiles_each: usize,
}

fn splits(n: usize, k: usize) -> Splits {
    let k_tiles = k.div_ceil(TILE_K).max(1);
    let wanted = (WANTED_CTAS / n.div_ceil(NARROW_WEIGHTS).max(1)).min(k_tiles / MIN_SPLIT_TILES).max(1);
    let tiles_each = k_tiles.div_ceil(wanted);
    Splits { count: k_tiles.div_ceil(tiles_each), tiles_each }
}

/// Tickets that an `[n, k]` weight needs: tiles of the launch that has the most, of any family.
fn tickets_len(n: usize, k: usize) -> usize {
    let splits = splits(n, k);
    if splits.count == 1 {
        return 0;
    }
    // Narrow tiles are the most.
    let launches = TensorCoreFamily::ALL.into_iter().flat_map(|family| {
        let rows = tiles(family).iter().map(|tile| tile.tokens).chain([MAX_SPLIT_ROWS]);
        rows.map(move |rows| geometry((family, u32::MAX), rows, n, splits).1)
    });
    launches.map(|[x, y, _]| (x * y) as usize).max().unwrap_or(0)
}

/// Elements of partial sums that passes of up to `max_rows` rows make with an `[n, k]` weight.
fn workspace_len(max_rows: usize, n: usize, k: usize) -> usize {
    match splits(n, k).count {
        1 => 0,
        count => count * max_rows.min(MAX_SPLIT_ROWS) * n,
    }
}

/// The launch for `rows` rows: which tile, over which grid, with how many bytes of shared memory. Of tiles for as many rows the one with the most
/// weights that makes `wide_from_ctas` CTAs: every tile reads the rows once more. The tile decides speed only.
fn geometry(
    (family, wide_from_ctas): (TensorCoreFamily, u32),
    rows: usize,
    n: usize,
    splits: Splits,
) -> (&'static Tile, [u32; 3], u32) {
    let tiles = tiles(family);
    let tokens = tiles.iter().map(|tile| tile.tokens).find(|&tokens| rows <= tokens);
    let tokens = tokens.unwrap_or(tiles[tiles.len() - 1].tokens);
    let grid = |tile: &Tile| {
        [rows.div_ceil(tile.tokens) as u32, n.div_ceil(tile.weights) as u32, splits.count as u32]
    };
    let fitting = || tiles.iter().filter(|tile| tile.tokens == tokens);
    let busy = fitting().find(|tile| grid(tile).iter().product::<u32>() >= wide_from_ctas);
    let tile = busy.or(fitting().next_back()).expect("a tile of every number of tokens");
    (tile, grid(tile), tile.shared_bytes())
}

/// Computes `out[t] = x[t] weight^T + bias`, accumulated in f32 and rounded once.
///
/// A row's bits depend on that row, the weight and the bias alone, not on the other rows of the pass.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit, or if 16-bit rows are not 16-byte aligned (K or the
/// row stride of `x` not a multiple of 8).
pub fn linear(device: &Device, args: LinearArgs) -> Result<()> {
    check_and_launch(device, args, false)
}

/// Rows of gate, then of up, that take turns in the weight of [`linear_swiglu`].
pub const GATE_ROWS: usize = 8;

/// Computes `out[t] = silu(gate(x[t])) * up(x[t])`, where gate and up are the two halves of `x weight^T + bias`, whose rows take turns:
/// [`GATE_ROWS`] of gate, then as many of up. The bits are those of writing both, rounded, and reading them again.
///
/// # Errors
/// As [`linear`]; N must be a multiple of 16.
pub fn linear_swiglu(device: &Device, args: LinearArgs) -> Result<()> {
    check_and_launch(device, args, true)
}

fn check_and_launch(device: &Device, args: LinearArgs, gated: bool) -> Result<()> {
    let dtype = args.x.dtype();
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
    let LinearWorkspace { partial, tickets } = args.workspace;
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
        return launch(device, &args, splits, gated);
    }
    for start in (0..rows).step_by(MAX_SPLIT_ROWS) {
        let chunk = start..rows.min(start + MAX_SPLIT_ROWS);
        let (x, out) = (&args.x.rows(chunk.clone()), &args.out.rows(chunk));
        launch(device, &LinearArgs { x, out, ..args }, splits, gated)?;
    }
    Ok(())
}

/// The clusters of a launch, and its grid, which is made of whole ones: where K is cut the parts of a tile meet in the shared memory of a cluster,
/// as a block that had to fetch them all from memory would be long at it; elsewhere tiles of many tokens share these. No clusters where that
/// cannot be, or would take longer.
fn clusters(
    device: &Device,
    kernel: &str,
    tile: &Tile,
    grid: [u32; 3],
    splits: Splits,
) -> Result<([u32; 3], [u32; 3])> {
    let [x, y, parts] = grid;
    let (grid_in_clusters, cluster) = match splits.count {
        1 => ([x, y.next_multiple_of(tile.sharing), 1], [1, tile.sharing, 1]),
        _ => (grid, [1, 1, parts]),
    };
    let size = cluster.iter().product::<u32>();
    let (threads, shared_bytes) = (tile.threads, tile.shared_bytes());
    let launch = ClusterLaunch { grid: grid_in_clusters, threads, shared_bytes, cluster };
    let worth_it = size > 1 && size as usize <= MAX_CLUSTER && y >= cluster[1];
    Ok(match worth_it && device.runs_clusters(kernel, launch)? {
        true => (grid_in_clusters, cluster),
        false => (grid, [1; 3]),
    })
}

/// One launch of the 16-bit kernel. Operands are checked.
fn launch(device: &Device, args: &LinearArgs, splits: Splits, gated: bool) -> Result<()> {
    let [rows, n, k] = [args.x.dim(0), args.weight.dim(0), args.weight.dim(1)];
    let family = device.linear_family();
    let (tile, grid, shared_bytes) = geometry((family, device.wide_from_ctas()), rows, n, splits);
    let kernel = tile.kernels[usize::from(args.x.dtype() != DType::Bf16)][usize::from(gated)];
    let (grid, cluster) = clusters(device, kernel, tile, grid, splits)?;
    // In a cluster parts need no memory.
    let workspace = Some(args.workspace).filter(|_| splits.count > 1 && cluster[2] == 1);
    let launch_args = LaunchArgs::new().overlapping().in_clusters(cluster);
    let by_maps = family == TensorCoreFamily::Wgmma;
    let launch_args = match by_maps {
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
    let launch_args = if by_maps { launch_args } else { launch_args.i32(args.x.row_stride()) };
    let launch_args = launch_args
        .i32(args.out.row_stride())
        .i32(splits.tiles_each)
        .i32(usize::from(args.out.dtype() == DType::F32))
        .ptr_or_null(workspace.map(|workspace| &workspace.tickets));
    let launch_args = if by_maps { launch_args.i32(cluster[1] as usize) } else { launch_args };
    // SAFETY: arguments in the order of linear.cu, of linear_wgmma.cu for its family; x is [rows, k], weight [n, k], bias [n], out [rows, n] or [rows, n / 2]
    // with the strides given, rows 16-byte aligned, all checked by the caller; reads and writes outside are
    // predicated by rows, n and k, or by the maps. Written: out, and with splits that do not meet in a cluster the first splits * rows * n partial
    // sums and a ticket for each tile, of which there are that many. Tickets are zeros: they were made so, and every launch leaves them so.
    unsafe { device.launch(kernel, grid, [tile.threads, 1, 1], shared_bytes, &launch_args) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::WIDE_FROM_CTAS;

    const MMA: (TensorCoreFamily, u32) = (TensorCoreFamily::Mma, WIDE_FROM_CTAS);
    const WGMMA: (TensorCoreFamily, u32) = (TensorCoreFamily::Wgmma, WIDE_FROM_CTAS);

    #[test]
    fn splits_give_small_weights_enough_ctas() {
        assert_eq!(splits(4096, 4096), Splits { count: 8, tiles_each: 8 });
        assert_eq!(splits(28672, 4096), Splits { count: 1, tiles_each: 64 });
        assert_eq!(splits(256, 896), Splits { count: 1, tiles_each: 14 });
        assert_eq!(splits(1, 8), Splits { count: 1, tiles_each: 1 });
    }

    #[test]
    fn splits_cover_k_and_none_is_empty() {
        for (n, k) in [(64, 1024), (64, 1032), (4096, 14336), (6144, 4096), (100, 70_000), (8, 8)] {
            let Splits { count, tiles_each } = splits(n, k);
            assert!(count * tiles_each * TILE_K >= k, "{n} x {k}");
            assert!((count - 1) * tiles_each * TILE_K < k, "{n} x {k}");
        }
    }

    #[test]
    fn tiles_grow_with_the_rows() {
        let one = splits(4096, 4096);
        let tokens = |family| {
            [1, 8, 9, 16, 17, 33, 64, 65, 129, 500].map(|rows| geometry(family, rows, 4096, one).0.tokens)
        };
        assert_eq!(tokens(MMA), [8, 8, 16, 16, 32, 64, 64, 128, 128, 128]);
        assert_eq!(tokens(WGMMA), [8, 8, 16, 16, 32, 64, 64, 128, 256, 256]);
        let (_, grid, shared) = geometry(MMA, 300, 200, Splits { count: 3, tiles_each: 9 });
        assert_eq!(grid, [3, 2, 3]);
        assert_eq!(shared, 3 * 256 * 128);
        assert_eq!(geometry(MMA, 1, 64, one).2, 36 * 1024);
        assert_eq!(geometry(WGMMA, 300, 200, one).1, [2, 2, 8]);
    }

    /// Tiles of few tokens share a multiprocessor, which has 228 KB, of which each CTA costs one more; no CTA has more than 227.
    #[test]
    fn stages_fit_and_narrow_tiles_share() {
        for family in TensorCoreFamily::ALL {
            for tile in tiles(family) {
                let shares = tile.tokens <= 64 && tile.weights <= 128;
                let most = if shares { 113 } else { 227 };
                assert!(tile.shared_bytes() <= most * 1024, "{}", tile.kernels[0][0]);
            }
        }
    }

    /// Wide tiles want weights that keep the GPU busy: all of an 8B's do, a small model's square ones do not.
    #[test]
    fn weights_of_a_tile_grow_with_the_layer() {
        let weights = |rows: usize, n: usize, k: usize| geometry(WGMMA, rows, n, splits(n, k)).0.weights;
        for (n, k) in [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128_256, 4096)] {
            assert_eq!([8, 32, 64, 128, 256].map(|rows| weights(rows, n, k)), [64, 128, 256, 256, 128]);
        }
        assert_eq!([32, 64, 128].map(|rows| weights(rows, 2048, 2048)), [64, 64, 128]);
        assert_eq!([32, 64, 128].map(|rows| weights(rows, 2048, 8192)), [128, 256, 256]);
        let weights = |rows: usize| geometry(MMA, rows, 4096, splits(4096, 4096)).0.weights;
        assert_eq!([8, 32, 64, 128].map(weights), [64, 128, 128, 128]);
    }

    #[test]
    fn every_family_has_tickets_for_its_tiles() {
        for n in [8, 64, 200, 4096] {
            for family in TensorCoreFamily::ALL {
                let splits = splits(n, 4096);
                for (rows, wide_from) in
                    [1, 64, 65, 128, 129, 256].map(|rows| [(rows, 1), (rows, WIDE_FROM_CTAS)]).concat()
                {
                    let [x, y, _] = geometry((family, wide_from), rows, n, splits).1;
                    assert!((x * y) as usize <= tickets_len(n, 4096), "{family:?}: {rows} rows of {n}");
                }
            }
        }
    }

    #[test]
    fn workspace_is_bounded_and_absent_without_splits() {
        assert_eq!(workspace_len(64, 28672, 4096), 0);
        assert_eq!(workspace_len(8, 4096, 4096), 8 * 8 * 4096);
        assert_eq!(workspace_len(2048, 4096, 4096), 8 * 256 * 4096);
    }
}
