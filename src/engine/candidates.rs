//! [`Candidates`]: what a round knows on the device of the children that its drafter has brought, and of those it went on to run.

use crate::control::MAX_TOP_K;
use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use crate::kernels::draft::{
    DraftFrontierArgs, DraftTopkArgs, MAX_RUNS, RunTables, draft_frontier, draft_topk, topk_workspace,
};
use crate::kernels::mailbox::Mailbox;
use crate::kernels::slices::SliceWorkspace;
use crate::kv_cache::{KvCache, PAGE_SIZE};
use crate::model::Pass;

/// Candidates and runs of a round; `kernels/draft.cu` explains both.
pub(super) struct Candidates {
    device: Device,
    /// Row by row as the drafter brought them: i32 tokens, and behind those of the latest pass the f32 log-probabilities of its children, so
    /// that they are read as one; f32.
    tokens: Tensor,
    path_logp: Tensor,
    used: usize,
    /// Log-probability of the path to the node of each row of the latest pass, f32 `[rows]`, and to roots, f32 `[slots]`: these are certain.
    parent_logp: Tensor,
    root_logp: Tensor,
    /// Runs by (slot, run): ancestors u64 `[slots, MAX_RUNS, 4]`, feature rows i32 `[slots, MAX_RUNS]`.
    run_ancestors: Tensor,
    run_feature_row: Tensor,
    row_run: Tensor,
    workspace: SliceWorkspace,
    /// Children of the latest pass.
    children: Mailbox,
}

impl Candidates {
    /// Room for rounds of so many sequences and, beside their roots, so many rows, each of `vocab_size` logits.
    pub fn new(device: &Device, max_rows: usize, max_sequences: usize, vocab_size: usize) -> Result<Self> {
        let max_candidates = (max_sequences + max_rows) * MAX_TOP_K;
        let uninit = |dtype, shape: &[usize]| Tensor::uninit(device, dtype, shape);
        // Zeroed: the start-up sweep runs candidates that no pass has brought.
        let zeros = |dtype, len: usize| Tensor::zeros(device, dtype, &[len]);
        Ok(Self {
            tokens: zeros(DType::I32, max_candidates + max_rows * MAX_TOP_K)?,
            path_logp: zeros(DType::F32, max_candidates)?,
            used: 0,
            parent_logp: uninit(DType::F32, &[max_rows])?,
            root_logp: zeros(DType::F32, max_sequences)?,
            run_ancestors: uninit(DType::U64, &[max_sequences, MAX_RUNS, 4])?,
            run_feature_row: uninit(DType::I32, &[max_sequences, MAX_RUNS])?,
            row_run: uninit(DType::I32, &[max_rows])?,
            workspace: topk_workspace(device, max_rows, vocab_size, MAX_TOP_K)?,
            children: Mailbox::new(device, 2 * max_rows * MAX_TOP_K)?,
            device: device.clone(),
        })
    }

    /// Begins a round.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Fills the row arrays of a pass of open rows, on the device. Its launch depends on the pass's shape alone.
    pub fn describe_rows(&self, pass: &Pass, kv: &KvCache) -> Result<()> {
        let (rows, slots) = (0..pass.width(), 0..pass.num_sequences());
        // The pair of a node at depth d sits one position before the node's own: the root's children at its position.
        let prefix_len = pass.prefix_len();
        draft_frontier(
            &self.device,
            DraftFrontierArgs {
                frontier: &pass.open_rows(),
                pool_tokens: &self.tokens.rows(0..self.path_logp.dim(0)),
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

    /// Scores the `top_k` likeliest children of every row of `logits`, of roots or of the open rows described last, appends them to the
    /// candidates and starts reading them back.
    pub fn append(
        &mut self,
        logits: &Tensor,
        at_roots: bool,
        d2t: Option<&Tensor>,
        top_k: usize,
    ) -> Result<()> {
        let rows = logits.dim(0);
        let count = rows * top_k;
        let new = self.used..self.used + count;
        let both = self.tokens.rows(new.start..new.end + count);
        let shape = [rows, top_k];
        let tokens = both.rows(0..count).reshape(&shape);
        let logp = both.rows(count..2 * count).retype(DType::F32, &shape);
        let path_logp = self.path_logp.rows(new.clone()).reshape(&shape);
        self.used = new.end;
        let parent_logp = if at_roots { &self.root_logp } else { &self.parent_logp };
        draft_topk(
            &self.device,
            DraftTopkArgs {
                logits,
                d2t,
                parent_logp: &parent_logp.rows(0..rows),
                k: top_k,
                tokens: &tokens,
                logp: &logp,
                path_logp: &path_logp,
                workspace: &self.workspace,
            },
        )?;
        self.children.post(&both, 2 * count)
    }

    /// Waits for the children appended last: tokens and log-probabilities, `top_k` a row.
    pub fn read(&self) -> Result<(&[i32], &[f32])> {
        self.children.wait_children()
    }
}
