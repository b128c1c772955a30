//! Layer normalisation with the residual add before it.

use super::rmsnorm::add;

/// Adds `delta` to `residual` with `round` to the model's dtype, and returns
/// `(residual - mean) / deviation * weight + bias` by rows of `weight.len()`.
pub fn layernorm(
    residual: &mut [f32],
    delta: Option<&[f32]>,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    round: impl Fn(f32) -> f32,
) -> Vec<f32> {
    add(residual, delta, round);
    let mut out = Vec::new();
    for row in residual.chunks(weight.len()) {
        let len = row.len() as f64;
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / len;
        let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / len;
        let deviation = (variance + f64::from(eps)).sqrt();
        let affine = row.iter().zip(weight).zip(bias);
        out.extend(
            affine.map(|((&v, &w), &b)| {
                ((f64::from(v) - mean) / deviation * f64::from(w) + f64::from(b)) as f32
            }),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_by_hand() {
        let mut residual = [1.0, 4.0];
        let out = layernorm(&mut residual, Some(&[0.0, 1.0]), &[1.0, 2.0], &[0.5, 0.0], 0.0, |v| v);
        assert_eq!(residual, [1.0, 5.0]);
        assert_eq!(out, [-0.5, 2.0]);
    }
}
