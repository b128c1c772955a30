//! Page-locked host memory: the landing place of asynchronous read-backs and the source of asynchronous uploads.

use std::ops::Range;

use cudarc::driver::sys;

use super::{Device, Element, Tensor, check};
use crate::error::Result;

/// `len` elements of page-locked host memory.
///
/// After [`PinnedBuffer::read_from`] the content is only meaningful once the device has been synchronised (or an event
/// recorded after it has happened).
pub struct PinnedBuffer<T: Element> {
    device: Device,
    data: *mut T,
    len: usize,
}

// SAFETY: the buffer owns its memory; the handle may be used from any thread with the context bound.
unsafe impl<T: Element> Send for PinnedBuffer<T> {}

impl<T: Element> PinnedBuffer<T> {
    /// Allocates `len` zeroed elements.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        device.bind()?;
        let bytes = (len * size_of::<T>()).max(1);
        let mut data = std::ptr::null_mut();
        // SAFETY: `data` receives at least `bytes` bytes of host memory; flags 0 = ordinary cached memory.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut data, bytes, 0) })?;
        // SAFETY: `bytes` bytes at `data` are ours; zero is a valid value of every element type.
        unsafe { std::ptr::write_bytes(data.cast::<u8>(), 0, bytes) };
        Ok(Self { device: device.clone(), data: data.cast(), len })
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` initialised elements, alive as long as `self`.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }

    /// The elements, writable.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }

    /// Starts copying the first `count` elements of `tensor` here, without waiting.
    pub fn read_from(&mut self, tensor: &Tensor, count: usize) -> Result<()> {
        tensor.expect_contiguous::<T>("read-back", count)?;
        assert!(count <= self.len, "read-back of {count} elements into a buffer of {}", self.len);
        self.device.bind()?;
        // SAFETY: source and destination hold at least `count` elements; this buffer outlives the copy because the
        // engine synchronises before dropping or reading it.
        let status = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                self.data.cast(),
                tensor.ptr(),
                count * size_of::<T>(),
                self.device.stream(),
            )
        };
        check("cuMemcpyDtoHAsync", status)
    }

    /// Starts copying the first `count` elements into `tensor`, without waiting. They must stay unchanged until the
    /// device has passed this point.
    pub fn write_to(&self, tensor: &Tensor, count: usize) -> Result<()> {
        self.write_range_to(tensor, 0..count)
    }

    /// As [`PinnedBuffer::write_to`], for a range of elements that has the same place in `tensor`.
    pub fn write_range_to(&self, tensor: &Tensor, range: Range<usize>) -> Result<()> {
        tensor.expect_contiguous::<T>("upload", range.end)?;
        assert!(range.end <= self.len, "upload up to element {} of a buffer of {}", range.end, self.len);
        self.device.bind()?;
        let bytes = range.start * size_of::<T>();
        // SAFETY: as for `read_from`, in the other direction; the range lies within both.
        let status = unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                tensor.ptr() + bytes as u64,
                self.data.byte_add(bytes).cast(),
                range.len() * size_of::<T>(),
                self.device.stream(),
            )
        };
        check("cuMemcpyHtoDAsync", status)
    }
}

impl<T: Element> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        if self.device.synchronize().is_ok() {
            // SAFETY: allocated by us, no copy in flight after the synchronisation, freed once.
            let _ = unsafe { sys::cuMemFreeHost(self.data.cast()) };
        }
    }
}
