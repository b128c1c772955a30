//! Kernel look-up and launch, with the parameter list checked against the kernel's own.

use cudarc::driver::sys;

use super::{Device, Tensor, TensorMap, check, images, prefix};
use crate::error::{Error, Result};

/// A loaded kernel.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    pub(super) function: sys::CUfunction,
    /// Dynamic shared memory that was asked for so far, bytes. What a launch may have without asking depends on the kernel's own.
    shared_limit: u32,
    /// Sizes of the parameters as the driver reports them, in order; zero-terminated.
    parameter_sizes: [u16; MAX_ARGS + 1],
    /// Whether its image was compiled for an architecture on which launches can overlap, and blocks run in clusters.
    pub(super) runs_on_hopper: bool,
}

const MAX_ARGS: usize = 32;
const ARG_BYTES: usize = 512;
/// Lowest compute capability with programmatic dependent launch and thread block clusters.
const HOPPER: i32 = 90;

/// Where arguments are kept, as aligned as a tensor map.
#[repr(align(128))]
struct ArgBytes([u64; ARG_BYTES / 8]);

/// Kernel arguments in order, held by value until the launch copies them.
pub struct LaunchArgs {
    bytes: ArgBytes,
    offsets: [u16; MAX_ARGS],
    sizes: [u16; MAX_ARGS],
    count: usize,
    used: usize,
    overlaps: bool,
    cluster: [u32; 3],
}

impl Default for LaunchArgs {
    fn default() -> Self {
        Self::new()
    }
}

impl LaunchArgs {
    /// No arguments yet.
    #[inline(always)]
    pub fn new() -> Self {
        Self {
            bytes: ArgBytes([0; ARG_BYTES / 8]),
            offsets: [0; MAX_ARGS],
            sizes: [0; MAX_ARGS],
            count: 0,
            used: 0,
            overlaps: false,
            cluster: [1; 3],
        }
    }

    /// Lets the launch start before those before it have ended, where the GPU can (programmatic dependent launch). Only for kernels of
    /// which every thread calls `wait_for_predecessors` before it touches anything but weights.
    #[inline(always)]
    pub fn overlapping(mut self) -> Self {
        self.overlaps = true;
        self
    }

    /// Makes so many blocks along each side of the grid run together, as a thread block cluster. For launches that
    /// [`Device::runs_clusters`] says yes to.
    #[inline(always)]
    pub(crate) fn in_clusters(mut self, cluster: [u32; 3]) -> Self {
        self.cluster = cluster;
        self
    }

    /// A device pointer to `tensor`'s first element.
    #[inline(always)]
    pub fn ptr(self, tensor: &Tensor) -> Self {
        self.pod(&tensor.ptr())
    }

    /// A device pointer, null when there is no tensor.
    #[inline(always)]
    pub fn ptr_or_null(self, tensor: Option<&Tensor>) -> Self {
        self.pod(&tensor.map_or(0, Tensor::ptr))
    }

    /// A 32-bit integer.
    #[inline(always)]
    pub fn i32(self, value: usize) -> Self {
        self.pod(&i32::try_from(value).expect("kernel sizes fit 31 bits: wrappers check their shapes"))
    }

    /// A 64-bit integer.
    #[inline(always)]
    pub fn u64(self, value: u64) -> Self {
        self.pod(&value)
    }

    /// A float.
    #[inline(always)]
    pub fn f32(self, value: f32) -> Self {
        self.pod(&value)
    }

    /// The map of a tensor, for `const __grid_constant__ TensorMap`.
    #[inline(always)]
    pub fn tensor_map(self, map: &TensorMap) -> Self {
        self.bytes_at_multiple_of(align_of::<ArgBytes>(), bytemuck::bytes_of(map.words()))
    }

    /// A plain parameter struct, laid out as in the kernel's source.
    #[inline(always)]
    pub fn pod<T: bytemuck::NoUninit>(self, value: &T) -> Self {
        self.bytes_at_multiple_of(8, bytemuck::bytes_of(value))
    }

    #[inline(always)]
    fn bytes_at_multiple_of(mut self, alignment: usize, source: &[u8]) -> Self {
        let start = self.used.next_multiple_of(alignment);
        assert!(self.count < MAX_ARGS && start + source.len() <= ARG_BYTES, "kernel argument list too long");
        bytemuck::cast_slice_mut::<u64, u8>(&mut self.bytes.0)[start..start + source.len()]
            .copy_from_slice(source);
        (self.offsets[self.count], self.sizes[self.count]) = (start as u16, source.len() as u16);
        self.count += 1;
        self.used = start + source.len();
        self
    }
}

impl Device {
    /// Launches `kernel` on the device's stream.
    ///
    /// # Errors
    /// The kernel is unknown, its parameters differ in number or size from `args`, or the driver refuses the launch.
    ///
    /// # Safety
    /// `args` must match the kernel's parameters in meaning and order, every tensor must be large enough for the
    /// accesses that the geometry implies, and tensors the kernel writes must not be read elsewhere without ordering on
    /// this device's stream.
    pub unsafe fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        args: &LaunchArgs,
    ) -> Result<()> {
        self.bind()?;
        let found = self.kernel(kernel, shared_bytes)?;
        for i in 0..args.count.max(1) {
            if found.parameter_sizes[i] != if i < args.count { args.sizes[i] } else { 0 } {
                return Err(parameter_mismatch(kernel, &found, args));
            }
        }
        if found.parameter_sizes[args.count] != 0 {
            return Err(parameter_mismatch(kernel, &found, args));
        }
        if prefix::leaves_out(kernel, [grid, block, args.cluster]) {
            return Ok(());
        }
        let base = args.bytes.0.as_ptr().cast::<u8>();
        let mut pointers = [std::ptr::null_mut(); MAX_ARGS];
        for (pointer, &offset) in pointers.iter_mut().zip(&args.offsets[..args.count]) {
            *pointer = base.wrapping_add(offset as usize).cast_mut().cast();
        }
        let overlaps = args.overlaps && found.runs_on_hopper && self.inner.overlaps_launches;
        let mut attributes = [cluster_attribute(args.cluster), overlap_attribute()];
        let asked = usize::from(args.cluster == [1; 3])..1 + usize::from(overlaps);
        let config = config(grid, block, shared_bytes, self.stream(), &mut attributes[asked]);
        // SAFETY: `pointers` holds one pointer per kernel parameter, sizes checked above, each into `args`, which the driver only reads, as
        // it does `config` and `attributes`, before the call returns. The caller vouches for meaning and bounds.
        let status = unsafe {
            sys::cuLaunchKernelEx(&config, found.function, pointers.as_mut_ptr(), std::ptr::null_mut())
        };
        check("cuLaunchKernelEx", status).map_err(|error| match error {
            Error::Driver { call, reason } => Error::Driver { call, reason: format!("{kernel}: {reason}") },
            other => other,
        })
    }

    /// Which of the build's images this GPU runs, as in `sm_90` or `sm_80, compiled for sm_120 by the driver`.
    pub(super) fn kernel_image(&self) -> Result<String> {
        self.bind()?;
        let function = self.kernel("embedding_bf16", 0)?.function;
        let made_for = attribute(function, sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)?;
        let runs_as = attribute(function, sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_BINARY_VERSION)?;
        Ok(match made_for == runs_as {
            true => format!("sm_{made_for}"),
            false => format!("sm_{made_for}, compiled for sm_{runs_as} by the driver"),
        })
    }

    /// Whether the images for this GPU have the kernel.
    pub(crate) fn has_kernel(&self, name: &str) -> Result<bool> {
        self.bind()?;
        match self.kernel(name, 0) {
            Ok(_) => Ok(true),
            Err(Error::Device(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn kernel(&self, name: &str, shared_bytes: u32) -> Result<Kernel> {
        let mut modules = self.inner.modules.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !modules.kernels.contains_key(name) {
            let kernel = while_not_recorded(|| self.find_kernel(&mut modules.loaded, name))?;
            modules.kernels.insert(name.to_owned(), kernel);
        }
        let kernel = modules.kernels.get_mut(name).expect("inserted above");
        if shared_bytes > kernel.shared_limit {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function handle is live; the attribute takes a byte count.
            let status = unsafe { sys::cuFuncSetAttribute(kernel.function, attribute, shared_bytes as i32) };
            check("cuFuncSetAttribute", status)?;
            kernel.shared_limit = shared_bytes;
        }
        Ok(*kernel)
    }

    /// Looks `name` up, loading images until one has it. The host driver keeps all kernels in one table, so there any
    /// image will do.
    fn find_kernel(&self, loaded: &mut Vec<sys::CUmodule>, name: &str) -> Result<Kernel> {
        let c_name = std::ffi::CString::new(name)
            .map_err(|_| Error::Device(format!("kernel name {name:?} contains NUL")))?;
        let mut tried = 0;
        loop {
            if tried == loaded.len() && !self.load_next_module(loaded)? {
                let built = if self.is_host() { "the host driver" } else { "the GPU images of this build" };
                return Err(Error::Device(format!("kernel {name} is not in {built}")));
            }
            let mut function = std::ptr::null_mut();
            // SAFETY: the module is loaded, the name is a C string, `function` receives the handle.
            let status = unsafe { sys::cuModuleGetFunction(&mut function, loaded[tried], c_name.as_ptr()) };
            if status == sys::CUresult::CUDA_SUCCESS {
                prefer_shared_memory(function)?;
                let parameter_sizes = parameter_sizes(name, function)?;
                // The architecture that the image was made for: one for an older GPU runs on newer ones, too.
                let made_for = attribute(function, sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)?;
                let runs_on_hopper = made_for >= HOPPER;
                return Ok(Kernel { function, shared_limit: 0, parameter_sizes, runs_on_hopper });
            }
            if status != sys::CUresult::CUDA_ERROR_NOT_FOUND {
                check("cuModuleGetFunction", status)?;
            }
            tried += 1;
        }
    }

    fn load_next_module(&self, loaded: &mut Vec<sys::CUmodule>) -> Result<bool> {
        static NO_IMAGE: [u64; 1] = [0];
        let image = match (self.is_host(), images::IMAGES.get(loaded.len())) {
            (true, _) if loaded.is_empty() => NO_IMAGE.as_ptr().cast(),
            (false, Some((_, image))) => image.as_ptr().cast(),
            _ => return Ok(false),
        };
        let mut module = std::ptr::null_mut();
        // SAFETY: `image` is a fatbin built by nvcc, 16-byte aligned and static; the host driver ignores it.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, image) })?;
        loaded.push(module);
        Ok(true)
    }
}

/// What `work` does is no part of a capture that this thread may have under way: images are loaded when a kernel of theirs is first launched, which
/// may be in one, and a driver refuses that there, as it does whatever could have been meant to be recorded.
fn while_not_recorded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: `mode` is valid during the call, which leaves the mode from before in it.
    check("cuThreadExchangeStreamCaptureMode", unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) })?;
    let outcome = work();
    // SAFETY: as above; this brings that mode back.
    check("cuThreadExchangeStreamCaptureMode", unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) })?;
    outcome
}

/// A launch's shape as the driver takes it, and what is asked for beyond that. The attributes must outlive it.
pub(super) fn config(
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: sys::CUstream,
    attributes: &mut [sys::CUlaunchAttribute],
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: grid[0],
        gridDimY: grid[1],
        gridDimZ: grid[2],
        blockDimX: block[0],
        blockDimY: block[1],
        blockDimZ: block[2],
        sharedMemBytes: shared_bytes,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

fn overlap_attribute() -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    }
}

pub(super) fn cluster_attribute([x, y, z]: [u32; 3]) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z },
        },
    }
}

fn attribute(function: sys::CUfunction, attribute: sys::CUfunction_attribute) -> Result<i32> {
    let mut value = 0;
    // SAFETY: the function handle is live; `value` receives the number.
    check("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(&mut value, attribute, function) })?;
    Ok(value)
}

/// Has multiprocessors give shared memory all that they have for it and L1, whatever the kernel uses itself. One that is divided otherwise has to
/// be empty before that can change, so a kernel of large tiles could not start beside a small one that has yet to end.
fn prefer_shared_memory(function: sys::CUfunction) -> Result<()> {
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
    // SAFETY: the function handle is live; the attribute takes a percentage.
    check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(function, attribute, 100) })
}

/// The kernel's own parameter sizes, in order.
fn parameter_sizes(name: &str, function: sys::CUfunction) -> Result<[u16; MAX_ARGS + 1]> {
    let mut sizes = [0u16; MAX_ARGS + 1];
    for index in 0..=MAX_ARGS {
        let (mut offset, mut size) = (0usize, 0usize);
        // SAFETY: both out-pointers are valid; an index past the end is answered with INVALID_VALUE.
        let status = unsafe { sys::cuFuncGetParamInfo(function, index, &mut offset, &mut size) };
        if status == sys::CUresult::CUDA_ERROR_INVALID_VALUE {
            return Ok(sizes);
        }
        check("cuFuncGetParamInfo", status)?;
        if index == MAX_ARGS {
            break;
        }
        sizes[index] = size as u16;
    }
    Err(Error::Device(format!("kernel {name} has more than {MAX_ARGS} parameters")))
}

fn parameter_mismatch(name: &str, kernel: &Kernel, args: &LaunchArgs) -> Error {
    let wanted: Vec<u16> = kernel.parameter_sizes.iter().copied().take_while(|&size| size != 0).collect();
    Error::Shape {
        what: format!("parameters of kernel {name}"),
        expected: format!("sizes {wanted:?}"),
        got: format!("sizes {:?}", &args.sizes[..args.count]),
    }
}
