//! Page-locked host memory: the landing place of asynchronous read-backs and the source of asynchronous uploads, which kernels can also read and
//! write themselves.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use cudarc::driver::sys;

use super::{Device, Element, Tensor, check};
use crate::error::{Error, Result};

/// An allocation, shared by a buffer and the tensors that show it to kernels.
pub(super) struct HostMemory {
    device: Device,
    data: *mut u8,
    num_bytes: usize,
    device_ptr: sys::CUdeviceptr,
}

// SAFETY: it owns its memory, which any thread with the context bound may free.
unsafe impl Send for HostMemory {}
// SAFETY: what it holds is reached through one buffer, by that buffer's borrow rules, and by the device, in stream order.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn new(device: &Device, num_bytes: usize) -> Result<Self> {
        device.bind()?;
        let mut data = std::ptr::null_mut();
        // SAFETY: `data` receives at least `num_bytes` bytes of host memory, cached, that kernels may reach.
        check("cuMemHostAlloc", unsafe {
            sys::cuMemHostAlloc(&mut data, num_bytes.max(1), sys::CU_MEMHOSTALLOC_DEVICEMAP)
        })?;
        let mut memory = Self { device: device.clone(), data: data.cast(), num_bytes, device_ptr: 0 };
        // SAFETY: the bytes are ours, and the driver knows the address. Zero is a valid value of every element type.
        let status = unsafe {
            std::ptr::write_bytes(memory.data, 0, num_bytes);
            sys::cuMemHostGetDevicePointer_v2(&mut memory.device_ptr, data, 0)
        };
        check("cuMemHostGetDevicePointer", status)?;
        Ok(memory)
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    pub(super) fn device_ptr(&self) -> sys::CUdeviceptr {
        self.device_ptr
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if self.device.synchronize().is_ok() {
            // SAFETY: allocated by us, nothing under way after the synchronisation, freed once.
            let _ = unsafe { sys::cuMemFreeHost(self.data.cast()) };
        }
    }
}

/// `len` elements of page-locked host memory.
///
/// After [`PinnedBuffer::read_from`], or a kernel that writes to [`PinnedBuffer::mapped`], the content is only meaningful once the device has
/// been synchronised (or an event recorded after it has happened, or a flag that the kernel raises is seen by [`PinnedBuffer::load`]).
pub struct PinnedBuffer<T: Element> {
    memory: Arc<HostMemory>,
    data: *mut T,
    len: usize,
}

// SAFETY: as for its memory.
unsafe impl<T: Element> Send for PinnedBuffer<T> {}

impl<T: Element> PinnedBuffer<T> {
    /// Allocates `len` zeroed elements.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        let memory = Arc::new(HostMemory::new(device, len * size_of::<T>())?);
        Ok(Self { data: memory.data.cast(), memory, len })
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

    /// The elements as kernels see them, `[len]`: a launch reads what they are when its turn comes, so they must stay as they are until the
    /// device has passed it. Every access of a kernel crosses the bus.
    pub fn mapped(&self) -> Tensor {
        Tensor::mapped(&self.memory, T::DTYPE)
    }

    /// Starts copying the first `count` elements of `tensor` here, without waiting.
    pub fn read_from(&mut self, tensor: &Tensor, count: usize) -> Result<()> {
        tensor.expect_contiguous::<T>("read-back", count)?;
        assert!(count <= self.len, "read-back of {count} elements into a buffer of {}", self.len);
        if count == 0 {
            return Ok(());
        }
        let device = self.memory.device();
        device.bind()?;
        // SAFETY: source and destination hold at least `count` elements; this buffer outlives the copy because the
        // engine synchronises before dropping or reading it.
        let status = unsafe {
            sys::cuMemcpyDtoHAsync_v2(self.data.cast(), tensor.ptr(), count * size_of::<T>(), device.stream())
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
        if range.is_empty() {
            return Ok(());
        }
        let device = self.memory.device();
        device.bind()?;
        let bytes = range.start * size_of::<T>();
        // SAFETY: as for `read_from`, in the other direction; the range lies within both.
        let status = unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                tensor.ptr() + bytes as u64,
                self.data.byte_add(bytes).cast(),
                range.len() * size_of::<T>(),
                device.stream(),
            )
        };
        check("cuMemcpyHtoDAsync", status)
    }
}

/// Looks at a word between two questions to the driver.
const LOOKS: usize = 256;

impl PinnedBuffer<i32> {
    /// Watches element `index` until a kernel has made it `value`; the driver is only asked whether all is well.
    ///
    /// # Errors
    /// The first failure of work issued so far; its end without that value.
    pub fn wait_for(&self, index: usize, value: i32) -> Result<()> {
        loop {
            // Asked first, so that a driver that works on demand does so, and one whose time is modelled hears that the host has waited.
            let was_idle = self.memory.device().is_idle()?;
            for _ in 0..LOOKS {
                if self.load(index) == value {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            if was_idle {
                let error = "the device has ended its work, but not written what the host waits for";
                return Err(Error::Device(error.into()));
            }
        }
    }

    /// Element `index`, which a kernel may be writing at this moment: whoever sees what it released also sees what it wrote before.
    pub fn load(&self, index: usize) -> i32 {
        assert!(index < self.len, "element {index} of a buffer of {}", self.len);
        // SAFETY: inside the buffer and aligned; it is only read here, atomically.
        unsafe { AtomicI32::from_ptr(self.data.add(index)) }.load(Ordering::Acquire)
    }
}
