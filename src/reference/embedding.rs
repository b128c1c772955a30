//! Token embedding look-up.

use super::gather_rows::gather_rows;

/// The rows of `table [V, hidden_size]` that `tokens` name; zeros for a token outside.
pub fn embedding(table: &[f32], hidden_size: usize, tokens: &[i32]) -> Vec<f32> {
    gather_rows(table, hidden_size, tokens)
}
