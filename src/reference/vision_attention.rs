//! Bidirectional attention of vision towers.

use std::ops::Range;

/// `softmax(sm_scale q k^T) v` of `qkv [T, 3 * num_heads * head_dim]` (heads of q, of k, of v), row t over the rows of its
/// segment; `seq_start` holds the segments' first rows and the end.
pub fn vision_attention(
    qkv: &[f32],
    seq_start: &[usize],
    num_heads: usize,
    head_dim: usize,
    sm_scale: f32,
) -> Vec<f32> {
    let mut out = Vec::new();
    for segment in seq_start.windows(2) {
        for row in segment[0]..segment[1] {
            for head in 0..num_heads {
                out.extend(one_head(qkv, segment[0]..segment[1], row, (num_heads, head_dim), head, sm_scale));
            }
        }
    }
    out
}

/// Head `head` of row `row` over the rows `seen`.
pub fn one_head(
    qkv: &[f32],
    seen: Range<usize>,
    row: usize,
    (num_heads, head_dim): (usize, usize),
    head: usize,
    sm_scale: f32,
) -> Vec<f32> {
    let width = num_heads * head_dim;
    let at = |which: usize, row: usize| {
        let start = row * 3 * width + which * width + head * head_dim;
        &qkv[start..start + head_dim]
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let scores: Vec<f64> =
        seen.clone().map(|key| f64::from(sm_scale) * dot(at(0, row), at(1, key))).collect();
    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let column = |i: usize| {
        let values = weights.iter().zip(seen.clone());
        values.map(|(weight, key)| weight * f64::from(at(2, key)[i])).sum::<f64>() / sum
    };
    (0..head_dim).map(|i| column(i) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_of_two_rows_by_hand() {
        // One head of one element: q, k, v a row. The third row is alone in its segment.
        let qkv = [1.0, 0.0, 2.0, 1.0, 1.0, 6.0, 5.0, 7.0, 9.0];
        let out = vision_attention(&qkv, &[0, 2, 3], 1, 1, 1.0);
        let expected = (2.0 + 6.0 * 1f32.exp()) / (1.0 + 1f32.exp());
        assert!((out[0] - expected).abs() < 1e-6 && (out[1] - expected).abs() < 1e-6);
        assert_eq!(out[2], 9.0);
    }
}
