//! Makes a plain pass the one behind it.

/// What a plain pass knows of its rows and sequences.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// By row.
    pub tokens: Vec<i32>,
    /// By axis, then by row of the whole pass.
    pub positions: Vec<Vec<i32>>,
    /// By row.
    pub slots: Vec<i32>,
    /// By row.
    pub draw_positions: Vec<i32>,
    /// By sequence.
    pub prefix_len: Vec<i32>,
}

/// Moves row `r`, of sequence `row_sequence[r]`, to the next position, with `drawn[r]` for its token, 0 where nothing was drawn. Keys of
/// position p are in slot `page_table[sequence][p / page_size] * page_size + p % page_size`.
pub fn advance_rows(
    rows: &mut Rows,
    drawn: &[i32],
    row_sequence: &[i32],
    page_table: &[Vec<i32>],
    page_size: i32,
) {
    for (row, (&token, &sequence)) in drawn.iter().zip(row_sequence).enumerate() {
        let position = rows.prefix_len[sequence as usize] + 1;
        rows.prefix_len[sequence as usize] = position;
        rows.tokens[row] = if token < 0 { 0 } else { token };
        rows.positions.iter_mut().for_each(|axis| axis[row] += 1);
        rows.slots[row] =
            page_table[sequence as usize][(position / page_size) as usize] * page_size + position % page_size;
        rows.draw_positions[row] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_crosses_into_the_next_page() {
        let mut rows = Rows {
            tokens: vec![9, 9],
            positions: vec![vec![15, 3, 0]],
            slots: vec![0, 0],
            draw_positions: vec![16, 4],
            prefix_len: vec![15, 7, 3],
        };
        advance_rows(&mut rows, &[5, -1], &[0, 2], &[vec![4, 6], vec![1, 1], vec![2, 3]], 16);
        let wanted = Rows {
            tokens: vec![5, 0],
            positions: vec![vec![16, 4, 0]],
            slots: vec![96, 36],
            draw_positions: vec![17, 5],
            prefix_len: vec![16, 7, 4],
        };
        assert_eq!(rows, wanted);
    }
}
