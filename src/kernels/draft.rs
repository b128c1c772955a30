//! Launch wrappers of `kernels/draft.cu`: children of drafted nodes, choice of the next beam, inputs of the
//! next pass; [`digest`](super::digest) has that of digests. The data model (candidates, runs, frontier) is explained at the head of the kernel file.

use super::digest::{check_digests, num_digests};
use super::sampler::MAX_VOCAB_SIZE;
use super::shape::Dims;
use crate::device::{DType, Device, LaunchArgs, Tensor};
use crate::error::Result;

/// Most children of a node, and most candidates of a beam.
pub const MAX_TOP_K: usize = 32;
/// Most runs of a sequence in a round.
pub const MAX_RUNS: usize = 256;
/// Integers of a [`FrontierRow`].
const FRONTIER_FIELDS: usize = 4;

/// Arguments of [`draft_topk`].
pub struct DraftTopkArgs<'a> {
    /// F32 `[R, Vd]`, Vd < 2^18.
    pub logits: &'a Tensor,
    /// Their digests, as [`digest_buffer`](super::digest::digest_buffer) makes them.
    pub digests: &'a Tensor,
    /// I32 `[Vd]`: target id = draft id + offset; none where the ids are equal.
    pub d2t: Option<&'a Tensor>,
    /// F32 `[R]`: path log-probability of each row's own node; 0 for a root.
    pub parent_logp: &'a Tensor,
    /// Children a row, at most [`MAX_TOP_K`] and Vd.
    pub k: usize,
    /// Out, I32 `[P, k]`, P >= R: target ids, likeliest first.
    pub tokens: &'a Tensor,
    /// Out, F32 `[P, k]`: log-probability given the parent.
    pub logp: &'a Tensor,
    /// Out, F32 `[P, k]`: log-probability of the path.
    pub path_logp: &'a Tensor,
    /// Where among the outputs the children go, and the host to which they go, too; none: to the first rows, and nowhere else.
    pub post: Option<ChildrenPost<'a>>,
}

/// How children reach the host, in the launch that makes them.
pub struct ChildrenPost<'a> {
    /// I32 `[2]`: index of the first child among the outputs, and what the flag becomes when all are there. In device memory, so that a
    /// graph has its launch, whatever they are.
    pub call: &'a Tensor,
    /// Out, I32 `[2, R, k]` of the host: tokens, then the bits of the log-probabilities.
    pub words: Tensor,
    /// Out, I32 `[1]` of the host.
    pub flag: &'a Tensor,
    /// In and out, I32 `[1]`, 0 between launches.
    pub arrivals: &'a Tensor,
}

/// `DraftTopkParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DraftTopkParams {
    pointers: [u64; 11],
    vocab_size: i32,
    k: i32,
}

/// The `k` likeliest children of every row: log-softmax, then top-k, ties to the smaller draft id.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn draft_topk(device: &Device, args: DraftTopkArgs) -> Result<()> {
    let mut dims = Dims::new("draft_topk").fix("k", args.k);
    dims.dense("logits", args.logits, DType::F32, &["R", "Vd"])?;
    let (num_rows, vocab_size) = (dims.get("R"), dims.get("Vd"));
    check_digests(&dims, args.digests, num_rows, vocab_size)?;
    if let Some(d2t) = args.d2t {
        dims.dense("d2t", d2t, DType::I32, &["Vd"])?;
    }
    dims.dense("parent_logp", args.parent_logp, DType::F32, &["R"])?;
    dims.dense("tokens", args.tokens, DType::I32, &["P", "k"])?;
    dims.dense("logp", args.logp, DType::F32, &["P", "k"])?;
    dims.dense("path_logp", args.path_logp, DType::F32, &["P", "k"])?;
    if let Some(post) = &args.post {
        dims = dims.fix("1", 1).fix("2", 2);
        dims.dense("post.call", post.call, DType::I32, &["2"])?;
        dims.dense("post.words", &post.words, DType::I32, &["2", "R", "k"])?;
        dims.dense("post.flag", post.flag, DType::I32, &["1"])?;
        dims.dense("post.arrivals", post.arrivals, DType::I32, &["1"])?;
    }
    dims.require(vocab_size < MAX_VOCAB_SIZE, "logits", || {
        (format!("Vd < {MAX_VOCAB_SIZE}"), format!("Vd={vocab_size}"))
    })?;
    let most = MAX_TOP_K.min(vocab_size);
    dims.require((1..=most).contains(&args.k), "k", || (format!("1 to {most}"), format!("{}", args.k)))?;
    let room = dims.get("P");
    dims.require(num_rows <= room, "tokens", || (format!("at least {num_rows} rows"), format!("{room}")))?;
    if num_rows == 0 {
        return Ok(());
    }
    let post = args.post.as_ref();
    let pointers = [
        Some(args.logits),
        Some(args.digests),
        args.d2t,
        Some(args.parent_logp),
        post.map(|post| post.call),
        Some(args.tokens),
        Some(args.logp),
        Some(args.path_logp),
        post.map(|post| &post.words),
        post.map(|post| post.flag),
        post.map(|post| post.arrivals),
    ]
    .map(|tensor| tensor.map_or(0, Tensor::ptr));
    let params = DraftTopkParams { pointers, vocab_size: vocab_size as i32, k: args.k as i32 };
    let grid = [num_rows as u32, 1, 1];
    // SAFETY: the struct has the fields of DraftTopkParams in order; a block a row, so accesses to [R, ..] are in bounds by the checks above, and
    // those to [P, k] of rows from the first; the caller owns that post.call[0] leaves room for R * k behind it, and that the digests are of these
    // logits. Writes the outputs, the words and the flag of the host, and the arrivals, which end as 0.
    unsafe {
        device.launch(
            "draft_topk_f32",
            grid,
            [topk_threads(vocab_size), 1, 1],
            0,
            &LaunchArgs::new().overlapping().pod(&params),
        )
    }
}

/// Threads of a block of [`draft_topk`]: the result does not depend on them.
fn topk_threads(vocab_size: usize) -> u32 {
    match num_digests(vocab_size) {
        ..=32 => 32,
        33..=512 => 128,
        _ => 256,
    }
}

/// One candidate to be run in the next drafter pass: an entry of [`DraftFrontierArgs::frontier`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FrontierRow {
    /// Sequence of the batch; -1 for a row that only fills the pass up.
    pub sequence: i32,
    /// Flat index into the pool of candidates.
    pub candidate: i32,
    /// Run of its parent; -1 for the root.
    pub parent_run: i32,
    /// Its own run: ascending within the sequence's round, above all runs of earlier passes.
    pub run: i32,
}

/// Arguments of [`draft_beam`].
pub struct DraftBeamArgs<'a> {
    /// F32 `[B * rows_per_sequence, k]`: as [`draft_topk`] wrote it for the last level.
    pub path_logp: &'a Tensor,
    /// I32 `[B * rows_per_sequence]`: run of each of those rows; -1 for a root.
    pub row_run: &'a Tensor,
    /// In and out, I32 `[B]`: runs of the round so far; grows by the width.
    pub runs_used: &'a Tensor,
    /// Out, I32 `[B * width, 4]`: [`FrontierRow`]s, the likeliest of each sequence first.
    pub frontier: &'a Tensor,
    /// Candidates to choose for each sequence.
    pub width: usize,
}

/// Chooses each sequence's `width` likeliest candidates of the last level (ties: the smaller index) as the
/// next frontier.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn draft_beam(device: &Device, args: DraftBeamArgs) -> Result<()> {
    let mut dims = Dims::new("draft_beam").fix("4", FRONTIER_FIELDS);
    dims.dense("path_logp", args.path_logp, DType::F32, &["rows", "k"])?;
    dims.dense("row_run", args.row_run, DType::I32, &["rows"])?;
    dims.dense("runs_used", args.runs_used, DType::I32, &["B"])?;
    dims.dense("frontier", args.frontier, DType::I32, &["R", "4"])?;
    let (num_rows, k, num_sequences) = (dims.get("rows"), dims.get("k"), dims.get("B"));
    if num_sequences == 0 {
        return Ok(());
    }
    dims.require(num_rows % num_sequences == 0, "path_logp", || {
        (format!("the same number of rows for each of {num_sequences} sequences"), format!("{num_rows} rows"))
    })?;
    dims.require(dims.get("R") == num_sequences * args.width, "frontier", || {
        (format!("B * width = {} rows", num_sequences * args.width), format!("{} rows", dims.get("R")))
    })?;
    let rows_per_sequence = num_rows / num_sequences;
    let most = MAX_TOP_K.min(rows_per_sequence * k);
    dims.require((1..=most).contains(&args.width), "width", || {
        (format!("1 to {most}"), format!("{}", args.width))
    })?;
    let launch_args = LaunchArgs::new()
        .overlapping()
        .ptr(args.path_logp)
        .ptr(args.row_run)
        .ptr(args.runs_used)
        .ptr(args.frontier)
        .i32(rows_per_sequence)
        .i32(k)
        .i32(args.width);
    // SAFETY: arguments in the order of draft_beam; one warp a sequence; bounds by the checks above. Writes
    // `frontier` and `runs_used` only.
    unsafe { device.launch("draft_beam", [num_sequences as u32, 1, 1], [32, 1, 1], 0, &launch_args) }
}

/// What a round knows about its runs, by (sequence, run): written and read by [`draft_frontier`].
pub struct RunTables<'a> {
    /// U64 `[B, 256, 4]`: the runs that a run sees, its own included.
    pub ancestors: &'a Tensor,
    /// I32 `[B, 256]`: row of the feature buffer with its hidden output.
    pub feature_row: &'a Tensor,
}

/// Words that a kernel fetches from the host before it reads what they say.
pub struct HostWords<'a> {
    /// I32 `[n]`, usually [`crate::device::PinnedBuffer::mapped`]. They must stay as they are until the device has passed the launch.
    pub src: &'a Tensor,
    /// Out, I32 `[n]`.
    pub out: &'a Tensor,
}

/// Arguments of [`draft_frontier`].
pub struct DraftFrontierArgs<'a> {
    /// Fetched first, as by [`fetch_words`](crate::kernels::host_words::fetch_words): the arrays below that the host writes may lie there.
    pub words: Option<HostWords<'a>>,
    /// I32 `[R, 4]`: [`FrontierRow`]s. Parents belong to earlier passes.
    pub frontier: &'a Tensor,
    /// I32 `[P]`: target ids of the candidates.
    pub pool_tokens: &'a Tensor,
    /// F32 `[P]`: their path log-probabilities.
    pub pool_path_logp: &'a Tensor,
    /// I32 `[B]`: RoPE position of a child of the root.
    pub first_position: &'a Tensor,
    /// I32 `[B]`: drafter K/V rows before those of this round's runs.
    pub prefix_len: &'a Tensor,
    /// I32 `[B, max_pages]`.
    pub page_table: &'a Tensor,
    /// Tokens a page of the drafter's K/V.
    pub page_size: usize,
    /// I32 `[B]`: row of the feature buffer with the hidden output of the root's pair.
    pub root_feature_row: &'a Tensor,
    /// In and out.
    pub runs: RunTables<'a>,
    /// I32 `[R, 2]`: the row, and the row of the feature buffer to which its hidden output goes; that of a row that fills the pass
    /// up is not looked at.
    pub moves: &'a Tensor,
    /// Out, I32 `[R]`.
    pub tokens: &'a Tensor,
    /// Out, I32 `[R]`: RoPE positions.
    pub positions: &'a Tensor,
    /// Out, I32 `[R]`: K/V slots.
    pub slots: &'a Tensor,
    /// Out, U64 `[R, 4]`.
    pub ancestors: &'a Tensor,
    /// Out, F32 `[R]`: the row's own path log-probability, the parent's for its children.
    pub parent_logp: &'a Tensor,
    /// Out, I32 `[R]`: row of the feature buffer that the row reads.
    pub feature_row: &'a Tensor,
    /// Out, I32 `[R]`: run of each row, for [`draft_beam`].
    pub row_run: &'a Tensor,
}

/// `DraftFrontierParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DraftFrontierParams {
    pointers: [u64; 19],
    num_rows: i32,
    max_pages: i32,
    page_size: i32,
    num_words: i32,
}

/// Packs the inputs of the next drafter pass from a list of chosen candidates.
///
/// # Errors
/// [`crate::Error::Shape`] if sizes or dtypes do not fit.
pub fn draft_frontier(device: &Device, args: DraftFrontierArgs) -> Result<()> {
    let mut dims = Dims::new("draft_frontier").fix("4", FRONTIER_FIELDS).fix("2", 2).fix("256", MAX_RUNS);
    dims.dense("frontier", args.frontier, DType::I32, &["R", "4"])?;
    dims.dense("pool_tokens", args.pool_tokens, DType::I32, &["P"])?;
    dims.dense("pool_path_logp", args.pool_path_logp, DType::F32, &["P"])?;
    dims.dense("first_position", args.first_position, DType::I32, &["B"])?;
    dims.dense("prefix_len", args.prefix_len, DType::I32, &["B"])?;
    dims.dense("page_table", args.page_table, DType::I32, &["B", "max_pages"])?;
    dims.dense("root_feature_row", args.root_feature_row, DType::I32, &["B"])?;
    dims.dense("moves", args.moves, DType::I32, &["R", "2"])?;
    dims.dense("runs.ancestors", args.runs.ancestors, DType::U64, &["B", "256", "4"])?;
    dims.dense("runs.feature_row", args.runs.feature_row, DType::I32, &["B", "256"])?;
    dims.dense("tokens", args.tokens, DType::I32, &["R"])?;
    dims.dense("positions", args.positions, DType::I32, &["R"])?;
    dims.dense("slots", args.slots, DType::I32, &["R"])?;
    dims.dense("ancestors", args.ancestors, DType::U64, &["R", "4"])?;
    dims.dense("parent_logp", args.parent_logp, DType::F32, &["R"])?;
    dims.dense("feature_row", args.feature_row, DType::I32, &["R"])?;
    dims.dense("row_run", args.row_run, DType::I32, &["R"])?;
    dims.require(args.page_size > 0, "page_size", || ("at least 1".into(), "0".into()))?;
    if let Some(HostWords { src, out }) = args.words {
        dims.dense("words.src", src, DType::I32, &["n"])?;
        dims.dense("words.out", out, DType::I32, &["n"])?;
    }
    let num_rows = dims.get("R");
    let num_words = args.words.as_ref().map_or(0, |words| words.src.dim(0));
    if num_rows == 0 && num_words == 0 {
        return Ok(());
    }
    let word_pointers = args.words.map_or([0; 2], |HostWords { src, out }| [src, out].map(Tensor::ptr));
    let row_pointers = [
        args.frontier,
        args.pool_tokens,
        args.pool_path_logp,
        args.first_position,
        args.prefix_len,
        args.page_table,
        args.root_feature_row,
        args.moves,
        args.runs.ancestors,
        args.runs.feature_row,
        args.tokens,
        args.positions,
        args.slots,
        args.ancestors,
        args.parent_logp,
        args.feature_row,
        args.row_run,
    ]
    .map(Tensor::ptr);
    let mut pointers = [0; 19];
    pointers[..2].copy_from_slice(&word_pointers);
    pointers[2..].copy_from_slice(&row_pointers);
    let params = DraftFrontierParams {
        pointers,
        num_rows: num_rows as i32,
        max_pages: dims.get("max_pages") as i32,
        page_size: args.page_size as i32,
        num_words: num_words as i32,
    };
    // Rows are read when all words have come: a block waits for itself alone.
    let (grid, block) = match num_words {
        0 => (num_rows.div_ceil(64), 64),
        _ => (1, num_rows.max(num_words).next_multiple_of(32).min(1024)),
    };
    let grid = grid as u32;
    // SAFETY: the struct has the fields of DraftFrontierParams in order; rows are bounded by num_rows, words by num_words, the
    // shapes were checked above. The caller owns that the frontier's entries lie below B, P and 256, and that
    // the page table covers the runs. Writes the words, the run tables and the seven outputs only.
    unsafe {
        device.launch(
            "draft_frontier",
            [grid, 1, 1],
            [block as u32, 1, 1],
            0,
            &LaunchArgs::new().overlapping().pod(&params),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_kernels_layout() {
        assert_eq!(size_of::<DraftFrontierParams>(), 168);
        let row = FrontierRow { sequence: 1, candidate: 2, parent_run: 3, run: 4 };
        assert_eq!(bytemuck::cast::<_, [i32; 4]>(row), [1, 2, 3, 4]);
    }

    #[test]
    fn topk_params_have_the_kernels_layout() {
        assert_eq!(size_of::<DraftTopkParams>(), 96);
    }

    #[test]
    fn finalists_of_all_warps_fit() {
        for vocab_size in [1, 1024, 2048, 2049, 32_000, 32_769, 152_064, MAX_VOCAB_SIZE - 1] {
            let threads = topk_threads(vocab_size);
            assert!(threads / 32 * MAX_TOP_K as u32 <= 256 && threads <= 256, "{vocab_size}");
        }
    }
}
