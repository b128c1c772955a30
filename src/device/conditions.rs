//! [`ConditionsProbe`]: clocks, power and temperature around a measurement, from NVML, the driver's management library.
//!
//! A thread of its own opens the library and asks; whoever measures never waits for it longer than [`PATIENCE`], and whatever
//! goes wrong there ends in `None`. Nothing is asked on the host driver, whose clocks are the CPU's.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};

use crate::conditions::{Conditions, Reading, Slowdown};
use crate::device::Device;

/// Longest wait for the library's last answer.
const PATIENCE: Duration = Duration::from_millis(50);

/// Reads the state of a GPU when it is made and once more by [`ConditionsProbe::finish`].
pub struct ConditionsProbe {
    /// Dropped to ask for the last reading.
    ask: Sender<()>,
    readings: Receiver<Reading>,
}

impl ConditionsProbe {
    /// Starts reading `device`; returns at once.
    pub fn start(device: &Device) -> Option<Self> {
        let bus_id = device.pci_bus_id()?;
        Self::spawn(move || {
            let nvml = open_library()?;
            // The library outlives the thread's work; a handle that borrows it cannot leave this closure.
            Some(move || nvml.device_by_pci_bus_id(bus_id.as_str()).ok().map(|gpu| read(&gpu)))
        })
    }

    /// Runs `open` and then its reader on a thread: at once, and when asked.
    fn spawn<Read: FnMut() -> Option<Reading>>(
        open: impl FnOnce() -> Option<Read> + Send + 'static,
    ) -> Option<Self> {
        let (ask, asked) = channel::<()>();
        let (answer, readings) = channel();
        let work = move || {
            let Some(mut read) = open() else { return };
            let Some(first) = read() else { return };
            if answer.send(first).is_ok()
                && asked.recv().is_ok()
                && let Some(last) = read()
            {
                let _ = answer.send(last);
            }
        };
        thread::Builder::new().name("conditions".into()).spawn(work).ok()?;
        Some(Self { ask, readings })
    }

    /// The state at the start and now; `None` if there is no NVML, or if it does not answer in time.
    pub fn finish(self) -> Option<Conditions> {
        let start = self.readings.recv_timeout(PATIENCE).ok()?;
        self.ask.send(()).ok()?;
        let end = self.readings.recv_timeout(PATIENCE).ok()?;
        Some(Conditions { start, end })
    }
}

/// The library by the name that drivers install it under; the bare name comes with development packages only.
fn open_library() -> Option<Nvml> {
    ["libnvidia-ml.so.1", "libnvidia-ml.so"]
        .iter()
        .find_map(|name| Nvml::builder().lib_path(OsStr::new(name)).init().ok())
}

fn read(gpu: &nvml_wrapper::Device<'_>) -> Reading {
    let watts = |milliwatts: u32| (milliwatts + 500) / 1000;
    Reading {
        sm_mhz: gpu.clock_info(Clock::SM).ok(),
        memory_mhz: gpu.clock_info(Clock::Memory).ok(),
        power_w: gpu.power_usage().ok().map(watts),
        power_limit_w: gpu.enforced_power_limit().ok().map(watts),
        utilisation: gpu.utilization_rates().ok().map(|rates| rates.gpu),
        temperature_c: gpu.temperature(TemperatureSensor::Gpu).ok(),
        slowdowns: gpu.current_throttle_reasons().map(slowdowns).unwrap_or_default(),
    }
}

fn slowdowns(reasons: ThrottleReasons) -> Vec<Slowdown> {
    // The general hardware bit is set along with its particular causes.
    let particular = ThrottleReasons::HW_THERMAL_SLOWDOWN | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
    [
        (ThrottleReasons::SW_POWER_CAP, Slowdown::PowerCap),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, Slowdown::Heat),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, Slowdown::HardwareHeat),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, Slowdown::PowerBrake),
        (ThrottleReasons::HW_SLOWDOWN, Slowdown::Hardware),
        (ThrottleReasons::SYNC_BOOST, Slowdown::SyncBoost),
        (
            ThrottleReasons::APPLICATIONS_CLOCKS_SETTING | ThrottleReasons::DISPLAY_CLOCK_SETTING,
            Slowdown::ClockSetting,
        ),
    ]
    .into_iter()
    .filter(|(bits, slowdown)| {
        reasons.intersects(*bits) && !(*slowdown == Slowdown::Hardware && reasons.intersects(particular))
    })
    .map(|(_, slowdown)| slowdown)
    .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn at(sm_mhz: u32) -> Option<Reading> {
        Some(Reading { sm_mhz: Some(sm_mhz), ..Reading::default() })
    }

    #[test]
    fn the_first_reading_is_of_the_start_and_the_second_of_the_end() {
        let mut clocks = [1000, 2000].into_iter();
        let probe = ConditionsProbe::spawn(move || Some(move || at(clocks.next()?))).unwrap();
        let conditions = probe.finish().unwrap();
        assert_eq!((conditions.start.sm_mhz, conditions.end.sm_mhz), (Some(1000), Some(2000)));
    }

    #[test]
    fn a_library_that_is_missing_broken_or_stuck_gives_none_in_time() {
        type Reader = Box<dyn FnMut() -> Option<Reading>>;
        type Opening = Box<dyn FnOnce() -> Option<Reader> + Send>;
        let mut asked = 0;
        let openings: [(&str, Opening); 5] = [
            ("missing", Box::new(|| None)),
            ("no such GPU", Box::new(|| Some(Box::new(|| None) as Reader))),
            (
                "stuck while opening",
                Box::new(|| {
                    thread::sleep(Duration::from_secs(5));
                    None
                }),
            ),
            (
                "stuck at the second reading",
                Box::new(move || {
                    Some(Box::new(move || {
                        asked += 1;
                        thread::sleep(Duration::from_secs(if asked > 1 { 5 } else { 0 }));
                        at(1000)
                    }) as Reader)
                }),
            ),
            (
                "panics",
                Box::new(|| {
                    Some(Box::new(|| -> Option<Reading> { std::panic::resume_unwind(Box::new(())) }) as Reader)
                }),
            ),
        ];
        for (what, open) in openings {
            let probe = ConditionsProbe::spawn(open).unwrap();
            let start = Instant::now();
            assert_eq!(probe.finish(), None, "{what}");
            assert!(start.elapsed() < Duration::from_secs(2), "{what}: {:?}", start.elapsed());
        }
    }

    #[test]
    fn throttle_bits_become_causes_and_an_idle_gpu_has_none() {
        assert_eq!(slowdowns(ThrottleReasons::GPU_IDLE), vec![]);
        assert_eq!(slowdowns(ThrottleReasons::SW_POWER_CAP), vec![Slowdown::PowerCap]);
        assert_eq!(slowdowns(ThrottleReasons::HW_SLOWDOWN), vec![Slowdown::Hardware]);
        assert_eq!(
            slowdowns(ThrottleReasons::HW_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN),
            vec![Slowdown::HardwareHeat]
        );
        assert_eq!(slowdowns(ThrottleReasons::APPLICATIONS_CLOCKS_SETTING), vec![Slowdown::ClockSetting]);
    }

    #[test]
    fn the_host_driver_has_no_conditions() {
        let device = Device::open(crate::device::DeviceChoice::Host).unwrap();
        assert!(ConditionsProbe::start(&device).is_none());
        assert_eq!(device.pci_bus_id(), None);
        assert_eq!(device.driver_version(), "host driver");
    }
}
