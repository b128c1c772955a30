//! [`Forecast`]: whether to draft at all, decided before anything is spent, and when to look again.
//!
//! For each sequence it keeps what its recent drafted rounds were expected to bring (kept path probability, verified nodes), and
//! for batches of each size what such rounds were like (`company`). From these it predicts the speed of drafting for the best `w` sequences and
//! compares it with the plain round. Sequences left out are probed, at first soon and then every so often, out of a budget that is a fixed
//! share of all time served. Predictions may be wrong, so an account of what drafted rounds really brought is kept too: once it is overdrawn, only
//! probes draft. Together they bound what a hopeless text can cost.
#![forbid(unsafe_code)]

mod company;

use std::collections::HashMap;

use super::cost::CostTables;
use super::round::{DraftRound, RoundSequence};
use super::scan::{self, Candidate, sort_candidates};
use company::{Company, Habits, MeanCosts, Member, charged_rows, row_ns};

/// Share of all time that probes may cost, and so much of a plain round, divided by the batch, on top to begin with: bad luck
/// at the start must not cost a single short text its speculation.
const PROBE_SHARE: f64 = 0.002;
const PROBE_CREDIT_ROUNDS: f64 = 0.4;
/// What drafted rounds may have lost to plain ones: a share of all time, and so many plain rounds to begin with. More of them where there is one
/// sequence: bad luck of several evens out.
const LOSS_SHARE: f64 = 0.002;
const CREDIT_ROUNDS: f64 = 0.4;
const LUCK_ROUNDS: f64 = 0.6;
/// Sequences from which on a batch stakes on a drafter of which nothing is known what it may lose, and no more: it learns enough from that.
const LARGE_BATCH: usize = 8;
/// Plain rounds of gain that the account keeps; beyond it past luck is forgotten.
const MAX_BALANCE_ROUNDS: f64 = 10.0;
/// Rounds between probes of a sequence: at first, and at most, so that what was bad for long is noticed soon once it is good. The budget bounds
/// what that costs.
const FIRST_PROBE: u64 = 4;
const LAST_PROBE: u64 = 32;
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
/// Rounds whose expected gain may be spent beforehand on catching up.
const PAYBACK_ROUNDS: f64 = 8.0;
/// Gain that drafting must promise over the plain round.
const MARGIN: f64 = 1.003;
/// Sequences remembered; beyond it the stalest half is forgotten.
const MAX_SEQUENCES: usize = 4096;

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

/// The on/off decision. Its accounts are kept as of a machine at its usual pace: what was lost in a slow spell counts as many rounds afterwards as it
/// did then.
#[derive(Clone, Debug, Default)]
pub struct Forecast {
    sequences: HashMap<u64, Record>,
    habits: Habits,
    /// Mean expectations of all sequences, for new ones.
    typical: Option<(f64, f64)>,
    round: u64,
    served_ns: f64,
    /// What probes cost so far, and what of it their budget has paid; the latter in the present round, in its own time.
    probed_ns: f64,
    paid_ns: f64,
    paying_ns: f64,
    /// What drafted rounds gained on plain ones, in time, but for what the budget of probes has paid; bounded above.
    balance_ns: f64,
    // Scratch.
    costs: MeanCosts,
    members: Vec<Member>,
    due: Vec<usize>,
    order: Vec<Candidate>,
    scratch: Vec<Candidate>,
}

/// Plain rounds that drafting may lose to begin with.
fn luck_rounds(batch: usize) -> f64 {
    CREDIT_ROUNDS + LUCK_ROUNDS / batch as f64
}

impl Forecast {
    /// The widest that [`Forecast::decide`] looks for these sequences: draft tokens of a target pass, rows of a drafter pass.
    pub(super) fn reach(&mut self, ids: &[u64]) -> (usize, usize) {
        let nodes: f64 = ids.iter().map(|&id| self.record(id).nodes).sum();
        let widest = self.habits.expected(ids.len()).widest();
        // A probe adds its rows to those of all who draft.
        (nodes.ceil() as usize, ids.len() + (widest * ids.len() as f64).ceil() as usize)
    }

    /// Decides who drafts: sets `drafts` of the round's sequences. `ids` names them; the round's times are those of a machine `slowness` times as slow
    /// as usual.
    pub(super) fn decide(&mut self, ids: &[u64], round: &mut DraftRound, slowness: f64) -> Decision {
        self.round += 1;
        self.forget_stale_sequences();
        let plain_ns = round.tables.plain_ns as f64;
        let plain_rate = scan::rate(ids.len() as u64 * scan::ONE, round.tables.plain_ns);
        let (mut members, mut order) = (std::mem::take(&mut self.members), std::mem::take(&mut self.order));
        members.clear();
        for (sequence, id) in ids.iter().enumerate() {
            let state = &mut round.sequences[sequence];
            state.drafts = false;
            members.push(self.member(*id, sequence, state));
        }
        // Those first that bring most beyond what it costs to catch up, in tokens.
        let row_tokens = row_ns(&round.tables, &members) * ids.len() as f64 / plain_ns;
        order.clear();
        let may_draft = members.iter().filter(|member| round.sequences[member.sequence].max_depth > 0);
        order.extend(may_draft.map(|member| {
            let value = 1.0 + member.mass - member.charged_rows * row_tokens;
            Candidate::new(value as f32, member.sequence, 0)
        }));
        sort_candidates(&mut order, &mut self.scratch);

        let luck_ns = luck_rounds(ids.len()) * plain_ns;
        let left_ns = slowness * (self.balance_ns + LOSS_SHARE * self.served_ns) + luck_ns;
        let mut best = (plain_rate * MARGIN, 0);
        self.costs.refit(&round.tables);
        let mut company = Company::new(&round.tables, &self.costs, self.habits.expected(ids.len()));
        for (i, candidate) in order.iter().enumerate() {
            company.join(&members[candidate.sequence()]);
            let rate = company.rate() * scan::ONE as f64;
            // What is spent on catching up comes back later, if it does: soon, or the account has to cover it.
            let soon_ns = PAYBACK_ROUNDS * (rate / plain_rate - 1.0) * plain_ns;
            let is_covered = left_ns >= 0.0 && company.deferred_ns() <= left_ns + soon_ns;
            if rate > best.0 && is_covered {
                best = (rate, i + 1);
            }
        }
        for candidate in &order[..best.1] {
            round.sequences[candidate.sequence()].drafts = true;
            if let Some(record) = self.sequences.get_mut(&ids[candidate.sequence()]) {
                record.interval = FIRST_PROBE;
            }
        }
        let probing = self.probe(ids, (&members, &order), best.1, round, slowness);
        (self.members, self.order) = (members, order);
        let speedup = if best.1 == 0 { 1.0 } else { (best.0 / plain_rate) as f32 };
        Decision { drafting: best.1 + probing, probing, speedup }
    }

    /// Most draft tokens of a sequence in the round that was decided. While nothing is known of the drafter, nor of what its word is worth, the tree
    /// of a large batch costs no more than the account could lose, were all of it in vain; but a sequence has `least`. Then `most`.
    pub(super) fn most_drafted(&self, tables: &CostTables, (least, most): (usize, usize)) -> usize {
        let batch = tables.batch();
        if self.typical.is_some() || batch < LARGE_BATCH {
            return most;
        }
        let luck_ns = (luck_rounds(batch) * tables.plain_ns as f64) as u64;
        let sunk_ns = tables.overhead_ns + tables.draft_linear_ns(batch) + tables.attention_ns;
        let costs_too_much = |each: &usize| {
            let verify_ns = tables.verify_linear_ns(batch * (1 + each));
            sunk_ns + verify_ns > tables.plain_ns + luck_ns
        };
        (least.max(1) + 1..=most).find(costs_too_much).map_or(most, |each| each - 1)
    }

    /// Lets a plain round pass that is not decided.
    pub(super) fn skip(&mut self) {
        self.round += 1;
    }

    /// Learns from a round that cost `total_ns` by the cost model and emitted `emitted` tokens. Its trees' expectations are what is
    /// learned of a sequence: outcomes are far noisier, and reach them through calibration. The account goes by outcomes. Time is
    /// the model's, which heals by itself: a stalled round says nothing about drafting. It was `slowness` times as long as usual.
    pub(super) fn observe(
        &mut self,
        ids: &[u64],
        round: &DraftRound,
        (total_ns, slowness): (f64, f64),
        emitted: Option<usize>,
    ) {
        self.served_ns += total_ns / slowness;
        let drafting = round.sequences.iter().filter(|sequence| sequence.drafts).count();
        if drafting == 0 {
            return;
        }
        if let Some(emitted) = emitted {
            let plain_ns = round.tables.plain_ns as f64;
            let gain = emitted as f64 / ids.len() as f64 * plain_ns - (total_ns - self.paying_ns);
            self.balance_ns =
                (self.balance_ns + gain / slowness).min(MAX_BALANCE_ROUNDS * plain_ns / slowness);
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
        self.typical = Some(match self.typical {
            None => mean,
            Some(old) => {
                let rate = 1.0 - (1.0 - TYPICAL_RATE).powi(drafting as i32);
                (old.0 + rate * (mean.0 - old.0), old.1 + rate * (mean.1 - old.1))
            }
        });
        self.habits.observe(ids.len(), drafting, nodes_sum, round.levels());
    }

    /// Time spent on probes as a share of all time served.
    pub fn probe_share(&self) -> f64 {
        if self.served_ns > 0.0 { self.probed_ns / self.served_ns } else { 0.0 }
    }

    /// Lets sequences that were left out draft once in a while: those of them whose time has come, the most hopeful first, as many as the
    /// budget allows, or past gains do. Charged is what is spent before anything is known; what is spent after that is spent where it pays.
    fn probe(
        &mut self,
        ids: &[u64],
        (members, order): (&[Member], &[Candidate]),
        drafting: usize,
        round: &mut DraftRound,
        slowness: f64,
    ) -> usize {
        let tables = &round.tables;
        let mut company = Company::new(tables, &self.costs, self.habits.expected(ids.len()));
        for candidate in &order[..drafting] {
            company.join(&members[candidate.sequence()]);
        }
        let before_ns = if drafting == 0 { 0 } else { company.sunk_ns() };
        let credit_ns = PROBE_CREDIT_ROUNDS * tables.plain_ns as f64 / ids.len() as f64;
        let budget_ns = credit_ns + slowness * (PROBE_SHARE * self.served_ns - self.paid_ns);
        self.due.clear();
        let (mut probing, mut cost_ns) = (0, 0.0);
        for candidate in &order[drafting..] {
            let record = &self.sequences[&ids[candidate.sequence()]];
            if self.round.saturating_sub(record.last_drafted) < record.interval {
                continue;
            }
            self.due.push(candidate.sequence());
            company.join(&members[candidate.sequence()]);
            let cost = (company.sunk_ns() - before_ns) as f64;
            if cost > budget_ns.max(slowness * self.balance_ns) {
                break;
            }
            (probing, cost_ns) = (self.due.len(), cost);
        }
        self.probed_ns += cost_ns / slowness;
        self.paying_ns = if cost_ns <= budget_ns { cost_ns } else { 0.0 };
        self.paid_ns += self.paying_ns / slowness;
        for &sequence in &self.due[..probing] {
            if let Some(record) = self.sequences.get_mut(&ids[sequence]) {
                record.interval = (2 * record.interval).min(LAST_PROBE);
                round.sequences[sequence].drafts = true;
            }
        }
        probing
    }

    /// What is expected of a sequence if it drafted now: what is known of it fades towards the typical once it is left out.
    fn member(&mut self, id: u64, sequence: usize, state: &RoundSequence) -> Member {
        let record = *self.record(id);
        let known = 0.5f64.powf(self.round.saturating_sub(record.last_drafted) as f64 / HALF_LIFE);
        let typical = self.typical.map_or(record.mass, |typical| typical.0);
        let hoped = typical + known * (record.mass - typical);
        Member {
            sequence,
            mass: f64::from(state.weight) * hoped,
            nodes: record.nodes,
            rows: state.catch_up_rows.max(1),
            charged_rows: charged_rows(state.catch_up_rows, record.mass, state.left),
        }
    }

    fn record(&mut self, id: u64) -> &mut Record {
        let (mass, nodes) = self.typical.unwrap_or((PRIOR_MASS, PRIOR_NODES));
        let rounds = if self.typical.is_some() { TYPICAL_ROUNDS } else { 0 };
        let round = self.round;
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

    /// Once a round, and then for thousands of new sequences not again.
    fn forget_stale_sequences(&mut self) {
        if self.sequences.len() > MAX_SEQUENCES {
            let mut seen: Vec<u64> = self.sequences.values().map(|record| record.last_seen).collect();
            let middle = seen.len() / 2;
            let (_, &mut horizon, _) = seen.select_nth_unstable(middle);
            self.sequences.retain(|_, record| record.last_seen >= horizon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts that come and go, a few new ones a round: what is remembered stays bounded, and who is running is.
    #[test]
    fn memory_is_bounded_however_fast_texts_change() {
        let mut forecast = Forecast::default();
        let (mut forgot, mut before) = (0, 0);
        for round in 0..4000 {
            forecast.round += 1;
            forecast.forget_stale_sequences();
            forgot += usize::from(forecast.sequences.len() < before);
            for id in 8 * round..8 * round + 64 {
                let is_known = forecast.sequences.contains_key(&id);
                assert_eq!(is_known, round > 0 && id < 8 * round + 56, "sequence {id} in round {round}");
                forecast.record(id);
            }
            before = forecast.sequences.len();
            assert!(before <= MAX_SEQUENCES + 64);
        }
        // Each time room for two thousand.
        assert!((1..=4000 * 8 / 2000).contains(&forgot), "{forgot} times");
    }
}
