//! Rows of the kernel microbenchmark, each run once and held against its oracle: a row that is wrong would be found out on a GPU, where time is
//! short.

#[path = "../benches/kernels/suite.rs"]
mod suite;

use smart_run::device::{Device, DeviceChoice};

#[test]
fn every_row_is_right() {
    suite::check(&Device::open(DeviceChoice::Auto).unwrap()).unwrap();
}
