//! Times of all kernels on the device at hand: `cargo bench --bench kernels [-- FILTER]`. With `SMART_BENCH_JSON=FILE` the
//! rows are appended there too, one JSON object a line. `SMART_DEVICE=host|cuda:N` selects the device.

#[path = "kernels/suite.rs"]
mod suite;

fn main() -> smart_run::Result<()> {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let device = smart_run::device::Device::open(smart_run::device::DeviceChoice::Auto)?;
    suite::run(&device, filter.as_deref().unwrap_or(""))
}
