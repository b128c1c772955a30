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
    fn position_zero_is_the_identity_and_a_quarter_turn_swaps() {
        let table = cos_sin_table(2, 4, 10_000.0);
        assert_eq!(rotate(&[1.0, 2.0, 3.0, 4.0], &table[..4]), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(table[4], 1.0f64.cos() as f32);
        assert_eq!(table[7], (0.01f64).sin() as f32);
        assert_eq!(rotate(&[1.0, 2.0, 3.0, 4.0], &[0.0, 1.0, 1.0, 0.0]), [-3.0, 2.0, 1.0, 4.0]);
    }
}
