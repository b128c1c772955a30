//! Launch wrappers of `kernels/control_tree.cu` and `kernels/control_scan.cu`: the tree controller on the device. The kernels
//! take the decisions of [`DraftRound`], bit for bit; the data model stands at the head of `kernels/control.cuh`.
//!
//! ```text
//! control.upload(round)?;            // the plan, the costs and the curves of a round that has begun
//! control.begin()?;
//! loop {                             // as often as the plan has levels; nothing is read back
//!     control.frontier()?;           // then draft_frontier, the drafter's pass, draft_topk
//!     control.extend(&tokens, &logp)?;
//!     control.select()?;
//! }
//! control.pack()?;
//! ```

mod layout;

pub use layout::{ControlLevel, ControlNode, ControlSelection, RoundState, SequenceState};
use layout::{ControlParams, PlanWriter};

use super::draft::{MAX_RUNS, MAX_TOP_K};
use super::shape::Dims;
use super::verify::MAX_NODES;
use crate::control::DraftRound;
use crate::device::{DType, Device, LaunchArgs, PinnedBuffer, Tensor};
use crate::error::{Error, Result};

/// Most sequences of a batch.
pub const MAX_SEQUENCES: usize = 256;
/// Most drafter passes of a round.
pub const MAX_LEVELS: usize = 256;
/// Most keys that a block sorts in shared memory: twice 12 KB, beside 22 KB of its other variables within the 48 KB that need no opt-in.
const MAX_SORT_CAPACITY: usize = 1536;

/// Sizes that no round may exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlLimits {
    /// Sequences of a batch, at most [`MAX_SEQUENCES`].
    pub sequences: usize,
    /// Children of a node, at most [`MAX_TOP_K`].
    pub top_k: usize,
    /// Catch-up rows of the first drafter pass beyond the roots' own, over the batch.
    pub backlog: usize,
    /// Threads of a block, a multiple of 32 up to 1024. No result depends on it.
    pub block: usize,
    /// Keys sorted in shared memory, at most 1536; longer lists are sorted in device memory. No result depends on it.
    pub sort_capacity: usize,
}

/// The controller's device memory, and its launches. B sequences, R rows of a drafter pass, T target rows.
pub struct ControlRound {
    device: Device,
    limits: ControlLimits,
    plan: Tensor,
    staged: PinnedBuffer<u8>,
    bytes: Vec<u8>,
    /// U8 `[1, 80]`: a [`RoundState`].
    pub state: Tensor,
    /// I32 `[B, 4]`: [`SequenceState`]s.
    pub sequence_state: Tensor,
    /// I32 `[B, nodes, 13]`: [`ControlNode`]s, each sequence's root first.
    pub pool: Tensor,
    /// I32 `[R, 4]`: [`FrontierRow`](super::draft::FrontierRow)s, grouped by sequence, best first in each; a root has candidate, parent
    /// and run -1.
    pub frontier: Tensor,
    /// I32 `[R]`: pool node of each row.
    pub frontier_node: Tensor,
    /// I32 `[B + 1]`: first row of each sequence.
    pub frontier_start: Tensor,
    /// U8 `[256, 24]`: [`ControlLevel`]s of the round.
    pub levels: Tensor,
    /// U64 `[B * 255]`: the nodes that could be verified, by path probability, as sort keys.
    pub kept: Tensor,
    kept_of: Tensor,
    keys: [Tensor; 2],
    /// I32 `[B + 1]`: first target row of each sequence.
    pub seq_start: Tensor,
    /// I32 `[T]`: tokens of the packed trees.
    pub tree_tokens: Tensor,
    /// I32 `[T]`: parent's place in its tree; -1 for the root.
    pub tree_parents: Tensor,
    /// I32 `[T]`: edges from the root.
    pub tree_depths: Tensor,
    /// U64 `[T, 4]`: bits over the places of a node's ancestors, its own included.
    pub tree_ancestors: Tensor,
    /// I32 `[T]`: pool node of each tree node.
    pub tree_nodes: Tensor,
}

impl ControlRound {
    /// Memory for rounds within `limits`.
    ///
    /// # Errors
    /// [`Error::Shape`] if a limit is out of range; out of device memory.
    pub fn new(device: &Device, limits: ControlLimits) -> Result<Self> {
        let dims = Dims::new("control");
        for (name, value, low, high) in [
            ("sequences", limits.sequences, 1, MAX_SEQUENCES),
            ("top_k", limits.top_k, 1, MAX_TOP_K),
            ("backlog", limits.backlog, 0, 1 << 20),
            ("block", limits.block, 32, 1024),
            ("sort_capacity", limits.sort_capacity, 0, MAX_SORT_CAPACITY),
        ] {
            dims.require((low..=high).contains(&value), name, || {
                (format!("{low} to {high}"), format!("{value}"))
            })?;
        }
        dims.require(limits.block.is_multiple_of(32), "block", || {
            ("a multiple of 32".into(), format!("{}", limits.block))
        })?;
        let sequences = limits.sequences;
        // Each sequence runs its root and as many nodes as there are slots; all at once at most.
        let rows = sequences * MAX_RUNS;
        let stride = 1 + (1 + MAX_RUNS) * limits.top_k;
        let kept = sequences * (MAX_NODES - 1);
        let scratch = (kept + rows * limits.top_k).max(sequences * stride);
        let tokens = sequences * MAX_NODES;
        let plan_bytes = PlanWriter::most_bytes(sequences, limits.backlog);
        let ints = |shape: &[usize]| Tensor::uninit(device, DType::I32, shape);
        let keys = |len| Tensor::uninit(device, DType::U64, &[len]);
        let bytes = |shape: &[usize]| Tensor::uninit(device, DType::U8, shape);
        Ok(Self {
            device: device.clone(),
            limits,
            plan: bytes(&[plan_bytes])?,
            staged: PinnedBuffer::new(device, plan_bytes)?,
            bytes: Vec::with_capacity(plan_bytes),
            state: bytes(&[1, size_of::<RoundState>()])?,
            sequence_state: ints(&[sequences, size_of::<SequenceState>() / 4])?,
            pool: ints(&[sequences, stride, size_of::<ControlNode>() / 4])?,
            frontier: ints(&[rows, 4])?,
            frontier_node: ints(&[rows])?,
            frontier_start: ints(&[sequences + 1])?,
            levels: bytes(&[MAX_LEVELS, size_of::<ControlLevel>()])?,
            kept: keys(kept)?,
            kept_of: keys(sequences * MAX_NODES)?,
            keys: [keys(scratch)?, keys(scratch)?],
            seq_start: ints(&[sequences + 1])?,
            tree_tokens: ints(&[tokens])?,
            tree_parents: ints(&[tokens])?,
            tree_depths: ints(&[tokens])?,
            tree_ancestors: Tensor::uninit(device, DType::U64, &[tokens, 4])?,
            tree_nodes: ints(&[tokens])?,
        })
    }

    /// Most candidates of a round: what the tensors given to [`extend`](Self::extend) must hold.
    pub fn max_candidates(limits: &ControlLimits) -> usize {
        limits.sequences * (1 + MAX_RUNS) * limits.top_k
    }

    /// Starts copying what `round`, just begun, is to be executed with: plan, costs, gains, calibration. The next call must wait
    /// until the device has passed this point.
    ///
    /// # Errors
    /// [`Error::Input`] where the plan has a rule that these kernels do not know, a floor or weighted sequences, or where the round
    /// exceeds the limits.
    pub fn upload(&mut self, round: &DraftRound) -> Result<()> {
        self.bytes.clear();
        PlanWriter::write(round, &self.limits, &mut self.bytes)?;
        let room = self.staged.as_slice().len();
        if self.bytes.len() > room {
            return Err(Error::Input(format!(
                "control: the tables of the round take {} bytes where {room} are reserved; raise the limit `backlog`",
                self.bytes.len()
            )));
        }
        self.staged.as_mut_slice()[..self.bytes.len()].copy_from_slice(&self.bytes);
        self.staged.write_to(&self.plan, self.bytes.len())
    }

    /// Resets the pools and the state of the round.
    ///
    /// # Errors
    /// The driver refuses the launch, as for all that follow.
    pub fn begin(&self) -> Result<()> {
        self.launch("control_begin", 1, 0, None)
    }

    /// Chooses the rows of the next drafter pass; none when drafting is over.
    ///
    /// # Errors
    /// As for [`begin`](Self::begin).
    pub fn frontier(&self) -> Result<()> {
        self.launch("control_frontier", 1, self.sort_bytes(), None)
    }

    /// Adds the children that the drafter has brought for the frontier. `tokens` I32 and `logp` F32 `[P]` hold the candidates of the
    /// whole round, in drafted order.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are smaller than [`max_candidates`](Self::max_candidates) or of another type.
    pub fn extend(&self, tokens: &Tensor, logp: &Tensor) -> Result<()> {
        let mut dims = Dims::new("control_extend");
        dims.dense("tokens", tokens, DType::I32, &["P"])?;
        dims.dense("logp", logp, DType::F32, &["P"])?;
        let (least, got) = (Self::max_candidates(&self.limits), dims.get("P"));
        dims.require(got >= least, "tokens", || (format!("P of at least {least}"), format!("{got}")))?;
        self.launch("control_extend", self.limits.sequences, 0, Some((tokens, logp)))
    }

    /// Takes the newest nodes into the verification scan.
    ///
    /// # Errors
    /// As for [`begin`](Self::begin).
    pub fn select(&self) -> Result<()> {
        self.launch("control_select", 1, self.sort_bytes(), None)
    }

    /// Packs the chosen nodes, one tree a sequence, and completes the selection; once a round.
    ///
    /// # Errors
    /// As for [`begin`](Self::begin).
    pub fn pack(&self) -> Result<()> {
        self.launch("control_pack", self.limits.sequences, self.sort_bytes(), None)
    }

    fn sort_bytes(&self) -> usize {
        2 * size_of::<u64>() * self.limits.sort_capacity
    }

    fn launch(
        &self,
        kernel: &str,
        grid: usize,
        shared_bytes: usize,
        candidates: Option<(&Tensor, &Tensor)>,
    ) -> Result<()> {
        let params = ControlParams {
            plan: self.plan.ptr(),
            tokens: candidates.map_or(0, |(tokens, _)| tokens.ptr()),
            logp: candidates.map_or(0, |(_, logp)| logp.ptr()),
            buffers: [
                &self.state,
                &self.sequence_state,
                &self.pool,
                &self.frontier,
                &self.frontier_node,
                &self.frontier_start,
                &self.levels,
                &self.kept,
                &self.kept_of,
                &self.keys[0],
                &self.keys[1],
                &self.seq_start,
                &self.tree_tokens,
                &self.tree_parents,
                &self.tree_depths,
                &self.tree_ancestors,
                &self.tree_nodes,
            ]
            .map(Tensor::ptr),
            pool_stride: self.pool.dim(1) as i32,
            sort_capacity: self.limits.sort_capacity as i32,
        };
        let args = LaunchArgs::new().pod(&params);
        let (grid, block) = ([grid as u32, 1, 1], [self.limits.block as u32, 1, 1]);
        // SAFETY: the struct has the fields of ControlParams in order. Every index is bounded by the sizes that `new` derives from
        // the limits, and `upload` refuses plans beyond them: at most MAX_RUNS slots a sequence, `top_k` children of each, 255 kept.
        // The caller owns the order of calls. Writes the buffers of `self` only.
        unsafe { self.device.launch(kernel, grid, block, shared_bytes as u32, &args) }
    }
}
