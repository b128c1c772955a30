//! Where a tensor of a checkpoint file lies, and how its elements are brought into order.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::StoredType;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub dtype: StoredType,
    pub shape: Vec<usize>,
    /// Where its elements lie in the file, from the first to the last. Without `strides` as many bytes as dtype and shape
    /// need.
    pub bytes: Range<usize>,
    /// Elements from one index of each dimension to the next, for a tensor that is not stored row-major.
    pub strides: Option<Vec<usize>>,
}

impl Entry {
    /// Bytes of all elements in row-major order. Whoever made the entry has checked that this does not overflow.
    pub fn size_in_bytes(&self) -> usize {
        match self.strides {
            None => self.bytes.len(),
            Some(_) => self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8,
        }
    }

    /// The elements of a tensor with strides, copied from `file` into row-major order.
    pub fn gather(&self, file: &[u8]) -> Vec<u8> {
        let Some(strides) = &self.strides else { return file[self.bytes.clone()].to_vec() };
        let element = self.dtype.bitsize() / 8;
        let total = self.size_in_bytes();
        let mut out = Vec::with_capacity(total);
        let (&inner_len, outer_shape) = self.shape.split_last().unwrap_or((&1, &[]));
        let inner_step = strides.last().unwrap_or(&1) * element;
        let mut index = vec![0; outer_shape.len()];
        while out.len() < total {
            let row: usize = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
            let mut at = self.bytes.start + row * element;
            for _ in 0..inner_len {
                out.extend_from_slice(&file[at..at + element]);
                at += inner_step;
            }
            for (i, &len) in index.iter_mut().zip(outer_shape).rev() {
                *i += 1;
                if *i < len {
                    break;
                }
                *i = 0;
            }
        }
        out
    }
}

/// Fails on the name of a tensor that would not print as itself on one line.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.chars().any(char::is_control) {
        return Err(format!("the name of tensor {name:?} has control characters"));
    }
    Ok(())
}

/// Bytes of a tensor; `None` on overflow or where elements do not fill whole bytes.
pub(super) fn size_in_bytes(dtype: StoredType, shape: &[usize]) -> Option<usize> {
    let num_elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
    let bits = num_elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_elements_come_out_row_major() {
        let file: Vec<u8> = (0..12).collect();
        let gather = |shape: &[usize], strides: &[usize], start: usize| {
            let (shape, strides) = (shape.to_vec(), Some(strides.to_vec()));
            Entry { dtype: StoredType::U8, shape, bytes: start..12, strides }.gather(&file)
        };
        // A [3, 4] matrix transposed, its second column, a box of it, and the order of axes (2, 0, 1) of [2, 2, 3].
        assert_eq!(gather(&[4, 3], &[1, 4], 0), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(gather(&[3], &[4], 1), [1, 5, 9]);
        assert_eq!(gather(&[2, 2], &[4, 2], 4), [4, 6, 8, 10]);
        assert_eq!(gather(&[3, 2, 2], &[1, 6, 3], 0), [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]);
        let wide = Entry { dtype: StoredType::F32, shape: vec![2], bytes: 0..12, strides: Some(vec![2]) };
        assert_eq!(wide.gather(&file), [0, 1, 2, 3, 8, 9, 10, 11]);
    }
}
