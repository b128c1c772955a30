//! One tensor of a checkpoint, and its conversion to the type the model runs in.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};

use super::StoredType;
use crate::config::FloatType;
use crate::{Error, Result};

/// A tensor as stored: row-major, little endian, not necessarily aligned.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Its name in the checkpoint.
    pub name: &'a str,
    /// The file it is in.
    pub path: &'a Path,
    /// Element type.
    pub dtype: StoredType,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// The elements.
    pub bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// This view, if its shape is `expected`.
    pub fn with_shape(self, expected: &[usize]) -> Result<Self> {
        if self.shape == expected {
            Ok(self)
        } else {
            Err(self.error(format_args!(
                "has the shape {:?}, but the config asks for {expected:?}: config and weights are not of one model",
                self.shape
            )))
        }
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The stored type as one that a model can run in; fails for integers, f64, fp8 and the like.
    pub fn float_type(&self) -> Result<FloatType> {
        FloatType::ALL.into_iter().find(|&float_type| stored_type(float_type) == self.dtype).ok_or_else(
            || {
                self.error(format_args!(
                    "is stored as {:?}: only BF16, F16 and F32 are supported",
                    self.dtype
                ))
            },
        )
    }

    /// The elements of these rows (indices of the first dimension), to convert a large tensor block by block.
    pub fn row_bytes(&self, rows: Range<usize>) -> &'a [u8] {
        let num_rows = self.shape.first().copied().unwrap_or(1);
        let row_len = self.bytes.len() / num_rows.max(1);
        &self.bytes[rows.start * row_len..rows.end * row_len]
    }

    /// Writes all elements to `out`, converted to `dtype` (round to nearest even).
    ///
    /// `out` takes `num_elements * dtype.size_in_bytes()` bytes. Fails where a finite element would become infinite.
    pub fn copy_converted(&self, dtype: FloatType, out: &mut [u8]) -> Result<()> {
        self.convert(self.bytes, dtype, out)
    }

    /// As [`TensorView::copy_converted`], for [`TensorView::row_bytes`] of `rows` only.
    pub fn copy_rows_converted(&self, rows: Range<usize>, dtype: FloatType, out: &mut [u8]) -> Result<()> {
        self.convert(self.row_bytes(rows), dtype, out)
    }

    /// All elements of an integer table (i64 or i32), such as a drafter's `d2t`.
    pub fn to_i64_vec(&self) -> Result<Vec<i64>> {
        match self.dtype {
            StoredType::I64 => {
                Ok(self.bytes.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect())
            }
            StoredType::I32 => {
                Ok(self.bytes.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes).into()).collect())
            }
            other => Err(self.error(format_args!("is stored as {other:?}: it should be I64 or I32"))),
        }
    }

    /// An error about this tensor.
    pub fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::format(self.path, format!("tensor {} {reason}", self.name))
    }

    fn convert(&self, bytes: &[u8], dtype: FloatType, out: &mut [u8]) -> Result<()> {
        let stored = self.float_type()?;
        let num_elements = bytes.len() / stored.size_in_bytes();
        assert_eq!(
            out.len(),
            num_elements * dtype.size_in_bytes(),
            "the caller sizes `out` for tensor {}",
            self.name
        );
        let all_in_range = match (stored, dtype) {
            (FloatType::Bf16, FloatType::Bf16)
            | (FloatType::F16, FloatType::F16)
            | (FloatType::F32, FloatType::F32) => {
                out.copy_from_slice(bytes);
                true
            }
            (FloatType::Bf16, FloatType::F16) => each(bytes, out, |x| to_f16(from_bf16(x))),
            (FloatType::Bf16, FloatType::F32) => each(bytes, out, |x| to_f32(from_bf16(x))),
            (FloatType::F16, FloatType::Bf16) => each(bytes, out, |x| to_bf16(from_f16(x))),
            (FloatType::F16, FloatType::F32) => each(bytes, out, |x| to_f32(from_f16(x))),
            (FloatType::F32, FloatType::Bf16) => each(bytes, out, |x| to_bf16(f32::from_le_bytes(x))),
            (FloatType::F32, FloatType::F16) => each(bytes, out, |x| to_f16(f32::from_le_bytes(x))),
        };
        if all_in_range {
            Ok(())
        } else {
            Err(self.error(format_args!("holds values too large for {dtype}: run with --dtype bf16 or f32")))
        }
    }
}

/// How a checkpoint calls `float_type`.
pub(super) fn stored_type(float_type: FloatType) -> StoredType {
    match float_type {
        FloatType::Bf16 => StoredType::BF16,
        FloatType::F16 => StoredType::F16,
        FloatType::F32 => StoredType::F32,
    }
}

/// Converts element by element; says whether every conversion stayed in range.
fn each<const IN: usize, const OUT: usize>(
    bytes: &[u8],
    out: &mut [u8],
    convert: impl Fn([u8; IN]) -> ([u8; OUT], bool),
) -> bool {
    let mut all_in_range = true;
    for (element, slot) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        let (converted, in_range) = convert(*element);
        *slot = converted;
        all_in_range &= in_range;
    }
    all_in_range
}

fn from_bf16(bytes: [u8; 2]) -> f32 {
    bf16::from_le_bytes(bytes).to_f32()
}

fn from_f16(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

fn to_bf16(value: f32) -> ([u8; 2], bool) {
    let converted = bf16::from_f32(value);
    (converted.to_le_bytes(), converted.is_finite() || !value.is_finite())
}

fn to_f16(value: f32) -> ([u8; 2], bool) {
    let converted = f16::from_f32(value);
    (converted.to_le_bytes(), converted.is_finite() || !value.is_finite())
}

fn to_f32(value: f32) -> ([u8; 4], bool) {
    (value.to_le_bytes(), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<'a>(dtype: StoredType, shape: &'a [usize], bytes: &'a [u8]) -> TensorView<'a> {
        TensorView { name: "w", path: Path::new("model.safetensors"), dtype, shape, bytes }
    }

    /// Values that each type holds exactly, with signs, a subnormal of f16 and the special ones.
    const VALUES: [f32; 8] = [0.0, -0.0, 1.0, -2.5, 0.15625, 5.9604645e-8, f32::INFINITY, f32::NEG_INFINITY];

    fn bytes_of(dtype: FloatType, values: &[f32]) -> Vec<u8> {
        let element = |&value: &f32| match dtype {
            FloatType::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            FloatType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            FloatType::F32 => value.to_le_bytes().to_vec(),
        };
        values.iter().flat_map(element).collect()
    }

    #[test]
    fn every_pair_of_types_converts_exactly_what_both_hold() {
        for from in FloatType::ALL {
            for to in FloatType::ALL {
                let bytes = bytes_of(from, &VALUES);
                let expected = bytes_of(to, &VALUES);
                let mut out = vec![0xAA; expected.len()];
                view(stored_type(from), &[2, 4], &bytes).copy_converted(to, &mut out).unwrap();
                assert_eq!(out, expected, "{from} to {to}");
            }
        }
    }

    #[test]
    fn rows_are_those_of_the_first_dimension() {
        let bytes = bytes_of(FloatType::F32, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let view = view(StoredType::F32, &[3, 2], &bytes);
        let mut out = vec![0; 8];
        view.copy_rows_converted(1..3, FloatType::Bf16, &mut out).unwrap();
        assert_eq!(out, bytes_of(FloatType::Bf16, &[3.0, 4.0, 5.0, 6.0]));
    }

    #[test]
    fn a_value_beyond_f16_is_an_error_not_infinity() {
        let bytes = bytes_of(FloatType::Bf16, &[1.0, 1e6]);
        let error =
            view(StoredType::BF16, &[2], &bytes).copy_converted(FloatType::F16, &mut [0; 4]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model.safetensors: tensor w holds values too large for f16: run with --dtype bf16 or f32"
        );
    }

    #[test]
    fn wrong_shape_and_wrong_type_are_named() {
        let view = view(StoredType::I64, &[1], &[7, 0, 0, 0, 0, 0, 0, 0]);
        assert!(view.with_shape(&[2]).unwrap_err().to_string().contains("has the shape [1]"));
        assert!(view.float_type().unwrap_err().to_string().contains("is stored as I64"));
        assert_eq!(view.to_i64_vec().unwrap(), [7]);
    }
}
