use smart_run::device::{DType, Tensor};
use smart_run::kernels::prefetch::prefetch;

use crate::common::device::device;

/// What was asked for is as it was, and nothing beyond the tensor is touched: the host driver and sanitizers would say so.
#[test]
fn prefetched_bytes_are_left_alone() {
    let device = device();
    for elements in [1, 15, 16, 17, 4096, 300_001] {
        let values: Vec<i32> = (0..elements).collect();
        let weights = Tensor::from_slice(&device, &values, &[values.len()]).unwrap();
        for mode in device.modes().into_iter().chain(device.schedules()) {
            device.enter(mode);
            for bytes in [0, 31, 32, 1000, usize::MAX] {
                prefetch(&device, &weights, bytes).unwrap();
            }
            device.synchronize().unwrap();
            assert_eq!(weights.to_vec::<i32>().unwrap(), values, "{mode:?}");
        }
    }
}

#[test]
fn gaps_are_refused() {
    let device = device();
    let wide = Tensor::zeros(&device, DType::F32, &[3, 8]).unwrap();
    let error = prefetch(&device, &wide.columns(0..4), 64).unwrap_err().to_string();
    assert!(error.contains("prefetch: weights: expected rows without gaps"), "{error}");
}
