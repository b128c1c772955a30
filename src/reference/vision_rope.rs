//! Rotary position embedding of patches (Qwen2-VL, arXiv 2409.12191, section 2.1).

use super::rope::rotate;

/// One head of q or k: the first half of its pairs `(i, i + head_dim / 2)` turned by the patch's `row`, the second by its
/// `column`; `table[max_position, head_dim / 2]` holds the cosines and sines of a position.
pub fn vision_rope(head: &[f32], table: &[f32], row: usize, column: usize) -> Vec<f32> {
    let half = head.len() / 2;
    let (rows, columns) = (&table[row * half..][..half], &table[column * half..][..half]);
    let quarter = half / 2;
    let cosines = rows[..quarter].iter().chain(&columns[..quarter]);
    let sines = rows[quarter..].iter().chain(&columns[quarter..]);
    rotate(head, &cosines.chain(sines).copied().collect::<Vec<f32>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_half_of_the_pairs_has_its_axis() {
        // Position 0 keeps, position 1 turns by a quarter.
        let table = [1.0, 0.0, 0.0, 1.0];
        assert_eq!(vision_rope(&[1.0, 2.0, 3.0, 4.0], &table, 1, 0), [-3.0, 2.0, 1.0, 4.0]);
        assert_eq!(vision_rope(&[1.0, 2.0, 3.0, 4.0], &table, 0, 1), [1.0, -4.0, 3.0, 2.0]);
    }
}
