//! One row of a pass, as the engine describes it.

use crate::tree::AncestorWords;

/// Most rows of one sequence in a pass: the bits of the ancestor words.
pub const MAX_ROWS_PER_SEQUENCE: usize = 256;

/// Rotary position of a token on the axes of M-RoPE: time, row and column in a picture. Of a text token the three are one.
pub type Rotary = [i32; 3];

/// The rotary position of a token of plain text at `position`.
pub fn text_rotary(position: usize) -> Rotary {
    [position as i32; 3]
}

/// One row as the engine describes it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Token id.
    pub token: i32,
    /// Logical position: how many tokens come before.
    pub position: usize,
    /// Rotary position on each axis (time, row, column); passes without M-RoPE go by the first.
    pub rotary: Rotary,
    /// Where the row's key and value are written.
    pub slot: i32,
    /// Visible positions from `prefix_len` on, the row's own included.
    pub ancestors: AncestorWords,
    /// For the target, the parent's index within the sequence's rows, -1 for the first. For a drafter, where the row's
    /// feature is: its row of the buffer that the pass gathers features from.
    pub link: i32,
}

/// Ancestor words of row `index` of a causal chunk: all earlier rows and itself.
pub fn causal_words(index: usize) -> AncestorWords {
    std::array::from_fn(|word| match (index + 1).saturating_sub(word * 64) {
        0 => 0,
        bits if bits >= 64 => u64::MAX,
        bits => (1 << bits) - 1,
    })
}

#[cfg(test)]
mod tests {
    use super::causal_words;

    #[test]
    fn causal_words_have_the_low_bits_set() {
        for index in [0, 1, 62, 63, 64, 65, 127, 128, 191, 192, 254, 255] {
            let words = causal_words(index);
            for bit in 0..256 {
                assert_eq!(words[bit / 64] >> (bit % 64) & 1 == 1, bit <= index, "row {index}, bit {bit}");
            }
        }
    }
}
