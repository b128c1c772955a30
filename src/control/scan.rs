//! The scan: which prefix of a list of nodes, likeliest first, gives the most tokens per second.
//!
//! Expanding an item raises `A / t` iff its marginal ratio exceeds the present `A / t`. Where time is a staircase single nodes
//! cost nothing or a whole step, so the rule is applied to *runs* of nodes up to the next edge, and the best set of runs is the
//! prefix with the largest `A / t`. Probabilities are f32; their sums are fixed-point and times whole nanoseconds, so that
//! sums do not depend on their order; ratios are single f64 divisions; ties go to the shorter prefix. Hence the same bits
//! from a sequential and from a parallel executor.
#![forbid(unsafe_code)]

use super::cost::CostTables;

/// Fixed-point one: sums of probabilities are counted in units of 2^-32.
pub const ONE: u64 = 1 << 32;

/// A node offered to a scan: its order key above, sequence and node below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate(u64);

impl Candidate {
    /// A node of `sequence` worth `value` (not negative; NaN counts as 0).
    pub fn new(value: f32, sequence: usize, node: usize) -> Self {
        debug_assert!(sequence < 1 << 16 && node < 1 << 16);
        let bits = if value > 0.0 { value.to_bits() } else { 0 };
        // Descending by value: positive floats order as their bits do.
        Self(u64::from(u32::MAX - bits) << 32 | (sequence as u64) << 16 | node as u64)
    }

    /// A node ranked by cumulative log-probability (at most 0; NaN is no one's choice), not by value.
    pub fn by_logp(path_logp: f32, sequence: usize, node: usize) -> Self {
        let bits = if path_logp.is_nan() { u32::MAX } else { (0.0 - path_logp).max(0.0).to_bits() };
        Self(u64::from(bits) << 32 | (sequence as u64) << 16 | node as u64)
    }

    /// Its value.
    pub fn value(self) -> f32 {
        f32::from_bits(u32::MAX - (self.0 >> 32) as u32)
    }

    /// Its sequence.
    pub fn sequence(self) -> usize {
        (self.0 >> 16 & 0xffff) as usize
    }

    /// Its node.
    pub fn node(self) -> usize {
        (self.0 & 0xffff) as usize
    }
}

/// `value` in fixed point.
pub fn fixed(value: f32) -> u64 {
    (value * ONE as f32) as u64
}

/// Expected tokens per nanosecond.
pub fn rate(expected: u64, ns: u64) -> f64 {
    expected as f64 / ns as f64
}

/// Sorts by descending value, ties to the smaller sequence, then the smaller node. `scratch` is reused.
pub fn sort_candidates(candidates: &mut Vec<Candidate>, scratch: &mut Vec<Candidate>) {
    const RADIX_FROM: usize = 512;
    const BITS: usize = 11;
    // The digits are the upper 22 bits of the value but for its sign: few passes, and few ties left to sort.
    const LOWEST: usize = 41;
    if candidates.len() < RADIX_FROM {
        candidates.sort_unstable();
        return;
    }
    scratch.clear();
    scratch.resize(candidates.len(), Candidate(0));
    let mut counts = [[0u32; 1 << BITS]; 2];
    for candidate in candidates.iter() {
        for (pass, counts) in counts.iter_mut().enumerate() {
            counts[digit(*candidate, pass * BITS)] += 1;
        }
    }
    for (pass, counts) in counts.iter_mut().enumerate() {
        let mut sum = 0;
        for count in counts.iter_mut() {
            sum += std::mem::replace(count, sum);
        }
        for candidate in candidates.iter() {
            let place = &mut counts[digit(*candidate, pass * BITS)];
            scratch[*place as usize] = *candidate;
            *place += 1;
        }
        std::mem::swap(candidates, scratch);
    }
    for ties in candidates.chunk_by_mut(|a, b| a.0 >> LOWEST == b.0 >> LOWEST).filter(|ties| ties.len() > 1) {
        ties.sort_unstable();
    }

    fn digit(candidate: Candidate, shift: usize) -> usize {
        (candidate.0 >> (LOWEST + shift)) as usize & ((1 << BITS) - 1)
    }
}

/// Bounds on the draft tokens that a sequence has in verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Its best so many are in, whatever they are worth.
    pub floor: usize,
    /// Most of them.
    pub cap: usize,
}

/// What a verification scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Selection {
    /// Length of the prefix of candidates that was scanned to reach the best one; those over a sequence's cap count too. Below a
    /// floor nodes beyond the prefix are selected as well: the first so many of each sequence.
    pub prefix: usize,
    /// Expected tokens, fixed point, the bonus tokens included; each counts the weight of its sequence.
    pub expected: u64,
    /// Target rows, roots included.
    pub tokens: usize,
    /// Whole time of the round.
    pub ns: u64,
    /// Price of a place in the pass, in tokens: what the time of one more ([`CostTables::verify_slope_ns`]) would bring elsewhere, but no less
    /// than the first node left out would pay and no more than the last one taken pays.
    pub price: f32,
}

impl Selection {
    /// Expected tokens per nanosecond.
    pub fn rate(&self) -> f64 {
        rate(self.expected, self.ns)
    }
}

/// The union scan: `argmax_j (B + cumP(j)) / (t_sunk + t_verify(top j))` over `candidates`, sorted, of all sequences.
/// `nodes` is scratch: nodes per sequence, then floor nodes met. Under a floor the first so many candidates of each sequence are in from the start, whatever
/// their value, and the maximum is over prefixes of the rest: the exact maximum subject to the floor, as where time counts rows
/// the best way to add `j` nodes to the floor is the `j` best that are left.
/// (AdaServe, arXiv 2501.12162: first what each request needs, then the rest of the budget to the globally best nodes.)
pub fn scan_verification(
    candidates: &[Candidate],
    tables: &CostTables,
    sunk_ns: u64,
    bounds: Bounds,
    nodes: &mut Vec<u32>,
) -> Selection {
    let batch = tables.batch();
    nodes.clear();
    nodes.resize(batch, 1);
    // Whatever is added, no more tokens than this are expected.
    let most = candidates.iter().fold(batch as u64 * ONE, |sum, candidate| sum + fixed(candidate.value()));
    let mut attention_ns = sunk_ns + tables.attention_ns;
    let mut present = Selection {
        prefix: 0,
        expected: batch as u64 * ONE,
        tokens: batch,
        ns: attention_ns + tables.verify_linear_ns(batch),
        price: 1.0,
    };
    let Bounds { cap, floor } = Bounds { floor: bounds.floor.min(bounds.cap), ..bounds };
    if floor > 0 {
        for candidate in candidates {
            let held = &mut nodes[candidate.sequence()];
            if *held as usize <= floor {
                attention_ns += tables.attention_step_ns(candidate.sequence(), *held as usize);
                present.expected += fixed(candidate.value());
                present.tokens += 1;
                *held += 1;
            }
        }
        present.ns = attention_ns + tables.verify_linear_ns(present.tokens);
        nodes.resize(2 * batch, 0);
    }
    let mut linear = Ascent::new(&tables.verify_ns, tables.tread, present.tokens);
    let mut best = present;
    let mut best_rate = 0.0;
    let mut keep_better = |present: &Selection| {
        let rate = present.rate();
        if rate > best_rate {
            best_rate = rate;
            best = *present;
        }
        best_rate
    };
    for (i, candidate) in candidates.iter().enumerate() {
        let value = fixed(candidate.value());
        if value == 0 {
            break;
        }
        let sequence = candidate.sequence();
        let held = nodes[sequence] as usize;
        if held > cap || floor > 0 && in_floor(candidate, &mut nodes[batch..], floor) {
            continue;
        }
        nodes[sequence] += 1;
        attention_ns += tables.attention_step_ns(sequence, held);
        let ns = attention_ns + linear.step();
        if ns > present.ns {
            // The present run ends here: along it A / t only rose. All that are left would not make up for the time of the next.
            if rate(most, ns) <= keep_better(&present) {
                break;
            }
        }
        let expected = present.expected + value;
        present =
            Selection { prefix: i + 1, expected, tokens: present.tokens + 1, ns, price: candidate.value() };
    }
    keep_better(&present);
    let left_out = if floor == 0 {
        candidates.get(best.prefix)
    } else {
        nodes[batch..].fill(0);
        let mut beyond_floor = candidates
            .iter()
            .enumerate()
            .filter(|(_, candidate)| !in_floor(candidate, &mut nodes[batch..], floor));
        beyond_floor.find(|(i, _)| *i >= best.prefix).map(|(_, candidate)| candidate)
    };
    let left_out = left_out.map_or(0.0, |candidate| candidate.value());
    let place = best.rate() * tables.verify_slope_ns(best.tokens) / ONE as f64;
    best.price = (place as f32).min(best.price).max(left_out);
    best
}

/// Reads a table of treads row by row.
struct Ascent<'a> {
    ns: &'a [u64],
    tread: usize,
    /// The present row's tread, and rows left of it.
    index: usize,
    left: usize,
}

impl<'a> Ascent<'a> {
    /// Stands at `rows`.
    fn new(ns: &'a [u64], tread: usize, rows: usize) -> Self {
        let index = rows.div_ceil(tread);
        Self { ns, tread, index, left: index * tread - rows }
    }

    /// Time with one row more; the last entry stands for anything wider.
    fn step(&mut self) -> u64 {
        if self.left == 0 {
            self.index += 1;
            self.left = self.tread;
        }
        self.left -= 1;
        self.ns[self.index.min(self.ns.len() - 1)]
    }
}

/// Whether `candidate`, the next in order, is among the first `floor` of its sequence; `met` counts those.
fn in_floor(candidate: &Candidate, met: &mut [u32], floor: usize) -> bool {
    let met = &mut met[candidate.sequence()];
    let inside = (*met as usize) < floor;
    *met += u32::from(inside);
    inside
}

/// The width scan: the `w` for which running the best `w` of `candidates` (sorted by expected gain) through the drafter
/// maximises predicted tokens per second, from `current` on; 0 if none beats it.
/// `seen` is scratch (sequences already paying their drafter attention).
pub fn scan_width(
    candidates: &[Candidate],
    tables: &CostTables,
    current: &Selection,
    max_rows: usize,
    seen: &mut Vec<u32>,
) -> usize {
    seen.clear();
    seen.resize(tables.batch(), 0);
    let mut best_rate = current.rate();
    let mut best = 0;
    let mut expected = current.expected;
    let mut attention_ns = 0;
    let mut linear = Ascent::new(&tables.draft_ns, tables.draft_tread, 0);
    for (i, candidate) in candidates.iter().take(max_rows).enumerate() {
        let sequence = candidate.sequence();
        if std::mem::replace(&mut seen[sequence], 1) == 0 {
            attention_ns += tables.draft_attention_ns[sequence];
        }
        expected += fixed(candidate.value());
        let ns = current.ns + attention_ns + linear.step();
        let rate = rate(expected, ns);
        if rate > best_rate {
            best_rate = rate;
            best = i + 1;
        }
    }
    best
}
