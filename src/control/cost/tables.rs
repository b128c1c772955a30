//! [`CostTables`]: the cost model frozen for one round, as the executor reads it.
#![forbid(unsafe_code)]

use super::CostModel;
use crate::tree::MAX_NODES;

/// Binary digits behind the point of an attention rate.
const RATE_BITS: u32 = 20;
const RATE_ONE: f64 = (1u64 << RATE_BITS) as f64;
/// Bounds that no sane measurement reaches, so that no sum or product overflows: 13 days a pass, 260 us a cached token.
const MAX_NS: f64 = (1u64 << 50) as f64;
const MAX_RATE: f64 = (1u64 << 38) as f64;
const MAX_CONTEXT: usize = 1 << 24;
/// Treads that a price looks ahead: past an edge as high as several treads, to what the rows behind it cost.
const SLOPE_TREADS: usize = 8;

/// Costs of one round in whole nanoseconds: sums are exact whatever their order, so a parallel executor gets the same bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CostTables {
    /// Target rows that cost the same.
    pub tread: usize,
    /// Linear part of the target pass by tread: entry `i` is that of `i * tread` rows (entry 0 is unused).
    pub verify_ns: Vec<u64>,
    /// Drafter rows that cost the same.
    pub draft_tread: usize,
    /// Drafter pass by tread. As rounds have taught it holds what the host does between passes, too: ranking what a pass has brought.
    pub draft_ns: Vec<u64>,
    /// Nodes of a sequence per attention tile.
    pub tile_nodes: usize,
    /// Attention per cached token by tiles of nodes, in units of 2^-20 ns; entry 0 is 0, the last stands for any more.
    pub attention_rate: Vec<u64>,
    /// Cached tokens of each sequence of the batch.
    pub contexts: Vec<u64>,
    /// Drafter attention of each sequence of the batch.
    pub draft_attention_ns: Vec<u64>,
    /// Attention of the batch with one tile a sequence.
    pub attention_ns: u64,
    /// The part of `overhead_ns` that is a drafter pass which brings all levels; 0 where every level is a pass.
    pub draft_once_ns: u64,
    /// A drafted round outside its passes.
    pub overhead_ns: u64,
    /// A plain round, everything included.
    pub plain_ns: u64,
    /// What rows that are only read add to a plain round; part of none of the other numbers.
    pub read_ns: u64,
}

impl CostTables {
    /// Freezes `cost` for sequences with these `contexts`, for up to `max_tokens` target and `max_rows` drafter rows.
    pub fn freeze(
        &mut self,
        cost: &CostModel,
        contexts: impl Iterator<Item = usize> + Clone,
        max_tokens: usize,
        max_rows: usize,
    ) {
        self.tread = cost.verify.tread();
        self.draft_tread = cost.draft.tread();
        self.tile_nodes = cost.treads.nodes;
        // The price of a place, and rows that are only read, look further.
        let (ns, max_tokens) = (1000.0 * cost.pace.factor(), max_tokens.div_ceil(self.tread) + SLOPE_TREADS);
        cost.verify.tabulate(ns, MAX_NS, max_tokens, &mut self.verify_ns);
        cost.draft.tabulate(ns, MAX_NS, max_rows.div_ceil(self.draft_tread), &mut self.draft_ns);
        let tiles = MAX_NODES.div_ceil(self.tile_nodes);
        self.attention_rate.clear();
        self.attention_rate.resize(tiles + 1, 0);
        if let Some(rate) = &cost.attention {
            rate.tabulate(ns * RATE_ONE, MAX_RATE, tiles, &mut self.attention_rate);
            self.attention_rate[0] = 0;
        }
        self.contexts.clear();
        self.contexts.extend(contexts.clone().map(|context| context.min(MAX_CONTEXT) as u64));
        self.draft_attention_ns.clear();
        self.draft_attention_ns.extend(
            contexts.clone().map(|context| to_ns(context as f64 * cost.draft_attention_us_per_token())),
        );
        let total_context: usize = contexts.sum();
        self.attention_ns = (0..self.batch()).map(|sequence| self.attention_step_ns(sequence, 0)).sum();
        self.draft_once_ns = 0;
        self.read_ns = 0;
        self.overhead_ns = to_ns(cost.overhead_us);
        self.plain_ns = to_ns(cost.plain_us(self.batch(), total_context) + cost.plain_overhead_us).max(1);
    }

    /// Makes the drafter one whose first pass, over the roots of the batch, brings all levels: part of every drafted round, whatever is
    /// drafted, and the levels themselves cost nothing.
    pub fn draft_at_once(&mut self) {
        self.draft_once_ns = self.draft_linear_ns(self.batch()) + self.draft_attention_ns.iter().sum::<u64>();
        self.overhead_ns += self.draft_once_ns;
        self.draft_ns.fill(0);
        self.draft_attention_ns.fill(0);
    }

    /// Lets the target pass read `rows` more, of prompts. From then on a pass of `n` nodes costs what they add to one of the batch's roots and
    /// these rows. Call it once, after [`CostTables::freeze`] with room for them.
    pub fn share_pass(&mut self, rows: usize) {
        if rows == 0 {
            return;
        }
        let treads = rows.div_ceil(self.tread);
        let roots = self.batch();
        let alone_ns = self.verify_linear_ns(roots);
        self.read_ns = self.verify_linear_ns(roots + treads * self.tread) - alone_ns;
        self.verify_ns.drain(..treads.min(self.verify_ns.len() - 1));
        for ns in &mut self.verify_ns {
            *ns = ns.saturating_sub(self.read_ns);
        }
    }

    /// Sequences of the batch.
    pub fn batch(&self) -> usize {
        self.contexts.len()
    }

    /// Attention that one more node costs a sequence which has `nodes` already: nothing, or a tile.
    pub fn attention_step_ns(&self, sequence: usize, nodes: usize) -> u64 {
        if !nodes.is_multiple_of(self.tile_nodes) {
            return 0;
        }
        let tiles = nodes / self.tile_nodes;
        let at = |tiles: usize| {
            let rate = self.attention_rate[tiles.min(self.attention_rate.len() - 1)];
            (self.contexts[sequence] * rate) >> RATE_BITS
        };
        at(tiles + 1) - at(tiles)
    }

    /// Attention that `draft_tokens` nodes cost a sequence on top of its root.
    pub fn attention_beyond_root_ns(&self, sequence: usize, draft_tokens: usize) -> u64 {
        (1..=draft_tokens).map(|nodes| self.attention_step_ns(sequence, nodes)).sum()
    }

    /// Linear part of a target pass of `tokens` rows; the last entry stands for anything wider.
    pub fn verify_linear_ns(&self, tokens: usize) -> u64 {
        self.verify_ns[tokens.div_ceil(self.tread).min(self.verify_ns.len() - 1)]
    }

    /// What a row costs of a target pass that goes on beyond `tokens` rows: up to where a row costs least. A tree that stands before a high edge
    /// would not take one row more, but several, and each of them pays a part of the edge.
    pub fn verify_slope_ns(&self, tokens: usize) -> f64 {
        let here = self.verify_linear_ns(tokens);
        let slope = |treads: usize| {
            let rows = treads * self.tread;
            (self.verify_linear_ns(tokens + rows) - here) as f64 / rows as f64
        };
        (1..=SLOPE_TREADS).map(slope).fold(f64::INFINITY, f64::min)
    }

    /// A drafter pass of `rows` rows, without attention.
    pub fn draft_linear_ns(&self, rows: usize) -> u64 {
        self.draft_ns[rows.div_ceil(self.draft_tread).min(self.draft_ns.len() - 1)]
    }
}

fn to_ns(us: f64) -> u64 {
    (us * 1000.0).round().min(MAX_NS) as u64
}
