//! [`Candidates`]: what a round knows on the device of the children that its drafter has brought, and of those it went on to run.

use crate::control::MAX_TOP_K;
use crate::device::{DType, Device, Tensor};
use crate::drafter::Scores;
use crate::error::Result;
use crate::kernels::draft::{
    DraftFrontierArgs, DraftTopkArgs, HostWords, MAX_RUNS, RunTables, draft_frontier, draft_topk,
};
use crate::kernels::mailbox::Mailbox;
use crate::kv_cache::{KvCache, PAGE_SIZE};
use crate::model::Pass;

/// Candidates and runs of a round; `kernels/draft.cu` explains both.
pub(super) struct Candidates {
    device: Device,
    /// Row by row as the drafter brought them: i32 tokens; f32 log-probabilities of themselves and of their paths.
    tokens: Tensor,
    logp: Tensor,
    path_logp: Tensor,
    used: usize,
    /// Log-probability of the path to the node of each row of the latest pass, f32 `[rows]`, and to roots, f32 `[slots]`: these are certain.
    parent_logp: Tensor,
    root_logp: Tensor,
    /// Runs by (slot, run): ancestors u64 `[slots, MAX_RUNS, 4]`, feature rows i32 `[slots, MAX_RUNS]`.
    run_ancestors: Tensor,
    run_feature_row: Tensor,
    row_run: Tensor,
    /// Children of the latest pass.
    children: Mailbox,
}

impl Candidates {
    /// Room for rounds of so many sequences and, beside their roots, so many rows, in passes that are filled up to multiples of `tread`.
    pub fn new(device: &Device, (max_rows, tread): (usize, usize), max_sequences: usize) -> Result<Self> {
        // What fills a pass up has children, too, whose places those of the next pass take.
        let max_candidates = (max_sequences + max_rows + tread) * MAX_TOP_K;
        let max_width = max_rows.max(max_sequences).next_multiple_of(tread);
        let uninit = |dtype, shape: &[usize]| Tensor::uninit(device, dtype, shape);
        // Zeroed: the start-up sweep runs candidates that no pass has brought.
        let zeros = |dtype, len: usize| Tensor::zeros(device, dtype, &[len]);
        Ok(Self {
            tokens: zeros(DType::I32, max_candidates)?,
            logp: uninit(DType::F32, &[max_candidates])?,
            path_logp: zeros(DType::F32, max_candidates)?,
            used: 0,
            parent_logp: uninit(DType::F32, &[max_width])?,
            root_logp: zeros(DType::F32, max_width)?,
            run_ancestors: uninit(DType::U64, &[max_sequences, MAX_RUNS, 4])?,
            run_feature_row: uninit(DType::I32, &[max_sequences, MAX_RUNS])?,
            row_run: uninit(DType::I32, &[max_width])?,
            children: Mailbox::new(device, 2 * max_width * MAX_TOP_K)?,
            device: device.clone(),
        })
    }

    /// Begins a round.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Has the device fetch the description of a pass of open rows and fill the row arrays. Its launch depends on the pass's shape alone.
    pub fn describe_rows(&self, pass: &Pass, kv: &KvCache) -> Result<()> {
        let (rows, slots) = (0..pass.width(), 0..pass.num_sequences());
        // The pair of a node at depth d sits one position before the node's own: the root's children at its position.
        let prefix_len = pass.prefix_len();
        let [src, out] = &pass.staged();
        draft_frontier(
            &self.device,
            DraftFrontierArgs {
                words: Some(HostWords { src, out }),
                frontier: &pass.open_rows(),
                pool_tokens: &self.tokens,
                pool_path_logp: &self.path_logp,
                first_position: &prefix_len,
                prefix_len: &prefix_len,
                page_table: &kv.page_table(slots.end),
                page_size: PAGE_SIZE,
                root_feature_row: &pass.root_outputs(),
                moves: &pass.outputs(),
                runs: RunTables {
                    ancestors: &self.run_ancestors.rows(slots.clone()),
                    feature_row: &self.run_feature_row.rows(slots),
                },
                tokens: &pass.tokens(),
                positions: &pass.positions(),
                slots: &pass.slots(),
                ancestors: &pass.ancestors(),
                parent_logp: &self.parent_logp.rows(rows.clone()),
                feature_row: &pass.links(),
                row_run: &self.row_run.rows(rows),
            },
        )
    }

    /// Expects `top_k` children of each of the `rows` rows of a pass whose scores are of `width` rows: what [`Candidates::append`] has to know
    /// of them, on the device.
    pub fn expect(&mut self, (rows, width): (usize, usize), top_k: usize) -> [i32; 2] {
        let first = self.used;
        // A kernel writes there by what it is told.
        assert!(
            first + width * top_k <= self.path_logp.dim(0),
            "a round of so many candidates was not planned for"
        );
        self.used += rows * top_k;
        [first as i32, self.children.expect(2 * width * top_k)]
    }

    /// Appends the `top_k` likeliest children of every row of `scores`, of roots or of the open rows described last, to the candidates, and brings
    /// them to the host. Its launch depends on the number of rows alone; `call` is what [`Candidates::expect`] said.
    pub fn append(
        &self,
        scores: &Scores,
        at_roots: bool,
        d2t: Option<&Tensor>,
        (top_k, call): (usize, &Tensor),
    ) -> Result<()> {
        let width = scores.logits.dim(0);
        let children = |all: &Tensor| {
            let rows = all.dim(0) / top_k;
            all.rows(0..rows * top_k).reshape(&[rows, top_k])
        };
        let parent_logp = if at_roots { &self.root_logp } else { &self.parent_logp };
        draft_topk(
            &self.device,
            DraftTopkArgs {
                logits: &scores.logits,
                digests: &scores.digests,
                d2t,
                parent_logp: &parent_logp.rows(0..width),
                k: top_k,
                tokens: &children(&self.tokens),
                logp: &children(&self.logp),
                path_logp: &children(&self.path_logp),
                post: Some(self.children.children_post((width, top_k), call)),
            },
        )
    }

    /// Waits for the children expected last: tokens and log-probabilities, `top_k` a row, of rows that filled the pass up behind all others.
    pub fn read(&self) -> Result<(&[i32], &[f32])> {
        self.children.wait_children()
    }
}
