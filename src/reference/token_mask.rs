//! Oracle of `kernels/token_mask.cu`.
#![forbid(unsafe_code)]

/// A row of logits with what `mask` does not allow banned: bit `i % 32` of word `i / 32` is token `i`'s.
pub fn token_mask(logits: &[f32], mask: &[u32]) -> Vec<f32> {
    let is_allowed = |token: usize| mask[token / 32] >> (token % 32) & 1 == 1;
    let one = |(token, &logit)| if is_allowed(token) { logit } else { f32::NEG_INFINITY };
    logits.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn values_by_hand() {
        assert_eq!(super::token_mask(&[1.0, 2.0, 3.0], &[0b101]), [1.0, f32::NEG_INFINITY, 3.0]);
    }
}
