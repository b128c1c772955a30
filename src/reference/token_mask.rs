//! Oracle of `kernels/token_mask.cu`.
#![forbid(unsafe_code)]

/// A row of logits with what `mask` does not allow banned: bit `t % 32` of word `t / 32` is token `t`'s. Logit `i` is that of the token
/// `i + d2t[i]`, without `d2t` that of token `i`.
pub fn token_mask(logits: &[f32], mask: &[u32], d2t: Option<&[i32]>) -> Vec<f32> {
    let is_allowed = |token: usize| mask[token / 32] >> (token % 32) & 1 == 1;
    let token = |id: usize| d2t.map_or(id, |d2t| (id as i64 + i64::from(d2t[id])) as usize);
    let one = |(id, &logit)| if is_allowed(token(id)) { logit } else { f32::NEG_INFINITY };
    logits.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn values_by_hand() {
        assert_eq!(super::token_mask(&[1.0, 2.0, 3.0], &[0b101], None), [1.0, f32::NEG_INFINITY, 3.0]);
        // Draft ids 0 and 1 are the tokens 2 and 33.
        assert_eq!(super::token_mask(&[1.0, 2.0], &[0b011, 0b10], Some(&[2, 32])), [f32::NEG_INFINITY, 2.0]);
    }
}
