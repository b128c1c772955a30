//! A process whose first launch of all is recorded, not run: nothing of the kernel has been loaded by then.

use smart_run::device::{Device, DeviceChoice, Tensor};
use smart_run::kernels::copy_rows::{CopyRowsArgs, copy_rows};

#[test]
fn a_kernel_may_be_launched_first_within_a_capture() {
    let device = Device::open(DeviceChoice::Auto).unwrap();
    let src = Tensor::from_slice(&device, &[1.0f32, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
    let moves = Tensor::from_slice(&device, &[0, 1, 1, 0], &[2, 2]).unwrap();
    let out = Tensor::zeros(&device, src.dtype(), &[2, 2]).unwrap();
    let swap = || copy_rows(&device, CopyRowsArgs { src: &src, moves: &moves, out: &out });
    let graph = device.capture(swap).unwrap();
    assert_eq!(out.to_vec::<f32>().unwrap(), [0.0; 4], "what is recorded does not run yet");
    graph.launch().unwrap();
    assert_eq!(out.to_vec::<f32>().unwrap(), [3.0, 4.0, 1.0, 2.0]);
}
