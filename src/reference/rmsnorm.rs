//! RMS normalisation with the residual add before it.

/// Adds `delta` to `residual` with `round` to the model's dtype, and returns
/// `residual * weight / rms(residual)` by rows of `weight.len()`.
pub fn rmsnorm(
    residual: &mut [f32],
    delta: Option<&[f32]>,
    weight: &[f32],
    eps: f32,
    round: impl Fn(f32) -> f32,
) -> Vec<f32> {
    add(residual, delta, round);
    let mut out = Vec::new();
    for row in residual.chunks(weight.len()) {
        let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
        let rms = (squares / row.len() as f64 + f64::from(eps)).sqrt();
        out.extend(row.iter().zip(weight).map(|(&v, &w)| (f64::from(v) * f64::from(w) / rms) as f32));
    }
    out
}

/// Adds `delta`, if there is one, to `residual`, with `round` to the model's dtype.
pub(super) fn add(residual: &mut [f32], delta: Option<&[f32]>, round: impl Fn(f32) -> f32) {
    for (residual, delta) in residual.iter_mut().zip(delta.unwrap_or_default()) {
        *residual = round(*residual + delta);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_by_hand() {
        let mut residual = [2.0, 3.0];
        let out = rmsnorm(&mut residual, Some(&[1.0, 1.0]), &[1.0, 2.0], 0.0, |v| v);
        assert_eq!(residual, [3.0, 4.0]);
        let rms = 12.5f64.sqrt();
        assert_eq!(out, [(3.0 / rms) as f32, (8.0 / rms) as f32]);
    }
}
