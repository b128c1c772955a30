//! Which drafted nodes the target verifies.
#![forbid(unsafe_code)]

use super::DraftRound;
use super::stop::likeliest;
use crate::control::plan::SelectionRule;
use crate::control::pool::PoolNode;
use crate::control::scan::{self, Bounds, Candidate, Selection, scan_verification, sort_candidates};

impl DraftRound {
    /// Takes the newest level into the running selection.
    pub(super) fn take_newest(&mut self) {
        match self.plan.selection {
            SelectionRule::Scan => {
                self.merge_newest();
                let bounds = Bounds { floor: self.plan.floor, cap: self.plan.max_draft_tokens };
                self.selection =
                    scan_verification(&self.candidates, &self.tables, self.sunk_ns, bounds, &mut self.counts);
            }
            SelectionRule::PerNode => self.admit(),
            SelectionRule::All | SelectionRule::TopN(_) | SelectionRule::Best(_) | SelectionRule::Chain => {}
        }
    }

    /// Marks the nodes to verify and sums them up in `selection`.
    pub(super) fn mark_verified(&mut self) {
        match self.plan.selection {
            SelectionRule::All => self.mark(|_| true),
            SelectionRule::PerNode => self.mark(|node| node.admitted),
            SelectionRule::TopN(count) => {
                self.mark_top(count, |node, sequence, id| Candidate::by_logp(node.path_logp, sequence, id))
            }
            SelectionRule::Best(count) => {
                self.mark_top(count, |node, sequence, id| Candidate::new(node.path_prob, sequence, id))
            }
            SelectionRule::Chain => self.mark_chain(),
            SelectionRule::Scan => {
                self.mark(|_| false);
                for candidate in &self.candidates[..self.selection.prefix] {
                    self.pools[candidate.sequence()].nodes_mut()[candidate.node()].verified = true;
                }
                self.mark_floor();
            }
        }
        self.selection = self.predict();
    }

    /// Merges the newest nodes into `candidates`, which stay sorted; a sequence keeps as many as could be verified.
    fn merge_newest(&mut self) {
        self.newest.clear();
        for (sequence, pool) in self.pools[..self.sequences.len()].iter().enumerate() {
            // Where worths are equal older nodes come first: what is worth as much as the last of a full list would come behind it.
            let (worth_of_last, is_full) = self.entry_worths[sequence];
            let newest = pool.newest().map(|node| (pool.worth(node), node));
            let newest = newest.filter(|&(worth, _)| !is_full || worth > worth_of_last);
            self.newest.extend(newest.map(|(worth, node)| Candidate::new(worth, sequence, node)));
        }
        sort_candidates(&mut self.newest, &mut self.sort_scratch);
        self.counts.clear();
        self.counts.resize(self.sequences.len(), 0);
        let merged = &mut self.sort_scratch;
        merged.clear();
        let mut keep = |candidate: Candidate| {
            let held = &mut self.counts[candidate.sequence()];
            if (*held as usize) < self.plan.max_draft_tokens {
                *held += 1;
                merged.push(candidate);
                if *held as usize == self.plan.max_draft_tokens {
                    self.entry_worths[candidate.sequence()] = (candidate.value(), true);
                }
            }
        };
        let (mut old, mut new) = (&self.candidates[..], &self.newest[..]);
        while let ([first_old, rest_old @ ..], [first_new, rest_new @ ..]) = (old, new) {
            if first_old < first_new {
                keep(*first_old);
                old = rest_old;
            } else {
                keep(*first_new);
                new = rest_new;
            }
        }
        old.iter().chain(new).for_each(|candidate| keep(*candidate));
        std::mem::swap(&mut self.candidates, merged);
    }

    /// The newest nodes of all sequences, by path probability.
    fn sort_newest(&mut self) {
        self.newest.clear();
        for (sequence, pool) in self.pools[..self.sequences.len()].iter().enumerate() {
            self.newest.extend(pool.newest().map(|node| Candidate::new(pool.worth(node), sequence, node)));
        }
        sort_candidates(&mut self.newest, &mut self.sort_scratch);
    }

    /// The per-node rule over the newest level; see [`SelectionRule::PerNode`].
    fn admit(&mut self) {
        self.sort_newest();
        self.counts.clear();
        for pool in &self.pools[..self.sequences.len()] {
            self.counts.push(pool.nodes().iter().filter(|node| node.admitted).count() as u32);
        }
        let mut tree = self.admitted;
        let Some(level) = self.levels.last() else { return };
        tree.ns += level.ns;
        let row_ns = level.ns / level.rows as u64;
        for candidate in &self.newest {
            let (sequence, node) = (candidate.sequence(), candidate.node());
            let pool = &mut self.pools[sequence];
            let parent = pool.nodes()[node].parent as usize;
            let held = self.counts[sequence] as usize;
            if !pool.nodes()[parent].admitted || held > self.plan.max_draft_tokens {
                continue;
            }
            let verify_ns = self.tables.attention_step_ns(sequence, held)
                + self.tables.verify_linear_ns(tree.tokens + 1)
                - self.tables.verify_linear_ns(tree.tokens);
            let gain = scan::fixed(candidate.value());
            // R(v) > S: the plain rate cancels on both sides.
            if gain > 0 && scan::rate(gain, (verify_ns + row_ns).max(1)) > tree.rate() {
                tree.expected += gain;
                tree.tokens += 1;
                // Its drafter row is charged when the pass runs.
                tree.ns += verify_ns;
                self.counts[sequence] += 1;
                pool.nodes_mut()[node].admitted = true;
            }
        }
        self.admitted = tree;
    }

    fn mark(&mut self, keep: impl Fn(&PoolNode) -> bool) {
        for pool in &mut self.pools[..self.sequences.len()] {
            for node in &mut pool.nodes_mut()[1..] {
                node.verified = keep(node);
            }
        }
    }

    /// The first `floor` candidates of each sequence.
    fn mark_floor(&mut self) {
        if self.plan.floor == 0 {
            return;
        }
        self.counts.clear();
        self.counts.resize(self.sequences.len(), 0);
        for candidate in &self.candidates {
            let held = &mut self.counts[candidate.sequence()];
            if (*held as usize) < self.plan.floor {
                *held += 1;
                self.pools[candidate.sequence()].nodes_mut()[candidate.node()].verified = true;
            }
        }
    }

    /// From the root down the likeliest child of each.
    fn mark_chain(&mut self) {
        self.mark(|_| false);
        for pool in &mut self.pools[..self.sequences.len()] {
            let mut at = 0;
            while let Some(child) = likeliest(pool, pool.children(at)) {
                pool.nodes_mut()[child].verified = true;
                at = child;
            }
        }
    }

    /// Per sequence the `count` best nodes in the order of `rank`.
    fn mark_top(&mut self, count: usize, rank: impl Fn(&PoolNode, usize, usize) -> Candidate) {
        self.mark(|_| false);
        for (sequence, pool) in self.pools[..self.sequences.len()].iter_mut().enumerate() {
            self.newest.clear();
            let nodes = pool.nodes().iter().enumerate().skip(1);
            self.newest.extend(nodes.map(|(node, state)| rank(state, sequence, node)));
            sort_candidates(&mut self.newest, &mut self.sort_scratch);
            for candidate in self.newest.iter().take(count) {
                pool.nodes_mut()[candidate.node()].verified = true;
            }
        }
    }

    /// Expected tokens and time of what was marked, whatever rule marked it.
    fn predict(&self) -> Selection {
        let batch = self.sequences.len();
        let mut selection = Selection { expected: batch as u64 * scan::ONE, tokens: batch, ..self.selection };
        let mut ns = self.sunk_ns + self.tables.attention_ns;
        for (sequence, pool) in self.pools[..batch].iter().enumerate() {
            let verified = (1..pool.nodes().len()).filter(|&node| pool.nodes()[node].verified);
            for (held, node) in verified.enumerate() {
                ns += self.tables.attention_step_ns(sequence, held + 1);
                selection.tokens += 1;
                selection.expected += scan::fixed(pool.worth(node));
            }
        }
        selection.ns = ns + self.tables.verify_linear_ns(selection.tokens);
        selection
    }

    /// Fills [`PoolNode::ratio`], for traces: the marginal ratio `R` of the run that each node belongs to. A run is a node that
    /// costs time and those after it, in descending path probability, that come free; nodes free from the start are at infinity.
    pub fn compute_ratios(&mut self) {
        let batch = self.sequences.len();
        self.newest.clear();
        for (sequence, pool) in self.pools[..batch].iter().enumerate() {
            let nodes = 1..pool.nodes().len();
            self.newest.extend(nodes.map(|node| Candidate::new(pool.worth(node), sequence, node)));
        }
        sort_candidates(&mut self.newest, &mut self.sort_scratch);
        let plain_rate = scan::rate(batch as u64 * scan::ONE, self.tables.plain_ns);
        self.counts.clear();
        self.counts.resize(batch, 1);
        let step = |tables: &crate::control::cost::CostTables, tokens: usize, sequence: usize, held: u32| {
            tables.attention_step_ns(sequence, held as usize) + tables.verify_linear_ns(tokens + 1)
                - tables.verify_linear_ns(tokens)
        };
        let steps: Vec<u64> = (batch..)
            .zip(&self.newest)
            .map(|(tokens, candidate)| {
                let held = &mut self.counts[candidate.sequence()];
                *held += 1;
                step(&self.tables, tokens, candidate.sequence(), *held - 1)
            })
            .collect();
        let mut start = 0;
        while start < steps.len() {
            let free = steps[start + 1..].iter().take_while(|&&ns| ns == 0).count();
            let run = &self.newest[start..start + 1 + free];
            let gain: u64 = run.iter().map(|candidate| scan::fixed(candidate.value())).sum();
            let ratio = (scan::rate(gain, steps[start]) / plain_rate) as f32;
            for candidate in run {
                self.pools[candidate.sequence()].nodes_mut()[candidate.node()].ratio = ratio;
            }
            start += 1 + free;
        }
    }
}
