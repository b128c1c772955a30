//! Shape checks of launch wrappers: dimensions are named, bound by their first use and compared ever after.

use crate::device::{DType, Tensor};
use crate::error::{Error, Result};

/// The most dimension names that one kernel uses.
const MAX_DIMS: usize = 16;

/// The named dimensions of one launch.
pub(super) struct Dims {
    kernel: &'static str,
    bound: [(&'static str, usize); MAX_DIMS],
    len: usize,
}

impl Dims {
    /// Nothing bound yet; `kernel` heads every error text.
    pub(super) fn new(kernel: &'static str) -> Self {
        Self { kernel, bound: [("", 0); MAX_DIMS], len: 0 }
    }

    /// Binds `name` to a size that no tensor decides, like a head count.
    pub(super) fn fix(mut self, name: &'static str, size: usize) -> Self {
        self.bind(name, size);
        self
    }

    /// The size bound to `name`.
    pub(super) fn get(&self, name: &str) -> usize {
        self.lookup(name)
            .unwrap_or_else(|| panic!("{}: dimension {name} is used before it is bound", self.kernel))
    }

    /// Checks the dtype and dimensions of a tensor without gaps between its rows, binding names seen first.
    pub(super) fn dense(
        &mut self,
        tensor: &str,
        view: &Tensor,
        dtype: DType,
        names: &[&'static str],
    ) -> Result<()> {
        self.rows(tensor, view, dtype, names)?;
        self.require(view.is_contiguous(), tensor, || {
            ("rows without gaps".into(), format!("a row stride of {}", view.row_stride()))
        })
    }

    /// The same for a tensor whose rows may be further apart than they are long.
    pub(super) fn rows(
        &mut self,
        tensor: &str,
        view: &Tensor,
        dtype: DType,
        names: &[&'static str],
    ) -> Result<()> {
        let shape = view.shape();
        let mut fits = view.dtype() == dtype && shape.len() == names.len();
        for (&name, &size) in names.iter().zip(shape) {
            match self.lookup(name) {
                Some(bound) => fits &= bound == size,
                None => self.bind(name, size),
            }
        }
        self.require(fits, tensor, || (self.expectation(dtype, names), format!("{view:?}")))?;
        // Kernels take sizes and strides as 32-bit integers.
        let largest = shape.iter().copied().chain([view.row_stride()]).max().unwrap_or(0);
        self.require(i32::try_from(largest).is_ok(), tensor, || {
            ("sizes and strides below 2^31".into(), format!("{largest}"))
        })
    }

    /// An [`Error::Shape`] about `tensor` unless `holds`; `texts` gives what is expected and what was got.
    pub(super) fn require(
        &self,
        holds: bool,
        tensor: &str,
        texts: impl FnOnce() -> (String, String),
    ) -> Result<()> {
        if holds {
            return Ok(());
        }
        let (expected, got) = texts();
        Err(Error::Shape { what: format!("{}: {tensor}", self.kernel), expected, got })
    }

    /// The one of a kernel's three variants for a model dtype.
    pub(super) fn variant(
        &self,
        tensor: &str,
        dtype: DType,
        names: [&'static str; 3],
    ) -> Result<&'static str> {
        let [bf16, f16, f32] = names;
        match dtype {
            DType::Bf16 => Ok(bf16),
            DType::F16 => Ok(f16),
            DType::F32 => Ok(f32),
            other => Err(Error::Shape {
                what: format!("{}: {tensor}", self.kernel),
                expected: "bf16, f16 or f32 elements".into(),
                got: other.name().into(),
            }),
        }
    }

    /// The one of a kernel's two variants that copies elements of 2 or of 4 bytes, whatever they mean.
    pub(super) fn by_width(
        &self,
        tensor: &str,
        dtype: DType,
        [b16, b32]: [&'static str; 2],
    ) -> Result<&'static str> {
        match dtype.size_in_bytes() {
            2 => Ok(b16),
            4 => Ok(b32),
            bytes => Err(Error::Shape {
                what: format!("{}: {tensor}", self.kernel),
                expected: "elements of 2 or 4 bytes".into(),
                got: format!("{} with {bytes}", dtype.name()),
            }),
        }
    }

    fn bind(&mut self, name: &'static str, size: usize) {
        assert!(self.len < MAX_DIMS, "{}: more than {MAX_DIMS} dimension names", self.kernel);
        self.bound[self.len] = (name, size);
        self.len += 1;
    }

    fn lookup(&self, name: &str) -> Option<usize> {
        self.bound[..self.len].iter().find(|(known, _)| *known == name).map(|&(_, size)| size)
    }

    /// `bf16[T=3, K=64]`
    fn expectation(&self, dtype: DType, names: &[&'static str]) -> String {
        let dim = |&name: &&str| self.lookup(name).map_or(name.to_owned(), |size| format!("{name}={size}"));
        let dims: Vec<String> = names.iter().map(dim).collect();
        format!("{}[{}]", dtype.name(), dims.join(", "))
    }
}

/// Elements of `dtype` in a 16-byte vector.
pub(super) fn vector_len(dtype: DType) -> usize {
    16 / dtype.size_in_bytes()
}

/// Threads of a CTA that normalises one row. A function of the row's length alone, because it decides the order of additions.
pub(super) fn row_threads(hidden_size: usize, dtype: DType) -> u32 {
    hidden_size.div_ceil(vector_len(dtype)).next_multiple_of(32).clamp(32, 512) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_takes_a_vector_until_the_block_is_full() {
        assert_eq!(row_threads(1, DType::Bf16), 32);
        assert_eq!(row_threads(256, DType::Bf16), 32);
        assert_eq!(row_threads(257, DType::Bf16), 64);
        assert_eq!(row_threads(4096, DType::F16), 512);
        assert_eq!(row_threads(256, DType::F32), 64);
        assert_eq!(row_threads(100_000, DType::F32), 512);
    }
}
