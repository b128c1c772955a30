//! How a request samples: the validated parameters, and the noise that makes a draw a pure function of
//! (seed, absolute position, token).
//!
//! Knows no CUDA. The arithmetic is that of `kernels/portable_math.cuh` and `kernels/philox.cuh`, step by
//! step: only operations that IEEE rounds once, so that a GPU, the host driver and this module agree in every
//! bit.
#![forbid(unsafe_code)]

use crate::error::{Error, Result};

/// How the next token is chosen. Filters apply in the order temperature, top-k, top-p, min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits. 0 chooses the greatest logit and ignores the filters and the seed.
    pub temperature: f32,
    /// Keeps the likeliest tokens that together have this probability; 1 keeps all. In (0, 1].
    pub top_p: f32,
    /// Keeps the k likeliest tokens (and ties of the last); 0 keeps all.
    pub top_k: u32,
    /// Keeps the tokens with at least this share of the likeliest one's probability; 0 keeps all. In [0, 1].
    pub min_p: f32,
    /// Selects the noise. The same seed gives the same text, whatever else runs.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: 0 }
    }
}

impl SamplingParams {
    /// Whether every token is the argmax of its logits.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Input`] that names the flag.
    pub fn validate(&self) -> Result<()> {
        let check = |is_valid: bool, flag: &str, range: &str, value: f32| match is_valid {
            true => Ok(()),
            false => Err(Error::Input(format!("{flag} must be {range}, got {value}"))),
        };
        let temperature = self.temperature;
        check(
            temperature.is_finite() && temperature >= 0.0,
            "--temperature",
            "a number of at least 0",
            temperature,
        )?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "--top-p", "above 0 and at most 1", self.top_p)?;
        check((0.0..=1.0).contains(&self.min_p), "--min-p", "between 0 and 1", self.min_p)?;
        if i32::try_from(self.top_k).is_err() {
            return Err(Error::Input(format!("--top-k must be at most {}, got {}", i32::MAX, self.top_k)));
        }
        Ok(())
    }
}

/// What it costs a token to come again, in logits, before everything else that sampling does. Counts are those at the token's own place:
/// of the prompt and what was emitted, drafted ancestors included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides a positive logit and multiplies a negative one, of every token of the prompt or the text so far; 1 is none. Above 0.
    pub repetition: f32,
    /// Subtracted once from every emitted token's logit; 0 is none.
    pub presence: f32,
    /// Subtracted from an emitted token's logit as often as it was emitted; 0 is none.
    pub frequency: f32,
}

impl Default for Penalties {
    /// None.
    fn default() -> Self {
        Self { repetition: 1.0, presence: 0.0, frequency: 0.0 }
    }
}

impl Penalties {
    /// Whether they change nothing.
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Input`] that names the penalty.
    pub fn validate(&self) -> Result<()> {
        let Self { repetition, presence, frequency } = *self;
        if !(repetition.is_finite() && repetition > 0.0) {
            return Err(Error::Input(format!(
                "repetition penalty must be a number above 0, got {repetition}"
            )));
        }
        for (name, value) in [("presence", presence), ("frequency", frequency)] {
            if !value.is_finite() {
                return Err(Error::Input(format!("{name} penalty must be a number, got {value}")));
            }
        }
        Ok(())
    }
}

/// Standard Gumbel noise of `token` at `position`: the greatest `logit / temperature + gumbel` is a draw from
/// the softmax.
pub fn gumbel(seed: u64, position: i32, token: usize) -> f32 {
    let word = philox4x32([(token / 4) as u32, position as u32, 0, 0], [seed as u32, (seed >> 32) as u32])
        [token % 4];
    // n is uniform in [0, 2^31); v = (n + 1/2) / 2^31. 1 - v comes from the complement of n, not from a
    // subtraction, so that both ends keep their relative precision.
    const UNIT: f32 = 1.0 / (1u32 << 31) as f32;
    let n = (word >> 1) as i32;
    let v = (n as f32 + 0.5) * UNIT;
    let complement = ((i32::MAX - n) as f32 + 0.5) * UNIT;
    let exponential = if v < 0.25 { -ln_of_parts(-v, 0.0) } else { -portable_ln(complement) };
    -portable_ln(exponential)
}

/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): four random words of a counter under a key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let product0 = u64::from(counter[0]) * 0xd251_1f53;
        let product1 = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [
            (product1 >> 32) as u32 ^ counter[1] ^ key[0],
            product1 as u32,
            (product0 >> 32) as u32 ^ counter[3] ^ key[1],
            product0 as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// `a * b + c`, rounded once.
fn fma(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// ln 2 in two parts: a short one, whose small multiples are exact, and the rest.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// ln(2^exponent * (1 + f)) for sqrt(1/2) - 1 <= f < sqrt(2) - 1. Coefficients of the Cephes library's logf.
fn ln_of_parts(f: f32, exponent: f32) -> f32 {
    const COEFFICIENTS: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_87e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let square = f * f;
    let poly = COEFFICIENTS[1..].iter().fold(COEFFICIENTS[0], |poly, &c| fma(poly, f, c));
    let tail = fma(f * square, poly, exponent * LN_2_LOW);
    fma(exponent, LN_2_HIGH, f + fma(-0.5, square, tail))
}

/// Natural logarithm of a positive normal number, the same bits on every machine.
pub fn portable_ln(x: f32) -> f32 {
    const ONE: u32 = 0x3f80_0000;
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let shifted = x.to_bits().wrapping_add(ONE - SQRT_HALF);
    let mantissa = f32::from_bits((shifted & 0x007f_ffff) + SQRT_HALF);
    ln_of_parts(mantissa - 1.0, ((shifted >> 23) as i32 - 127) as f32)
}

/// Arguments of [`portable_exp`] below this give 0.
pub const LOWEST_EXPONENT: f32 = -87.0;

/// e^x for x <= 0, the same bits on every machine: exactly 1 at 0; 0 below [`LOWEST_EXPONENT`] and for NaN.
/// Coefficients of the Cephes library's expf.
pub fn portable_exp(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    /// 1.5 * 2^23: adding it rounds to an integer, found in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    if x.is_nan() || x < LOWEST_EXPONENT {
        return 0.0;
    }
    let rounded = fma(x, std::f32::consts::LOG2_E, ROUNDER);
    let power = rounded - ROUNDER;
    let r = fma(power, -LN_2_LOW, fma(power, -LN_2_HIGH, x));
    let poly = COEFFICIENTS[1..].iter().fold(COEFFICIENTS[0], |poly, &c| fma(poly, r, c));
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    (fma(poly, r * r, r) + 1.0) * scale
}

/// Logits of a slice. The weights of a row of logits are added up slice by slice.
pub const SLICE_LEN: usize = 4096;

/// Logits of a slice of a drafter's row, by which the row is added up and of which a head leaves a digest.
pub const DIGEST_LEN: usize = 64;

/// A weight of at most 1 as an integer, in units of 2^-40, rounded down: integers add up to the same total in any order.
pub fn mass(weight: f32) -> u64 {
    (weight * (1u64 << 40) as f32) as u64
}

/// What the mass of a slice, relative to its own greatest logit, comes to in its row, where that logit has `weight`.
pub fn mass_in_row(slice_mass: u64, weight: f32) -> u64 {
    (slice_mass as f64 * f64::from(weight)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_test_vectors() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn portable_functions_are_within_two_ulps() {
        let ulps = |got: f32, want: f64| (f64::from(got) - want).abs() / (want.abs() * 2f64.powi(-23));
        let mut x = 1.0e-9f32;
        while x < 1e9 {
            let want = f64::from(x).ln();
            assert!(ulps(portable_ln(x), want) < 2.0 || (want == 0.0 && portable_ln(x) == 0.0), "ln {x}");
            x *= 1.000_37;
        }
        let mut x = 0.0f32;
        while x > LOWEST_EXPONENT {
            assert!(ulps(portable_exp(x), f64::from(x).exp()) < 2.0, "exp {x}");
            x -= 0.000_731;
        }
    }

    #[test]
    fn exp_is_exact_at_its_ends() {
        assert_eq!(portable_exp(0.0), 1.0);
        assert!(portable_exp(LOWEST_EXPONENT) >= f32::MIN_POSITIVE);
        assert_eq!(portable_exp(-87.1), 0.0);
        assert_eq!(portable_exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(portable_exp(f32::NAN), 0.0);
    }

    #[test]
    fn gumbel_has_the_right_mean_and_spread() {
        let samples: Vec<f64> =
            (0..200_000).map(|i| f64::from(gumbel(7, i / 1000, (i % 1000) as usize))).collect();
        let mean = samples.iter().sum::<f64>() / samples.len() as f64;
        let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / samples.len() as f64;
        // Standard errors: 1.28 / sqrt(2e5) = 0.003 and about 0.008.
        assert!((mean - 0.577_216).abs() < 0.012, "mean {mean}");
        assert!((variance - std::f64::consts::PI.powi(2) / 6.0).abs() < 0.04, "variance {variance}");
        assert!(samples.iter().all(|x| (-3.2..22.2).contains(x)));
    }

    #[test]
    fn noise_differs_by_seed_position_and_token() {
        let base = gumbel(1, 2, 3);
        assert!(
            [gumbel(2, 2, 3), gumbel(1, 3, 3), gumbel(1, 2, 4), gumbel(1 << 32 | 1, 2, 3)]
                .iter()
                .all(|&g| g != base)
        );
        assert_eq!(base, gumbel(1, 2, 3));
    }

    #[test]
    fn validation_names_the_flag() {
        let message = |params: SamplingParams| params.validate().unwrap_err().to_string();
        let params = SamplingParams { temperature: 0.7, ..Default::default() };
        assert!(params.validate().is_ok() && !params.is_greedy());
        assert!(message(SamplingParams { temperature: -0.1, ..params }).starts_with("--temperature"));
        assert!(message(SamplingParams { temperature: f32::NAN, ..params }).starts_with("--temperature"));
        assert!(message(SamplingParams { top_p: 0.0, ..params }).starts_with("--top-p"));
        assert!(message(SamplingParams { top_p: 1.01, ..params }).starts_with("--top-p"));
        assert!(message(SamplingParams { min_p: -1.0, ..params }).starts_with("--min-p"));
        assert!(message(SamplingParams { top_k: u32::MAX, ..params }).starts_with("--top-k"));
    }
}
