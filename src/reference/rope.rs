//! Rotary position embedding, half-split as in Hugging Face's Llama.

/// The table the kernel reads: for each position `head_dim / 2` cosines, then as many sines, of
/// `position * theta^(-2 i / head_dim)`.
pub fn cos_sin_table(max_position: usize, head_dim: usize, theta: f64) -> Vec<f32> {
    let half = head_dim / 2;
    let angle = |position: usize, i: usize| position as f64 * theta.powf(-(2.0 * i as f64) / head_dim as f64);
    let mut table = Vec::new();
    for position in 0..max_position {
        table.extend((0..half).map(|i| angle(position, i).cos() as f32));
        table.extend((0..half).map(|i| angle(position, i).sin() as f32));
    }
    table
}

/// One head of q or k normalised as Qwen3 does it: `round` to the model's dtype comes before and after the weight.
pub fn normalise(head: &[f32], weight: &[f32], eps: f32, round: impl Fn(f32) -> f32) -> Vec<f32> {
    let squares: f64 = head.iter().map(|&v| f64::from(v).powi(2)).sum();
    let rms = (squares / head.len() as f64 + f64::from(eps)).sqrt();
    head.iter().zip(weight).map(|(&v, &w)| round(round((f64::from(v) / rms) as f32) * w)).collect()
}

/// One head rotated by a row of the table: the pairs `(i, i + head_dim / 2)` turn by angle i.
pub fn rotate(head: &[f32], cos_sin: &[f32]) -> Vec<f32> {
    let half = head.len() / 2;
    let (cosines, sines) = cos_sin.split_at(half);
    let turned = |i: usize| {
        let (a, b) = (f64::from(head[i % half]), f64::from(head[i % half + half]));
        let (c, s) = (f64::from(cosines[i % half]), f64::from(sines[i % half]));
        if i < half { a * c - b * s } else { b * c + a * s }
    };
    (0..head.len()).map(|i| turned(i) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_normalised_and_weighed() {
        let rms = 12.5f32.sqrt();
        assert_eq!(normalise(&[3.0, 4.0], &[1.0, 2.0], 0.0, |v| v), [3.0 / rms, 4.0 / rms * 2.0]);
        assert_eq!(normalise(&[3.0, 4.0], &[1.0, 0.4], 0.0, f32::round), [1.0, 0.0]);
    }

    #[test]
    fn position_zero_is_the_identity_and_a_quarter_turn_swaps() {
        let table = cos_sin_table(2, 4, 10_000.0);
        assert_eq!(rotate(&[1.0, 2.0, 3.0, 4.0], &table[..4]), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(table[4], 1.0f64.cos() as f32);
        assert_eq!(table[7], (0.01f64).sin() as f32);
        assert_eq!(rotate(&[1.0, 2.0, 3.0, 4.0], &[0.0, 1.0, 1.0, 0.0]), [-3.0, 2.0, 1.0, 4.0]);
    }
}
