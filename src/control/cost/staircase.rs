//! [`Staircase`]: time as a function of the number of rows in a pass, learned from a sweep and corrected by real rounds.
//!
//! Kernels work on tiles of rows, so time is flat over a *tread* of rows and jumps at its edge: every row count is read at
//! the upper edge of its tread. Between measured counts time is interpolated; it never decreases.
#![forbid(unsafe_code)]

use super::pace::{Doubt, log_error};
use crate::control::fading::unless_gone;

/// Rate of correction of a count that is well known.
const RATE: f64 = 0.15;
/// Weight that one direct measurement adds to its knots, and what is left of old weights after it.
const WEIGHT: f64 = 1.0;
const FORGETTING: f64 = 0.98;
/// New counts become knots of their own when no knot lies within this factor.
const KNOT_SPACING: f64 = 1.2;
const MAX_KNOTS: usize = 96;

/// A measured count of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Knot {
    /// Rows, a multiple of the tread.
    rows: usize,
    /// Time as measured and corrected, not yet monotone.
    us: f64,
    /// Direct measurements behind `us`, fading.
    weight: f64,
    doubt: Doubt,
    /// The monotone fit that is read.
    fitted: f64,
}

impl Knot {
    /// Time of `rows` between those of this knot and those of the next.
    fn towards(&self, next: &Knot, rows: usize) -> f64 {
        let share = (rows - self.rows) as f64 / (next.rows - self.rows) as f64;
        (self.fitted + share * (next.fitted - self.fitted)).min(next.fitted)
    }

    /// Time of more `rows` than those of this last knot, at so much a row.
    fn beyond(&self, slope: f64, rows: usize) -> f64 {
        self.fitted + slope * (rows - self.rows) as f64
    }
}

/// Monotone time per pass, in microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Staircase {
    /// Rows that cost the same.
    tread: usize,
    /// Ascending in `rows`; never empty.
    knots: Vec<Knot>,
}

impl Staircase {
    /// A staircase through `points` (rows, us); several points of one tread are reduced to their median.
    /// `points` must not be empty, times must be positive and finite.
    pub fn new(tread: usize, points: &[(usize, f64)]) -> Self {
        let tread = tread.max(1);
        let mut points: Vec<_> = points.iter().map(|&(rows, us)| (round_up(rows, tread), us)).collect();
        points.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let knots = points
            .chunk_by(|a, b| a.0 == b.0)
            .map(|group| {
                let us = 0.5 * (group[(group.len() - 1) / 2].1 + group[group.len() / 2].1);
                Knot { rows: group[0].0, us, weight: WEIGHT, doubt: Doubt::default(), fitted: us }
            })
            .collect();
        let mut stairs = Self { tread, knots };
        stairs.refit();
        stairs
    }

    /// Rows that cost the same.
    pub fn tread(&self) -> usize {
        self.tread
    }

    /// Time of a pass of `rows` rows.
    pub fn at(&self, rows: usize) -> f64 {
        let rows = round_up(rows, self.tread);
        self.between(self.knots.partition_point(|knot| knot.rows < rows), rows)
    }

    /// Time of `rows` rows, a multiple of the tread, given the first knot that is not below.
    fn between(&self, after: usize, rows: usize) -> f64 {
        match (after.checked_sub(1).map(|before| self.knots[before]), self.knots.get(after)) {
            (None, Some(first)) => first.fitted,
            (Some(low), Some(high)) => low.towards(high, rows),
            (Some(last), None) => last.beyond(self.tail_slope(), rows),
            (None, None) => unreachable!("a staircase has at least one knot"),
        }
    }

    /// The times of `0..=treads` treads, in order, as whole numbers from 1 to `most` of which `per_us` are a microsecond; the first entry stands for
    /// no rows and is not meaningful. A round of many sequences has thousands of treads: they are written knot by knot, and rounded without a call.
    pub fn tabulate(&self, per_us: f64, most: f64, treads: usize, table: &mut Vec<u64>) {
        let whole = |us: f64| (per_us * us + 0.5).clamp(1.0, most) as i64 as u64;
        let first = &self.knots[0];
        table.clear();
        table.resize((first.rows / self.tread).min(treads) + 1, whole(first.fitted));
        for pair in self.knots.windows(2) {
            let (low, high) = (pair[0], pair[1]);
            let end = (high.rows / self.tread).min(treads);
            table.extend((table.len()..=end).map(|tread| whole(low.towards(&high, tread * self.tread))));
        }
        let (last, slope) = (self.knots[self.knots.len() - 1], self.tail_slope());
        table.extend((table.len()..=treads).map(|tread| whole(last.beyond(slope, tread * self.tread))));
    }

    /// Corrects the staircase by a measured pass: as [`Staircase::correct`].
    pub fn observe(&mut self, rows: usize, us: f64) {
        if us.is_finite() && us > 0.0 {
            self.correct(rows, log_error(us, self.at(rows)));
        }
    }

    /// Corrects the staircase by the log error of a measured pass: at this count and, the less they are known themselves, at those near it.
    /// Returns how much higher it is for that, as a log: the mean over what has been measured of late.
    pub(super) fn correct(&mut self, rows: usize, error: f64) -> f64 {
        let rows = round_up(rows, self.tread);
        self.ensure_knot(rows);
        let nearest = self.nearest(rows);
        let error = self.knots[nearest].doubt.believed(error);
        let (mut rise, mut total_weight) = (0.0, 0.0);
        for knot in &mut self.knots {
            let ratio = knot.rows.min(rows) as f64 / knot.rows.max(rows) as f64;
            // Its power of 1.5.
            let nearness = ratio * ratio.sqrt();
            let direct = nearness > 1.0 / KNOT_SPACING;
            let rate = (RATE + 0.6 * error.abs().min(1.0)).max(1.0 / (1.0 + knot.weight));
            let share = if direct { nearness } else { nearness / (1.0 + knot.weight * (1.0 - nearness)) };
            knot.us *= (rate * share * error).exp();
            rise += knot.weight * rate * share * error;
            total_weight += knot.weight;
            let added = if direct { WEIGHT * nearness } else { 0.0 };
            knot.weight = unless_gone(knot.weight * FORGETTING + added);
        }
        self.refit();
        if total_weight > 0.0 { rise / total_weight } else { 0.0 }
    }

    /// Multiplies all times by `factor`, positive and finite.
    pub fn scale(&mut self, factor: f64) {
        for knot in &mut self.knots {
            knot.us *= factor;
            knot.fitted *= factor;
        }
    }

    /// Whether every number is usable; false for a damaged file.
    pub fn is_sound(&self) -> bool {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        self.tread >= 1
            && !self.knots.is_empty()
            && self.knots.iter().all(|knot| {
                positive(knot.us) && positive(knot.fitted) && knot.weight >= 0.0 && knot.doubt.is_sound()
            })
            && self.knots.is_sorted_by(|a, b| a.rows < b.rows && a.fitted <= b.fitted)
            && self.knots[0].rows >= 1
    }

    /// Extrapolation beyond the last knot: the mean slope since half its rows.
    fn tail_slope(&self) -> f64 {
        let last = self.knots[self.knots.len() - 1];
        let middle = self.knots
            [self.knots.partition_point(|knot| 2 * knot.rows < last.rows).min(self.knots.len() - 1)];
        let base =
            if middle.rows < last.rows { middle } else { self.knots[self.knots.len().saturating_sub(2)] };
        if base.rows < last.rows { (last.fitted - base.fitted) / (last.rows - base.rows) as f64 } else { 0.0 }
    }

    /// The knot closest to `rows`, by ratio.
    fn nearest(&self, rows: usize) -> usize {
        let after = self.knots.partition_point(|knot| knot.rows < rows).min(self.knots.len() - 1);
        let before = after.saturating_sub(1);
        // rows / before < after / rows, in whole numbers.
        if rows * rows < self.knots[before].rows * self.knots[after].rows { before } else { after }
    }

    fn ensure_knot(&mut self, rows: usize) {
        let at = self.knots.partition_point(|knot| knot.rows < rows);
        let near = |knot: Option<&Knot>| {
            knot.is_some_and(|knot| {
                let (low, high) = (knot.rows.min(rows) as f64, knot.rows.max(rows) as f64);
                high / low <= KNOT_SPACING
            })
        };
        let neighbour_is_near =
            near(self.knots.get(at)) || near(at.checked_sub(1).and_then(|i| self.knots.get(i)));
        if !neighbour_is_near && self.knots.len() < MAX_KNOTS {
            let us = self.at(rows);
            self.knots.insert(at, Knot { rows, us, weight: 0.0, doubt: Doubt::default(), fitted: us });
        }
    }

    /// Pool-adjacent-violators: the closest non-decreasing curve, weighted by what is known.
    fn refit(&mut self) {
        for end in 0..self.knots.len() {
            self.knots[end].fitted = self.knots[end].us;
            let mut start = end;
            while start > 0 && self.knots[start - 1].fitted > self.knots[end].fitted {
                let value = self.knots[start - 1].fitted;
                start =
                    self.knots[..start].iter().rposition(|knot| knot.fitted != value).map_or(0, |i| i + 1);
                let block = &mut self.knots[start..=end];
                let weight = |knot: &Knot| knot.weight + 0.1;
                let total: f64 = block.iter().map(weight).sum();
                let mean = block.iter().map(|knot| knot.us * weight(knot)).sum::<f64>() / total;
                block.iter_mut().for_each(|knot| knot.fitted = mean);
            }
        }
    }
}

fn round_up(rows: usize, tread: usize) -> usize {
    rows.max(1).next_multiple_of(tread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fading::is_fast;

    #[test]
    fn what_is_not_measured_again_is_gone_at_last() {
        let points: Vec<_> = (1..40).map(|i| (8 * i, 100.0 + i as f64)).collect();
        let mut stairs = Staircase::new(8, &points);
        for i in 0..40_000 {
            stairs.observe(8, 100.0 + f64::from(i % 3));
        }
        assert!(stairs.knots.iter().all(|knot| is_fast(knot.weight)));
        assert!(stairs.knots[0].weight > 10.0);
    }
}
