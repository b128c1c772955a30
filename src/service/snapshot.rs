//! [`Snapshot`]: what a service has done so far and how it stands, as plain numbers.

use std::time::Duration;

use crate::engine::{Engine, FinishReason, PageCounts, Stats};

/// Upper bounds of a histogram's buckets in seconds: from a fast round to a long text.
const BOUNDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Counts of times by size.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    /// Adds a time.
    pub fn observe(&mut self, seconds: f64) {
        self.counts[BOUNDS.partition_point(|&bound| bound < seconds)] += 1;
        self.sum += seconds;
    }

    /// Upper bound of each bucket with the number of times up to it; the last bound is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }))
    }

    /// Sum of all times, s.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Counters since the service started, and the latest round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Requests accepted.
    pub requests: u64,
    /// Requests waiting for a place.
    pub waiting: usize,
    /// Sequences running, those whose prompt is being read included.
    pub running: usize,
    /// Requests that ended by an end-of-sequence or stop token.
    pub finished_eos: u64,
    /// Requests that ended at their limit.
    pub finished_length: u64,
    /// Requests that their callers gave up.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Rounds that failed.
    pub failed_rounds: u64,
    /// Tokens emitted, first ones included.
    pub emitted_tokens: u64,
    /// Pages of keys and values.
    pub pages: PageCounts,
    /// Times that a sequence gave its pages up to an older one.
    pub preemptions: u64,
    /// Sums over the engine's rounds.
    pub stats: Stats,
    /// Predicted time of the latest round, s; 0 if it was not predicted.
    pub predicted_seconds: f64,
    /// Measured time of the same, s.
    pub measured_seconds: f64,
    /// Predicted tokens per second of the latest round over those of a plain one.
    pub speedup: f64,
    /// Wall time of rounds.
    pub round_seconds: Histogram,
    /// From acceptance to a place.
    pub queue_seconds: Histogram,
    /// From acceptance to the first token.
    pub first_token_seconds: Histogram,
    /// From acceptance to the last token.
    pub request_seconds: Histogram,
}

impl Snapshot {
    pub(super) fn of(engine: &Engine) -> Self {
        Self { pages: engine.page_counts(), ..Self::default() }
    }

    pub(super) fn count_finished(&mut self, reason: FinishReason) {
        match reason {
            FinishReason::Eos => self.finished_eos += 1,
            FinishReason::Length => self.finished_length += 1,
            FinishReason::Failed => self.failed += 1,
        }
    }

    /// Takes over how the engine stands.
    pub(super) fn observe(&mut self, engine: &Engine) {
        self.running = engine.running().count();
        self.pages = engine.page_counts();
        self.preemptions = engine.preemptions();
        self.stats = engine.stats().clone();
    }

    /// Adds a round.
    pub(super) fn observe_round(&mut self, engine: &Engine, round: Duration) {
        self.round_seconds.observe(round.as_secs_f64());
        if let Some(times) = engine.last_times() {
            self.predicted_seconds = f64::from(times.predicted_us) / 1e6;
            self.measured_seconds = times.measured_us / 1e6;
            self.speedup = f64::from(times.speedup);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;

    #[test]
    fn buckets_are_cumulative_and_end_with_all() {
        let mut histogram = Histogram::default();
        for seconds in [0.0005, 0.001, 0.3, 1e9] {
            histogram.observe(seconds);
        }
        let buckets: Vec<(f64, u64)> = histogram.buckets().collect();
        assert_eq!(buckets[0], (0.001, 2));
        assert_eq!(buckets[8], (0.5, 3));
        assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, 4));
        assert_eq!(histogram.count(), 4);
    }
}
