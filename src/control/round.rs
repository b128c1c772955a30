//! [`DraftRound`]: the executor. It interprets a [`Plan`](super::Plan) level by level: which nodes to run through the drafter,
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

use super::acceptance::Calibration;
use super::cost::CostTables;
use super::gain::GainTable;
use super::policy::{Plan, SelectionRule, WidthRule};
use super::pool::{CandidatePool, NONE};
use super::scan::{self, Candidate, Selection, scan_verification, scan_width, sort_candidates};
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
    /// Round-wide row (counted over all passes of the round) that ran the parent, whose feature feeds this row; [`NONE`] for the
    /// root.
    pub parent_row: u32,
    /// The node's place among its sequence's drafter rows of this round, root excluded; [`NONE`] for the root.
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
pub(super) struct RoundSequence {
    pub root_token: i32,
    pub drafts: bool,
    /// Depth beyond which a node could not be emitted.
    pub max_depth: usize,
    pub calibration: Calibration,
    pub odds: f32,
    /// Rows of the drafter's catch-up pass, the root's own included.
    pub catch_up_rows: usize,
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
    pub(super) sequences: Vec<RoundSequence>,
    pools: Vec<CandidatePool>,
    rows: Vec<FrontierRow>,
    levels: Vec<LevelRecord>,
    rows_run: usize,
    max_rows: usize,
    /// Predicted time of what has been run: passes and overhead.
    sunk_ns: u64,
    /// The verification scan after the newest level, for the next width and for the final selection.
    selection: Selection,
    /// Time and expected tokens of the tree that the per-node rule has admitted.
    admitted: Selection,
    candidates: Vec<Candidate>,
    frontier: Vec<Candidate>,
    sort_scratch: Vec<Candidate>,
    count_scratch: Vec<u32>,
    link_scratch: Vec<[u32; 2]>,
    selected: Vec<SelectedTree>,
}

impl DraftRound {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan,
            tables: CostTables::default(),
            gains: GainTable::default(),
            sequences: Vec::new(),
            pools: Vec::new(),
            rows: Vec::new(),
            levels: Vec::new(),
            rows_run: 0,
            max_rows: usize::MAX,
            sunk_ns: 0,
            selection: Selection::default(),
            admitted: Selection::default(),
            candidates: Vec::new(),
            frontier: Vec::new(),
            sort_scratch: Vec::new(),
            count_scratch: Vec::new(),
            link_scratch: Vec::new(),
            selected: Vec::new(),
        }
    }

    /// Starts a round over `self.sequences` with `self.tables`; the caller has filled both.
    pub(super) fn begin(&mut self, plan: Plan, max_rows: usize) {
        self.plan = plan;
        self.max_rows = max_rows;
        let batch = self.sequences.len();
        self.pools.resize_with(batch.max(self.pools.len()), CandidatePool::default);
        for (pool, sequence) in self.pools.iter_mut().zip(&self.sequences) {
            pool.reset(sequence.root_token);
        }
        self.rows.clear();
        self.levels.clear();
        self.rows_run = 0;
        self.sunk_ns = self.tables.overhead_ns;
        self.selection = scan_verification(&[], &self.tables, self.sunk_ns, 0, &mut self.count_scratch);
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
        let level = self.levels.len();
        if level >= self.plan.max_levels {
            return None;
        }
        self.frontier.clear();
        let mut price = 0.0;
        if level == 0 {
            let drafting = (0..self.sequences.len()).filter(|&sequence| self.sequences[sequence].drafts);
            self.frontier.extend(drafting.map(|sequence| Candidate::new(1.0, sequence, 0)));
        } else {
            match self.plan.width {
                WidthRule::Beam(width) => self.choose_beam(width),
                WidthRule::Static(table) => self.choose_static(table),
                WidthRule::Admitted => self.choose_admitted(),
                WidthRule::Scan => price = self.choose_width(),
            }
        }
        self.emit_rows(price);
        if self.rows.is_empty() { None } else { Some(&self.rows) }
    }

    /// Takes the drafter's answer: `top_k` children for each of the rows last returned, row-major, likeliest first.
    ///
    /// # Panics
    /// If the lengths are not rows times top-k.
    pub fn add_level(&mut self, tokens: &[i32], logps: &[f32]) {
        let top_k = self.plan.top_k;
        assert_eq!(tokens.len(), self.rows.len() * top_k, "one token per row and child");
        assert_eq!(logps.len(), tokens.len(), "one log-probability per token");
        for pool in &mut self.pools[..self.sequences.len()] {
            pool.begin_level();
        }
        for (i, row) in self.rows.iter().enumerate() {
            let sequence = &self.sequences[row.sequence as usize];
            let pool = &mut self.pools[row.sequence as usize];
            let children = i * top_k..(i + 1) * top_k;
            for (rank, (&token, &logp)) in tokens[children.clone()].iter().zip(&logps[children]).enumerate() {
                if let WidthRule::Static(table) = self.plan.width {
                    let entry = table.get(pool.nodes().len() - 1);
                    if entry.is_none_or(|entry| entry.parent != row.node || entry.rank as usize != rank) {
                        continue;
                    }
                }
                pool.push_child(row.node as usize, token, logp, &sequence.calibration, sequence.odds);
            }
        }
        self.rows.clear();
        match self.plan.selection {
            SelectionRule::Scan => self.rescan(),
            SelectionRule::PerNode => self.admit(),
            SelectionRule::All | SelectionRule::TopN(_) => {}
        }
    }

    /// Chooses the nodes to verify and packs them, one tree per sequence of the batch, in its order.
    pub fn select(&mut self) -> &[SelectedTree] {
        let batch = self.sequences.len();
        for pool in &mut self.pools[..batch] {
            for node in &mut pool.nodes_mut()[1..] {
                node.verified = false;
            }
        }
        match self.plan.selection {
            SelectionRule::All => self.mark(|_| true),
            SelectionRule::PerNode => self.mark(|node| node.admitted),
            SelectionRule::TopN(count) => self.mark_top(count),
            SelectionRule::Scan => self.mark_prefix(),
        }
        self.predict();
        self.selected.truncate(batch);
        while self.selected.len() < batch {
            self.selected.push(SelectedTree { tree: DraftTree::new(0), pool_nodes: Vec::new() });
        }
        for ((pool, sequence), selected) in self.pools.iter().zip(&self.sequences).zip(&mut self.selected) {
            pack(pool, sequence.root_token, selected, &mut self.frontier, &mut self.link_scratch);
        }
        &self.selected
    }

    /// The trees of the last [`select`](Self::select).
    pub fn selected(&self) -> &[SelectedTree] {
        &self.selected
    }

    /// The plan being executed.
    pub fn plan(&self) -> Plan {
        self.plan
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

    /// Sequences of the round.
    pub fn batch(&self) -> usize {
        self.sequences.len()
    }

    /// The selection's expected tokens, target rows and predicted time.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Tree-level speedup `S = (A / t) * (t_plain / B)` that the selection predicts.
    pub fn speedup(&self) -> f32 {
        let plain = scan::rate(self.sequences.len() as u64 * scan::ONE, self.tables.plain_ns);
        (self.selection.rate() / plain) as f32
    }

    /// Per sequence the best `width` nodes of the newest level, by cumulative log-probability.
    fn choose_beam(&mut self, width: usize) {
        for sequence in 0..self.sequences.len() {
            let pool = &self.pools[sequence];
            self.candidates.clear();
            for node in pool.newest() {
                if self.may_deepen(sequence, node) {
                    self.candidates.push(Candidate::by_logp(pool.nodes()[node].path_logp, sequence, node));
                }
            }
            sort_candidates(&mut self.candidates, &mut self.sort_scratch);
            self.frontier.extend(self.candidates.iter().take(width));
        }
    }

    /// The nodes of the newest level that have children in the table.
    fn choose_static(&mut self, table: &[super::policy::StaticNode]) {
        for sequence in 0..self.sequences.len() {
            for node in self.pools[sequence].newest() {
                let has_children = table.iter().any(|entry| entry.parent as usize == node);
                if has_children && self.may_deepen(sequence, node) {
                    self.frontier.push(Candidate::new(1.0, sequence, node));
                }
            }
        }
    }

    /// The nodes of the newest level that the per-node rule let in.
    fn choose_admitted(&mut self) {
        for sequence in 0..self.sequences.len() {
            let pool = &self.pools[sequence];
            for node in pool.newest() {
                if pool.nodes()[node].admitted && self.may_deepen(sequence, node) {
                    self.frontier.push(Candidate::new(1.0, sequence, node));
                }
            }
        }
    }

    /// The best width over the union of all unexpanded nodes; returns the price of a verified place.
    fn choose_width(&mut self) -> f32 {
        let price = self.selection.price;
        for (sequence, pool) in self.pools[..self.sequences.len()].iter().enumerate() {
            for (node, state) in pool.nodes().iter().enumerate().skip(1) {
                if state.is_expanded() || !self.may_deepen(sequence, node) {
                    continue;
                }
                let gain = self.gains.gain(usize::from(state.depth), state.logp, state.path_prob, price);
                let value = state.path_prob * gain;
                if value > 0.0 {
                    self.frontier.push(Candidate::new(value, sequence, node));
                }
            }
        }
        sort_candidates(&mut self.frontier, &mut self.sort_scratch);
        let width =
            scan_width(&self.frontier, &self.tables, &self.selection, self.max_rows, &mut self.count_scratch);
        self.frontier.truncate(width);
        price
    }

    /// Whether children of `node` could still be emitted.
    fn may_deepen(&self, sequence: usize, node: usize) -> bool {
        let depth = usize::from(self.pools[sequence].nodes()[node].depth);
        depth < self.sequences[sequence].max_depth && depth < self.plan.max_levels
    }

    /// Turns the frontier into rows grouped by sequence, best first within each, and accounts for the pass.
    fn emit_rows(&mut self, price: f32) {
        // Stable: keeps the order of the frontier within a sequence.
        self.frontier.sort_by_key(|candidate| candidate.sequence());
        let mut pass_rows = 0;
        let mut attention_ns = 0;
        let mut last_sequence = usize::MAX;
        for candidate in &self.frontier {
            let (sequence, node) = (candidate.sequence(), candidate.node());
            let pool = &mut self.pools[sequence];
            if node > 0 && pool.num_slots() >= MAX_NODES {
                continue;
            }
            pool.expand(node, (self.rows_run + self.rows.len()) as u32);
            let state = pool.nodes()[node];
            self.rows.push(FrontierRow {
                sequence: sequence as u32,
                node: node as u32,
                token: state.token,
                depth: state.depth,
                parent_row: if node == 0 { NONE } else { pool.nodes()[state.parent as usize].row },
                slot: state.slot,
                ancestors: pool.slot_ancestors(node),
                path_logp: state.path_logp,
            });
            pass_rows += if node == 0 { self.sequences[sequence].catch_up_rows.max(1) } else { 1 };
            if sequence != last_sequence {
                attention_ns += self.tables.draft_attention_ns[sequence];
                last_sequence = sequence;
            }
        }
        if !self.rows.is_empty() {
            let ns = self.tables.draft_linear_ns(pass_rows) + attention_ns;
            self.levels.push(LevelRecord { first_row: self.rows_run, rows: pass_rows, price, ns });
            self.rows_run += self.rows.len();
            self.sunk_ns += ns;
        }
    }

    /// Sorts the union of all drafted nodes by path probability and scans it.
    fn rescan(&mut self) {
        self.candidates.clear();
        for (sequence, pool) in self.pools[..self.sequences.len()].iter().enumerate() {
            let nodes = pool.nodes().iter().enumerate().skip(1);
            self.candidates
                .extend(nodes.map(|(node, state)| Candidate::new(state.path_prob, sequence, node)));
        }
        sort_candidates(&mut self.candidates, &mut self.sort_scratch);
        self.selection = scan_verification(
            &self.candidates,
            &self.tables,
            self.sunk_ns,
            self.plan.max_draft_tokens,
            &mut self.count_scratch,
        );
    }

    /// The per-node rule over the newest level; see [`SelectionRule::PerNode`].
    fn admit(&mut self) {
        self.candidates.clear();
        for (sequence, pool) in self.pools[..self.sequences.len()].iter().enumerate() {
            for node in pool.newest() {
                self.candidates.push(Candidate::new(pool.nodes()[node].path_prob, sequence, node));
            }
        }
        sort_candidates(&mut self.candidates, &mut self.sort_scratch);
        self.count_scratch.clear();
        for pool in &self.pools[..self.sequences.len()] {
            let admitted = pool.nodes()[1..].iter().filter(|node| node.admitted).count();
            self.count_scratch.push(admitted as u32 + 1);
        }
        let mut tree = self.admitted;
        tree.ns += self.levels.last().map_or(0, |level| level.ns);
        let mut next_rows = 0;
        for candidate in &self.candidates {
            let (sequence, node) = (candidate.sequence(), candidate.node());
            let pool = &mut self.pools[sequence];
            let parent = pool.nodes()[node].parent as usize;
            let held = self.count_scratch[sequence] as usize;
            if !pool.nodes()[parent].admitted || held > self.plan.max_draft_tokens {
                continue;
            }
            let tile_ns =
                if held.is_multiple_of(self.tables.tile_nodes) { self.tables.tile_ns[sequence] } else { 0 };
            let verify_ns =
                self.tables.verify_linear_ns(tree.tokens + 1) - self.tables.verify_linear_ns(tree.tokens);
            let draft_before = if next_rows == 0 { 0 } else { self.tables.draft_linear_ns(next_rows) };
            let draft_ns = self.tables.draft_linear_ns(next_rows + 1) - draft_before;
            let gain = scan::fixed(candidate.value());
            let step_ns = tile_ns + verify_ns + draft_ns;
            // R(v) > S: the plain rate cancels on both sides. A free node is always worth it.
            if gain > 0 && (step_ns == 0 || scan::rate(gain, step_ns) > tree.rate()) {
                tree.expected += gain;
                tree.tokens += 1;
                // Its drafter row is charged when the pass runs.
                tree.ns += tile_ns + verify_ns;
                next_rows += 1;
                self.count_scratch[sequence] += 1;
                pool.nodes_mut()[node].admitted = true;
            }
        }
        self.admitted = tree;
    }

    fn mark(&mut self, keep: impl Fn(&super::pool::PoolNode) -> bool) {
        for pool in &mut self.pools[..self.sequences.len()] {
            for node in &mut pool.nodes_mut()[1..] {
                node.verified = keep(node);
            }
        }
    }

    /// Per sequence the `count` best nodes by cumulative log-probability, ties to the older.
    fn mark_top(&mut self, count: usize) {
        for (sequence, pool) in self.pools[..self.sequences.len()].iter_mut().enumerate() {
            self.candidates.clear();
            let nodes = pool.nodes().iter().enumerate().skip(1);
            self.candidates
                .extend(nodes.map(|(node, state)| Candidate::by_logp(state.path_logp, sequence, node)));
            sort_candidates(&mut self.candidates, &mut self.sort_scratch);
            for candidate in self.candidates.iter().take(count) {
                pool.nodes_mut()[candidate.node()].verified = true;
            }
        }
    }

    /// The scanned prefix, each sequence up to its cap.
    fn mark_prefix(&mut self) {
        self.count_scratch.clear();
        self.count_scratch.resize(self.sequences.len(), 0);
        for candidate in &self.candidates[..self.selection.prefix] {
            let held = &mut self.count_scratch[candidate.sequence()];
            if (*held as usize) < self.plan.max_draft_tokens {
                *held += 1;
                self.pools[candidate.sequence()].nodes_mut()[candidate.node()].verified = true;
            }
        }
    }

    /// Expected tokens and time of what was marked, whatever rule marked it.
    fn predict(&mut self) {
        let batch = self.sequences.len();
        let mut selection = Selection { expected: batch as u64 * scan::ONE, tokens: batch, ..self.selection };
        let mut ns = self.sunk_ns + self.tables.attention_ns;
        for (sequence, pool) in self.pools[..batch].iter().enumerate() {
            let mut held = 1;
            for node in pool.nodes()[1..].iter().filter(|node| node.verified) {
                ns += if held % self.tables.tile_nodes == 0 { self.tables.tile_ns[sequence] } else { 0 };
                held += 1;
                selection.tokens += 1;
                selection.expected += scan::fixed(node.path_prob);
            }
        }
        selection.ns = ns + self.tables.verify_linear_ns(selection.tokens);
        self.selection = selection;
    }
}

/// Packs the verified nodes of `pool`, depth first, at every fork the likelier child first.
fn pack(
    pool: &CandidatePool,
    root_token: i32,
    selected: &mut SelectedTree,
    order: &mut Vec<Candidate>,
    links: &mut Vec<[u32; 2]>,
) {
    selected.tree.reset(root_token);
    selected.pool_nodes.clear();
    selected.pool_nodes.push(0);
    order.clear();
    let verified = pool.nodes().iter().enumerate().skip(1).filter(|(_, node)| node.verified);
    order.extend(verified.map(|(node, state)| Candidate::new(state.path_prob, 0, node)));
    order.sort_unstable();
    // First verified child and next sibling of each pool node; inserting the unlikeliest first leaves the likeliest in front.
    links.clear();
    links.resize(pool.nodes().len(), [NONE; 2]);
    for candidate in order.iter().rev() {
        let node = candidate.node();
        let parent = pool.nodes()[node].parent as usize;
        links[node][1] = links[parent][0];
        links[parent][0] = node as u32;
    }
    let (mut at, mut packed) = (0usize, 0usize);
    loop {
        let [child, _] = links[at];
        let mut next = child;
        while next == NONE && at != 0 {
            next = links[at][1];
            at = pool.nodes()[at].parent as usize;
            packed = selected.tree.parent(packed).unwrap_or(0);
        }
        if next == NONE {
            break;
        }
        at = next as usize;
        packed = selected.tree.push(packed, pool.nodes()[at].token);
        selected.pool_nodes.push(at as u32);
    }
}
