//! A synthetic drafter and target with known acceptance, and a runtime that prices passes by the roofline.
//!
//! Every node of every possible tree has ten children with known true probabilities: an easy or a hard step by the sequence's
//! present ease, as a pure function of (seed, sequence, round, path). The drafter reports them, distorted if asked; the target
//! draws from them. Speed is expected tokens (true path probabilities of the verified nodes) over roofline time, so that the
//! figure carries no noise of the draws, while the controller sees the draws alone.

use smart_run::control::roofline::Roofline;
use smart_run::control::{
    Controller, ControllerConfig, CostModel, FrontierRow, PhaseTimes, Policy, RoundReport, SelectedTree,
    SequenceOutcome, SequenceView, SweepPoint,
};

use crate::common::Random;

const WIDTH: usize = 10;

/// How easy the text is and how honest the drafter.
#[derive(Clone, Copy)]
pub struct Process {
    pub seed: u64,
    pub ease: Ease,
    /// Power on the drafter's probabilities: 1 is calibrated, below 1 overconfident about unlikely tokens.
    pub distortion: f64,
    /// Factor on the true probability of every child.
    pub quality: f64,
}

#[derive(Clone, Copy)]
pub enum Ease {
    /// The same everywhere.
    Uniform(f64),
    /// Half of the sequences at each.
    Mixed(f64, f64),
    /// Redrawn per sequence every 20 rounds.
    Random,
}

impl Process {
    pub fn calibrated(seed: u64, ease: Ease) -> Self {
        Self { seed, ease, distortion: 1.0, quality: 1.0 }
    }

    fn ease(&self, sequence: usize, round: u64) -> f64 {
        match self.ease {
            Ease::Uniform(ease) => ease,
            Ease::Mixed(even, odd) => [even, odd][sequence % 2],
            Ease::Random => Random(self.seed ^ 77 ^ (sequence as u64) << 20 ^ (round / 20) << 40).unit(),
        }
    }

    /// True probabilities of the children at the end of `path`, descending.
    fn children(&self, sequence: usize, round: u64, path: u64, depth: usize) -> [f64; WIDTH] {
        let mut random = Random(
            self.seed ^ (sequence as u64) << 48 ^ round << 24 ^ path.wrapping_mul(0x2545_f491_4f6c_dd1d),
        );
        let easy = random.unit() < self.ease(sequence, round);
        let top = if easy { beta(&mut random, 9.0, 1.2) } else { beta(&mut random, 2.0, 3.0) }
            * 0.97f64.powi(depth as i32);
        let mut children = [0.0; WIDTH];
        let mut rest = (1.0 - top) * 0.45;
        for (rank, child) in children.iter_mut().enumerate() {
            *child = self.quality * if rank == 0 { top } else { rest };
            rest *= if rank == 0 { 1.0 } else { 0.55 };
        }
        children.sort_by(|a, b| b.total_cmp(a));
        children
    }
}

/// Gamma by Marsaglia and Tsang; shapes above 1 only.
fn gamma(random: &mut Random, shape: f64) -> f64 {
    let d = shape - 1.0 / 3.0;
    loop {
        let normal =
            (-2.0 * random.unit().max(1e-300).ln()).sqrt() * (std::f64::consts::TAU * random.unit()).cos();
        let v = (1.0 + normal / (9.0 * d).sqrt()).powi(3);
        if v > 0.0 && random.unit().max(1e-300).ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

fn beta(random: &mut Random, a: f64, b: f64) -> f64 {
    let (x, y) = (gamma(random, a), gamma(random, b));
    x / (x + y)
}

/// Token of child `rank` at the end of `path`: the path's hash, so that the path can be read off a node's token.
fn token(path: u64, rank: usize) -> i32 {
    let mut random = Random(path ^ (rank as u64 + 1) << 56);
    (random.next_u64() >> 33) as i32
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Expected tokens per round and sequence.
    pub tokens_per_round: f64,
    /// Speed relative to plain decoding.
    pub speedup: f64,
    /// Nodes verified per round and sequence, roots included.
    pub nodes: f64,
    /// Drafter passes per round.
    pub levels: f64,
    pub probe_share: f64,
}

/// A controller driven against the process for some rounds.
pub struct Simulation {
    pub process: Process,
    pub roofline: Roofline,
    pub batch: usize,
    pub context: usize,
    pub controller: Controller,
    pub round: u64,
    /// Spread of measured times; every fiftieth is ten times too long as well.
    pub noise: f64,
    draws: Random,
    backlogs: Vec<usize>,
}

impl Simulation {
    /// On an H200, its costs known from a sweep.
    pub fn new(policy: Policy, process: Process, batch: usize) -> Self {
        let roofline = Roofline::H200_LLAMA_8B;
        Self::on(roofline, roofline.sweep(batch * 61 + 256), policy, process, batch)
    }

    /// On any card, with the costs that `sweep` claims.
    pub fn on(
        roofline: Roofline,
        sweep: Vec<SweepPoint>,
        policy: Policy,
        process: Process,
        batch: usize,
    ) -> Self {
        let cost = CostModel::from_sweep(&sweep, roofline.shape.treads()).expect("a roofline is sound");
        Self {
            process,
            roofline,
            batch,
            context: 1024,
            controller: Controller::new(policy, ControllerConfig::default(), cost),
            round: 0,
            noise: 0.0,
            draws: Random(process.seed ^ 5),
            backlogs: vec![0; batch],
        }
    }

    /// Runs `rounds` rounds and sums them up.
    pub fn run(&mut self, rounds: usize) -> Outcome {
        let (mut tokens, mut us, mut nodes, mut levels) = (0.0, 0.0, 0.0, 0.0);
        for _ in 0..rounds {
            let (round_tokens, round_us) = self.round();
            tokens += round_tokens;
            us += round_us;
            let round = self.controller.round();
            nodes += round.selection().tokens as f64 / self.batch as f64;
            levels += round.levels().len() as f64;
        }
        let plain_us =
            self.roofline.plain_round_us(std::iter::repeat_n(self.context, self.batch)) / self.batch as f64;
        Outcome {
            tokens_per_round: tokens / (rounds * self.batch) as f64,
            speedup: tokens / us * plain_us,
            nodes: nodes / rounds as f64,
            levels: levels / rounds as f64,
            probe_share: self.controller.probe_share(),
        }
    }

    /// One round; expected tokens and time.
    fn round(&mut self) -> (f64, f64) {
        self.round += 1;
        let views: Vec<_> = (0..self.batch)
            .map(|sequence| SequenceView {
                id: sequence as u64,
                root_token: 0,
                context_len: self.context,
                sampled: false,
                backlog: self.backlogs[sequence],
                max_depth: usize::MAX,
                weight: 1.0,
            })
            .collect();
        let plan = self.controller.begin_round(&views);
        if !plan.drafts() {
            let us = self.roofline.plain_round_us(std::iter::repeat_n(self.context, self.batch));
            let verify = us - 5.0;
            let times = PhaseTimes { draft_levels: &[], verify: Some(verify as f32), total: Some(us as f32) };
            self.controller.observe(&RoundReport { sequences: &[], times });
            for backlog in &mut self.backlogs {
                *backlog = (*backlog + 1).min(32);
            }
            return (self.batch as f64, us);
        }
        let mut draft_us: Vec<f32> = vec![];
        while let Some(rows) = self.controller.round_mut().next_level() {
            let rows = rows.to_vec();
            let (mut row_tokens, mut logps) = (vec![], vec![]);
            for row in &rows {
                let path = if row.node == 0 { 0 } else { row.token as u64 };
                let children =
                    self.process.children(row.sequence as usize, self.round, path, row.depth as usize);
                for (rank, &prob) in children.iter().enumerate().take(plan.top_k) {
                    row_tokens.push(token(path, rank));
                    logps.push(((prob / self.process.quality).powf(self.process.distortion)).ln() as f32);
                }
            }
            draft_us.push(self.level_us(&rows) as f32);
            self.controller.round_mut().add_level(&row_tokens, &logps);
        }
        let drafted: Vec<bool> =
            (0..self.batch).map(|s| self.controller.round().pool(s).nodes()[0].is_expanded()).collect();
        let trees = self.controller.round_mut().select().to_vec();
        let verify_us =
            self.roofline.verify_us(trees.iter().map(|tree| (tree.tree.num_nodes(), self.context)));
        let total_us =
            draft_us.iter().map(|&us| f64::from(us)).sum::<f64>() + verify_us + self.roofline.overhead_us();
        let mut expected = 0.0;
        let mut outcomes = vec![];
        for (sequence, tree) in trees.iter().enumerate() {
            let (tokens, accepted, drawn) = self.verify(sequence, tree);
            expected += tokens;
            self.backlogs[sequence] = if drafted[sequence] {
                accepted.len()
            } else {
                (self.backlogs[sequence] + accepted.len() + 1).min(32)
            };
            outcomes.push((accepted, drawn));
        }
        let outcomes: Vec<_> =
            outcomes.iter().map(|(accepted, drawn)| SequenceOutcome { accepted, drawn }).collect();
        let measured_draft: Vec<f32> = draft_us.iter().map(|&us| self.measured(us.into())).collect();
        let measured_verify = self.measured(verify_us);
        let measured_overhead = self.measured(self.roofline.overhead_us());
        let times = PhaseTimes {
            draft_levels: &measured_draft,
            verify: Some(measured_verify),
            total: Some(measured_draft.iter().sum::<f32>() + measured_verify + measured_overhead),
        };
        self.controller.observe(&RoundReport { sequences: &outcomes, times });
        (expected, total_us)
    }

    fn level_us(&self, rows: &[FrontierRow]) -> f64 {
        let catch_up: usize =
            rows.iter().filter(|row| row.node == 0).map(|row| self.backlogs[row.sequence as usize]).sum();
        let sequences = rows.chunk_by(|a, b| a.sequence == b.sequence).count();
        self.roofline.draft_us(rows.len() + catch_up, sequences * self.context)
    }

    /// `us` as a noisy clock shows it.
    fn measured(&mut self, us: f64) -> f32 {
        if self.noise == 0.0 {
            return us as f32;
        }
        let stall = if self.draws.below(50) == 0 { 10.0 } else { 1.0 };
        (us * stall * (1.0 + self.noise * (2.0 * self.draws.unit() - 1.0))) as f32
    }

    /// Expected tokens of a tree, and one draw of the target at every node.
    fn verify(&mut self, sequence: usize, selected: &SelectedTree) -> (f64, Vec<u32>, Vec<i32>) {
        let tree = &selected.tree;
        let mut probs = vec![1.0; tree.num_nodes()];
        let mut drawn = vec![];
        for node in 0..tree.num_nodes() {
            let path = if node == 0 { 0 } else { tree.token(node) as u64 };
            let children = self.process.children(sequence, self.round, path, tree.depth(node));
            for child in tree.children(node) {
                let rank = (0..WIDTH)
                    .find(|&rank| token(path, rank) == tree.token(child))
                    .expect("a child of its parent");
                probs[child] = probs[node] * children[rank];
            }
            let mut left = self.draws.unit();
            let rank = children.iter().position(|&prob| {
                left -= prob;
                left < 0.0
            });
            drawn.push(rank.map_or(-1, |rank| token(path, rank)));
        }
        let (accepted, _) = tree.walk(&drawn);
        (probs.iter().sum(), accepted.iter().map(|&node| node as u32).collect(), drawn)
    }
}
