//! The activations of feed-forward layers that have no gate (arXiv 1606.08415).

/// `x / 2 (1 + erf(x / sqrt(2)))`, through the complementary error function's continued fraction and the error function's
/// series, to about 1e-12.
pub fn erf_gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
}

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
pub fn tanh_gelu(x: f32) -> f32 {
    let x = f64::from(x);
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    (0.5 * x * (1.0 + inner.tanh())) as f32
}

/// `x / (1 + exp(-1.702 x))`.
pub fn quick_gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (x / (1.0 + (-1.702 * x).exp())) as f32
}

fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x.abs() > 6.0 {
        return x.signum();
    }
    if x.abs() < 3.0 {
        // 2 / sqrt(pi) sum_n (-1)^n x^(2n+1) / (n! (2n+1))
        let (mut power, mut sum) = (x, 0.0);
        for n in 0..80 {
            sum += power / f64::from(2 * n + 1);
            power *= -x * x / f64::from(n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    // erfc(x) = exp(-x^2) / sqrt(pi) / (x + (1/2) / (x + 1 / (x + (3/2) / (x + ...))))
    let fraction = (1..=60).rev().fold(x.abs(), |tail, n| x.abs() + f64::from(n) / 2.0 / tail);
    x.signum() * (1.0 - (-x * x).exp() / fraction / std::f64::consts::PI.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_has_its_tabulated_values() {
        // Abramowitz and Stegun, table 7.1.
        for (x, expected) in
            [(0.5, 0.5204998778), (1.0, 0.8427007929), (2.0, 0.9953222650), (-1.0, -0.8427007929)]
        {
            assert!((erf(x) - expected).abs() < 1e-10, "{x}");
        }
        assert!((erf(3.0 - 1e-12) - erf(3.0 + 1e-12)).abs() < 1e-11, "series and fraction meet");
    }

    #[test]
    fn the_three_agree_roughly() {
        for i in -40..=40 {
            let x = i as f32 / 8.0;
            assert!((erf_gelu(x) - tanh_gelu(x)).abs() < 1e-3, "{x}");
            assert!((erf_gelu(x) - quick_gelu(x)).abs() < 0.03, "{x}");
        }
    }
}
