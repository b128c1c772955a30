//! Oracle of `kernels/sampler.cu`: the same token from a sort, one row at a time; and the law it should
//! follow.
#![forbid(unsafe_code)]

use crate::sampling::{LOWEST_EXPONENT, SamplingParams, gumbel, mass, portable_exp};

/// The token of a row of logits drawn at absolute `position`; -1 if no logit is a number above -inf.
pub fn sample(logits: &[f32], params: &SamplingParams, position: i32) -> i32 {
    let Some(best) = argmax(logits.iter().copied()) else { return -1 };
    if params.is_greedy() {
        return best as i32;
    }
    let relative = relative_logits(logits, params.temperature);
    let bound = weight_bound(&relative, params);
    let scores = relative.iter().enumerate().map(|(token, &relative)| {
        let is_kept = relative >= LOWEST_EXPONENT && portable_exp(relative) >= bound;
        if is_kept { relative + gumbel(params.seed, position, token) } else { f32::NEG_INFINITY }
    });
    argmax(scores).map_or(-1, |token| token as i32)
}

/// Index of the greatest value above -inf, the first of equals. NaN never wins.
fn argmax(values: impl Iterator<Item = f32>) -> Option<usize> {
    let mut best = (f32::NEG_INFINITY, None);
    for (index, value) in values.enumerate() {
        if value > best.0 {
            best = (value, Some(index));
        }
    }
    best.1
}

/// `(logit - max) / temperature`: 0 for the greatest, NaN for NaN.
fn relative_logits(logits: &[f32], temperature: f32) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().map(|&logit| if logit == max { 0.0 } else { (logit - max) / temperature }).collect()
}

/// The lowest weight that top-k, top-p and min-p all keep.
fn weight_bound(relative: &[f32], params: &SamplingParams) -> f32 {
    if params.top_k == 0 && params.top_p >= 1.0 {
        return params.min_p;
    }
    let mut weights: Vec<f32> = relative.iter().map(|&x| portable_exp(x)).filter(|&w| w > 0.0).collect();
    weights.sort_by(|a, b| b.total_cmp(a));
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < weights.len() {
        let last = weights[top_k - 1];
        weights.retain(|&w| w >= last);
    }
    if params.top_p < 1.0 {
        // Mass in units of 2^-40: integers add up to the same total in any order.
        let total: u64 = weights.iter().map(|&w| mass(w)).sum();
        let wanted = ((total as f64 * f64::from(params.top_p)).ceil() as u64).max(1);
        let mut reached = 0;
        let last = weights.iter().copied().find(|&w| {
            reached += mass(w);
            reached >= wanted
        });
        weights.retain(|&w| Some(w) >= last);
    }
    let lowest = weights.last().copied().unwrap_or(0.0);
    lowest.max(params.min_p)
}

/// The probabilities that `sample` should follow over the noise, in f64. `params` must not be greedy.
pub fn law(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let relative = relative_logits(logits, params.temperature);
    let bound = weight_bound(&relative, params);
    let weights: Vec<f64> = relative
        .iter()
        .map(|&x| if x >= LOWEST_EXPONENT && portable_exp(x) >= bound { f64::from(x).exp() } else { 0.0 })
        .collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(logits: &[f32], params: SamplingParams) -> Vec<usize> {
        let law = law(logits, &params);
        (0..logits.len()).filter(|&token| law[token] > 0.0).collect()
    }

    /// Probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1.
    fn halves() -> [f32; 4] {
        [0.5f32.ln(), 0.25f32.ln(), 0.125f32.ln(), 0.125f32.ln()]
    }

    #[test]
    fn filters_keep_what_their_definition_says() {
        let unit = SamplingParams { temperature: 1.0, ..Default::default() };
        assert_eq!(kept(&halves(), unit), [0, 1, 2, 3]);
        assert_eq!(kept(&halves(), SamplingParams { top_k: 2, ..unit }), [0, 1]);
        // The third and fourth tie: keeping three keeps both.
        assert_eq!(kept(&halves(), SamplingParams { top_k: 3, ..unit }), [0, 1, 2, 3]);
        assert_eq!(kept(&halves(), SamplingParams { top_p: 0.49, ..unit }), [0]);
        assert_eq!(kept(&halves(), SamplingParams { top_p: 0.6, ..unit }), [0, 1]);
        // Over what top-k kept, the first two have 2/3 and 1/3.
        assert_eq!(kept(&halves(), SamplingParams { top_k: 2, top_p: 0.66, ..unit }), [0]);
        assert_eq!(kept(&halves(), SamplingParams { min_p: 0.3, ..unit }), [0, 1]);
        assert_eq!(kept(&halves(), SamplingParams { min_p: 1.0, ..unit }), [0]);
    }

    #[test]
    fn impossible_logits_are_never_chosen() {
        let greedy = SamplingParams::default();
        assert_eq!(sample(&[f32::NAN, -1.0, -1.0], &greedy, 0), 1);
        assert_eq!(sample(&[f32::NAN, f32::NEG_INFINITY], &greedy, 0), -1);
        let hot = SamplingParams { temperature: 5.0, ..greedy };
        assert!((0..200).all(|position| sample(&[f32::NAN, 0.0, f32::NEG_INFINITY], &hot, position) == 1));
    }
}
