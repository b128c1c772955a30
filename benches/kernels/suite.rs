//! The table: which rows, in which order, how one is printed; and the same rows one by one, on request.

mod attention_cases;
mod ceilings;
mod control_cases;
mod drafter_cases;
mod linear_cases;
mod measure;
mod row_cases;
mod setting;
mod shapes;
mod token_cases;
mod vision_cases;

use std::collections::HashSet;
use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ceilings::{Ceiling, Rates};
use measure::{Entry, Timing, time};
use serde_json::{Value, json};
use setting::{DEMO, LLAMA_8B, Setting};
use smart_run::device::{Device, NVCC_VERSION};
use smart_run::{Error, Result};

/// Ranks of a table that nobody asked more of; `SMART_BENCH_RANK` is another.
const USUAL_RANK: u8 = 1;

/// Checks and times every row whose name contains `filter`, printing rows as they come.
// Not every program that this is part of measures a table.
#[allow(dead_code)]
pub fn run(device: &Device, filter: &str) -> Result<()> {
    let mut table = Table::open(device, false)?;
    let rank = std::env::var("SMART_BENCH_RANK").map_or(Ok(USUAL_RANK), |rank| {
        rank.parse().map_err(|_| Error::Input(format!("SMART_BENCH_RANK={rank}: expected a number")))
    })?;
    table.measure_ceilings()?;
    for entry in entries(&table.setting) {
        if entry.rank <= rank && entry.name.contains(filter) {
            table.measure(&entry)?;
        }
    }
    Ok(())
}

/// Runs every row once and holds it against its oracle, without timing it.
// Not every program that this is part of checks alone.
#[allow(dead_code)]
pub fn check(device: &Device) -> Result<()> {
    let setting = Setting::new(device, if device.is_host() { &DEMO } else { &LLAMA_8B })?;
    for entry in entries(&setting) {
        println!("{}", entry.name);
        let case = entry.build(&setting)?;
        (case.launch)(0)?;
        (case.check)()?;
    }
    Ok(())
}

/// Reads requests from standard input, a line each, and answers with one JSON object a line: `list` with the name, rank and shape
/// of every row, ended by `{"end": true}`; `ceilings` likewise, with their rows; `time NAME` with that row or `{"error": ...}`.
/// Whoever asks can measure other programs in between.
// Not every program that this is part of takes requests.
#[allow(dead_code)]
pub fn serve(device: &Device) -> Result<()> {
    let mut table = Table::open(device, true)?;
    let entries = entries(&table.setting);
    answer(&json!({ "ready": device.name(), "nvcc": NVCC_VERSION, "shapes": table.setting.model.name }));
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::Device(format!("standard input: {e}")))?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("list", _) => {
                for Entry { name, rank, shape, .. } in &entries {
                    answer(&json!({ "name": name, "rank": rank, "shape": shape }));
                }
                answer(&json!({ "end": true }));
            }
            ("ceilings", _) => {
                table.measure_ceilings()?;
                answer(&json!({ "end": true }));
            }
            ("time", name) => {
                let Some(entry) = entries.iter().find(|entry| entry.name == name) else {
                    answer(&json!({ "error": format!("no row is named {name}") }));
                    continue;
                };
                let outcome = catch_unwind(AssertUnwindSafe(|| table.measure(entry)));
                let problem = match outcome {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "its output is not the oracle's; standard error says more".into(),
                };
                answer(&json!({ "error": problem, "case": name }));
                // After a fault nothing runs any more here: whoever asks has to start another.
                device.synchronize()?;
            }
            (other, _) => {
                answer(&json!({ "error": format!("{other}: expected list, ceilings or time NAME") }))
            }
        }
    }
    Ok(())
}

/// All rows, by rank; a shape that two lists name is one row.
fn entries(setting: &Setting) -> Vec<Entry> {
    let families = [drafter_cases::drafter, row_cases::rows, control_cases::control, vision_cases::vision];
    let mut entries = linear_cases::linear(setting);
    entries.extend(attention_cases::attention(setting));
    entries.extend(token_cases::tokens(setting));
    entries.extend(families.iter().flat_map(|family| family(setting.model)));
    entries.sort_by_key(|entry| entry.rank);
    let mut seen = HashSet::new();
    entries.retain(|entry| seen.insert(entry.name.clone()));
    entries
}

fn answer(value: &Value) {
    // The test harness leaves a line unfinished.
    println!("\n{value}");
}

struct Table {
    setting: Setting,
    output: Output,
}

impl Table {
    fn open(device: &Device, answers: bool) -> Result<Self> {
        let setting = Setting::new(device, if device.is_host() { &DEMO } else { &LLAMA_8B })?;
        let json = std::env::var_os("SMART_BENCH_JSON").map(open_json).transpose()?;
        if !answers {
            println!("device {}, nvcc {NVCC_VERSION}, shapes of {}, bf16", device.name(), setting.model.name);
            println!(
                "{:<62} {:>10} {:>10} {:>10} {:>8} {:>8} {:>7} {:>7}",
                "kernel and shape", "median us", "p10", "p90", "GB/s", "TFLOP/s", "% copy", "% read"
            );
        }
        Ok(Self { output: Output { device: device.name().to_owned(), rates: None, json, answers }, setting })
    }

    fn measure_ceilings(&mut self) -> Result<()> {
        let rates =
            ceilings::ceilings(&self.setting, &mut |kind, outcome| self.output.ceiling(kind, outcome))?;
        self.output.rates = Some(rates);
        Ok(())
    }

    fn measure(&mut self, entry: &Entry) -> Result<()> {
        let case = entry.build(&self.setting)?;
        let timing = time(&self.setting.device, &case)?;
        self.output.row(&entry.name, &entry.shape, &timing, case.bytes, case.flops)
    }
}

/// Where rows go.
struct Output {
    device: String,
    /// What rows are related to, once that is known.
    rates: Option<Rates>,
    json: Option<std::fs::File>,
    /// Whether rows are answers to requests, instead of lines of a table.
    answers: bool,
}

impl Output {
    fn ceiling(&mut self, kind: &str, outcome: Result<Ceiling>) -> Result<()> {
        match outcome {
            Ok(Ceiling { name, timing, bytes }) => {
                let shape = json!({ "family": "ceilings", "kind": kind });
                self.row(&name, &shape, &timing, bytes, 0.0)
            }
            Err(error) => {
                match self.answers {
                    true => answer(&json!({ "skipped": kind, "reason": error.to_string() })),
                    false => println!("SKIPPED {kind}: {error}"),
                }
                Ok(())
            }
        }
    }

    fn row(&mut self, name: &str, shape: &Value, timing: &Timing, bytes: f64, flops: f64) -> Result<()> {
        // Bytes or operations a microsecond, in thousands and millions: GB/s and TFLOP/s.
        let (gigabytes, teraflops) = (bytes / timing.median / 1e3, flops / timing.median / 1e6);
        let (copy, read) = self.rates.as_ref().map_or((f64::NAN, f64::NAN), |rates| (rates.copy, rates.read));
        let row = json!({
            "device": self.device, "case": name, "shape": shape, "median_us": timing.median,
            "p10_us": timing.p10, "p90_us": timing.p90, "gb_per_s": gigabytes, "tflop_per_s": teraflops,
            "copy_gb_per_s": copy, "read_gb_per_s": read, "launches_per_sample": timing.launches,
            "samples": timing.samples,
        });
        if let Some(file) = &mut self.json {
            writeln!(file, "{row}").map_err(|e| Error::Device(format!("SMART_BENCH_JSON: {e}")))?;
        }
        if self.answers {
            answer(&row);
        } else {
            let share = |of: f64| match of.is_nan() {
                true => String::new(),
                false => format!("{:.1}", 100.0 * gigabytes / of),
            };
            println!(
                "{name:<62} {:>10.2} {:>10.2} {:>10.2} {gigabytes:>8.1} {teraflops:>8.2} {:>7} {:>7}",
                timing.median,
                timing.p10,
                timing.p90,
                share(copy),
                share(read),
            );
        }
        Ok(())
    }
}

fn open_json(path: std::ffi::OsString) -> Result<std::fs::File> {
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    opened.map_err(|e| Error::Device(format!("SMART_BENCH_JSON={}: {e}", path.display())))
}
