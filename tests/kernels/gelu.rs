use smart_run::device::{DType, Device};
use smart_run::kernels::gelu::{Gelu, gelu};
use smart_run::reference::gelu::{erf_gelu, quick_gelu, tanh_gelu};

use crate::common::compare::{Tol, close, rows_are_independent, same_bits};
use crate::common::device::device;
use crate::common::inputs::{MODEL_DTYPES, Rng, download, poisoned, rounded, upload};

/// A function and its oracle.
type Function = (Gelu, fn(f32) -> f32);

const FUNCTIONS: [Function; 3] = [(Gelu::Erf, erf_gelu), (Gelu::Tanh, tanh_gelu), (Gelu::Quick, quick_gelu)];

fn run(device: &Device, dtype: DType, function: Gelu, x: &[f32], columns: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    let x = upload(device, dtype, x, &[rows, columns]);
    // A row more than the kernel may touch.
    let whole = poisoned(device, dtype, &[rows + 1, columns]);
    gelu(device, function, &x, &whole.rows(0..rows)).unwrap();
    let mut out = download(&whole);
    assert!(out.split_off(rows * columns).iter().all(|v| v.is_nan()), "the row behind was written");
    out
}

/// One rounding and a function of a few units; where it is close to 0 the sum `1 + erf` has lost digits.
fn tolerance(dtype: DType) -> Tol {
    let rounding = Tol::rounding(dtype, 1e-6);
    Tol { rel: rounding.rel + 2e-6, ..rounding }
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    for dtype in MODEL_DTYPES {
        // A row that fills no vector, one that ends inside one, several blocks.
        for (seed, (rows, columns)) in [(1, 3), (5, 75), (3, 2048)].into_iter().enumerate() {
            let x = rounded(dtype, Rng::new(seed as u64).with_outliers(rows * columns));
            for (function, oracle) in FUNCTIONS {
                let want: Vec<f32> = x.iter().map(|&x| oracle(x)).collect();
                for mode in device.modes() {
                    device.enter(mode);
                    let got = run(&device, dtype, function, &x, columns);
                    close(
                        &format!("{function:?} {columns} {} {mode:?}", dtype.name()),
                        &got,
                        &want,
                        tolerance(dtype),
                    );
                }
            }
        }
    }
}

#[test]
fn far_values_are_zero_or_themselves() {
    let device = device();
    let x = [-0.0, 20.0, -20.0, 300.0, -300.0, 60_000.0, f32::NAN, 0.0];
    for dtype in MODEL_DTYPES {
        let x = rounded(dtype, x.to_vec());
        for (function, oracle) in FUNCTIONS {
            let want: Vec<f32> = x.iter().map(|&x| oracle(x)).collect();
            for mode in device.modes() {
                device.enter(mode);
                let name = format!("{function:?} {} {mode:?}", dtype.name());
                close(&name, &run(&device, dtype, function, &x, 8), &want, tolerance(dtype));
            }
        }
    }
}

#[test]
fn in_place_rows_and_schedules_have_the_same_bits() {
    let device = device();
    for dtype in MODEL_DTYPES {
        let x = rounded(dtype, Rng::new(9).with_outliers(200 * 75));
        for (function, _) in FUNCTIONS {
            for mode in device.modes().into_iter().chain(device.schedules()) {
                device.enter(mode);
                let name = format!("{function:?} {} {mode:?}", dtype.name());
                let whole = run(&device, dtype, function, &x, 75);
                let in_place = upload(&device, dtype, &x, &[200, 75]);
                gelu(&device, function, &in_place, &in_place).unwrap();
                same_bits(&name, &download(&in_place), &whole);
            }
            for mode in device.modes() {
                device.enter(mode);
                rows_are_independent(&format!("{function:?} {mode:?}"), 75, |rows| {
                    run(&device, dtype, function, &x[rows.start * 75..rows.end * 75], 75)
                });
            }
        }
    }
}
