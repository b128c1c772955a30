//! Seeded numbers and a drafter made of them.

use smart_run::control::{Controller, CostModel, Policy};
use smart_run::control::{ControllerConfig, FrontierRow, RoundPlan, SelectedTree, SequenceView};

/// SplitMix64: every test names its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.unit() * bound as f64) as usize
    }
}

/// A sequence with nothing special about it.
pub fn view(id: u64) -> SequenceView {
    SequenceView {
        id,
        root_token: 1000 + id as i32,
        context_len: 100,
        sampled: false,
        backlog: 0,
        max_depth: usize::MAX,
        weight: 1.0,
    }
}

/// Children of a row as a function of the row alone: distinct tokens, descending probabilities that sum to at most 1.
pub fn children(row: &FrontierRow, top_k: usize, seed: u64) -> (Vec<i32>, Vec<f32>) {
    let path = row.path_logp.to_bits() as u64;
    let mut random = Random(seed ^ (u64::from(row.sequence) << 40) ^ (path << 8) ^ row.token as u64);
    let mut left = 1.0;
    let mut logps: Vec<f32> = (0..top_k)
        .map(|_| {
            let share = left * random.unit();
            left -= share;
            share.ln() as f32
        })
        .collect();
    logps.sort_by(|a, b| b.total_cmp(a));
    let base = random.below(1000) as i32 * 100;
    ((0..top_k as i32).map(|rank| base + rank).collect(), logps)
}

/// Drafts and selects a round with the seeded drafter.
pub fn draft(controller: &mut Controller, seed: u64) -> Vec<SelectedTree> {
    let round = controller.round_mut();
    while let Some(rows) = round.next_level() {
        let rows = rows.to_vec();
        let (mut tokens, mut logps) = (vec![], vec![]);
        for row in &rows {
            let (row_tokens, row_logps) = children(row, round.top_k(), seed);
            tokens.extend(row_tokens);
            logps.extend(row_logps);
        }
        round.add_level(&tokens, &logps);
    }
    round.select().to_vec()
}

/// A controller without measured costs, and its first round over `batch` sequences.
pub fn first_round(policy: Policy, batch: u64) -> (Controller, RoundPlan) {
    let mut controller = Controller::new(policy, ControllerConfig::default(), CostModel::unmeasured());
    let views: Vec<_> = (0..batch).map(view).collect();
    let plan = controller.begin_round(&views);
    (controller, plan)
}
