//! Copies rows of one matrix to rows of another.

/// Writes rows of `src` over rows of `out`, each `columns` long, by `moves` (from, to); a move from or to an index outside is left out.
pub fn copy_rows<T: Copy>(src: &[T], columns: usize, moves: &[[i32; 2]], out: &mut [T]) {
    for &[from, to] in moves {
        let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to)) else { continue };
        let rows = src.chunks(columns).nth(from).zip(out.chunks_mut(columns).nth(to));
        if let Some((row, target)) = rows {
            target.copy_from_slice(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_where_they_are_sent_and_others_stay() {
        let mut out = [0; 6];
        copy_rows(&[1, 2, 3, 4], 2, &[[1, 0], [0, 2], [2, 1], [0, 3], [-1, 1], [0, -1]], &mut out);
        assert_eq!(out, [3, 4, 0, 0, 1, 2]);
    }
}
