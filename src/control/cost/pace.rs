//! [`Pace`]: how slow the machine is at present. Clocks sag, neighbours take cores: all passes take longer then, those that nobody
//! runs at the moment, too. What is common to recent passes is kept here; the tables keep how passes compare.
#![forbid(unsafe_code)]

/// Largest error of a pass that is heeded, as a factor; log error that is believed at first sight.
const MAX_STEP: f64 = 3.0;
const ACCIDENT: f64 = 0.1;
/// Share of an error by which the pace moves, and what a large trend adds to it.
const RATE: f64 = 0.02;
const LARGE_RATE: f64 = 0.6;
/// Weight of the newest pass in the trend.
const TREND_RATE: f64 = 0.6;
/// Bounds of the factor: no sweep is so wrong.
const MAX_FACTOR: f64 = 1e9;

/// Present times of passes over those of the tables.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    factor: f64,
    doubt: Doubt,
    /// Recent errors, fading.
    trend: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { factor: 1.0, doubt: Doubt::default(), trend: 0.0 }
    }
}

impl Pace {
    /// What the times of the tables are multiplied by.
    pub fn factor(self) -> f64 {
        self.factor
    }

    /// Follows the log error of a pass of any size. Returns what the passes before it do not share of it: that is about this size.
    pub fn follow(&mut self, error: f64) -> f64 {
        let error = self.doubt.believed(error);
        self.trend += TREND_RATE * (error - self.trend);
        self.shift((RATE + LARGE_RATE * self.trend.abs().min(1.0)) * error);
        error - self.trend
    }

    /// Moves the pace by so much, as a log.
    pub fn shift(&mut self, log: f64) {
        self.factor = (self.factor * log.exp()).clamp(1.0 / MAX_FACTOR, MAX_FACTOR);
    }

    pub fn is_sound(self) -> bool {
        self.factor.is_finite() && self.factor > 0.0 && self.trend.is_finite() && self.doubt.is_sound()
    }
}

/// Log errors of the latest two measurements of a kind: what they did not show is taken for an accident, all but a little.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Doubt([f64; 2]);

impl Doubt {
    /// How much of `error` is believed.
    pub fn believed(&mut self, error: f64) -> f64 {
        let [a, b] = self.0;
        self.0 = [b, error];
        error.clamp(a.max(b).min(0.0) - ACCIDENT, a.min(b).max(0.0) + ACCIDENT)
    }

    pub fn is_sound(self) -> bool {
        self.0.iter().all(|error| error.is_finite())
    }
}

/// Log of measured over predicted, bounded.
pub(super) fn log_error(us: f64, predicted: f64) -> f64 {
    (us / predicted).ln().clamp(-MAX_STEP.ln(), MAX_STEP.ln())
}
