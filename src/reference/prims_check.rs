//! What every device primitive should give: the oracle of both bodies of `kernels/prims.cuh`.

/// A 16-bit float format by its conversions: to bits (nearest even) and from them.
#[derive(Clone, Copy)]
pub struct Format {
    /// The nearest value's bits.
    pub to_bits: fn(f32) -> u16,
    /// The value of bits.
    pub from_bits: fn(u16) -> f32,
}

/// Five words: the bits of `x`, their value, the pair `(x, -x)` in one register, both of its values.
pub fn conversions(x: f32, format: Format) -> [u32; 5] {
    let (bits, negative) = ((format.to_bits)(x), (format.to_bits)(-x));
    let value = |bits: u16| (format.from_bits)(bits).to_bits();
    [bits.into(), value(bits), u32::from(bits) | u32::from(negative) << 16, value(bits), value(negative)]
}

/// `c[16][8] + a[16][16] b`, where a row of `b[8][16]` is a column of the right factor.
pub fn mma(a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
    product(a, b, c, 16)
}

/// `c[64][N] + a[64][64] b`, where a row of `b[N][64]` is a column of the right factor.
pub fn wgmma(a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
    product(a, b, c, 64)
}

fn product(a: &[f32], b: &[f32], c: &[f32], depth: usize) -> Vec<f32> {
    let width = b.len() / depth;
    let element = |i: usize| {
        let (row, column) = (i / width, i % width);
        let products = (0..depth).map(|k| f64::from(a[row * depth + k]) * f64::from(b[column * depth + k]));
        (products.sum::<f64>() + f64::from(c[i])) as f32
    };
    (0..c.len()).map(element).collect()
}

/// Registers of all lanes after `ldmatrix.x4` of four 8x8 matrices: lane l holds, of each, elements (l / 4, 2 (l % 4)) and
/// the next in the row; transposed, of each matrix's transpose.
pub fn ldmatrix(matrices: &[u16], transposed: bool) -> Vec<u32> {
    let element = |matrix: usize, row: usize, column: usize| {
        let (row, column) = if transposed { (column, row) } else { (row, column) };
        u32::from(matrices[matrix * 64 + row * 8 + column])
    };
    let register = |i: usize| {
        let (lane, matrix) = (i / 4, i % 4);
        let (row, column) = (lane / 4, lane % 4 * 2);
        element(matrix, row, column) | element(matrix, row, column + 1) << 16
    };
    (0..128).map(register).collect()
}

/// Three groups of 64 copies of four words, of which the invalid ones give zeros; the last group arrives crosswise.
pub fn cp_async(input: &[u32]) -> Vec<u32> {
    let copy = |group: usize, thread: usize| {
        let is_valid = !(thread + group).is_multiple_of(5);
        let source = &input[(group * 64 + thread) * 4..][..4];
        source.iter().map(move |&word| if is_valid { word } else { 0 })
    };
    (0..192).flat_map(|i| copy(i / 64, if i / 64 == 2 { (i % 64) ^ 33 } else { i % 64 })).collect()
}

/// What boxes of `box_rows` rows and 64 columns bring of the leading `columns` of each row of `matrix[rows][stride]`: `down` of them below each
/// other and `across` side by side, the first at `row` and `column`. Elements outside are 0.
pub fn boxes(
    matrix: &[u16],
    [stride, columns]: [usize; 2],
    [row, column]: [isize; 2],
    [down, across, box_rows]: [usize; 3],
) -> Vec<u16> {
    let rows = matrix.len() / stride;
    let element = |i: usize| {
        let row = usize::try_from(row + (i / (across * 64)) as isize).ok().filter(|&row| row < rows)?;
        let column = usize::try_from(column + (i % (across * 64)) as isize).ok().filter(|&c| c < columns)?;
        Some(matrix[row * stride + column])
    };
    (0..down * box_rows * across * 64).map(|i| element(i).unwrap_or(0)).collect()
}

/// Four rounds in which every thread takes three times its partner's word plus one.
pub fn named_barrier(input: &[u32]) -> Vec<u32> {
    let round = |words: Vec<u32>| -> Vec<u32> {
        (0..words.len()).map(|thread| words[thread ^ 32].wrapping_mul(3).wrapping_add(1)).collect()
    };
    (0..4).fold(input.to_vec(), |words, _| round(words))
}

/// Eight words a thread of four blocks in a cluster: its block's rank, their number, what the mirrored thread of the block two further on brought, and
/// the first half of that again.
pub fn cluster(input: &[u32]) -> Vec<u32> {
    let words = |i: usize| {
        let (block, thread) = (i / 64, i % 64);
        let peer = (block + 2) % 4 * 64 + 63 - thread;
        [&[block as u32, 4], &input[4 * peer..4 * peer + 4], &input[4 * peer..4 * peer + 2]].concat()
    };
    (0..256).flat_map(words).collect()
}

/// Sixteen words a lane: shuffles, votes, reductions, bit counts, products and sums rounded one by one.
pub fn warp(input: &[u32]) -> Vec<u32> {
    let lane_words = |lane: usize| {
        let x = input[lane];
        let ballot = (0..32).fold(0, |votes, lane| votes | (input[lane] & 1) << lane);
        let wide = u64::from(x) << 32 | u64::from(input[(lane + 1) % 32]);
        let any = input.contains(&input[31]);
        let all = input.iter().all(|&x| x != 0);
        [
            input[7],
            input[(lane * 5 + 3) % 32],
            input[if lane < 3 { lane } else { lane - 3 }],
            input[lane ^ 19],
            input[if lane + 9 < 32 { lane + 9 } else { lane }],
            ballot,
            input.iter().copied().max().unwrap_or(0),
            (0..32).fold(0, |or, lane| or | input[lane] & (0x0101_0101 << (lane % 8))),
            x.count_ones(),
            wide.count_ones(),
            if x == 0 { 0 } else { x.trailing_zeros() + 1 },
            x.leading_zeros(),
            ((u64::from(x) * 0x9e37_79b9) >> 32) as u32,
            (f32::from_bits(x & 0x3fff_ffff) * 1.1).to_bits(),
            ((x >> 8) as f32 * 0.1 + 0.3).to_bits(),
            u32::from(any) | u32::from(all) << 1,
        ]
    };
    (0..32).flat_map(lane_words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_matrices() {
        let identity: Vec<f32> = (0..256).map(|i| f32::from(i / 16 == i % 16)).collect();
        let b: Vec<f32> = (0..128).map(|i| i as f32).collect();
        let product = mma(&identity, &b, &[0.5; 128]);
        assert_eq!(
            product[..3],
            [0.5, 16.5, 32.5],
            "row 0 of the left factor times the columns of the right"
        );
    }

    #[test]
    fn boxes_reach_beyond_a_matrix() {
        // Two rows of three elements, four apart.
        let matrix = [1, 2, 3, 99, 5, 6, 7, 99];
        let got = boxes(&matrix, [4, 3], [-1, -1], [1, 1, 4]);
        assert_eq!(got.len(), 4 * 64);
        assert_eq!(got[..64], [0; 64]);
        assert_eq!(got[64..][..6], [0, 1, 2, 3, 0, 0]);
        assert_eq!(got[128..][..6], [0, 5, 6, 7, 0, 0]);
        assert_eq!(got[192..], [0; 64]);
    }

    #[test]
    fn a_lane_holds_two_neighbours_of_a_row_or_a_column() {
        let matrices: Vec<u16> = (0..256).collect();
        assert_eq!(ldmatrix(&matrices, false)[5 * 4 + 1], (64 + 8 + 2) | ((64 + 8 + 3) << 16));
        assert_eq!(ldmatrix(&matrices, true)[5 * 4 + 1], (64 + 2 * 8 + 1) | ((64 + 3 * 8 + 1) << 16));
    }
}
