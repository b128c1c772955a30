//! The device under test and the ways it can run a kernel.

use std::ffi::{CStr, c_char};
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, OnceLock};

use smart_run::device::{Device, DeviceChoice, TensorCoreFamily};

/// How kernels run. Every mode must satisfy the same tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On a GPU.
    Gpu,
    /// Emulated by the host driver, threads in order.
    Emulated,
    /// Emulated under the random schedule of this seed (not 0).
    Shuffled(u64),
    /// By the native twin, where there is one.
    Twin,
}

/// The device of this process, held by one test at a time: the host driver's switches are global.
pub struct TestDevice {
    device: &'static Device,
    _held: MutexGuard<'static, ()>,
}

/// The device, with `SMART_REQUIRE_GPU=1` a GPU.
pub fn device() -> TestDevice {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    static HELD: Mutex<()> = Mutex::new(());
    let held = HELD.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let device = DEVICE.get_or_init(|| {
        let needs_gpu = std::env::var_os("SMART_REQUIRE_GPU").is_some_and(|value| value == "1");
        let choice = if needs_gpu { DeviceChoice::Cuda(0) } else { DeviceChoice::Auto };
        let device = Device::open(choice).expect("a device to test on");
        eprintln!("testing on {}", device.name());
        device
    });
    TestDevice { device, _held: held }
}

/// Whether there is all that any GPU has: on the host driver, unless it stands for an older one (`SIMT_SM`).
#[allow(dead_code)] // of the tests that include this module, those of kernels
pub fn has_all(device: &Device) -> bool {
    device.is_host() && std::env::var_os("SIMT_SM").is_none()
}

impl TestDevice {
    /// The modes that every case runs in.
    pub fn modes(&self) -> Vec<Mode> {
        if self.is_host() { vec![Mode::Emulated, Mode::Twin] } else { vec![Mode::Gpu] }
    }

    /// Eight random schedules for a tiny case; on a GPU eight plain repetitions.
    pub fn schedules(&self) -> Vec<Mode> {
        (1..=8).map(|seed| if self.is_host() { Mode::Shuffled(seed) } else { Mode::Gpu }).collect()
    }

    /// The device once for each family of linear layers that it has, as usual, with tiles that are always wide, without clusters and with tiles by
    /// the copy engine, and what to call it: all on the host driver, `mma` alone on a GPU that is no Hopper.
    #[allow(dead_code)] // of the tests that include this module, those of linear layers
    pub fn linear_families(&self) -> Vec<(String, Device)> {
        let variants = |device: Device| {
            let family = device.linear_family().name();
            let (wide, apart) = (device.with_wide_tiles_from(1), device.with_clusters(false));
            // The copy engine brings all tiles of `wgmma`.
            let bulk = device.with_bulk_tiles().ok().filter(|_| family == "mma");
            let mut all = vec![
                (family.into(), device),
                (format!("{family} wide"), wide),
                (format!("{family} apart"), apart),
            ];
            all.extend(bulk.map(|bulk| (format!("{family} bulk"), bulk)));
            all
        };
        self.families("linear layers", Device::with_linear_family).into_iter().flat_map(variants).collect()
    }

    /// The same for the families of attention.
    #[allow(dead_code)] // of the tests that include this module, those of attention
    pub fn attention_families(&self) -> Vec<Device> {
        self.families("attention", Device::with_attention_family)
    }

    fn families(
        &self,
        what: &str,
        with_family: impl Fn(&Device, TensorCoreFamily) -> smart_run::Result<Device>,
    ) -> Vec<Device> {
        let families = TensorCoreFamily::ALL.map(|family| (family, with_family(self, family)));
        let there = families.into_iter().filter_map(|(family, device)| match device {
            Ok(device) => Some(device),
            Err(error) => {
                assert!(!has_all(self), "{error}");
                eprintln!("skipped: {what} by {}: {error}", family.name());
                None
            }
        });
        there.collect()
    }

    /// Makes the following launches run in `mode`.
    pub fn enter(&self, mode: Mode) {
        let (native, seed) = match mode {
            Mode::Gpu => return,
            Mode::Emulated => (0, 0),
            Mode::Shuffled(seed) => (0, seed),
            Mode::Twin => (1, 0),
        };
        set_host_option(c"native", native);
        set_host_option(c"seed", seed);
    }
}

impl Deref for TestDevice {
    type Target = Device;

    fn deref(&self) -> &Device {
        self.device
    }
}

impl Drop for TestDevice {
    fn drop(&mut self) {
        if self.is_host() {
            self.enter(Mode::Twin);
        }
    }
}

/// Sets a switch of the loaded host driver (`kernels/host/options.hpp`).
pub fn set_host_option(name: &CStr, value: u64) {
    // SAFETY: the host driver is loaded with global symbols; it exports
    // `void simt_set_option(const char*, uint64_t)`.
    unsafe {
        let address = libc::dlsym(libc::RTLD_DEFAULT, c"simt_set_option".as_ptr());
        assert!(!address.is_null(), "the host driver is not loaded");
        let set = std::mem::transmute::<*mut libc::c_void, extern "C" fn(*const c_char, u64)>(address);
        set(name.as_ptr(), value);
    }
}

/// Has the loaded host driver forget a failure after which it refuses all calls.
#[allow(dead_code)] // as below
pub fn reset_host_driver() {
    // SAFETY: as above; the host driver exports `void simt_reset()`.
    unsafe {
        let address = libc::dlsym(libc::RTLD_DEFAULT, c"simt_reset".as_ptr());
        assert!(!address.is_null(), "the host driver is not loaded");
        std::mem::transmute::<*mut libc::c_void, extern "C" fn()>(address)();
    }
}

/// Lets the loaded host driver refuse launches or allocations (`kernels/host/planned_failure.cpp`).
#[allow(dead_code)] // of the tests that include this module, those of the service
pub fn plan_host_failure(what: &CStr, nth: u64, count: u64) {
    // SAFETY: as above; the host driver exports `void simt_fail(const char*, uint64_t, uint64_t)`.
    unsafe {
        let address = libc::dlsym(libc::RTLD_DEFAULT, c"simt_fail".as_ptr());
        assert!(!address.is_null(), "the host driver is not loaded");
        let fail = std::mem::transmute::<*mut libc::c_void, extern "C" fn(*const c_char, u64, u64)>(address);
        fail(what.as_ptr(), nth, count);
    }
}
