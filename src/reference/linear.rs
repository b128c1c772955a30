//! `out = x weight^T + bias`.

/// `x [rows, k]`, `weight [n, k]`, `bias [n]` give `[rows, n]`.
pub fn linear(x: &[f32], weight: &[f32], bias: Option<&[f32]>, k: usize) -> Vec<f32> {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    let mut out = Vec::new();
    for token in x.chunks(k) {
        for (n, row) in weight.chunks(k).enumerate() {
            out.push((dot(token, row) + bias.map_or(0.0, |bias| f64::from(bias[n]))) as f32);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tokens_by_hand() {
        let x = [1.0, 2.0, 3.0, 4.0];
        let weight = [1.0, 0.0, 0.0, 1.0, 1.0, -1.0];
        assert_eq!(linear(&x, &weight, None, 2), [1.0, 2.0, -1.0, 3.0, 4.0, -1.0]);
        assert_eq!(linear(&x[..2], &weight, Some(&[0.5, 0.0, 1.0]), 2), [1.5, 2.0, 0.0]);
    }
}
