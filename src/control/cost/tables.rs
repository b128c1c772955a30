//! [`CostTables`]: the cost model frozen for one round, as the executor reads it.
#![forbid(unsafe_code)]

use super::CostModel;

/// Costs of one round in whole nanoseconds: sums are exact whatever their order, so a parallel executor gets the same bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CostTables {
    /// Target rows that cost the same.
    pub tread: usize,
    /// Linear part of the target pass by tread: entry `i` is that of `i * tread` rows (entry 0 is unused).
    pub verify_ns: Vec<u64>,
    /// Drafter rows that cost the same.
    pub draft_tread: usize,
    /// Drafter pass by tread.
    pub draft_ns: Vec<u64>,
    /// Nodes of a sequence per attention tile.
    pub tile_nodes: usize,
    /// Attention of one more tile of each sequence of the batch.
    pub tile_ns: Vec<u64>,
    /// Drafter attention of each sequence of the batch.
    pub draft_attention_ns: Vec<u64>,
    /// Attention of the batch with one tile a sequence.
    pub attention_ns: u64,
    /// A drafted round outside its passes.
    pub overhead_ns: u64,
    /// A plain round, everything included.
    pub plain_ns: u64,
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
        self.verify_ns.clear();
        self.verify_ns
            .extend((0..=max_tokens.div_ceil(self.tread)).map(|i| to_ns(cost.verify.at(i * self.tread))));
        self.draft_ns.clear();
        self.draft_ns.extend(
            (0..=max_rows.div_ceil(self.draft_tread)).map(|i| to_ns(cost.draft.at(i * self.draft_tread))),
        );
        self.tile_ns.clear();
        self.tile_ns.extend(contexts.clone().map(|context| to_ns(context as f64 * cost.attention_per_tile)));
        self.draft_attention_ns.clear();
        self.draft_attention_ns
            .extend(contexts.clone().map(|context| to_ns(context as f64 * cost.draft_attention)));
        let total_context: usize = contexts.sum();
        self.attention_ns =
            to_ns(total_context as f64 * cost.attention_shared) + self.tile_ns.iter().sum::<u64>();
        self.overhead_ns = to_ns(cost.overhead_us);
        self.plain_ns =
            to_ns(cost.plain_us(self.tile_ns.len(), total_context) + cost.plain_overhead_us).max(1);
    }

    /// Linear part of a target pass of `tokens` rows; the last entry stands for anything wider.
    pub fn verify_linear_ns(&self, tokens: usize) -> u64 {
        self.verify_ns[tokens.div_ceil(self.tread).min(self.verify_ns.len() - 1)]
    }

    /// A drafter pass of `rows` rows, without attention.
    pub fn draft_linear_ns(&self, rows: usize) -> u64 {
        self.draft_ns[rows.div_ceil(self.draft_tread).min(self.draft_ns.len() - 1)]
    }
}

fn to_ns(us: f64) -> u64 {
    (us * 1000.0).round() as u64
}
