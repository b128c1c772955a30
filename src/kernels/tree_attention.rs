//! Attention of packed tree rows over the paged K/V cache. See `kernels/tree_attention.cu`, and `kernels/tree_attention_wgmma.cu` for the family
//! of [`TensorCoreFamily::Wgmma`].

use super::shape::Dims;
use crate::device::{ClusterLaunch, DType, Device, LaunchArgs, MAX_CLUSTER, Tensor, TensorCoreFamily};
use crate::error::Result;

/// Operands of [`tree_attention`]; tensors without a dtype below are of the model's. `T` rows of `B` sequences.
pub struct TreeAttentionArgs<'a> {
    /// `[T, num_q_heads * head_dim]`, after the rotary embedding.
    pub q: &'a Tensor,
    /// `[pages, num_kv_heads, page_size, head_dim]` of one layer; the pass's own rows are already written.
    pub k_cache: &'a Tensor,
    /// Like `k_cache`.
    pub v_cache: &'a Tensor,
    /// i32 `[B, max_pages]`: the page that holds KV positions `i * page_size..`.
    pub page_table: &'a Tensor,
    /// i32 `[B + 1]`: rows `seq_start[b]..seq_start[b + 1]` belong to sequence b.
    pub seq_start: &'a Tensor,
    /// i32 `[B]`: KV positions that every row of the sequence sees.
    pub prefix_len: &'a Tensor,
    /// u64 `[T, 4]`: bit j set means that the row sees KV position `prefix_len + j`. Its own bit is set.
    pub ancestors: &'a Tensor,
    /// Output `[T, num_q_heads * head_dim]`.
    pub out: &'a Tensor,
    /// f32 scratch of at least [`workspace_len`] elements; its content does not matter.
    pub workspace: &'a Tensor,
    /// The most keys that a row sees, its own and those before it in logical order, at least 1; `None` is all of them.
    pub window: Option<usize>,
    /// Factor of the scores before the softmax, usually `head_dim^-0.5`; positive.
    pub sm_scale: f32,
    /// Query heads, a multiple of `num_kv_heads`.
    pub num_q_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head: 32, 64, 96 or 128.
    pub head_dim: usize,
    /// The most keys up to a row of the pass, within its window or not (a bound is enough).
    pub max_kv_len: usize,
    /// The most rows that a sequence has in the pass, at most 256 (a bound is enough).
    pub max_rows: usize,
}

/// Keys of a split; `kSplitKeys` of the kernel.
const SPLIT_KEYS: usize = 256;
/// Splits of a span; `kSplitsPerSpan` of the kernel.
const SPLITS_PER_SPAN: usize = 8;
/// Threads of the attention kernels: four warps.
const THREADS: u32 = 128;
/// CTAs that keep a large GPU busy, about one for each of 132 multiprocessors: more would cost partial states.
const ENOUGH_CTAS: usize = 128;
/// CTAs that a large GPU runs at once, two a multiprocessor.
const MAX_CLUSTERED_CTAS: usize = 2 * ENOUGH_CTAS;
/// The most partial states of a pass, (row, head, unit) triples: 34 MB at head_dim 128, which mostly stays in the cache.
const MAX_PARTIALS: usize = 65536;

/// The kernels' `TreeAttentionParams`, field by field.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    q: u64,
    k_cache: u64,
    v_cache: u64,
    page_table: u64,
    seq_start: u64,
    prefix_len: u64,
    ancestors: u64,
    out: u64,
    workspace: u64,
    scale_log2: f32,
    num_rows: i32,
    num_q_heads: i32,
    num_kv_heads: i32,
    page_size: i32,
    max_pages: i32,
    splits_per_unit: i32,
    num_units: i32,
    window: i32,
    /// The pointers align the whole to 8 bytes.
    padding: i32,
}

/// How the key axis is dealt out to CTAs. It decides speed only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Units {
    splits_each: usize,
    count: usize,
    /// Partial states of a (row, head) that pass through the workspace.
    partials: usize,
}

impl Units {
    fn new(splits_each: usize, max_kv_len: usize) -> Self {
        let splits = max_kv_len.div_ceil(SPLIT_KEYS).max(1);
        let count = splits.div_ceil(splits_each);
        // A single unit of several spans keeps there what it has folded so far.
        let partials = if splits > splits_each.min(SPLITS_PER_SPAN) { count } else { 0 };
        Units { splits_each, count, partials }
    }

    /// The largest units that still give enough CTAs: the fewest partial states and the fewest starts. `row_ctas` is the
    /// number of CTAs that each unit of keys gets, `heads` the number of (row, q head) pairs. CTAs of units before
    /// `window` have nothing to do.
    fn choose(row_ctas: usize, heads: usize, max_kv_len: usize, window: Option<usize>) -> Self {
        let splits = max_kv_len.div_ceil(SPLIT_KEYS).max(1);
        let spans = splits.div_ceil(SPLITS_PER_SPAN);
        let busy_spans = window.map_or(spans, |keys| spans.min(keys.div_ceil(SPLIT_KEYS * SPLITS_PER_SPAN)));
        // Eight waves even out that some rows see more keys than others.
        let splits_each = if row_ctas >= 8 * ENOUGH_CTAS {
            splits
        } else if row_ctas * busy_spans < ENOUGH_CTAS && heads * splits <= MAX_PARTIALS {
            1
        } else if heads * spans <= MAX_PARTIALS {
            SPLITS_PER_SPAN
        } else {
            splits
        };
        Units::new(splits_each, max_kv_len)
    }
}

/// Elements of the workspace that passes of up to `max_rows` rows in all and `max_kv_len` keys a row need.
pub fn workspace_len(max_rows: usize, num_q_heads: usize, head_dim: usize, max_kv_len: usize) -> usize {
    let splits = max_kv_len.div_ceil(SPLIT_KEYS);
    if splits <= 1 {
        return 0;
    }
    // Units of all keys need one partial state a (row, head), smaller units at most one a split.
    let heads = max_rows * num_q_heads;
    (heads * splits).min(MAX_PARTIALS).max(heads) * (head_dim + 2)
}

/// Which attention kernel, with how many packed rows (row, head of the group) a CTA and how much shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// Of the name, before the dtype.
    family: &'static str,
    suffix: &'static str,
    packed_rows: usize,
    shared_bytes: usize,
}

fn layout(family: TensorCoreFamily, dtype: DType, head_dim: usize, packed_rows: usize) -> Layout {
    let layout = |suffix, packed_rows, shared_bytes| Layout { family: "", suffix, packed_rows, shared_bytes };
    if dtype == DType::F32 {
        return layout("", 4, 0);
    }
    // K and V of a 64-key stage in 16-bit elements; the wide kernel adds a span's accumulators of 64 rows in f32, that of wgmma its
    // 64 queries.
    let stage_bytes = 2 * 64 * head_dim * 2;
    let stages = if head_dim == 128 { 3 } else { 4 };
    if family == TensorCoreFamily::Wgmma {
        return Layout { family: "wgmma_", ..layout("", 64, stages * stage_bytes + 64 * head_dim * 2) };
    }
    if packed_rows <= 16 {
        layout("_narrow", 16, stages * stage_bytes)
    } else {
        let stages =
            [(128, 2), (96, 3)].iter().find(|(dim, _)| *dim == head_dim).map_or(4, |&(_, stages)| stages);
        layout("_wide", 64, stages * stage_bytes + 64 * head_dim * 4)
    }
}

/// Packed rows (row, head of the group) that 16-bit attention multiplies together: so many cost what one does.
pub fn rows_together(device: &Device) -> usize {
    match device.attention_family() {
        TensorCoreFamily::Mma => 16,
        TensorCoreFamily::Wgmma => 64,
    }
}

/// `out[t, h] = sum_i p_i v_i` with `p = softmax(sm_scale * q[t, h] . k_i)` over the keys that row t sees: the prefix of its
/// sequence and the positions behind it whose ancestor bits are set, or the last `window` of these.
///
/// A row's bits depend on its query and its keys in logical order alone: not on the other rows, the slots its ancestors
/// occupy, or where the prefix ends.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn tree_attention(device: &Device, args: TreeAttentionArgs) -> Result<()> {
    let group = args.num_q_heads / args.num_kv_heads.max(1);
    let layout = layout(device.attention_family(), args.q.dtype(), args.head_dim, args.max_rows * group);
    let tiles = (args.max_rows * group).div_ceil(layout.packed_rows);
    let row_ctas = tiles * args.num_kv_heads * args.prefix_len.num_elements();
    let units = Units::choose(row_ctas, args.q.dim(0) * args.num_q_heads, args.max_kv_len, args.window);
    launch(device, args, units)
}

/// [`tree_attention`] with units of `splits_each` key splits (1, 8, or enough for `max_kv_len`) whatever the number of rows,
/// for tests and benchmarks: the result is the same.
#[doc(hidden)]
pub fn tree_attention_in_units(device: &Device, args: TreeAttentionArgs, splits_each: usize) -> Result<()> {
    let units = Units::new(splits_each.max(1), args.max_kv_len);
    assert!(
        units.count == 1 || splits_each == 1 || splits_each == SPLITS_PER_SPAN,
        "units end where spans do"
    );
    launch(device, args, units)
}

fn launch(device: &Device, args: TreeAttentionArgs, units: Units) -> Result<()> {
    let dtype = args.q.dtype();
    let TreeAttentionArgs { num_q_heads, num_kv_heads, head_dim, max_rows, max_kv_len, .. } = args;
    let num_sequences = args.prefix_len.num_elements();
    let mut dims = Dims::new("tree_attention")
        .fix("num_kv_heads", num_kv_heads)
        .fix("head_dim", head_dim)
        .fix("q_width", num_q_heads * head_dim)
        .fix("B", num_sequences)
        .fix("B+1", num_sequences + 1)
        .fix("4", 4);
    dims.dense("q", args.q, dtype, &["T", "q_width"])?;
    dims.dense("out", args.out, dtype, &["T", "q_width"])?;
    for (name, cache) in [("k_cache", args.k_cache), ("v_cache", args.v_cache)] {
        dims.dense(name, cache, dtype, &["pages", "num_kv_heads", "page_size", "head_dim"])?;
    }
    dims.dense("page_table", args.page_table, DType::I32, &["B", "max_pages"])?;
    dims.dense("seq_start", args.seq_start, DType::I32, &["B+1"])?;
    dims.dense("prefix_len", args.prefix_len, DType::I32, &["B"])?;
    dims.dense("ancestors", args.ancestors, DType::U64, &["T", "4"])?;
    dims.require(args.ancestors.ptr().is_multiple_of(16), "ancestors", || {
        ("at an address that is a multiple of 16".into(), format!("at {:#x}", args.ancestors.ptr()))
    })?;
    let name = dims.variant("q", dtype, ["bf16", "f16", "f32"])?;
    dims.require(matches!(head_dim, 32 | 64 | 96 | 128), "head_dim", || {
        ("32, 64, 96 or 128".into(), format!("{head_dim}"))
    })?;
    dims.require(num_kv_heads > 0 && num_q_heads.is_multiple_of(num_kv_heads), "num_q_heads", || {
        (format!("a multiple of {num_kv_heads} kv heads"), format!("{num_q_heads}"))
    })?;
    dims.require(dims.get("page_size").is_multiple_of(16), "page_size", || {
        ("a multiple of 16".into(), format!("{}", dims.get("page_size")))
    })?;
    dims.require(args.sm_scale.is_finite() && args.sm_scale > 0.0, "sm_scale", || {
        ("a positive number".into(), format!("{}", args.sm_scale))
    })?;
    let window = args.window.map_or(Some(0), |keys| i32::try_from(keys).ok().filter(|&keys| keys > 0));
    dims.require(window.is_some(), "window", || {
        ("1 to 2^31 - 1 keys, or none".into(), format!("{:?}", args.window))
    })?;
    dims.require(max_rows <= 256, "max_rows", || {
        ("at most 256 rows a sequence".into(), format!("{max_rows}"))
    })?;
    dims.require(num_sequences * num_kv_heads <= MAX_GRID_YZ, "B * num_kv_heads", || {
        (format!("at most {MAX_GRID_YZ}"), format!("{}", num_sequences * num_kv_heads))
    })?;
    let rows = dims.get("T");
    if rows == 0 || max_rows == 0 || num_q_heads == 0 {
        return Ok(());
    }

    let needed = units.partials * rows * num_q_heads * (head_dim + 2);
    let workspace = args.workspace;
    dims.require(
        needed == 0
            || (workspace.dtype() == DType::F32
                && workspace.is_contiguous()
                && workspace.num_elements() >= needed),
        "workspace",
        || (format!("at least {needed} f32 elements"), format!("{workspace:?}")),
    )?;
    dims.require(
        units.count <= MAX_GRID_YZ && i32::try_from(units.count * units.splits_each * SPLIT_KEYS).is_ok(),
        "max_kv_len",
        || ("fewer keys".into(), format!("{max_kv_len}")),
    )?;

    let params = Params {
        q: args.q.ptr(),
        k_cache: args.k_cache.ptr(),
        v_cache: args.v_cache.ptr(),
        page_table: args.page_table.ptr(),
        seq_start: args.seq_start.ptr(),
        prefix_len: args.prefix_len.ptr(),
        ancestors: args.ancestors.ptr(),
        out: args.out.ptr(),
        workspace: workspace.ptr(),
        scale_log2: args.sm_scale * std::f32::consts::LOG2_E,
        num_rows: rows as i32,
        num_q_heads: num_q_heads as i32,
        num_kv_heads: num_kv_heads as i32,
        page_size: dims.get("page_size") as i32,
        max_pages: dims.get("max_pages") as i32,
        splits_per_unit: units.splits_each as i32,
        num_units: units.count as i32,
        window: window.unwrap_or(0),
        padding: 0,
    };
    let packed_rows = max_rows * (num_q_heads / num_kv_heads);
    let layout = layout(device.attention_family(), dtype, head_dim, packed_rows);
    // The f32 kernel takes the window as it comes; those on tensor cores have a form for it.
    let windowed = if args.window.is_some() && dtype != DType::F32 { "_windowed" } else { "" };
    let attention = Launch {
        kernel: format!("tree_attention_{}{name}_hd{head_dim}{}{windowed}", layout.family, layout.suffix),
        grid: [
            packed_rows.div_ceil(layout.packed_rows) as u32,
            units.count as u32,
            (num_sequences * num_kv_heads) as u32,
        ],
        block: THREADS,
        shared_bytes: layout.shared_bytes as u32,
        cluster: 1,
    };
    let combine = Launch {
        kernel: format!("tree_attention_combine_{name}_hd{head_dim}"),
        grid: [max_rows as u32, num_q_heads as u32, num_sequences as u32],
        block: head_dim as u32,
        shared_bytes: 0,
        cluster: 1,
    };
    let attention = if dtype == DType::F32 { attention } else { attention.with_units_in_clusters(device)? };
    let is_whole = units.count == 1 || attention.cluster > 1;
    let launches = if is_whole { vec![attention] } else { vec![attention, combine] };
    for Launch { kernel, grid, block, shared_bytes, cluster } in launches {
        let launch_args = LaunchArgs::new().overlapping().in_clusters([1, cluster, 1]).pod(&params);
        // SAFETY: the one argument is laid out as the kernels' TreeAttentionParams; shapes, head sizes and the workspace
        // are checked above. The caller's device arrays must keep to their contract: rows ascending and at most
        // max_rows a sequence, pages inside the cache, at most max_kv_len keys a row. Written: out and workspace.
        unsafe { device.launch(&kernel, grid, [block, 1, 1], shared_bytes, &launch_args)? };
    }
    Ok(())
}

/// Largest grid size in y and z.
const MAX_GRID_YZ: usize = 65535;

/// A kernel and its geometry.
struct Launch {
    kernel: String,
    grid: [u32; 3],
    block: u32,
    shared_bytes: u32,
    /// Blocks of a cluster, along y; 1: none.
    cluster: u32,
}

impl Launch {
    /// The same with all units of a row in a cluster, where they merge their states in shared memory, which saves a launch behind this one; where
    /// so many can be a cluster, and all CTAs run at once: what a cluster has no work for keeps its place until the others are done.
    fn with_units_in_clusters(self, device: &Device) -> Result<Self> {
        let [tiles, units, heads] = self.grid;
        let cluster = units.next_power_of_two();
        let grid = [tiles, cluster, heads];
        let at_once = grid.iter().map(|&side| side as usize).product::<usize>() <= MAX_CLUSTERED_CTAS;
        if units == 1 || cluster as usize > MAX_CLUSTER || !at_once {
            return Ok(self);
        }
        let (threads, shared_bytes) = (self.block, self.shared_bytes);
        let launch = ClusterLaunch { grid, threads, shared_bytes, cluster: [1, cluster, 1] };
        Ok(if device.runs_clusters(&self.kernel, launch)? { Self { grid, cluster, ..self } } else { self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_grow_with_the_pass() {
        let units = |splits_each, count, partials| Units { splits_each, count, partials };
        let choose = |row_ctas, heads, max_kv_len| Units::choose(row_ctas, heads, max_kv_len, None);
        // 32 q heads on 8 kv heads
        assert_eq!(choose(8, 32, 256), units(1, 1, 0));
        assert_eq!(choose(8, 32, 4096), units(1, 16, 16));
        assert_eq!(choose(8, 32, 131072), units(8, 64, 64));
        assert_eq!(choose(32, 60 * 32, 8192), units(8, 4, 4));
        assert_eq!(choose(32, 60 * 32, 16384), units(8, 8, 8));
        assert_eq!(choose(512, 64 * 32, 4096), units(8, 2, 2)); // 64 sequences
        assert_eq!(choose(128, 256 * 32, 2048), units(8, 1, 0)); // a prefill chunk
        assert_eq!(choose(128, 256 * 32, 65536), units(256, 1, 1));
    }

    #[test]
    fn the_workspace_fits_every_smaller_pass() {
        for (max_rows, heads, max_kv_len) in [(1, 4, 700), (64, 32, 5000), (256, 32, 40_000), (512, 8, 2049)]
        {
            let len = workspace_len(max_rows, heads, 128, max_kv_len);
            for rows in (1..=max_rows).step_by(3) {
                for kv_len in (0..=max_kv_len).step_by(97).chain([max_kv_len]) {
                    for (row_ctas, window) in [(1, None), (8, Some(64)), (200, None), (3000, Some(4096))] {
                        let needed = Units::choose(row_ctas, rows * heads, kv_len, window).partials
                            * rows
                            * heads
                            * 130;
                        assert!(needed <= len, "{rows} rows, {kv_len} keys: {needed} > {len}");
                    }
                }
            }
        }
        assert_eq!(workspace_len(256, 32, 128, 256), 0);
    }

    #[test]
    fn a_window_leaves_few_busy_units() {
        let splits_each = |window| Units::choose(8, 32, 131_072, window).splits_each;
        assert_eq!([None, Some(131_072), Some(4096)].map(splits_each), [8, 8, 1]);
    }

    #[test]
    fn layouts_fit_the_smallest_shared_memory() {
        for head_dim in [32, 64, 96, 128] {
            for packed_rows in [1, 16, 17, 1024] {
                let layout = layout(TensorCoreFamily::Mma, DType::Bf16, head_dim, packed_rows);
                assert!(layout.shared_bytes + 3 * 1024 <= 99 * 1024);
                assert_eq!(layout.packed_rows, if packed_rows <= 16 { 16 } else { 64 });
            }
        }
    }

    /// A multiprocessor of Hopper has 228 KB, of which each CTA takes one more, and up to two KB are what the kernel itself declares before a
    /// boundary of 1024 bytes: at head_dim 128 one.
    #[test]
    fn two_ctas_of_wgmma_share_a_multiprocessor() {
        for (head_dim, declared) in [(32, 2), (64, 2), (96, 2), (128, 1)] {
            let layout = layout(TensorCoreFamily::Wgmma, DType::Bf16, head_dim, 1);
            assert!(2 * (layout.shared_bytes + (declared + 1) * 1024) <= 228 * 1024, "head_dim {head_dim}");
        }
    }
}
