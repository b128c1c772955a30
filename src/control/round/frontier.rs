//! Which nodes the next drafter pass runs.
#![forbid(unsafe_code)]

use super::{DraftRound, FrontierRow, LevelRecord};
use crate::control::plan::{StaticNode, WidthRule};
use crate::control::pool::NONE;
use crate::control::scan::{self, Candidate, scan_width, sort_candidates};
use crate::tree::MAX_NODES;

impl DraftRound {
    /// Fills `frontier`; empty if drafting is over.
    pub(super) fn choose_frontier(&mut self) {
        self.frontier.clear();
        if self.levels.len() >= self.plan.max_levels {
            return;
        }
        if self.levels.is_empty() {
            let drafting = (0..self.sequences.len()).filter(|&sequence| self.sequences[sequence].drafts);
            self.frontier.extend(drafting.map(|sequence| Candidate::new(1.0, sequence, 0)));
            return;
        }
        match self.plan.width.clone() {
            WidthRule::Beam(width) => self.choose_beam(width),
            WidthRule::Static(table) => self.choose_static(&table),
            WidthRule::BestTree { nodes, least_gain } => self.choose_best_tree(nodes, least_gain),
            WidthRule::Admitted => self.choose_admitted(),
            WidthRule::Scan => self.choose_width(),
        }
    }

    /// Turns the frontier into rows grouped by sequence, best first within each, and accounts for the pass.
    pub(super) fn emit_rows(&mut self) {
        self.group_frontier();
        let mut pass_rows = 0;
        let mut attention_ns = 0;
        let mut last_sequence = usize::MAX;
        for candidate in &self.frontier {
            let (sequence, node) = (candidate.sequence(), candidate.node());
            let pool = &mut self.pools[sequence];
            if node > 0 && pool.num_slots() >= MAX_NODES {
                continue;
            }
            if pool.nodes()[node].sealed {
                // No other takes its place: a replay shows the policy's own trees, or smaller ones.
                self.rows_refused += 1;
                continue;
            }
            // The root's own row is the last of its catch-up rows.
            let own_rows = if node == 0 { self.sequences[sequence].catch_up_rows } else { 1 };
            pool.expand(node, (self.rows_run + pass_rows + own_rows - 1) as u32);
            let state = pool.nodes()[node];
            self.rows.push(FrontierRow {
                sequence: sequence as u32,
                node: node as u32,
                token: state.token,
                depth: state.depth,
                parent_row: if node == 0 { NONE } else { pool.nodes()[state.parent as usize].row },
                candidate: state.candidate,
                parent_slot: if node == 0 { NONE } else { pool.nodes()[state.parent as usize].slot },
                slot: state.slot,
                ancestors: pool.slot_ancestors(node),
                path_logp: state.path_logp,
            });
            pass_rows += own_rows;
            if sequence != last_sequence {
                attention_ns += self.tables.draft_attention_ns[sequence];
                last_sequence = sequence;
            }
        }
        if !self.rows.is_empty() {
            let ns = self.tables.draft_linear_ns(pass_rows) + attention_ns;
            let price = self.selection.price;
            self.levels.push(LevelRecord { first_row: self.rows_run, rows: pass_rows, price, ns });
            self.rows_run += pass_rows;
            self.sunk_ns += ns;
        }
    }

    /// Per sequence the best `width` nodes of the newest level, by cumulative log-probability.
    fn choose_beam(&mut self, width: usize) {
        for sequence in 0..self.sequences.len() {
            let pool = &self.pools[sequence];
            self.newest.clear();
            for node in pool.newest() {
                let state = &pool.nodes()[node];
                if self.sequences[sequence].may_deepen(state) {
                    self.newest.push(Candidate::by_logp(state.path_logp, sequence, node));
                }
            }
            sort_candidates(&mut self.newest, &mut self.sort_scratch);
            self.frontier.extend(self.newest.iter().take(width));
        }
    }

    /// The nodes of the newest level that have children in the table.
    fn choose_static(&mut self, table: &[StaticNode]) {
        for sequence in 0..self.sequences.len() {
            let pool = &self.pools[sequence];
            for node in pool.newest() {
                let has_children = table.iter().any(|entry| entry.parent as usize == node);
                if has_children && self.sequences[sequence].may_deepen(&pool.nodes()[node]) {
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
                let state = &pool.nodes()[node];
                if state.admitted && self.sequences[sequence].may_deepen(state) {
                    self.frontier.push(Candidate::new(1.0, sequence, node));
                }
            }
        }
    }

    /// The nodes of the newest level that are among the `count` best of their sequence, if that level has raised the sum of these
    /// by more than `least_gain`.
    fn choose_best_tree(&mut self, count: usize, least_gain: f32) {
        for sequence in 0..self.sequences.len() {
            let pool = &self.pools[sequence];
            if pool.newest().is_empty() {
                continue;
            }
            self.newest.clear();
            let nodes = pool.nodes().iter().enumerate().skip(1);
            self.newest.extend(nodes.map(|(node, state)| Candidate::new(state.path_prob, sequence, node)));
            sort_candidates(&mut self.newest, &mut self.sort_scratch);
            self.newest.truncate(count);
            let sum = self.newest.iter().map(|candidate| scan::fixed(candidate.value())).sum::<u64>();
            let before = std::mem::replace(&mut self.best_sums[sequence], sum);
            if sum - before <= scan::fixed(least_gain) {
                continue;
            }
            for candidate in &self.newest {
                let node = candidate.node();
                if node >= pool.newest().start && self.sequences[sequence].may_deepen(&pool.nodes()[node]) {
                    self.frontier.push(*candidate);
                }
            }
        }
    }

    /// The best width over the union of all unexpanded nodes that are kept, of any level.
    fn choose_width(&mut self) {
        let price = self.selection.price;
        self.newest.clear();
        for candidate in &self.candidates {
            let (sequence, node) = (candidate.sequence(), candidate.node());
            let state = &self.pools[sequence].nodes()[node];
            if state.is_expanded() || !self.sequences[sequence].may_deepen(state) {
                continue;
            }
            let worth = candidate.value();
            let value = worth * self.gains.gain(usize::from(state.depth), state.logp, worth, price);
            if value > 0.0 {
                // What cannot be run must not stand in the way of what can, level after level.
                let into = if state.sealed { &mut self.newest } else { &mut self.frontier };
                into.push(Candidate::new(value, sequence, node));
            }
        }
        sort_candidates(&mut self.frontier, &mut self.sort_scratch);
        self.leave_room_for_later_levels();
        let width =
            scan_width(&self.frontier, &self.tables, &self.selection, self.max_rows, &mut self.counts);
        self.frontier.truncate(width);
        if let Some(last) = self.frontier.last() {
            self.rows_refused += self.newest.iter().filter(|sealed| *sealed < last).count();
        }
    }

    /// A sequence has as many drafter rows a round as its ancestor words have bits. Where rows are free the first levels would
    /// take them all; each level gets an equal share of what is left.
    fn leave_room_for_later_levels(&mut self) {
        let levels_left = self.plan.max_levels - self.levels.len();
        self.counts.clear();
        self.counts.extend(
            self.pools[..self.sequences.len()]
                .iter()
                .map(|pool| (MAX_NODES - pool.num_slots()).div_ceil(levels_left) as u32),
        );
        let room = &mut self.counts;
        self.frontier.retain(|candidate| {
            let room = &mut room[candidate.sequence()];
            let fits = *room > 0;
            *room -= u32::from(fits);
            fits
        });
    }

    /// Groups the frontier by sequence, keeping its order within each: a counting sort.
    fn group_frontier(&mut self) {
        let starts = &mut self.counts;
        starts.clear();
        starts.resize(self.sequences.len() + 1, 0);
        for candidate in &self.frontier {
            starts[candidate.sequence() + 1] += 1;
        }
        for sequence in 1..starts.len() {
            starts[sequence] += starts[sequence - 1];
        }
        self.sort_scratch.clear();
        self.sort_scratch.extend_from_slice(&self.frontier);
        for candidate in &self.sort_scratch {
            let place = &mut starts[candidate.sequence()];
            self.frontier[*place as usize] = *candidate;
            *place += 1;
        }
    }
}
