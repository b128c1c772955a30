//! [`Interval`]: how sure a mean of a few repetitions is, by the bootstrap.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::random::Random;

/// Geometric mean of positive `values`, the mean of speeds and of their ratios; 0 if there are none.
pub fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value.ln(), count + 1));
    if count > 0 { (sum / f64::from(count)).exp() } else { 0.0 }
}

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

/// A mean with its spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// [`geometric_mean`].
    pub mean: f64,
    /// 95 % interval of the mean by the percentile bootstrap (Efron 1979). Of five repetitions it is a little too narrow: no resample
    /// reaches beyond the values seen.
    pub low: f64,
    /// See `low`.
    pub high: f64,
    /// Least value.
    pub least: f64,
    /// Largest value.
    pub most: f64,
}

impl Interval {
    /// Of positive `values`; all zero if there are none.
    pub fn of(values: &[f64]) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        let logs: Vec<f64> = values.iter().map(|value| value.ln()).collect();
        let mut random = Random(values.len() as u64);
        let mut means: Vec<f64> = (0..RESAMPLES)
            .map(|_| logs.iter().map(|_| logs[random.below(logs.len())]).sum::<f64>() / logs.len() as f64)
            .collect();
        means.sort_by(f64::total_cmp);
        let at = |share: f64| means[(share * (RESAMPLES - 1) as f64).round() as usize].exp();
        Self {
            mean: geometric_mean(values.iter().copied()),
            low: at(0.025),
            high: at(0.975),
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(0.0, f64::max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_mean_and_stays_within_the_values() {
        let interval = Interval::of(&[1.0, 2.0, 4.0]);
        assert!((interval.mean - 2.0).abs() < 1e-12);
        assert_eq!((interval.least, interval.most), (1.0, 4.0));
        assert!(
            1.0 - 1e-9 <= interval.low
                && interval.low < 2.0
                && 2.0 < interval.high
                && interval.high <= 4.0 + 1e-9
        );
        let same = Interval::of(&[1.5; 5]);
        assert!((same.high - same.low).abs() < 1e-12);
        assert_eq!(Interval::of(&[]), Interval::default());
    }

    /// Of normal values, 95 % intervals of 20 hold the true mean some 92 times in 100.
    #[test]
    fn intervals_cover_what_they_should() {
        let mut random = Random(9);
        let mut covered = 0;
        for _ in 0..200 {
            let sample: Vec<f64> =
                (0..20).map(|_| (0..12).map(|_| random.unit()).sum::<f64>() / 6.0).map(f64::exp).collect();
            let interval = Interval::of(&sample);
            covered += usize::from(interval.low <= 1f64.exp() && 1f64.exp() <= interval.high);
        }
        assert!((170..=200).contains(&covered), "{covered} of 200");
    }
}
