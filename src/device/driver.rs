//! Which driver answers: the system's `libcuda`, or the embedded host driver.
//!
//! cudarc binds one library for the life of the process, by name. The host driver's SONAME is `libcuda.so`, so opening
//! it before cudarc's first call makes the loader resolve cudarc's own `dlopen` to it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::Write;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::error::{Error, Result};

/// The oldest driver API accepted: CUDA 13.0, shipped with driver R580.
const MIN_DRIVER_API: c_int = 13000;

/// The host driver as built by `build.rs`; empty where no C++ compiler was found.
static HOST_DRIVER_IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/host_driver.so"));

/// The device the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// What `SMART_DEVICE` says (`host`, `cuda:N`); without it a usable GPU if there is one, the host driver otherwise.
    #[default]
    Auto,
    /// The GPU with this ordinal.
    Cuda(usize),
    /// The host driver.
    Host,
}

impl std::str::FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "host" => Ok(Self::Host),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| Error::Input("expected auto, host or cuda:N".into())),
        }
    }
}

/// The driver in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// The system's CUDA driver.
    Cuda,
    /// The host driver: kernels on the CPU.
    Host,
}

/// The process-wide binding, made once.
static BOUND: Mutex<Option<DriverKind>> = Mutex::new(None);

/// Binds the driver for `choice` and returns it with the device ordinal.
pub(super) fn load(choice: DeviceChoice) -> Result<(DriverKind, usize)> {
    let choice = match (choice, std::env::var("SMART_DEVICE")) {
        (DeviceChoice::Auto, Ok(text)) if !text.is_empty() => text
            .parse()
            .map_err(|_| Error::Input(format!("SMART_DEVICE={text}: expected auto, host or cuda:N")))?,
        _ => choice,
    };
    let mut bound = BOUND.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(kind) = *bound {
        return match (kind, choice) {
            (DriverKind::Cuda, DeviceChoice::Host) | (DriverKind::Host, DeviceChoice::Cuda(_)) => {
                Err(Error::Device(format!(
                    "this process already uses the {kind:?} driver; start another for {choice:?}"
                )))
            }
            (_, DeviceChoice::Cuda(ordinal)) => Ok((kind, ordinal)),
            _ => Ok((kind, 0)),
        };
    }
    let forced_host = std::env::var_os("SMART_HOST_DRIVER").is_some();
    let (kind, ordinal) = match choice {
        DeviceChoice::Host => (DriverKind::Host, 0),
        DeviceChoice::Cuda(ordinal) => {
            let count =
                probe_system_driver().map_err(|why| Error::Device(format!("cuda:{ordinal}: {why}")))?;
            if ordinal >= count {
                return Err(Error::Device(format!(
                    "cuda:{ordinal}: this machine has {count} CUDA device(s)"
                )));
            }
            (DriverKind::Cuda, ordinal)
        }
        DeviceChoice::Auto if forced_host => (DriverKind::Host, 0),
        DeviceChoice::Auto => match probe_system_driver() {
            Ok(_) => (DriverKind::Cuda, 0),
            Err(reason) => {
                tracing::debug!(reason, "no usable GPU, using the host driver");
                (DriverKind::Host, 0)
            }
        },
    };
    if kind == DriverKind::Host {
        open_host_driver()?;
    }
    *bound = Some(kind);
    Ok((kind, ordinal))
}

/// Number of CUDA devices behind the system driver, or one sentence that says why there is none.
fn probe_system_driver() -> std::result::Result<usize, String> {
    // In the order of cudarc, which would take another one's word for it.
    let library = [c"libcuda.so", c"libcuda.so.1"].into_iter().find_map(|name| {
        // SAFETY: opening a library by name; its constructors are the driver's own.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        (!handle.is_null()).then_some(handle)
    });
    let Some(library) = library else {
        return Err(
            "no CUDA driver on this machine (libcuda.so not found); use --device host to run on the CPU"
                .into(),
        );
    };
    let count = probe_library(library);
    // One that is used stays open: it has started, and may have threads of its own. Of another the name must be free for the host driver.
    if count.is_err() {
        // SAFETY: `library` was opened above and nothing keeps a pointer into it.
        unsafe { libc::dlclose(library) };
    }
    count
}

fn probe_library(library: *mut c_void) -> std::result::Result<usize, String> {
    let symbol = |name: &CStr| -> std::result::Result<*mut c_void, String> {
        // SAFETY: `library` is an open handle, `name` a C string.
        let address = unsafe { libc::dlsym(library, name.as_ptr()) };
        if address.is_null() {
            Err(format!("the CUDA driver lacks {}", name.to_string_lossy()))
        } else {
            Ok(address)
        }
    };
    let (version, init, count) =
        (symbol(c"cuDriverGetVersion")?, symbol(c"cuInit")?, symbol(c"cuDeviceGetCount")?);
    let mut number: c_int = 0;
    // SAFETY: the three entry points have had these signatures since CUDA 2; the pointers outlive the calls.
    unsafe {
        let version = std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_int) -> c_int>(version);
        let init = std::mem::transmute::<*mut c_void, extern "C" fn(u32) -> c_int>(init);
        let count = std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_int) -> c_int>(count);
        if version(&mut number) != 0 || number < MIN_DRIVER_API {
            return Err(format!(
                "the CUDA driver offers API {}.{}; smart-run needs 13.0 (driver R580) or newer",
                number / 1000,
                number % 1000 / 10
            ));
        }
        let status = init(0);
        if status != 0 {
            return Err(format!(
                "the CUDA driver does not start (cuInit: error {status}); use --device host to run on the CPU"
            ));
        }
        number = 0;
        if count(&mut number) != 0 || number < 1 {
            return Err("the CUDA driver sees no device; use --device host to run on the CPU".into());
        }
    }
    Ok(number as usize)
}

/// Loads the host driver into the process under the name that cudarc will ask for.
fn open_host_driver() -> Result<()> {
    if let Some(path) = std::env::var_os("SMART_HOST_DRIVER") {
        return open_library(Path::new(&path))
            .map_err(|why| Error::Device(format!("SMART_HOST_DRIVER: {why}")));
    }
    if HOST_DRIVER_IMAGE.is_empty() {
        return Err(Error::Device(
            "this build has no host driver (x86-64 Linux and a C++20 compiler are needed); use a GPU".into(),
        ));
    }
    let (path, _keep) = write_image().map_err(|e| {
        Error::Device(format!("cannot write the host driver to memory or a temporary file: {e}"))
    })?;
    let opened = open_library(&path);
    if !path.starts_with("/proc") {
        let _ = std::fs::remove_file(&path);
    }
    opened.map_err(|why| Error::Device(format!("the host driver does not load: {why}")))
}

/// Writes the image to a memory file, or to a temporary file where memory files may not be executed.
fn write_image() -> std::io::Result<(PathBuf, Option<std::fs::File>)> {
    // SAFETY: a plain system call; the descriptor is owned by the `File` made from it.
    let descriptor = unsafe { libc::memfd_create(c"libcuda.so".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor >= 0 {
        // SAFETY: `descriptor` is fresh and owned by nobody else.
        let mut file = unsafe { std::fs::File::from_raw_fd(descriptor) };
        file.write_all(HOST_DRIVER_IMAGE)?;
        let path = PathBuf::from(format!("/proc/self/fd/{descriptor}"));
        if executable(&path) {
            return Ok((path, Some(file)));
        }
    }
    let path = std::env::temp_dir().join(format!("smart-run-host-driver-{}.so", std::process::id()));
    std::fs::write(&path, HOST_DRIVER_IMAGE)?;
    Ok((path, None))
}

/// Whether the loader may map this file executable (a `noexec` policy denies memory files).
fn executable(path: &Path) -> bool {
    use std::os::fd::AsRawFd;
    let Ok(file) = std::fs::File::open(path) else { return false };
    // SAFETY: maps one page of an open file and unmaps it; nothing is executed.
    unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            0,
        );
        page != libc::MAP_FAILED && libc::munmap(page, 4096) == 0
    }
}

fn open_library(path: &Path) -> std::result::Result<(), String> {
    let c_path = CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| format!("{} contains a NUL byte", path.display()))?;
    // SAFETY: loading our own driver (or the one the user names); it stays open for the life of the process.
    let handle = unsafe { libc::dlopen(c_path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: `dlerror` returns a C string owned by the loader, copied at once.
    let reason = unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            "unknown reason".into()
        } else {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    };
    Err(format!("{}: {reason}", path.display()))
}

/// The symbol of the host driver, if it is the bound driver.
fn host_symbol(name: &CStr) -> Option<*mut c_void> {
    if *BOUND.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) != Some(DriverKind::Host) {
        return None;
    }
    // SAFETY: looks a name up among the global symbols, where the host driver was loaded.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// The host driver's account of its last failure: kernel, block, thread and what was wrong.
pub fn host_driver_error() -> Option<String> {
    let address = host_symbol(c"simt_last_error")?;
    // SAFETY: the host driver exports `const char* simt_last_error()`; the text is copied at once.
    unsafe {
        let last_error = std::mem::transmute::<*mut c_void, extern "C" fn() -> *const c_char>(address);
        let text = last_error();
        if text.is_null() || *text == 0 {
            None
        } else {
            Some(CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_choice_parses() {
        assert_eq!("auto".parse::<DeviceChoice>().unwrap(), DeviceChoice::Auto);
        assert_eq!("cuda:3".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(3));
        for bad in ["cuda", "cuda:", "cuda:-1", "gpu", ""] {
            assert!(bad.parse::<DeviceChoice>().unwrap_err().to_string().contains("cuda:N"), "{bad}");
        }
    }
}
