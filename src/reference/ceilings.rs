//! What the kernels that only read come to.

/// The sum of each of `blocks` blocks, modulo 2^32: in pass `p` block `b` reads piece `(b + p shift) mod blocks` and every
/// `blocks`-th behind it.
pub fn block_sums(words: &[u32], piece: usize, blocks: usize, passes: usize, shift: usize) -> Vec<u32> {
    let mut sums = vec![0u32; blocks];
    for pass in 0..passes {
        for (block, sum) in sums.iter_mut().enumerate() {
            let first = (block + pass * shift) % blocks;
            for words in words.chunks(piece).skip(first).step_by(blocks) {
                *sum = words.iter().fold(*sum, |sum, &word| sum.wrapping_add(word));
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pass_reads_everything_once() {
        let words: Vec<u32> = (0..70).map(|i| i * i).collect();
        let total = |passes: usize| words.iter().sum::<u32>() * passes as u32;
        for (blocks, passes, shift) in [(1, 1, 0), (3, 2, 1), (9, 4, 5)] {
            let sums = block_sums(&words, 10, blocks, passes, shift);
            assert_eq!(sums.iter().sum::<u32>(), total(passes), "{blocks} {passes} {shift}");
        }
        assert_eq!(block_sums(&[1, 2, 3, 4], 1, 2, 1, 0), [4, 6]);
        assert_eq!(block_sums(&[1, 2, 3, 4], 1, 2, 1, 1), [4, 6], "the first pass is not shifted");
        assert_eq!(block_sums(&[1, 2, 3, 4], 1, 2, 2, 1), [10, 10]);
    }
}
