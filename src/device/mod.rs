//! The device layer: one CUDA context, its stream, device memory and launches, over cudarc's driver bindings.
//!
//! The engine knows one API, the CUDA driver's. On a machine without a GPU the same calls are answered by the host
//! driver ([`driver`]), which runs the same kernels on the CPU. Nothing here knows a model or a kernel's meaning.

mod cluster;
mod conditional;
mod conditions;
pub mod driver;
mod event;
mod graph;
mod launch;
mod pinned;
mod prefix;
mod tensor;
mod tensor_core_family;
mod tensor_map;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys;
use cudarc::driver::{CudaContext, CudaStream};

use crate::error::{Error, Result};
use crate::switch::switch;
pub(crate) use cluster::{ClusterLaunch, MAX_CLUSTER};
pub use conditional::{Branch, ConditionalGraph};
pub use conditions::ConditionsProbe;
pub use driver::DeviceChoice;
pub use event::{Event, Timeline};
pub use graph::Graph;
pub use launch::LaunchArgs;
pub use pinned::PinnedBuffer;
pub use prefix::KernelLaunch;
pub use tensor::{DType, Element, Tensor};
pub use tensor_core_family::TensorCoreFamily;
#[cfg(test)]
pub(crate) use tensor_core_family::WIDE_FROM_CTAS;
use tensor_core_family::{Families, Operation};
pub use tensor_map::TensorMap;

mod images {
    //! Device images built by `build.rs`: one fatbin per `kernels/*.cu`, empty when nvcc was not found.
    include!(concat!(env!("OUT_DIR"), "/images.rs"));
}

/// The version of nvcc that compiled the device images, or a note that there are none.
pub const NVCC_VERSION: &str = env!("SMART_NVCC_VERSION");
/// A hash of the sources of kernels and host driver.
pub(crate) const KERNELS: &str = env!("SMART_KERNELS");

/// One device: context, stream and loaded kernels. Cloning shares them.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
    families: Families,
}

struct Inner {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kind: driver::DriverKind,
    name: String,
    /// See [`LaunchArgs::overlapping`].
    overlaps_launches: bool,
    modules: Arc<Mutex<Modules>>,
    /// What [`Device::runs_clusters`] has found, by kernel and launch.
    clusters: Mutex<HashMap<(usize, ClusterLaunch), bool>>,
}

/// The images that are loaded, and what was found in them.
#[derive(Default)]
struct Modules {
    loaded: Vec<sys::CUmodule>,
    kernels: HashMap<String, launch::Kernel>,
}

// SAFETY: module and function handles belong to the context, which any thread may use once it is bound; the map is
// behind a mutex.
unsafe impl Send for Modules {}

/// What a process keeps of a device that it has opened, until it ends. The driver takes a context down with the last that holds it, and everything
/// loaded with it: some tenths of a second for each engine of a process that makes several.
struct Kept {
    context: Arc<CudaContext>,
    modules: Arc<Mutex<Modules>>,
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// The device's images, kept with `context`, the first of its ordinal.
fn kept_modules(context: &Arc<CudaContext>) -> Arc<Mutex<Modules>> {
    let mut kept = KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(found) = kept.iter().find(|kept| kept.context.ordinal() == context.ordinal()) {
        return found.modules.clone();
    }
    let modules = Arc::<Mutex<Modules>>::default();
    kept.push(Kept { context: context.clone(), modules: modules.clone() });
    modules
}

/// Turns a driver status into an [`Error::Driver`] that names the call.
pub(crate) fn check(call: &'static str, status: sys::CUresult) -> Result<()> {
    status.result().map_err(|error| driver_error(call, error))
}

/// An [`Error::Driver`] with the driver's own name and text, and the host driver's detail where it is in use.
pub(crate) fn driver_error(call: &'static str, error: cudarc::driver::DriverError) -> Error {
    let text = |s: std::result::Result<&std::ffi::CStr, _>| {
        s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_else(|_| "unknown error".into())
    };
    let mut reason = format!("{} ({})", text(error.error_string()), text(error.error_name()));
    if let Some(detail) = driver::host_driver_error() {
        reason = detail;
    }
    Error::Driver { call, reason }
}

impl Device {
    /// Opens the device of `choice`. The first call in a process decides which driver is used; a later call that asks
    /// for the other one is an error.
    pub fn open(choice: DeviceChoice) -> Result<Self> {
        let (kind, ordinal) = driver::load(choice)?;
        let context = CudaContext::new(ordinal).map_err(|e| driver_error("cuDevicePrimaryCtxRetain", e))?;
        // SAFETY: every allocation is owned by `Tensor` and used on this device's one stream, so the automatic
        // cross-stream events of cudarc's safe layer are not needed; they would also forbid graph capture.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|e| driver_error("cuStreamCreate", e))?;
        let name = context.name().map_err(|e| driver_error("cuDeviceGetName", e))?;
        let name = match kind {
            driver::DriverKind::Host => format!("host ({name})"),
            driver::DriverKind::Cuda => format!("cuda:{ordinal} ({name})"),
        };
        if kind == driver::DriverKind::Cuda && images::IMAGES.is_empty() {
            return Err(Error::Device(
                "this build has no GPU kernels because nvcc was not found; rebuild with NVCC or CUDA_HOME set, or use --device host".into(),
            ));
        }
        let overlaps_launches = switch("SMART_OVERLAP")?.unwrap_or(true);
        let (modules, clusters) = (kept_modules(&context), Mutex::default());
        let inner = Arc::new(Inner { context, stream, kind, name, overlaps_launches, modules, clusters });
        let mut device = Self { inner, families: Families::default() }
            .with_clusters(switch("SMART_CLUSTERS")?.unwrap_or(true));
        for operation in Operation::ALL {
            device = device.with_family(operation, operation.wanted()?)?;
        }
        Ok(device)
    }

    /// The same device with linear layers of `family`, whatever `SMART_LINEAR` says: for tests and measurements.
    ///
    /// # Errors
    /// [`Error::Device`] where the kernels for this GPU have no such family.
    pub fn with_linear_family(&self, family: TensorCoreFamily) -> Result<Self> {
        self.with_family(Operation::Linear, family)
    }

    /// The same for attention, and `SMART_ATTENTION`.
    ///
    /// # Errors
    /// As [`Device::with_linear_family`].
    pub fn with_attention_family(&self, family: TensorCoreFamily) -> Result<Self> {
        self.with_family(Operation::Attention, family)
    }

    fn with_family(&self, operation: Operation, family: TensorCoreFamily) -> Result<Self> {
        if family != TensorCoreFamily::default() && !self.has_kernel(operation.sample(family))? {
            let (image, variable) = (self.kernel_image()?, operation.variable());
            return Err(Error::Device(format!(
                "{variable}={}: {} runs kernels for {image}, and only those for sm_90a have it; unset {variable}",
                family.name(),
                self.name()
            )));
        }
        Ok(self.choosing(|families| *families = families.with(operation, family)))
    }

    /// The same device with other choices of kernels.
    fn choosing(&self, change: impl FnOnce(&mut Families)) -> Self {
        let mut device = self.clone();
        change(&mut device.families);
        device
    }

    /// The same device with tiles of many weights for linear layers wherever a launch has so many CTAs, of tiles that come in several widths: 1 is
    /// always, `u32::MAX` never. For tests and measurements: tiles decide speed only.
    #[doc(hidden)]
    pub fn with_wide_tiles_from(&self, ctas: u32) -> Self {
        self.choosing(|families| families.wide_from_ctas = ctas)
    }

    /// The same device, whose linear layers get their tiles by the copy engine wherever a kernel for that has the same bits. For tests and
    /// measurements: it decides speed only.
    ///
    /// # Errors
    /// [`Error::Device`] where the kernels for this GPU have no such tiles.
    #[doc(hidden)]
    pub fn with_bulk_tiles(&self) -> Result<Self> {
        if !self.has_bulk_copies()? {
            return Err(Error::Device(format!("{} runs kernels without bulk copies", self.name())));
        }
        Ok(self.choosing(|families| families.bulk_tiles = true))
    }

    /// Whether kernels for this GPU can let the copy engine fetch tiles: those for sm_90a, and on the host driver.
    pub(crate) fn has_bulk_copies(&self) -> Result<bool> {
        self.has_kernel("linear_bulk_bf16_t8")
    }

    /// See [`Device::with_bulk_tiles`].
    pub(crate) fn prefers_bulk_tiles(&self) -> bool {
        self.families.bulk_tiles
    }

    /// The same device with or without thread block clusters, whatever `SMART_CLUSTERS` says: for tests and measurements. They decide speed only.
    #[doc(hidden)]
    pub fn with_clusters(&self, clusters: bool) -> Self {
        self.choosing(|families| families.clusters = clusters)
    }

    /// CTAs of a launch from which on linear layers take the widest tile.
    pub(crate) fn wide_from_ctas(&self) -> u32 {
        self.families.wide_from_ctas
    }

    /// The family of kernels that linear layers launch.
    pub fn linear_family(&self) -> TensorCoreFamily {
        self.families.of(Operation::Linear)
    }

    /// The family of kernels that attention launches.
    pub fn attention_family(&self) -> TensorCoreFamily {
        self.families.of(Operation::Attention)
    }

    /// Every choice of a family in words, as in `linear layers by mma, attention by mma`, and what launches go without.
    pub fn families(&self) -> String {
        let mut all = self.families_where(|_| true);
        if !self.families.clusters {
            all.push("no clusters".into());
        }
        if !self.inner.overlaps_launches {
            all.push("no overlap".into());
        }
        all.join(", ")
    }

    fn families_where(&self, is_told: impl Fn(TensorCoreFamily) -> bool) -> Vec<String> {
        let all =
            Operation::ALL.into_iter().map(|operation| (operation.title(), self.families.of(operation)));
        let told = all.filter(|&(_, family)| is_told(family));
        told.map(|(title, family)| format!("{title} by {}", family.name())).collect()
    }

    /// `cuda:0 (NVIDIA H200)` or `host (...)`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Whether kernels run on the CPU through the host driver.
    pub fn is_host(&self) -> bool {
        self.inner.kind == driver::DriverKind::Host
    }

    /// Version of the API that the driver offers and the kernels that run, as in `CUDA 13.0, kernels for sm_90, linear layers by mma, attention by
    /// mma`, or `host driver`, which tells families that were asked for.
    pub fn driver_version(&self) -> String {
        let mut version = 0;
        // SAFETY: the pointer is valid during the call.
        let status = unsafe { sys::cuDriverGetVersion(&mut version) };
        match (self.is_host(), status.result()) {
            (true, _) => {
                let asked_for = self.families_where(|family| family != TensorCoreFamily::default());
                [vec!["host driver".into()], asked_for].concat().join(", ")
            }
            (false, Ok(())) => {
                let kernels =
                    self.kernel_image().map_or(String::new(), |image| format!(", kernels for {image}"));
                let families = self.families();
                format!("CUDA {}.{}{kernels}, {families}", version / 1000, version % 1000 / 10)
            }
            (false, Err(_)) => "unknown".into(),
        }
    }

    /// Where the GPU sits on the PCI bus, as in `0000:17:00.0`; `None` on the host driver.
    pub fn pci_bus_id(&self) -> Option<String> {
        if self.is_host() {
            return None;
        }
        let mut text = [0 as std::ffi::c_char; 32];
        let device = self.inner.context.cu_device();
        // SAFETY: `text` is as long as said; the driver ends what it writes with a zero.
        let status = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as i32, device) };
        let bytes = text.map(|byte| byte as u8);
        status.result().ok()?;
        Some(std::ffi::CStr::from_bytes_until_nul(&bytes).ok()?.to_string_lossy().into_owned())
    }

    /// Whether events advance by a cost table instead of by time (`SIMT_CLOCK` of the host driver).
    pub fn has_modelled_time(&self) -> bool {
        self.is_host() && std::env::var_os("SIMT_CLOCK").is_some()
    }

    /// Free and total device memory in bytes.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.inner.context.mem_get_info().map_err(|e| driver_error("cuMemGetInfo", e))
    }

    /// Bytes of the second-level cache.
    pub(crate) fn l2_bytes(&self) -> Result<usize> {
        let bytes = self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        Ok(usize::try_from(bytes).unwrap_or(0))
    }

    /// Waits until all work issued so far is done and reports the first failure of it.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream()) })
    }

    /// Whether all work issued so far is done, without waiting for it; the first failure of it.
    pub fn is_idle(&self) -> Result<bool> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        match unsafe { sys::cuStreamQuery(self.stream()) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            status => check("cuStreamQuery", status).map(|()| true),
        }
    }

    /// The raw stream; all work of this device is issued on it, in order.
    pub(crate) fn stream(&self) -> sys::CUstream {
        self.inner.stream.cu_stream()
    }

    /// Makes the context current on the calling thread.
    pub(crate) fn bind(&self) -> Result<()> {
        self.inner.context.bind_to_thread().map_err(|e| driver_error("cuCtxSetCurrent", e))
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.name()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or every engine of a process would load all images anew.
    #[test]
    fn images_outlive_the_device_that_loaded_them() {
        let open = || Device::open(DeviceChoice::Host).unwrap();
        let first = open();
        assert!(first.has_kernel("embedding_bf16").unwrap());
        let modules = Arc::downgrade(&first.inner.modules);
        drop(first);
        let kept = modules.upgrade().expect("kept");
        assert!(Arc::ptr_eq(&kept, &open().inner.modules));
    }
}
