//! Device memory with a dtype and a shape.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys;
use half::{bf16, f16};

use super::pinned::HostMemory;
use super::{Device, check};
use crate::error::{Error, Result};

/// Element types of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F16,
    Bf16,
    I32,
    I64,
    U64,
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn size_in_bytes(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::F16 | DType::Bf16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::I64 | DType::U64 => 8,
        }
    }

    /// The name as used in kernel names and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U64 => "u64",
            DType::U8 => "u8",
        }
    }
}

/// Host types that mirror a [`DType`].
pub trait Element: bytemuck::Pod + Send {
    /// The matching device type.
    const DTYPE: DType;
}

macro_rules! element {
    ($($host:ty => $dtype:ident),*) => { $(impl Element for $host { const DTYPE: DType = DType::$dtype; })* };
}
element!(f32 => F32, f16 => F16, bf16 => Bf16, i32 => I32, i64 => I64, u64 => U64, u8 => U8);

struct Allocation {
    device: Device,
    ptr: sys::CUdeviceptr,
    /// The host's memory where it is that.
    mapped: Option<Arc<HostMemory>>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.ptr != 0 && self.mapped.is_none() && self.device.bind().is_ok() {
            // SAFETY: allocated by `Tensor::uninit`, freed once; cuMemFree waits for work that still uses it.
            let _ = unsafe { sys::cuMemFree_v2(self.ptr) };
        }
    }
}

/// A row-major tensor in device memory, or a view of one. Clones and views share the memory; writing is ordered by the
/// device's stream, not by Rust's borrow rules.
#[derive(Clone)]
pub struct Tensor {
    allocation: Arc<Allocation>,
    byte_offset: usize,
    dtype: DType,
    shape: Vec<usize>,
    /// Elements from one row (first dimension) to the next; larger than the row for column views.
    row_stride: usize,
}

impl Tensor {
    /// Uninitialised memory (the host driver fills it with 0xFF, which is NaN in every float type).
    pub fn uninit(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        device.bind()?;
        let bytes = shape.iter().try_fold(dtype.size_in_bytes(), |n, &d| n.checked_mul(d));
        let bytes = bytes
            .ok_or_else(|| Error::Input(format!("a tensor of shape {shape:?} does not fit in memory")))?;
        let mut ptr = 0;
        // SAFETY: `ptr` receives the allocation; one byte at least because zero is refused.
        let status = unsafe { sys::cuMemAlloc_v2(&mut ptr, bytes.max(1)) };
        if status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = device.memory().unwrap_or((0, 0));
            return Err(Error::Device(format!(
                "out of device memory: {} MiB needed, {} of {} MiB free on {}",
                bytes >> 20,
                free >> 20,
                total >> 20,
                device.name()
            )));
        }
        check("cuMemAlloc", status)?;
        let allocation = Arc::new(Allocation { device: device.clone(), ptr, mapped: None });
        Ok(Self {
            allocation,
            byte_offset: 0,
            dtype,
            shape: shape.to_vec(),
            row_stride: shape.iter().skip(1).product(),
        })
    }

    /// A shape without memory, to rehearse loading: its pointer is null, so the driver refuses every use.
    pub(crate) fn without_memory(device: &Device, dtype: DType, shape: &[usize]) -> Self {
        Self {
            allocation: Arc::new(Allocation { device: device.clone(), ptr: 0, mapped: None }),
            byte_offset: 0,
            dtype,
            shape: shape.to_vec(),
            row_stride: shape.iter().skip(1).product(),
        }
    }

    /// Memory of the host as kernels see it, as `[elements]`.
    pub(super) fn mapped(memory: &Arc<HostMemory>, dtype: DType) -> Self {
        let allocation = Allocation {
            device: memory.device().clone(),
            ptr: memory.device_ptr(),
            mapped: Some(memory.clone()),
        };
        let shape = vec![memory.num_bytes() / dtype.size_in_bytes()];
        Self { allocation: Arc::new(allocation), byte_offset: 0, dtype, shape, row_stride: 1 }
    }

    /// Memory filled with zero bytes.
    pub fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        let tensor = Self::uninit(device, dtype, shape)?;
        tensor.fill_bytes(0)?;
        Ok(tensor)
    }

    /// A copy of `data` with `shape`.
    pub fn from_slice<T: Element>(device: &Device, data: &[T], shape: &[usize]) -> Result<Self> {
        let tensor = Self::uninit(device, T::DTYPE, shape)?;
        tensor.write(data)?;
        Ok(tensor)
    }

    /// Sets every byte of a contiguous tensor.
    pub fn fill_bytes(&self, byte: u8) -> Result<()> {
        assert!(self.is_contiguous(), "fill of a strided view");
        if self.num_bytes() == 0 {
            return Ok(());
        }
        self.device().bind()?;
        // SAFETY: the range lies within the allocation.
        let status =
            unsafe { sys::cuMemsetD8Async(self.ptr(), byte, self.num_bytes(), self.device().stream()) };
        check("cuMemsetD8Async", status)
    }

    /// Copies `data` to the device; returns when `data` may be reused.
    pub fn write<T: Element>(&self, data: &[T]) -> Result<()> {
        self.expect_contiguous::<T>("write", data.len())?;
        if data.len() != self.num_elements() {
            return Err(self.shape_error(
                "write",
                format!("{} elements", self.num_elements()),
                format!("{}", data.len()),
            ));
        }
        self.write_bytes(0, bytemuck::cast_slice(data))
    }

    /// Copies raw bytes to byte offset `at` of a contiguous tensor; returns when `data` may be reused.
    pub fn write_bytes(&self, at: usize, data: &[u8]) -> Result<()> {
        assert!(self.is_contiguous() && at + data.len() <= self.num_bytes(), "write outside the tensor");
        if data.is_empty() {
            return Ok(());
        }
        self.device().bind()?;
        // SAFETY: the range lies within the allocation; pageable memory is staged before the call returns, and the
        // synchronisation below keeps `data` alive for drivers that defer the copy.
        let status = unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                self.ptr() + at as u64,
                data.as_ptr().cast(),
                data.len(),
                self.device().stream(),
            )
        };
        check("cuMemcpyHtoDAsync", status)?;
        self.device().synchronize()
    }

    /// Copies all elements of a contiguous tensor to the host, after all work issued so far.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.expect_contiguous::<T>("read", self.num_elements())?;
        let mut data = vec![T::zeroed(); self.num_elements()];
        if data.is_empty() {
            return Ok(data);
        }
        self.device().bind()?;
        // SAFETY: `data` has room for all elements and outlives the copy, which is waited for.
        let status = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                data.as_mut_ptr().cast(),
                self.ptr(),
                self.num_bytes(),
                self.device().stream(),
            )
        };
        check("cuMemcpyDtoHAsync", status)?;
        self.device().synchronize()?;
        Ok(data)
    }

    /// Starts copying the bytes of `source` here (same dtype and number of elements, both contiguous).
    pub fn copy_from(&self, source: &Tensor) -> Result<()> {
        if self.num_bytes() != source.num_bytes() || !self.is_contiguous() || !source.is_contiguous() {
            return Err(self.shape_error("copy", format!("{:?}", self.shape), format!("{:?}", source.shape)));
        }
        if self.num_bytes() == 0 {
            return Ok(());
        }
        self.device().bind()?;
        // SAFETY: both ranges lie within their allocations and have the same length.
        let status = unsafe {
            sys::cuMemcpyDtoDAsync_v2(self.ptr(), source.ptr(), self.num_bytes(), self.device().stream())
        };
        check("cuMemcpyDtoDAsync", status)
    }

    /// Rows `range` of the first dimension, as a view.
    pub fn rows(&self, range: Range<usize>) -> Tensor {
        assert!(range.start <= range.end && range.end <= self.shape[0], "rows {range:?} of {:?}", self.shape);
        let mut view = self.clone();
        view.byte_offset += range.start * self.row_stride * self.dtype.size_in_bytes();
        view.shape[0] = range.len();
        view
    }

    /// Columns `range` of a 2-D tensor, as a strided view.
    pub fn columns(&self, range: Range<usize>) -> Tensor {
        assert!(self.shape.len() == 2 && range.end <= self.shape[1], "columns {range:?} of {:?}", self.shape);
        let mut view = self.clone();
        view.byte_offset += range.start * self.dtype.size_in_bytes();
        view.shape[1] = range.len();
        view
    }

    /// The same contiguous memory under another shape.
    pub fn reshape(&self, shape: &[usize]) -> Tensor {
        assert!(
            self.is_contiguous() && shape.iter().product::<usize>() == self.num_elements(),
            "{:?} as {shape:?}",
            self.shape
        );
        let mut view = self.clone();
        view.shape = shape.to_vec();
        view.row_stride = shape.iter().skip(1).product();
        view
    }

    /// The same contiguous memory as elements of another type, which fill it: for arrays that travel in one buffer.
    ///
    /// # Panics
    /// If they do not fill it, or would not be aligned.
    pub fn retype(&self, dtype: DType, shape: &[usize]) -> Tensor {
        let bytes = shape.iter().product::<usize>() * dtype.size_in_bytes();
        assert!(
            self.is_contiguous()
                && bytes == self.num_bytes()
                && self.byte_offset.is_multiple_of(dtype.size_in_bytes()),
            "{self:?} as {}{shape:?}",
            dtype.name()
        );
        let mut view = self.clone();
        view.dtype = dtype;
        view.shape = shape.to_vec();
        view.row_stride = shape.iter().skip(1).product();
        view
    }

    /// Entry `index` of the first dimension, which it drops: `[L, a, b]` gives `[a, b]`.
    pub fn index(&self, index: usize) -> Tensor {
        let rest = self.shape[1..].to_vec();
        self.rows(index..index + 1).reshape(&rest)
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Dimension `axis`.
    pub fn dim(&self, axis: usize) -> usize {
        self.shape[axis]
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements from one row to the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the elements.
    pub fn num_bytes(&self) -> usize {
        self.num_elements() * self.dtype.size_in_bytes()
    }

    /// Device address of the first element.
    pub fn ptr(&self) -> sys::CUdeviceptr {
        self.allocation.ptr + self.byte_offset as u64
    }

    /// The device that owns the memory.
    pub fn device(&self) -> &Device {
        &self.allocation.device
    }

    /// Whether rows follow each other without a gap.
    pub fn is_contiguous(&self) -> bool {
        self.row_stride == self.shape.iter().skip(1).product::<usize>()
            || self.shape.first().is_none_or(|&n| n <= 1)
    }

    pub(super) fn expect_contiguous<T: Element>(&self, what: &str, count: usize) -> Result<()> {
        if self.dtype != T::DTYPE || !self.is_contiguous() || count > self.num_elements() {
            let expected = format!("{count} contiguous {} elements", T::DTYPE.name());
            return Err(self.shape_error(what, expected, format!("{} {:?}", self.dtype.name(), self.shape)));
        }
        Ok(())
    }

    fn shape_error(&self, what: &str, expected: String, got: String) -> Error {
        Error::Shape { what: format!("tensor {what}"), expected, got }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype.name(), self.shape)
    }
}
