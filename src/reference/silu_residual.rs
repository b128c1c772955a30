//! The residual block of a Medusa head, behind its linear layer.

/// Rows `x` of `hidden` and rows `y` of several groups of `hidden` give rows `x + silu(y)`, group by group.
pub fn silu_residual(x: &[f32], y: &[f32], hidden: usize) -> Vec<f32> {
    let silu = |y: f64| y / (1.0 + (-y).exp());
    let width = y.len() / (x.len() / hidden);
    let mut out = Vec::new();
    for (x, y) in x.chunks(hidden).zip(y.chunks(width)) {
        out.extend(y.iter().zip(x.iter().cycle()).map(|(&y, &x)| (f64::from(x) + silu(f64::from(y))) as f32));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let out = silu_residual(&[3.0, 4.0], &[0.0, 1.0, -1.0, 0.0], 2);
        let want = [3.0, 4.0 + 0.731_058_6, 3.0 - 0.268_941_4, 4.0];
        assert!(out.iter().zip(want).all(|(out, want)| (out - want).abs() < 1e-6), "{out:?}");
    }
}
