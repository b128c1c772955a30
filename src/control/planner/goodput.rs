//! `goodput`: the chain length that pays best at the present batch (TurboSpec/SmartSpec, arXiv 2406.14066, abstract; vLLM,
//! `v1/spec_decode/dynamic/manager.py`).
//!
//! ```text
//! K* = argmax over K in 0..=KMAX of (1 + sum over k <= K of the product over i <= k of alpha_i) / T(batch, K)
//! ```
//! with moving averages `alpha_i` of the acceptance of position i given the one before, over all sequences, and `T` from the measured
//! cost model where SmartSpec fits a linear form and vLLM profiles a table offline. K = 0 is the plain round. Tokens and time are those of
//! the whole batch; sequences that may not draft count their bonus token.
//!
//! K = 0 absorbs: nothing is drafted, so no acceptance is measured, and the choice stands until the batch or the costs change. What was at
//! hand of the originals does not say how they leave it (vLLM's acceptance rates can be fixed beforehand, then there is nothing to
//! learn). Ours probes with K = 1 after 32 rounds, then after twice as many each time, up to 1024.
#![forbid(unsafe_code)]

use super::Stats;

/// Acceptance of the first position before anything is known, and the labels that the position before is worth to each.
const PRIOR: f64 = 0.7;
const PRIOR_LABELS: f64 = 2.0;
/// Labels of one position that are remembered.
const MEMORY: f64 = 64.0;
/// Plain rounds before a probe: at first, and at most.
const FIRST_PROBE: u64 = 32;
const LAST_PROBE: u64 = 1024;

/// Chain length by goodput.
#[derive(Clone, Debug)]
pub struct Goodput {
    /// (labels, accepted) of each position, fading.
    positions: Vec<(f64, f64)>,
    plain_rounds: u64,
    interval: u64,
    probing: bool,
}

impl Goodput {
    /// Chains of up to `max_length`.
    pub fn new(max_length: usize) -> Self {
        Self {
            positions: vec![(0.0, 0.0); max_length],
            plain_rounds: 0,
            interval: FIRST_PROBE,
            probing: false,
        }
    }

    /// Acceptance of each position given that the one before was accepted.
    pub fn rates(&self) -> impl Iterator<Item = f64> + '_ {
        self.positions.iter().scan(PRIOR, |rate, &(labels, accepted)| {
            *rate = (accepted + PRIOR_LABELS * *rate) / (labels + PRIOR_LABELS);
            Some(*rate)
        })
    }

    /// The length for the coming round; 0 = a plain round.
    pub fn choose(&mut self, stats: &Stats<'_>) -> usize {
        let best = self.best(stats);
        self.probing = false;
        if best > 0 {
            self.plain_rounds = 0;
            self.interval = FIRST_PROBE;
            return best;
        }
        self.plain_rounds += 1;
        if self.plain_rounds <= self.interval {
            return 0;
        }
        self.plain_rounds = 0;
        self.interval = (2 * self.interval).min(LAST_PROBE);
        self.probing = true;
        1
    }

    /// Whether the latest choice was a probe.
    pub fn is_probing(&self) -> bool {
        self.probing
    }

    /// Learns from a chain of `drafted` tokens of which `accepted` were accepted.
    pub fn observe(&mut self, drafted: usize, accepted: usize) {
        for (position, (labels, successes)) in self.positions.iter_mut().enumerate().take(drafted) {
            if position > accepted {
                break;
            }
            let keep = 1.0 - 1.0 / MEMORY;
            *labels = *labels * keep + 1.0;
            *successes = *successes * keep + f64::from(u8::from(position < accepted));
        }
    }

    /// The length with the most expected tokens per predicted time, the shortest of equals.
    fn best(&self, stats: &Stats<'_>) -> usize {
        if stats.drafting.is_empty() {
            return 0;
        }
        let mut best = (stats.rate(0.0, stats.tables.plain_ns), 0);
        let (mut expected, mut reach) = (0.0, 1.0);
        let mut draft_ns = stats.tables.overhead_ns + stats.draft_ns(stats.catch_up_rows);
        let level_ns = stats.draft_ns(stats.drafting.len());
        let mut attention_ns = 0;
        for (length, rate) in (1..).zip(self.rates()) {
            reach *= rate;
            expected += reach;
            attention_ns += stats.attention_step_ns(length);
            let rate = stats.rate(expected, draft_ns + stats.verify_ns(length, attention_ns));
            if rate > best.0 {
                best = (rate, length);
            }
            draft_ns += level_ns;
        }
        best.1
    }
}
