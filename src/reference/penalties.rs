//! Oracle of `kernels/penalties.cu`: one row of logits, its text as a list of tokens.
#![forbid(unsafe_code)]

use crate::sampling::Penalties;

/// The logits of a row behind `prompt` and the `emitted` tokens, drafted ones included.
pub fn penalise(
    logits: &[f32],
    penalties: &Penalties,
    prompt: &[i32],
    emitted: &[i32],
    biases: &[(i32, f32)],
) -> Vec<f32> {
    let one = |(token, &logit): (usize, &f32)| {
        let is_it = |other: &&i32| **other == token as i32;
        let times = emitted.iter().filter(is_it).count();
        let mut logit = logit;
        if times > 0 || prompt.iter().any(|other| is_it(&other)) {
            let repetition = penalties.repetition;
            logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
        }
        if times > 0 {
            logit = logit - penalties.frequency * times as f32 - penalties.presence;
        }
        biases.iter().filter(|(other, _)| *other == token as i32).fold(logit, |logit, (_, bias)| logit + bias)
    };
    logits.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let penalties = Penalties { repetition: 2.0, presence: 0.25, frequency: 0.5 };
        let got = penalise(&[4.0, -4.0, 4.0, -4.0, 1.0], &penalties, &[0, 1], &[2, 2, 1], &[(4, -1.5)]);
        assert_eq!(got, [2.0, -8.75, 0.75, -4.0, -0.5]);
    }
}
