//! The table: which cases, how a row is printed.

mod cases;
mod control_cases;
mod measure;
mod setting;
mod tree_cases;
mod vision_cases;

use std::io::Write;

use measure::{Case, Timing, time};
use setting::{DEMO, LLAMA_8B, Setting};
use smart_run::device::{Device, NVCC_VERSION};
use smart_run::{Error, Result};

/// Checks and times every case whose name contains `filter`, printing rows as they come.
pub fn run(device: &Device, filter: &str) -> Result<()> {
    let setting = Setting::new(device, if device.is_host() { &DEMO } else { &LLAMA_8B })?;
    println!("device {}, nvcc {NVCC_VERSION}, shapes of {}, bf16", device.name(), setting.model.name);
    let copy = setting.copy_ceiling()?;
    println!("copy ceiling {copy:.0} GB/s (bytes read + written)\n");
    println!(
        "{:<46} {:>10} {:>10} {:>10} {:>8} {:>8} {:>7}",
        "kernel and shape", "median us", "p10", "p90", "GB/s", "TFLOP/s", "% copy"
    );
    let mut json = std::env::var_os("SMART_BENCH_JSON").map(open_json).transpose()?;
    let families = [
        cases::linear,
        cases::rows,
        tree_cases::attention,
        tree_cases::tokens,
        tree_cases::drafter,
        control_cases::control,
        vision_cases::vision,
    ];
    for family in families {
        for case in family(&setting, filter)? {
            let timing = time(device, &case)?;
            print_row(&case, &timing, copy);
            if let Some(file) = &mut json {
                let row = json_row(device, &case, &timing, copy);
                writeln!(file, "{row}").map_err(|e| Error::Device(format!("SMART_BENCH_JSON: {e}")))?;
            }
        }
    }
    Ok(())
}

fn open_json(path: std::ffi::OsString) -> Result<std::fs::File> {
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    opened.map_err(|e| Error::Device(format!("SMART_BENCH_JSON={}: {e}", path.display())))
}

/// Bytes or operations a microsecond, in thousands and millions: GB/s and TFLOP/s.
fn rates(case: &Case, timing: &Timing) -> (f64, f64) {
    (case.bytes / timing.median / 1e3, case.flops / timing.median / 1e6)
}

fn print_row(case: &Case, timing: &Timing, copy: f64) {
    let (gigabytes, teraflops) = rates(case, timing);
    println!(
        "{:<46} {:>10.2} {:>10.2} {:>10.2} {:>8.1} {:>8.2} {:>7.1}",
        case.name,
        timing.median,
        timing.p10,
        timing.p90,
        gigabytes,
        teraflops,
        100.0 * gigabytes / copy
    );
}

fn json_row(device: &Device, case: &Case, timing: &Timing, copy: f64) -> serde_json::Value {
    let (gigabytes, teraflops) = rates(case, timing);
    serde_json::json!({
        "device": device.name(), "case": case.name, "median_us": timing.median, "p10_us": timing.p10,
        "p90_us": timing.p90, "gb_per_s": gigabytes, "tflop_per_s": teraflops, "copy_gb_per_s": copy,
        "launches_per_sample": timing.launches, "samples": timing.samples,
    })
}
