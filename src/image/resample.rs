//! Resampling as Pillow does it, bit by bit (`Resample.c`): the filter widens with the factor of reduction, coefficients are
//! rounded to 22-bit fixed point, and the first pass, over columns, leaves 8 bits for the second, over rows.

use std::ops::Range;

use super::Picture;
use crate::config::Interpolation;

/// Fraction bits of a coefficient: 8 bits of pixel, 2 bits of overshoot, in 32.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// One half, which every sum starts from, so that the final shift rounds.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// The filter of an interpolation: bilinear is a triangle, bicubic Keys' cubic with a = -0.5.
impl Interpolation {
    /// Half the width at scale 1, in pixels.
    fn support(self) -> f64 {
        match self {
            Interpolation::Bilinear => 1.0,
            Interpolation::Bicubic => 2.0,
        }
    }

    /// Weight at distance `x`. The order of operations is Pillow's.
    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Interpolation::Bilinear if x < 1.0 => 1.0 - x,
            Interpolation::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Interpolation::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Pixels of one axis that make a pixel of the result, and their weights.
struct Tap {
    first: usize,
    /// Fixed point of [`PRECISION_BITS`].
    weights: Vec<i32>,
}

/// The taps of the pixels `window` of an axis that is resized from `from` to `to` pixels.
fn taps(from: usize, to: usize, window: Range<usize>, filter: Interpolation) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    let tap = |at: usize| {
        let center = (at as f64 + 0.5) * scale;
        // Casts cut towards zero, and a negative bound is 0, as in C.
        let first = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weights: Vec<f64> =
            (first..end).map(|x| filter.weight((x as f64 - center + 0.5) * inverse)).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| {
            let weight = if sum == 0.0 { weight } else { weight / sum };
            let scaled = weight * f64::from(1 << PRECISION_BITS);
            (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
        };
        Tap { first, weights: weights.into_iter().map(fixed).collect() }
    };
    window.map(tap).collect()
}

/// A sum of weighted pixels as a pixel.
fn pixel(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// The rows and columns `window` of `picture` resized to `size`, both (rows, columns): `[rows, columns, 3]`.
///
/// What lies outside the window is not computed: a sliver that is blown up costs no more than what is kept of it.
pub(super) fn resize_window(
    picture: &Picture,
    size: (usize, usize),
    window: (Range<usize>, Range<usize>),
    filter: Interpolation,
) -> Vec<u8> {
    let (rows, columns) = window;
    let row_len = columns.len() * 3;
    // As in Pillow, an axis that keeps its length is not filtered.
    let row_taps = (size.0 != picture.height()).then(|| taps(picture.height(), size.0, rows.clone(), filter));
    // Rows of the picture that the result depends on.
    let needed = match &row_taps {
        None => rows,
        Some(taps) => {
            let end = |tap: &Tap| tap.first + tap.weights.len();
            taps.first().map_or(0, |tap| tap.first)..taps.last().map_or(0, end)
        }
    };
    let mut across = Vec::with_capacity(needed.len() * row_len);
    if size.1 == picture.width() {
        for y in needed.clone() {
            across.extend_from_slice(&picture.row(y)[columns.start * 3..columns.end * 3]);
        }
    } else {
        let column_taps = taps(picture.width(), size.1, columns, filter);
        for y in needed.clone() {
            resize_row(picture.row(y), &column_taps, &mut across);
        }
    }
    let Some(row_taps) = row_taps else { return across };
    let mut result = Vec::with_capacity(row_taps.len() * row_len);
    let mut sums = vec![0; row_len];
    for tap in &row_taps {
        sums.fill(HALF);
        let from = &across[(tap.first - needed.start) * row_len..];
        for (row, &weight) in from.chunks_exact(row_len).zip(&tap.weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        result.extend(sums.iter().map(|&sum| pixel(sum)));
    }
    result
}

/// `picture` resized to `size`, (rows, columns): `[rows, columns, 3]`.
pub(super) fn resize(picture: &Picture, size: (usize, usize), filter: Interpolation) -> Vec<u8> {
    resize_window(picture, size, (0..size.0, 0..size.1), filter)
}

/// Appends a row `[width, 3]` that is resized by `taps`.
fn resize_row(row: &[u8], taps: &[Tap], result: &mut Vec<u8>) {
    for tap in taps {
        let mut sums = [HALF; 3];
        for (value, &weight) in row[tap.first * 3..].as_chunks::<3>().0.iter().zip(&tap.weights) {
            for channel in 0..3 {
                sums[channel] += i32::from(value[channel]) * weight;
            }
        }
        result.extend(sums.map(pixel));
    }
}
