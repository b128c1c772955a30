//! Oracle of `kernels/draft_noise.cu`: a row of a drafter's logits with the noise of the draw that it is to foresee.
#![forbid(unsafe_code)]

use crate::sampling::{DIGEST_LEN, SamplingParams, gumbel, portable_exp, portable_ln};

/// Tokens further below the greatest, in units of the temperature, keep their logits.
const LEAST_NOISY: f32 = -16.0;
/// Quarters of a nat that the filters' bound is looked for in.
const BINS: usize = 32;

/// The row with noise, for the token to be drawn at `position`. `d2t` holds the offsets from draft to target ids.
pub fn noisy_row(logits: &[f32], d2t: Option<&[i32]>, params: &SamplingParams, position: i32) -> Vec<f32> {
    let max = greatest(logits);
    if params.is_greedy() || max == f32::NEG_INFINITY {
        return logits.to_vec();
    }
    let temperature = params.temperature;
    let relative = |logit: f32| if logit == max { 0.0 } else { (logit - max) / temperature };
    let bests: Vec<f32> =
        logits.chunks(DIGEST_LEN).map(greatest).filter(|&best| best > f32::NEG_INFINITY).collect();
    let num_slices = logits.len().div_ceil(DIGEST_LEN);
    let bound = bound(bests.into_iter().map(relative).collect(), num_slices, params);
    let noisy = |(id, &logit): (usize, &f32)| {
        let relative = relative(logit);
        if relative.is_nan() || relative < LEAST_NOISY {
            return logit;
        }
        let token = id as i32 + d2t.map_or(0, |d2t| d2t[id]);
        let noisy = temperature.mul_add(gumbel(params.seed, position, token as usize), logit);
        if relative < bound { temperature.mul_add(relative - bound, noisy) } else { noisy }
    };
    logits.iter().enumerate().map(noisy).collect()
}

/// What the filters keep, relative to the greatest logit, if the best token of every slice is all there is.
fn bound(mut bests: Vec<f32>, num_slices: usize, params: &SamplingParams) -> f32 {
    let bin = |relative: f32| ((relative * -4.0).min(BINS as f32 - 1.0)) as usize;
    bests.sort_by(|a, b| b.total_cmp(a));
    let mut last = BINS - 1;
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < num_slices {
        last = bests.get(top_k - 1).map_or(last, |&kept| bin(kept));
    }
    if params.top_p < 1.0 {
        // Whole bins, so that a quarter of a nat is kept or not.
        let mass_up_to = |last: usize| {
            let kept = bests.iter().filter(|&&relative| bin(relative) <= last);
            kept.map(|&relative| (portable_exp(relative) * 524_288.0) as u64).sum::<u64>()
        };
        let wanted = ((mass_up_to(last) as f64 * f64::from(params.top_p)).ceil() as u64).max(1);
        last = (0..=last).find(|&bin| mass_up_to(bin) >= wanted).unwrap_or(last);
    }
    let of_bins = if last >= BINS - 1 { f32::NEG_INFINITY } else { -0.25 * (last as f32 + 1.0) };
    let of_min_p = if params.min_p > 1e-30 { portable_ln(params.min_p) } else { f32::NEG_INFINITY };
    of_bins.max(of_min_p)
}

fn greatest(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::sampler::sample;

    /// Where drafter and target say the same, the draft is the draw, at any temperature.
    #[test]
    fn the_best_of_a_noisy_row_is_the_draw() {
        let logits: Vec<f32> = (0..300).map(|i| 3.0 * ((i * 37 % 101) as f32 / 25.0).sin()).collect();
        for temperature in [0.0, 0.3, 1.0, 1.7] {
            let params = SamplingParams { temperature, seed: 11, ..SamplingParams::default() };
            for position in 0..200 {
                let noisy = noisy_row(&logits, None, &params, position);
                let best = (0..noisy.len()).max_by(|&a, &b| noisy[a].total_cmp(&noisy[b]).then(b.cmp(&a)));
                assert_eq!(best, Some(sample(&logits, &params, position) as usize), "T = {temperature}");
            }
        }
    }

    /// What filters leave out seldom comes first, and what they keep is as it would be without them.
    #[test]
    fn filtered_tokens_sink() {
        let logits: Vec<f32> = (0..64 * DIGEST_LEN)
            .map(|i| if i % DIGEST_LEN == 0 { -0.05 * i as f32 / 64.0 } else { -9.0 })
            .collect();
        let hot = SamplingParams { temperature: 1.0, seed: 5, ..SamplingParams::default() };
        for params in [
            SamplingParams { top_k: 5, ..hot },
            SamplingParams { top_p: 0.3, ..hot },
            SamplingParams { min_p: 0.5, ..hot },
        ] {
            let (free, bound) = (noisy_row(&logits, None, &hot, 9), noisy_row(&logits, None, &params, 9));
            for (slice, (free, bound)) in free.iter().zip(&bound).step_by(DIGEST_LEN).enumerate() {
                // All of them keep the first five, none the fortieth.
                assert!(
                    if slice < 5 { free == bound } else { slice < 40 || bound < free },
                    "{params:?} {slice}"
                );
            }
        }
    }
}
