//! Dummy weights: made up where a checkpoint has none, for measurements. What a pass costs depends on their shapes, and a little on their numbers:
//! zeros toggle no bits, so a GPU that multiplies them runs faster than it would.

use std::collections::HashMap;

use half::{bf16, f16};

use crate::config::FloatType;
use crate::replay::random::Random;

/// Elements of a block that is written over and over.
const BLOCK: usize = 1 << 20;

/// Blocks of normal numbers, by what they are scaled for.
#[derive(Default)]
pub(super) struct DummyWeights {
    blocks: HashMap<usize, Vec<u8>>,
}

impl DummyWeights {
    /// Numbers for the rows of a matrix with `cols` columns, of deviation 1 / sqrt(cols), so that what passes through it keeps its size; for 0
    /// those of a vector, around one.
    pub(super) fn block(&mut self, cols: usize, float_type: FloatType) -> &[u8] {
        self.blocks.entry(cols).or_insert_with(|| {
            let mut random = Random(cols as u64);
            let mut number = || match cols {
                0 => 1.0 + 0.1 * normal(&mut random),
                _ => normal(&mut random) / (cols as f32).sqrt(),
            };
            let mut bytes = Vec::with_capacity(BLOCK * float_type.size_in_bytes());
            for _ in 0..BLOCK {
                let number = number();
                match float_type {
                    FloatType::Bf16 => bytes.extend(bf16::from_f32(number).to_le_bytes()),
                    FloatType::F16 => bytes.extend(f16::from_f32(number).to_le_bytes()),
                    FloatType::F32 => bytes.extend(number.to_le_bytes()),
                }
            }
            bytes
        })
    }
}

/// Nearly normal: the sum of four uniform numbers, of which each has a variance of 1/12.
fn normal(random: &mut Random) -> f32 {
    let sum: f64 = (0..4).map(|_| random.unit()).sum();
    ((sum - 2.0) * 3f64.sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_deviation_that_keeps_sizes() {
        let mut weights = DummyWeights::default();
        for cols in [64, 4096] {
            let block = weights.block(cols, FloatType::F32);
            let values: Vec<f64> =
                block.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect();
            assert_eq!(values.len(), BLOCK);
            let mean = values.iter().sum::<f64>() / BLOCK as f64;
            let variance = values.iter().map(|value| value * value).sum::<f64>() / BLOCK as f64;
            assert!(mean.abs() < 1e-3 && (variance * cols as f64 - 1.0).abs() < 0.01, "{mean} {variance}");
        }
    }
}
