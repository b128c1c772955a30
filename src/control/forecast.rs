//! [`Forecast`]: whether to draft at all, decided before anything is spent, and when to look again.
//!
//! For each sequence it keeps what its recent drafted rounds were expected to bring (kept path probability, verified nodes), and
//! for the batch how wide its levels were. From these it predicts the speed of drafting for the best `w` sequences and
//! compares it with the plain round. Sequences left out are probed, at first soon and then every so often, out of a budget that is a fixed
//! share of all time served. Predictions may be wrong, so an account of what drafted rounds really brought is kept too: once it
//! is overdrawn, only probes draft. Together they bound what a hopeless text can cost.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::cost::CostTables;
use super::round::DraftRound;
use super::scan::{self, Candidate, sort_candidates};

/// Share of all time that probes may cost, and so much of a plain round, divided by the batch, on top to begin with: bad luck
/// at the start must not cost a single short text its speculation.
const PROBE_SHARE: f64 = 0.003;
const PROBE_CREDIT_ROUNDS: f64 = 0.4;
/// What drafted rounds may have lost to plain ones: a share of all time, and so many plain rounds to begin with. More of them where there is one
/// sequence: bad luck of several evens out.
const LOSS_SHARE: f64 = 0.003;
const CREDIT_ROUNDS: f64 = 0.4;
const LUCK_ROUNDS: f64 = 0.6;
/// Plain rounds of gain that the account keeps; beyond it past luck is forgotten.
const MAX_BALANCE_ROUNDS: f64 = 10.0;
/// Rounds between probes of a sequence: at first, and at most, so that what was bad for long is noticed soon once it is good. The budget bounds
/// what that costs.
const FIRST_PROBE: u64 = 4;
const LAST_PROBE: u64 = 32;
/// What is left of expected tokens where only a share of the nodes that they came with fits: the share to this power. The likeliest nodes
/// come first.
const SQUEEZE: f64 = 0.2;
/// Weight of the newest round, and rounds that what is typical is worth to a new sequence.
const RATE: f64 = 0.25;
const TYPICAL_ROUNDS: u64 = 1;
/// Weight of one sequence's newest round in what is typical of all.
const TYPICAL_RATE: f64 = 0.1;
/// Rounds after which half of what is known of a sequence that does not draft has faded.
const HALF_LIFE: f64 = 64.0;
/// What an unknown sequence is expected to bring when nothing is known at all: hopeful, so that it gets a chance.
const PRIOR_MASS: f64 = 2.0;
const PRIOR_NODES: f64 = 2.0;
/// Drafted rounds, at least, that share the cost of what a sequence has to catch up on: it is paid once, and what follows rests on it.
const CATCH_UP_ROUNDS: f64 = 32.0;
/// Gain that drafting must promise over the plain round.
const MARGIN: f64 = 1.003;
/// Beyond so many sequences, those not seen for so many rounds are forgotten.
const MAX_SEQUENCES: usize = 4096;
const REMEMBERED_ROUNDS: u64 = 1024;

/// Expectations of one sequence.
#[derive(Clone, Copy, Debug)]
struct Record {
    /// Expected accepted tokens of a drafted round.
    mass: f64,
    /// Verified draft tokens.
    nodes: f64,
    /// Rounds that these are worth: drafted ones so far, and those that were typical before.
    rounds: u64,
    last_drafted: u64,
    last_seen: u64,
    /// Rounds until the next probe once left out.
    interval: u64,
}

/// What is known of a level of the tree.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    /// Share of the drafted rounds that ran it, fading.
    share: f64,
    /// Its rows per drafting sequence where it was run, fading.
    rows: f64,
}

/// Who drafts, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Decision {
    /// Sequences that draft.
    pub drafting: usize,
    /// Of these, those that draft only to look again.
    pub probing: usize,
    /// Predicted speed of the round relative to a plain one.
    pub speedup: f32,
}

/// The on/off decision.
#[derive(Clone, Debug, Default)]
pub struct Forecast {
    sequences: HashMap<u64, Record>,
    /// Draft tokens verified in a drafted round, over the batch, fading; 0 before the first.
    verified: f64,
    /// The levels of drafted rounds after the first.
    levels: Vec<Level>,
    /// Mean expectations of all sequences, for new ones.
    typical: Option<(f64, f64)>,
    round: u64,
    served_ns: f64,
    probed_ns: f64,
    /// What drafted rounds gained on plain ones, in time; bounded above.
    balance_ns: f64,
    order: Vec<Candidate>,
    scratch: Vec<Candidate>,
}

impl Forecast {
    /// The widest that [`Forecast::decide`] looks for these sequences: draft tokens of a target pass, rows of a drafter pass.
    pub(super) fn reach(&mut self, ids: &[u64]) -> (usize, usize) {
        let nodes: f64 = ids.iter().map(|&id| self.record(id).nodes).sum();
        let widest = self.levels.iter().fold(0.0, |widest: f64, level| widest.max(level.rows));
        // A probe adds its rows to those of all who draft.
        (nodes.ceil() as usize, ids.len() + (widest * ids.len() as f64).ceil() as usize)
    }

    /// Decides who drafts: sets `drafts` of the round's sequences. `ids` names them.
    pub(super) fn decide(&mut self, ids: &[u64], round: &mut DraftRound) -> Decision {
        self.round += 1;
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        for (sequence, id) in ids.iter().enumerate() {
            let state = &mut round.sequences[sequence];
            state.drafts = false;
            let hoped = self.hoped_mass(*id);
            if state.max_depth > 0 {
                order.push(Candidate::new(state.weight * hoped as f32, sequence, 0));
            }
        }
        sort_candidates(&mut order, &mut self.scratch);

        let plain_rate = scan::rate(ids.len() as u64 * scan::ONE, round.tables.plain_ns);
        let mut best = (plain_rate * MARGIN, 0);
        let mut company = Company::new(&round.tables, &self.levels, self.verified);
        for (i, candidate) in order.iter().enumerate() {
            let sequence = candidate.sequence();
            let record = self.sequences[&ids[sequence]];
            let rows = charged_rows(round.sequences[sequence].catch_up_rows, record.mass);
            company.join(sequence, f64::from(candidate.value()), record.nodes, rows);
            let (tokens, ns) = company.round();
            let rate = tokens * scan::ONE as f64 / ns as f64;
            if rate > best.0 {
                best = (rate, i + 1);
            }
        }
        let luck = (CREDIT_ROUNDS + LUCK_ROUNDS / ids.len() as f64) * round.tables.plain_ns as f64;
        let overdraft = luck + LOSS_SHARE * self.served_ns;
        if self.balance_ns < -overdraft {
            best.1 = 0;
        }
        for candidate in &order[..best.1] {
            round.sequences[candidate.sequence()].drafts = true;
            if let Some(record) = self.sequences.get_mut(&ids[candidate.sequence()]) {
                record.interval = FIRST_PROBE;
            }
        }
        let probing = self.probe(ids, &order, best.1, round);
        self.order = order;
        let speedup = if best.1 == 0 { 1.0 } else { (best.0 / plain_rate) as f32 };
        Decision { drafting: best.1 + probing, probing, speedup }
    }

    /// Learns from a round that cost `total_ns` by the cost model and emitted `emitted` tokens. Its trees' expectations are what is
    /// learned of a sequence: outcomes are far noisier, and reach them through calibration. The account goes by outcomes. Time is
    /// the model's, which heals by itself: a stalled round says nothing about drafting.
    pub(super) fn observe(&mut self, ids: &[u64], round: &DraftRound, total_ns: f64, emitted: Option<usize>) {
        self.served_ns += total_ns;
        let drafting = round.sequences.iter().filter(|sequence| sequence.drafts).count();
        if drafting == 0 {
            return;
        }
        if let Some(emitted) = emitted {
            let plain_ns = round.tables.plain_ns as f64;
            let gain = emitted as f64 / ids.len() as f64 * plain_ns - total_ns;
            self.balance_ns = (self.balance_ns + gain).min(MAX_BALANCE_ROUNDS * plain_ns);
        }
        let (mut mass_sum, mut nodes_sum) = (0.0, 0.0);
        for (sequence, id) in ids.iter().enumerate().filter(|&(sequence, _)| round.sequences[sequence].drafts)
        {
            let verified = round.pool(sequence).nodes()[1..].iter().filter(|node| node.verified);
            let (mass, nodes) =
                verified.fold((0.0, 0.0), |sum, node| (sum.0 + f64::from(node.path_prob), sum.1 + 1.0));
            mass_sum += mass;
            nodes_sum += nodes;
            let now = self.round;
            let record = self.record(*id);
            let stale = now.saturating_sub(record.last_drafted) as f64;
            let rate = (1.0 / (record.rounds as f64 + 1.0)).max(RATE).max((stale / 32.0).min(0.8));
            record.mass += rate * (mass - record.mass);
            record.nodes += rate * (nodes - record.nodes);
            record.rounds += 1;
            record.last_drafted = now;
        }
        let mean = (mass_sum / drafting as f64, nodes_sum / drafting as f64);
        let first = self.typical.is_none();
        self.verified += if first { nodes_sum } else { RATE * (nodes_sum - self.verified) };
        self.typical = Some(match self.typical {
            None => mean,
            Some(old) => {
                let rate = 1.0 - (1.0 - TYPICAL_RATE).powi(drafting as i32);
                (old.0 + rate * (mean.0 - old.0), old.1 + rate * (mean.1 - old.1))
            }
        });
        let run = round.levels();
        self.levels.resize(run.len().saturating_sub(1).max(self.levels.len()), Level::default());
        let rate = if first { 1.0 } else { RATE };
        for (i, level) in self.levels.iter_mut().enumerate() {
            let run = run.get(i + 1);
            level.share += rate * (f64::from(u8::from(run.is_some())) - level.share);
            if let Some(run) = run {
                let rows = run.rows as f64 / drafting as f64;
                level.rows += if level.rows == 0.0 { rows } else { RATE * (rows - level.rows) };
            }
        }
    }

    /// Time spent on probes as a share of all time served.
    pub fn probe_share(&self) -> f64 {
        if self.served_ns > 0.0 { self.probed_ns / self.served_ns } else { 0.0 }
    }

    /// Lets sequences that were left out draft once in a while: those of them whose time has come, the most hopeful first, as many as the
    /// budget allows. It is charged what is spent before anything is known; what is spent after that is spent where it pays.
    fn probe(&mut self, ids: &[u64], order: &[Candidate], drafting: usize, round: &mut DraftRound) -> usize {
        let tables = &round.tables;
        let mut company = Company::new(tables, &self.levels, self.verified);
        let join = |company: &mut Company<'_>, candidate: &Candidate, record: &Record| {
            let sequence = candidate.sequence();
            let rows = round.sequences[sequence].catch_up_rows.max(1) as f64;
            company.join(sequence, f64::from(candidate.value()), record.nodes, rows);
        };
        for candidate in &order[..drafting] {
            join(&mut company, candidate, &self.sequences[&ids[candidate.sequence()]]);
        }
        let before_ns = if drafting == 0 { 0 } else { company.sunk_ns() };
        let credit_ns = PROBE_CREDIT_ROUNDS * tables.plain_ns as f64 / ids.len() as f64;
        let budget_ns = credit_ns + PROBE_SHARE * self.served_ns - self.probed_ns;
        let mut due: Vec<usize> = Vec::new();
        let (mut probing, mut cost_ns) = (0, 0.0);
        for candidate in &order[drafting..] {
            let record = &self.sequences[&ids[candidate.sequence()]];
            if self.round.saturating_sub(record.last_drafted) < record.interval {
                continue;
            }
            due.push(candidate.sequence());
            join(&mut company, candidate, record);
            let cost = (company.sunk_ns() - before_ns) as f64;
            if cost > budget_ns {
                break;
            }
            (probing, cost_ns) = (due.len(), cost);
        }
        self.probed_ns += cost_ns;
        for &sequence in &due[..probing] {
            if let Some(record) = self.sequences.get_mut(&ids[sequence]) {
                record.interval = (2 * record.interval).min(LAST_PROBE);
                round.sequences[sequence].drafts = true;
            }
        }
        probing
    }

    /// Expected accepted tokens if the sequence drafted now: what is known of it fades towards the typical once it is left out.
    fn hoped_mass(&mut self, id: u64) -> f64 {
        let record = *self.record(id);
        let known = 0.5f64.powf(self.round.saturating_sub(record.last_drafted) as f64 / HALF_LIFE);
        let typical = self.typical.map_or(record.mass, |typical| typical.0);
        typical + known * (record.mass - typical)
    }

    fn record(&mut self, id: u64) -> &mut Record {
        let (mass, nodes) = self.typical.unwrap_or((PRIOR_MASS, PRIOR_NODES));
        let rounds = if self.typical.is_some() { TYPICAL_ROUNDS } else { 0 };
        let round = self.round;
        if self.sequences.len() > MAX_SEQUENCES {
            let horizon = round.saturating_sub(REMEMBERED_ROUNDS);
            self.sequences.retain(|_, record| record.last_seen >= horizon);
        }
        let record = self.sequences.entry(id).or_insert(Record {
            mass,
            nodes,
            rounds,
            last_drafted: round,
            last_seen: round,
            interval: FIRST_PROBE,
        });
        record.last_seen = round;
        record
    }
}

/// Rows of a catch-up pass that the decision to draft is charged with: those of a sequence that keeps drafting, which accepts `mass` tokens a
/// round, and a share of what is waiting beyond them. To charge all of it to one round would make a sequence that was left out
/// look dearer with every round that it waits, until nothing could bring it back. A text that has gone on for so long may be
/// expected to go on for as long again, and all of that rests on it.
fn charged_rows(catch_up_rows: usize, mass: f64) -> f64 {
    let rows = catch_up_rows.max(1) as f64;
    let usual = rows.min(1.0 + mass);
    usual + (rows - usual) / (rows / (1.0 + mass)).max(CATCH_UP_ROUNDS)
}

/// Sequences that draft in one round, and what is expected of it.
struct Company<'a> {
    tables: &'a CostTables,
    levels: &'a [Level],
    /// [`Forecast::verified`].
    verified: f64,
    size: usize,
    mass: f64,
    nodes: f64,
    /// Of the catch-up pass.
    rows: f64,
    draft_attention_ns: u64,
    verify_attention_ns: u64,
}

impl<'a> Company<'a> {
    fn new(tables: &'a CostTables, levels: &'a [Level], verified: f64) -> Self {
        Self {
            tables,
            levels,
            verified,
            size: 0,
            mass: 0.0,
            nodes: 0.0,
            rows: 0.0,
            draft_attention_ns: 0,
            verify_attention_ns: 0,
        }
    }

    /// One more, with what is expected of it.
    fn join(&mut self, sequence: usize, mass: f64, nodes: f64, catch_up_rows: f64) {
        self.size += 1;
        self.mass += mass;
        self.nodes += nodes;
        self.rows += catch_up_rows;
        self.draft_attention_ns += self.tables.draft_attention_ns[sequence];
        self.verify_attention_ns += self.tables.attention_beyond_root_ns(sequence, nodes.round() as usize);
    }

    /// What is spent before anything is known: all but later levels and nodes.
    fn sunk_ns(&self) -> u64 {
        let catch_up_ns = self.tables.draft_linear_ns(self.rows.round() as usize);
        self.tables.overhead_ns + catch_up_ns + self.draft_attention_ns
    }

    /// Tokens of the round, of those who do not draft, too, and its time.
    fn round(&self) -> (f64, u64) {
        let level_ns = |level: &Level| {
            let width = (level.rows * self.size as f64).ceil() as usize;
            (level.share * self.tables.draft_linear_ns(width) as f64) as u64
        };
        let drafter_ns = self.sunk_ns() + self.levels.iter().map(level_ns).sum::<u64>();
        let batch = self.tables.batch() as f64;
        let with = |share: f64| {
            let verify_ns = self.tables.verify_linear_ns((batch + share * self.nodes).round() as usize);
            let ns = drafter_ns + verify_ns + self.tables.attention_ns + self.verify_attention_ns;
            (batch + self.mass * share.powf(SQUEEZE), ns)
        };
        // Each had its nodes in other company, perhaps alone. The scan will not take more than pays now.
        let fitting = self.verified / self.nodes;
        let all = with(1.0);
        if fitting < 1.0 {
            let some = with(fitting);
            if some.0 * all.1 as f64 > all.0 * some.1 as f64 { some } else { all }
        } else {
            all
        }
    }
}
