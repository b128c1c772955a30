//! Resampling as Pillow does it, bit by bit (`Resample.c`): the filter widens with the factor of reduction, coefficients are
//! rounded to 22-bit fixed point, and the first pass, over one axis, leaves 8 bits for the second, over the other.

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

/// Makes the taps count from the first pixel that they read; the pixels that they read.
fn span(taps: &mut [Tap]) -> Range<usize> {
    let start = taps.first().map_or(0, |tap| tap.first);
    let end = taps.last().map_or(0, |tap| tap.first + tap.weights.len());
    taps.iter_mut().for_each(|tap| tap.first -= start);
    start..end
}

/// Whether rows are reduced before columns, which is Pillow's order where it saves much. (Pillow 13; before, columns always went
/// first. The results differ by what the 8 bits in between cut off: a level or two, more in noise.)
fn rows_first(from: (usize, usize), to: (usize, usize)) -> bool {
    to.0 < from.0 && from.0 + 2 * to.1 > to.0 + 2 * from.1
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
    let original = (picture.height(), picture.width());
    // As in Pillow, an axis that keeps its length is not filtered.
    let mut row_taps = (size.0 != original.0).then(|| taps(original.0, size.0, window.0.clone(), filter));
    let mut column_taps = (size.1 != original.1).then(|| taps(original.1, size.1, window.1.clone(), filter));
    let rows = row_taps.as_deref_mut().map_or(window.0, span);
    let columns = column_taps.as_deref_mut().map_or(window.1.clone(), span);
    let lines: Vec<&[u8]> = rows.map(|y| &picture.row(y)[columns.start * 3..columns.end * 3]).collect();
    if rows_first(original, size) {
        let between = resize_rows(&lines, row_taps.as_deref());
        let lines: Vec<&[u8]> = between.chunks_exact(columns.len() * 3).collect();
        resize_columns(&lines, column_taps.as_deref())
    } else {
        let between = resize_columns(&lines, column_taps.as_deref());
        let lines: Vec<&[u8]> = between.chunks_exact(window.1.len() * 3).collect();
        resize_rows(&lines, row_taps.as_deref())
    }
}

/// `picture` resized to `size`, (rows, columns): `[rows, columns, 3]`.
pub(super) fn resize(picture: &Picture, size: (usize, usize), filter: Interpolation) -> Vec<u8> {
    resize_window(picture, size, (0..size.0, 0..size.1), filter)
}

/// Every line `[columns, 3]` resized by `taps`.
fn resize_columns(lines: &[&[u8]], taps: Option<&[Tap]>) -> Vec<u8> {
    let Some(taps) = taps else { return lines.concat() };
    let mut result = Vec::with_capacity(lines.len() * taps.len() * 3);
    for line in lines {
        for tap in taps {
            let mut sums = [HALF; 3];
            for (value, &weight) in line[tap.first * 3..].as_chunks::<3>().0.iter().zip(&tap.weights) {
                for channel in 0..3 {
                    sums[channel] += i32::from(value[channel]) * weight;
                }
            }
            result.extend(sums.map(pixel));
        }
    }
    result
}

/// Lines that are weighted sums of `lines`, one a tap.
fn resize_rows(lines: &[&[u8]], taps: Option<&[Tap]>) -> Vec<u8> {
    let Some(taps) = taps else { return lines.concat() };
    let mut sums = vec![0; lines.first().map_or(0, |line| line.len())];
    let mut result = Vec::with_capacity(sums.len() * taps.len());
    for tap in taps {
        sums.fill(HALF);
        for (line, &weight) in lines[tap.first..].iter().zip(&tap.weights) {
            for (sum, &value) in sums.iter_mut().zip(*line) {
                *sum += i32::from(value) * weight;
            }
        }
        result.extend(sums.iter().map(|&sum| pixel(sum)));
    }
    result
}
