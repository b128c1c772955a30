//! [`DraftRound`]: the executor. It interprets a [`Plan`] level by level: which nodes to run through the drafter,
//! and which of the drafted nodes to verify. The CUDA executor must match it bit for bit.
//!
//! ```text
//! while let Some(rows) = round.next_level() {   // rows of one drafter pass, grouped by sequence
//!     let (tokens, logps) = drafter.run(rows);   // top_k children a row, row-major
//!     round.add_level(&tokens, &logps);
//! }
//! let trees = round.select();                    // one packed tree a sequence, for the target
//! ```
#![forbid(unsafe_code)]

mod executor;
mod frontier;
mod pack;
mod selection;
pub mod stop;

use super::acceptance::Calibration;
use super::controller::SequenceView;
use super::cost::{CostModel, CostTables};
use super::gain::GainTable;
use super::plan::{Plan, WidthRule};
use super::pool::{CandidatePool, Child, PoolNode, sound_logp};
use super::scan::{self, Bounds, Candidate, Selection, scan_verification};
use crate::tree::{AncestorWords, DraftTree, MAX_NODES};

/// One row of a drafter pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FrontierRow {
    /// Index of the sequence in the round's batch.
    pub sequence: u32,
    /// Node of that sequence's pool; 0 = root, whose logits come from the drafter's catch-up pass.
    pub node: u32,
    /// The node's token.
    pub token: i32,
    /// The node's depth; its position is that of the root plus the depth.
    pub depth: u16,
    /// Round-wide row (counted over all passes of the round) that ran the parent, whose feature feeds this row; [`NONE`](super::NONE) for the
    /// root.
    pub parent_row: u32,
    /// [`PoolNode::candidate`](super::PoolNode::candidate) of the node.
    pub candidate: u32,
    /// The parent's `slot`; [`NONE`](super::NONE) where the parent is the root.
    pub parent_slot: u32,
    /// The node's place among its sequence's drafter rows of this round, root excluded; [`NONE`](super::NONE) for the root.
    pub slot: u32,
    /// Bits over those places: the node's ancestors and itself; the root and the prefix are always visible.
    pub ancestors: AncestorWords,
    /// Sum of log-probabilities from the root.
    pub path_logp: f32,
}

/// The tree of one sequence for the target pass.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectedTree {
    /// Root, then the chosen nodes, parents before children, the likeliest path first.
    pub tree: DraftTree,
    /// For each node of `tree` its node in the pool.
    pub pool_nodes: Vec<u32>,
}

/// What the executor must know of a sequence.
#[derive(Clone, Debug)]
pub(crate) struct RoundSequence {
    pub root_token: i32,
    pub drafts: bool,
    /// Depth beyond which a node could not be emitted, or is not to be drafted.
    pub max_depth: usize,
    /// Tokens that may still be emitted; no more than the last of them are counted.
    pub left: usize,
    /// Which of the round's calibrations is its own: greedy, sampled.
    pub sampled: bool,
    pub odds: f32,
    /// Rows of the drafter's catch-up pass, the root's own included.
    pub catch_up_rows: usize,
    /// What its tokens count in the scans; 1 on average over the batch.
    pub weight: f32,
    /// Whether the stop rule has ended its drafting.
    pub stopped: bool,
}

impl RoundSequence {
    /// Whether `node` may have children.
    fn may_deepen(&self, node: &PoolNode) -> bool {
        !self.stopped && usize::from(node.depth) < self.max_depth
    }
}

/// One drafter pass as it was run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevelRecord {
    /// First round-wide row of the pass.
    pub first_row: usize,
    /// Rows of the pass; the catch-up rows included at level 0.
    pub rows: usize,
    /// Price of a place in the target pass when the level was chosen.
    pub price: f32,
    /// Predicted time.
    pub ns: u64,
}

/// A round being drafted.
#[derive(Debug)]
pub struct DraftRound {
    plan: Plan,
    pub(super) tables: CostTables,
    pub(super) gains: GainTable,
    /// Of greedy and of sampled sequences.
    pub(super) calibrations: [Calibration; 2],
    /// Whether these, the gains and the odds of sequences are those of this round.
    pub(super) is_equipped: bool,
    pub(super) sequences: Vec<RoundSequence>,
    pools: Vec<CandidatePool>,
    rows: Vec<FrontierRow>,
    levels: Vec<LevelRecord>,
    rows_run: usize,
    /// Candidates that the drafter has brought, kept or not.
    candidates_drafted: usize,
    /// Their tokens, where not all of them become nodes (width rule `Static`).
    candidate_tokens: Vec<i32>,
    /// Sums of the best path probabilities of each sequence (width rule `BestTree`), fixed point.
    best_sums: Vec<u64>,
    /// Levels after which the stop rule had to ask the host.
    host_syncs: usize,
    max_rows: usize,
    /// Sealed nodes that the policy would have run.
    rows_refused: usize,
    /// Predicted time of what has been run: passes and overhead.
    sunk_ns: u64,
    /// The verification scan after the newest level, for the next width and for the final selection.
    selection: Selection,
    /// Time and expected tokens of the tree that the per-node rule has admitted.
    admitted: Selection,
    /// The drafted nodes that could be verified, sorted by path probability (selection rule `Scan`).
    candidates: Vec<Candidate>,
    /// What a sequence's last candidate is worth, and whether it has as many as could be verified: then nothing that is worth less comes in.
    entry_worths: Vec<(f32, bool)>,
    // Scratch.
    logps: Vec<f32>,
    estimates: Vec<f32>,
    newest: Vec<Candidate>,
    frontier: Vec<Candidate>,
    sort_scratch: Vec<Candidate>,
    counts: Vec<u32>,
    links: Vec<pack::Links>,
    selected: Vec<SelectedTree>,
    /// Whether `selected` is of this round.
    is_selected: bool,
}

impl DraftRound {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan,
            tables: CostTables::default(),
            gains: GainTable::default(),
            calibrations: [Calibration::prior(), Calibration::prior()],
            is_equipped: true,
            sequences: Vec::new(),
            pools: Vec::new(),
            rows: Vec::new(),
            levels: Vec::new(),
            rows_run: 0,
            candidates_drafted: 0,
            candidate_tokens: Vec::new(),
            best_sums: Vec::new(),
            host_syncs: 0,
            max_rows: usize::MAX,
            rows_refused: 0,
            sunk_ns: 0,
            selection: Selection::default(),
            admitted: Selection::default(),
            candidates: Vec::new(),
            entry_worths: Vec::new(),
            logps: Vec::new(),
            estimates: Vec::new(),
            newest: Vec::new(),
            frontier: Vec::new(),
            sort_scratch: Vec::new(),
            counts: Vec::new(),
            links: Vec::new(),
            selected: Vec::new(),
            is_selected: false,
        }
    }

    /// A round of its own, outside any controller: every sequence drafts as `plan` says, whatever it costs, with the drafter's own
    /// probabilities for estimates.
    pub fn fixed(plan: Plan, sequences: &[SequenceView]) -> Self {
        let mut round = Self::new(plan.clone());
        round.sequences.extend(sequences.iter().map(|view| RoundSequence {
            root_token: view.root_token,
            drafts: plan.max_levels > 0 && view.max_depth > 0,
            max_depth: view.max_depth.min(plan.max_levels),
            left: view.max_depth,
            sampled: view.sampled,
            odds: 1.0,
            catch_up_rows: view.backlog + 1,
            weight: 1.0,
            stopped: false,
        }));
        let contexts = sequences.iter().map(|view| view.context_len);
        round.tables.freeze(&CostModel::unmeasured(), contexts, MAX_NODES, MAX_NODES);
        round.begin(plan, usize::MAX);
        round
    }

    /// Starts a round over `self.sequences` with `self.tables`; the caller has filled both.
    pub(super) fn begin(&mut self, plan: Plan, max_rows: usize) {
        self.plan = plan;
        self.max_rows = max_rows;
        let batch = self.sequences.len();
        self.pools.resize_with(batch.max(self.pools.len()), CandidatePool::default);
        for (pool, sequence) in self.pools.iter_mut().zip(&self.sequences) {
            pool.reset(sequence.root_token, sequence.weight);
        }
        self.rows.clear();
        self.levels.clear();
        self.rows_run = 0;
        self.rows_refused = 0;
        self.candidates_drafted = 0;
        self.candidate_tokens.clear();
        self.best_sums.clear();
        self.best_sums.resize(batch, 0);
        self.host_syncs = 0;
        self.candidates.clear();
        self.entry_worths.clear();
        self.entry_worths.resize(batch, (0.0, false));
        self.is_selected = false;
        self.sunk_ns = self.tables.overhead_ns;
        self.selection =
            scan_verification(&[], &self.tables, self.sunk_ns, Bounds::default(), &mut self.counts);
        self.admitted = self.selection;
    }

    /// Children that each row of [`next_level`](Self::next_level) must bring.
    pub fn top_k(&self) -> usize {
        self.plan.top_k
    }

    /// The rows of the next drafter pass, grouped by sequence, or `None` when drafting is over. At level 0 each drafting
    /// sequence has one row, its root, whose logits the drafter's catch-up pass provides.
    pub fn next_level(&mut self) -> Option<&[FrontierRow]> {
        self.rows.clear();
        self.apply_stop_rule();
        self.choose_frontier();
        self.emit_rows();
        if self.rows.is_empty() { None } else { Some(&self.rows) }
    }

    /// Takes the drafter's answer: `top_k` children for each of the rows last returned, row-major, likeliest first.
    ///
    /// # Panics
    /// If the lengths are not rows times top-k.
    pub fn add_level(&mut self, tokens: &[i32], logps: &[f32]) {
        self.add_known_level(tokens, logps, None);
    }

    /// As [`add_level`](Self::add_level); where the probabilities of acceptance given the parent's are known, they take the place
    /// of estimates.
    ///
    /// # Panics
    /// If the lengths are not rows times top-k.
    pub fn add_known_level(&mut self, tokens: &[i32], logps: &[f32], probs: Option<&[f32]>) {
        let top_k = self.plan.top_k;
        assert_eq!(tokens.len(), self.rows.len() * top_k, "one token per row and child");
        assert_eq!(logps.len(), tokens.len(), "one log-probability per token");
        for pool in &mut self.pools[..self.sequences.len()] {
            pool.begin_level();
        }
        // Estimates first, which do not wait for each other.
        self.logps.clear();
        self.logps.extend(logps.iter().map(|&logp| sound_logp(logp)));
        self.estimates.clear();
        match probs {
            Some(probs) => self.estimates.extend(probs.iter().map(|prob| prob.clamp(0.0, 1.0))),
            None => {
                debug_assert!(self.is_equipped, "estimates are made of what was learned");
                for (row, logps) in self.rows.iter().zip(self.logps.chunks_exact(top_k.max(1))) {
                    let sequence = &self.sequences[row.sequence as usize];
                    let calibration = &self.calibrations[usize::from(sequence.sampled)];
                    let depth = usize::from(row.depth) + 1;
                    calibration.q_all(depth, logps, sequence.odds, &mut self.estimates);
                }
            }
        }
        for (i, row) in self.rows.iter().enumerate() {
            let range = i * top_k..(i + 1) * top_k;
            let first_candidate = self.candidates_drafted + range.start;
            let brought = tokens[range.clone()].iter().zip(&self.logps[range.clone()]);
            let children = brought
                .zip(&self.estimates[range])
                .zip(first_candidate as u32..)
                .map(|(((&token, &logp), &q), candidate)| Child { candidate, token, logp, q });
            let pool = &mut self.pools[row.sequence as usize];
            let (parent, first) = (row.node as usize, pool.nodes().len());
            let WidthRule::Static(table) = &self.plan.width else {
                pool.push_children(parent, children);
                continue;
            };
            // Ranks ascend in the table as they do here: a node of the tree is the next of the pool or is not in it.
            let mut next = first - 1;
            let kept = children.enumerate().filter(|(rank, _)| {
                let entry = table.get(next);
                let is_kept =
                    entry.is_some_and(|entry| entry.parent == row.node && entry.rank as usize == *rank);
                next += usize::from(is_kept);
                is_kept
            });
            pool.push_children(parent, kept.map(|(_, child)| child));
        }
        self.candidates_drafted += tokens.len();
        if let WidthRule::Static(_) = self.plan.width {
            self.candidate_tokens.extend_from_slice(tokens);
        }
        self.rows.clear();
        self.take_newest();
    }

    /// Marks nodes of the newest level that cannot be run through the drafter: a replay has not recorded their children. They may
    /// still be verified. `is_sealed` gets the sequence and [`PoolNode::candidate`] of each.
    pub fn seal_newest(&mut self, is_sealed: impl Fn(usize, usize) -> bool) {
        for (sequence, pool) in self.pools[..self.sequences.len()].iter_mut().enumerate() {
            for node in pool.newest() {
                let candidate = pool.nodes()[node].candidate as usize;
                pool.nodes_mut()[node].sealed = is_sealed(sequence, candidate);
            }
        }
    }

    /// Chooses the nodes to verify and packs them, one tree per sequence of the batch, in its order.
    pub fn select(&mut self) -> &[SelectedTree] {
        let batch = self.sequences.len();
        self.mark_verified();
        self.is_selected = true;
        self.selected.truncate(batch);
        while self.selected.len() < batch {
            self.selected.push(SelectedTree { tree: DraftTree::new(0), pool_nodes: Vec::new() });
        }
        for ((pool, sequence), selected) in self.pools.iter().zip(&self.sequences).zip(&mut self.selected) {
            pack::pack(pool, sequence.root_token, selected, &mut self.frontier, &mut self.links);
        }
        &self.selected
    }

    /// The trees that [`select`](Self::select) has chosen in this round; none before it.
    pub fn selected(&self) -> &[SelectedTree] {
        if self.is_selected { &self.selected } else { &[] }
    }

    /// The plan being executed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How often in this round the host had to see a level before the next could start, because of a
    /// [`StopRule`](super::plan::StopRule): a device that decides by itself needs none of these waits, but cannot run such a rule.
    pub fn host_syncs(&self) -> usize {
        self.host_syncs
    }

    /// All tokens that the drafter proposed after `node`, by rank, also those that a static tree left out; none if the node was not
    /// run or the tree is not static.
    pub(super) fn proposed(&self, sequence: usize, node: usize) -> &[i32] {
        let pool = &self.pools[sequence];
        let Some(first) = pool.nodes()[pool.children(node)].first() else { return &[] };
        let top_k = self.plan.top_k;
        let row = first.candidate as usize / top_k * top_k;
        self.candidate_tokens.get(row..row + top_k).unwrap_or(&[])
    }

    pub(super) fn pools(&self) -> &[CandidatePool] {
        &self.pools[..self.sequences.len()]
    }

    /// Every node drafted for a sequence of the batch in this round.
    pub fn pool(&self, sequence: usize) -> &CandidatePool {
        &self.pools[sequence]
    }

    /// The drafter passes of this round.
    pub fn levels(&self) -> &[LevelRecord] {
        &self.levels
    }

    /// Nodes that the policy would have run, had they not been [sealed](Self::seal_newest).
    pub fn rows_refused(&self) -> usize {
        self.rows_refused
    }

    /// Sequences of the round.
    pub fn batch(&self) -> usize {
        self.sequences.len()
    }

    /// The selection's expected tokens, target rows and predicted time.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Tree-level speedup `S = (A / t) * (t_plain / B)` that the selection predicts, tokens counted by the weights of their sequences; 1
    /// for a plain round.
    pub fn speedup(&self) -> f32 {
        if self.levels.is_empty() {
            return 1.0;
        }
        let plain = scan::rate(self.sequences.len() as u64 * scan::ONE, self.tables.plain_ns);
        (self.selection.rate() / plain) as f32
    }
}
