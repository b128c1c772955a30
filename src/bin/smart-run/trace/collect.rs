//! [`PageData`]: what the page holds of a trace, within bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::ops::Range;

use serde::Serialize;
use smart_run::Result;
use smart_run::control::trace::{
    PhaseTrace, RoundTrace, SequenceTrace, TraceHeader, TraceReader, TraceRecord,
};

/// Rounds on a page at most.
pub const MAX_PAGE_ROUNDS: u64 = 4000;
/// Bytes of rounds on a page at most: what a browser takes in within a few seconds.
pub const MAX_PAGE_MIB: usize = 64;

/// What the page holds. Memory: the bytes that a page may have, and a number for each round of the trace.
#[derive(Default)]
pub struct PageData {
    /// Of the whole trace.
    pub totals: Totals,
    /// The rounds on the page, an element of JSON each.
    pub rounds: Vec<u8>,
    /// Number of the first of them.
    first_round: u64,
    /// Their times and sizes, for the timeline.
    timeline: Vec<TimelineRound>,
    /// Ids on the page.
    pub seen: BTreeSet<i32>,
    /// Their texts, where known.
    pub tokens: BTreeMap<i32, String>,
    /// The page holds all it can.
    full: bool,
}

/// Sums over all rounds of the trace.
#[derive(Default, Serialize)]
pub struct Totals {
    pub rounds: u64,
    /// Sequences, summed over rounds.
    sequence_rounds: u64,
    /// Accepted and bonus tokens.
    emitted: u64,
    accepted: u64,
    /// Nodes of verified trees, roots included.
    verified: u64,
    /// Nodes drafted, roots included.
    drafted: u64,
    predicted_us: f64,
    measured_us: f64,
    /// 95th percentile of |predicted - measured| / measured over the rounds.
    error_p95: Option<f64>,
    /// Predicted speedup of all rounds together: the mean of `S` weighted by predicted time.
    speedup: Option<f64>,
    #[serde(skip)]
    plain_us: f64,
    #[serde(skip)]
    errors: Vec<f32>,
}

/// A round on the timeline.
#[derive(Serialize)]
struct TimelineRound {
    predicted_us: PhaseTrace,
    measured_us: PhaseTrace,
    /// Of each sequence: its number, accepted length, nodes verified, nodes drafted.
    sequences: Vec<[u64; 4]>,
}

/// A sequence in a round, as the page has it: probabilities and ratios to five digits.
#[derive(Serialize)]
struct PageSequence<'a> {
    sequence: u64,
    position: usize,
    speedup: f32,
    accepted: &'a [u32],
    bonus_token: i32,
    tokens: &'a [i32],
    parents: &'a [i32],
    logprob: Vec<Option<f32>>,
    q: Vec<f32>,
    path_prob: Vec<f32>,
    ratio: Vec<Option<f32>>,
    expanded: Vec<u8>,
    verified: Vec<u8>,
}

#[derive(Serialize)]
struct Summary<'a> {
    file: &'a str,
    header: &'a TraceHeader,
    /// As text: a seed may be beyond what a browser's numbers hold.
    seed: String,
    totals: &'a Totals,
    first_round: u64,
    rounds: &'a [TimelineRound],
    tokens: &'a BTreeMap<i32, String>,
    max_rounds: u64,
    max_mib: usize,
}

impl PageData {
    /// Reads the trace to its end and keeps the rounds `chosen`, [`MAX_PAGE_ROUNDS`] and `max_bytes` at most.
    pub fn collect<R: BufRead>(
        reader: &mut TraceReader<R>,
        chosen: Range<u64>,
        max_bytes: usize,
    ) -> Result<Self> {
        let mut data = Self { first_round: chosen.start, ..Self::default() };
        let mut round = PageRound::default();
        for record in reader {
            match record? {
                TraceRecord::Sequence(sequence) => {
                    data.totals.count_sequence(&sequence);
                    if chosen.contains(&sequence.round) && !data.full {
                        round.push(&sequence);
                        data.full = data.rounds.len() + round.json.len() > max_bytes;
                    }
                    round.speedup = sequence.speedup;
                }
                TraceRecord::Round(times) => {
                    data.totals.count_round(&times, round.speedup);
                    if chosen.contains(&times.round) && !data.full {
                        data.keep(&mut round, &times);
                    }
                }
            }
        }
        data.totals.finish();
        Ok(data)
    }

    fn keep(&mut self, round: &mut PageRound, times: &RoundTrace) {
        self.rounds.extend_from_slice(br#"<script type="application/json" class="round">["#);
        self.rounds.append(&mut round.json);
        self.rounds.extend_from_slice(b"]</script>\n");
        self.seen.append(&mut round.seen);
        self.timeline.push(TimelineRound {
            predicted_us: times.predicted_us,
            measured_us: times.measured_us,
            sequences: std::mem::take(&mut round.sequences),
        });
        self.full = self.timeline.len() as u64 == MAX_PAGE_ROUNDS;
    }

    /// The JSON of all that is not in [`PageData::rounds`].
    pub fn summary(&self, file: &str, header: &TraceHeader) -> Vec<u8> {
        embedded(&Summary {
            file,
            header,
            seed: header.seed.to_string(),
            totals: &self.totals,
            first_round: self.first_round,
            rounds: &self.timeline,
            tokens: &self.tokens,
            max_rounds: MAX_PAGE_ROUNDS,
            max_mib: MAX_PAGE_MIB,
        })
    }

    /// What the page holds, in words.
    pub fn sentence(&self) -> String {
        let shown = self.timeline.len() as u64;
        let sum = |column: usize| -> u64 {
            self.timeline.iter().flat_map(|round| &round.sequences).map(|sequence| sequence[column]).sum()
        };
        let rounds = match (self.totals.rounds, shown) {
            (0, _) => return "a trace without rounds".into(),
            (all, 0) => return format!("none of {all} rounds: one alone is larger than {MAX_PAGE_MIB} MiB"),
            (1, _) => "1 round".to_owned(),
            (all, shown) if all == shown => format!("{all} rounds"),
            (all, _) => format!("rounds {}..{} of {all}", self.first_round, self.first_round + shown),
        };
        format!("{rounds}, {} nodes drafted, {} verified, {} accepted", sum(3), sum(2), sum(1))
    }
}

/// The round being read.
#[derive(Default)]
struct PageRound {
    json: Vec<u8>,
    sequences: Vec<[u64; 4]>,
    seen: BTreeSet<i32>,
    speedup: f32,
}

impl PageRound {
    fn push(&mut self, record: &SequenceTrace) {
        let tree = &record.tree;
        if !self.json.is_empty() {
            self.json.push(b',');
        }
        self.json.append(&mut embedded(&PageSequence {
            sequence: record.sequence,
            position: record.position,
            speedup: record.speedup,
            accepted: &record.accepted,
            bonus_token: record.bonus_token,
            tokens: &tree.tokens,
            parents: &tree.parents,
            logprob: tree.logprob.iter().map(|value| value.map(five_digits)).collect(),
            q: tree.q.iter().copied().map(five_digits).collect(),
            path_prob: tree.path_prob.iter().copied().map(five_digits).collect(),
            ratio: tree.ratio.iter().map(|value| value.map(five_digits)).collect(),
            expanded: tree.expanded.iter().copied().map(u8::from).collect(),
            verified: tree.verified.iter().copied().map(u8::from).collect(),
        }));
        self.seen.extend(&tree.tokens);
        self.seen.insert(record.bonus_token);
        let [accepted, verified, drafted] = sizes(record);
        self.sequences.push([record.sequence, accepted, verified, drafted]);
    }
}

impl Totals {
    fn count_sequence(&mut self, record: &SequenceTrace) {
        let [accepted, verified, drafted] = sizes(record);
        self.sequence_rounds += 1;
        self.emitted += accepted + 1;
        self.accepted += accepted;
        self.verified += verified;
        self.drafted += drafted;
    }

    fn count_round(&mut self, times: &RoundTrace, speedup: f32) {
        self.rounds += 1;
        let (predicted, measured) = (times.predicted_us.total, times.measured_us.total);
        self.measured_us += f64::from(measured.unwrap_or(0.0));
        if let Some(predicted) = predicted {
            self.predicted_us += f64::from(predicted);
            // S = t_plain-equivalent / t: its mean over rounds is the sum of the one over the sum of the other.
            self.plain_us += f64::from(speedup) * f64::from(predicted);
        }
        if let (Some(predicted), Some(measured)) = (predicted, measured)
            && measured > 0.0
        {
            self.errors.push((predicted - measured).abs() / measured);
        }
    }

    fn finish(&mut self) {
        self.errors.sort_unstable_by(f32::total_cmp);
        // Nearest rank.
        let rank = (self.errors.len() * 95).div_ceil(100);
        self.error_p95 = rank.checked_sub(1).map(|index| f64::from(self.errors[index]));
        self.speedup = (self.predicted_us > 0.0).then(|| self.plain_us / self.predicted_us);
    }
}

/// Accepted length, nodes verified and nodes drafted.
fn sizes(record: &SequenceTrace) -> [u64; 3] {
    let verified = record.tree.verified.iter().filter(|&&verified| verified).count();
    [record.accepted.len(), verified, record.tree.tokens.len()].map(|count| count as u64)
}

/// `value` to five significant digits: more is noise, and makes the page half as large again.
fn five_digits(value: f32) -> f32 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

/// `value` as JSON for a script element, whose end and whose comments both begin with `<`; in JSON that is only ever part of a
/// string.
fn embedded(value: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_string(value).expect("these records have no keys that JSON lacks");
    json.replace('<', "\\u003c").into_bytes()
}

#[cfg(test)]
mod tests;
