use smart_run::device::{DType, Device};
use smart_run::kernels::swiglu::{SwigluArgs, swiglu};
use smart_run::reference;

use crate::common::compare::{Tol, close, rows_are_independent, same_bits};
use crate::common::device::device;
use crate::common::inputs::{Guarded, MODEL_DTYPES, Rng, rounded, upload};

/// name, rows, intermediate size, column where the output starts
const CASES: [(&str, usize, usize, usize); 5] = [
    ("one_row", 1, 64, 8),
    ("ragged_row", 3, 75, 8),
    ("unaligned_output", 2, 72, 5),
    ("one_element", 4, 1, 0),
    ("two_blocks_of_columns", 3, 1032, 8),
];

fn run(device: &Device, dtype: DType, gate_up: &[f32], intermediate_size: usize, offset: usize) -> Vec<f32> {
    let rows = gate_up.len() / (2 * intermediate_size);
    let gate_up = upload(device, dtype, gate_up, &[rows, 2 * intermediate_size]);
    let out = Guarded::new(device, dtype, rows, intermediate_size, offset);
    swiglu(device, SwigluArgs { gate_up: &gate_up, out: &out.view() }).unwrap();
    out.values()
}

/// One rounding, f32 arithmetic with an exponential of a few units, and a product that may fall below f16's
/// range.
fn tolerance(dtype: DType) -> Tol {
    let rounding = Tol::rounding(dtype, 1.0 / (1 << 25) as f32);
    Tol { rel: rounding.rel + 1e-6, ..rounding }
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (seed, (name, rows, intermediate_size, offset)) in CASES.into_iter().enumerate() {
            let gate_up = rounded(dtype, Rng::new(seed as u64).with_outliers(rows * 2 * intermediate_size));
            let want = reference::swiglu::swiglu(&gate_up, intermediate_size);
            for mode in device.modes() {
                device.enter(mode);
                let got = run(&device, dtype, &gate_up, intermediate_size, offset);
                close(&format!("{name} {} {mode:?}", dtype.name()), &got, &want, tolerance(dtype));
            }
        }
    }
}

#[test]
fn gates_where_the_exponential_overflows_or_vanishes() {
    let device = device();
    let gates =
        [0.0, -0.0, 87.5, -87.5, 88.5, -88.5, 104.0, -104.0, 30_000.0, -30_000.0, f32::INFINITY, f32::NAN];
    let gate_up = [&gates[..], &[2.0; 12]].concat();
    for dtype in MODEL_DTYPES {
        let gate_up = rounded(dtype, gate_up.clone());
        let want = reference::swiglu::swiglu(&gate_up, gates.len());
        for mode in device.modes() {
            device.enter(mode);
            let got = run(&device, dtype, &gate_up, gates.len(), 8);
            close(&format!("{} {mode:?}", dtype.name()), &got, &want, tolerance(dtype));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_pass() {
    let device = device();
    let intermediate_size = 75;
    for dtype in MODEL_DTYPES {
        let gate_up = rounded(dtype, Rng::new(30).with_outliers(200 * 2 * intermediate_size));
        for mode in device.modes() {
            device.enter(mode);
            rows_are_independent(&format!("{} {mode:?}", dtype.name()), intermediate_size, |rows| {
                let width = 2 * intermediate_size;
                run(&device, dtype, &gate_up[rows.start * width..rows.end * width], intermediate_size, 8)
            });
        }
    }
}

#[test]
fn schedules_do_not_change_a_bit() {
    let device = device();
    for dtype in MODEL_DTYPES {
        let gate_up = rounded(dtype, Rng::new(31).with_outliers(2 * 2 * 75));
        device.enter(device.modes()[0]);
        let want = run(&device, dtype, &gate_up, 75, 8);
        for mode in device.schedules() {
            device.enter(mode);
            same_bits(&format!("{} {mode:?}", dtype.name()), &run(&device, dtype, &gate_up, 75, 8), &want);
        }
    }
}
