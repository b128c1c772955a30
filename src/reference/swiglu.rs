//! The gated activation of a SwiGLU layer.

/// Rows `[gate | up]` of `2 * intermediate_size` give rows `silu(gate) * up`.
pub fn swiglu(gate_up: &[f32], intermediate_size: usize) -> Vec<f32> {
    let silu = |g: f64| g / (1.0 + (-g).exp());
    let mut out = Vec::new();
    for row in gate_up.chunks(2 * intermediate_size) {
        let (gate, up) = row.split_at(intermediate_size);
        out.extend(gate.iter().zip(up).map(|(&gate, &up)| (silu(f64::from(gate)) * f64::from(up)) as f32));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let out = swiglu(&[0.0, 1.0, 5.0, 2.0], 2);
        assert_eq!(out[0], 0.0);
        assert!((out[1] - 2.0 * 0.731_058_6).abs() < 1e-6);
    }
}
