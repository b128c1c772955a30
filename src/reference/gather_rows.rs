//! Picks rows of a matrix by index.

/// Rows `index` of `src`, each `columns` long; zeros for an index outside.
pub fn gather_rows<T: Copy + Default>(src: &[T], columns: usize, index: &[i32]) -> Vec<T> {
    let rows: Vec<&[T]> = src.chunks(columns).collect();
    let zeros = vec![T::default(); columns];
    let row = |&i: &i32| usize::try_from(i).ok().and_then(|i| rows.get(i).copied()).unwrap_or(&zeros);
    index.iter().flat_map(row).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_repeat_and_bad_indices_give_zeros() {
        assert_eq!(gather_rows(&[1, 2, 3, 4], 2, &[1, 1, -1, 0, 2]), [3, 4, 3, 4, 0, 0, 1, 2, 0, 0]);
    }
}
