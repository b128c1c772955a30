//! [`TensorMap`]: a matrix in device memory as Hopper's bulk copies want it described.

use cudarc::driver::sys;

use super::{DType, Tensor, check};
use crate::error::{Error, Result};

/// Columns of a box: 128 bytes, the span of the widest swizzle.
pub const BOX_COLUMNS: usize = 64;
/// The most rows that a box can have.
const MAX_BOX_ROWS: usize = 256;

/// Describes a matrix of 16-bit floats, and the box of it that one `bulk_load` of a kernel takes: [`BOX_COLUMNS`] columns of some rows, which
/// lie in shared memory as tiles of `wgmma` do (`kernels/prims_bulk.cuh`). Keeps the memory alive.
#[derive(Clone)]
pub struct TensorMap {
    encoded: sys::CUtensorMap,
    tensor: Tensor,
    box_rows: usize,
}

impl TensorMap {
    /// Boxes of `box_rows` rows (1 to 256) of `tensor`, bf16 or f16 `[rows, columns]`. Its rows may be farther apart than they are long;
    /// they start at multiples of 16 bytes.
    ///
    /// # Errors
    /// [`Error::Shape`] if dtype, dimensions, `box_rows`, address or row stride do not fit; the driver's, where the GPU has no such copies.
    pub fn new(tensor: &Tensor, box_rows: usize) -> Result<Self> {
        Self::encode(tensor, box_rows, sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE)
    }

    /// The same for what is read once and in order: L2 fetches 256 bytes at a time.
    ///
    /// # Errors
    /// As [`TensorMap::new`].
    pub fn of_weights(tensor: &Tensor, box_rows: usize) -> Result<Self> {
        Self::encode(tensor, box_rows, sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B)
    }

    fn encode(tensor: &Tensor, box_rows: usize, promotion: sys::CUtensorMapL2promotion) -> Result<Self> {
        let wrong = |expected: &str, got: String| {
            Err(Error::Shape { what: "tensor map".into(), expected: expected.into(), got })
        };
        let dtype = match tensor.dtype() {
            DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            other => return wrong("bf16 or f16", other.name().into()),
        };
        let &[rows, columns] = tensor.shape() else {
            return wrong("[rows, columns]", format!("{:?}", tensor.shape()));
        };
        if rows == 0 || columns == 0 || rows > i32::MAX as usize || columns > i32::MAX as usize {
            return wrong("1 to 2^31 - 1 rows and columns", format!("{:?}", tensor.shape()));
        }
        if box_rows == 0 || box_rows > MAX_BOX_ROWS {
            return wrong("boxes of 1 to 256 rows", format!("{box_rows}"));
        }
        // A single row may be part of rows of any length.
        let row_stride = if rows == 1 { columns.next_multiple_of(8) } else { tensor.row_stride() };
        let row_bytes = (row_stride * tensor.dtype().size_in_bytes()) as u64;
        if !row_bytes.is_multiple_of(16) || !tensor.ptr().is_multiple_of(16) {
            let got = format!("rows of {row_bytes} bytes from address {:#x} on", tensor.ptr());
            return wrong("rows that start at multiples of 16 bytes", got);
        }
        tensor.device().bind()?;
        let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: `encoded` is aligned as its type asks; two dimensions, one stride, two sides of the box and two element strides, as
        // rank 2 has them, are read during the call. The memory is only described.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut encoded,
                dtype,
                2,
                tensor.ptr() as *mut std::ffi::c_void,
                [columns as u64, rows as u64].as_ptr(),
                [row_bytes].as_ptr(),
                [BOX_COLUMNS as u32, box_rows as u32].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                promotion,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", status)?;
        Ok(Self { encoded, tensor: tensor.clone(), box_rows })
    }

    /// The matrix.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Rows of a box.
    pub fn box_rows(&self) -> usize {
        self.box_rows
    }

    /// Bytes that a copy brings, also where the box reaches beyond the matrix.
    pub fn box_bytes(&self) -> usize {
        self.box_rows * BOX_COLUMNS * self.tensor.dtype().size_in_bytes()
    }

    /// What a kernel gets.
    #[inline(always)]
    pub(super) fn words(&self) -> &[u64; 16] {
        &self.encoded.opaque
    }
}

impl std::fmt::Debug for TensorMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} in boxes of {} rows", self.tensor, self.box_rows)
    }
}
