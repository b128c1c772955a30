//! All that a GPU has to prove, in one executable that needs neither cargo nor a network: the kernel tests (primitives first),
//! the engine tests, and the times. Built and run by `tools/gpu_check.sh`; see `docs/gpu-check.md`.
//!
//! Run it with one test thread. `SMART_DEVICE` selects the device, `SMART_TEST_ROOT` is the repository.

mod agreement;
#[path = "../engine/main.rs"]
mod engine;
#[path = "../kernels/main.rs"]
mod kernels;
#[path = "../../benches/kernels/suite.rs"]
mod timings;

use engine::{drafters, fixtures, random_drafters};
use kernels::common;

/// Ceilings, then every kernel at the shapes of Llama-3.1-8B, or of the demo model on the host driver.
#[test]
#[ignore = "minutes of measuring, not a test of correctness"]
fn times() {
    let filter = std::env::var("SMART_BENCH_FILTER").unwrap_or_default();
    timings::run(&common::device::device(), &filter).unwrap();
}

/// The same rows, one by one, as a program asks for them that measures other kernels in between (`tools/gpu_check_kernels.py`).
#[test]
#[ignore = "answers requests on standard input"]
fn times_on_request() {
    timings::serve(&common::device::device()).unwrap();
}
