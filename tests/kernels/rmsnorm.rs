use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::rmsnorm::{RmsNormArgs, rmsnorm};
use smart_run::reference;

use crate::common::compare::{Tol, close, rows_are_independent, same_bits};
use crate::common::device::device;
use crate::common::inputs::{Guarded, MODEL_DTYPES, Rng, download, round_to, rounded, upload};

const EPS: f32 = 1e-5;

struct Case {
    name: &'static str,
    rows: usize,
    hidden_size: usize,
    delta: bool,
    tap: bool,
    /// Column where out and tap start in their wider rows; odd means that no row is aligned.
    offset: usize,
    scale: f32,
}

const CASES: [Case; 8] = [
    Case { name: "one_row", rows: 1, hidden_size: 64, delta: false, tap: false, offset: 8, scale: 1.0 },
    Case { name: "add_and_tap", rows: 3, hidden_size: 256, delta: true, tap: true, offset: 8, scale: 1.0 },
    Case {
        name: "tap_without_add",
        rows: 2,
        hidden_size: 64,
        delta: false,
        tap: true,
        offset: 16,
        scale: 1.0,
    },
    Case { name: "ragged_row", rows: 5, hidden_size: 75, delta: true, tap: true, offset: 8, scale: 1.0 },
    Case {
        name: "unaligned_output",
        rows: 3,
        hidden_size: 72,
        delta: true,
        tap: true,
        offset: 3,
        scale: 1.0,
    },
    Case {
        name: "shorter_than_a_vector",
        rows: 2,
        hidden_size: 3,
        delta: true,
        tap: false,
        offset: 0,
        scale: 1.0,
    },
    Case {
        name: "longer_than_the_block",
        rows: 2,
        hidden_size: 4400,
        delta: true,
        tap: true,
        offset: 8,
        scale: 1.0,
    },
    Case { name: "eps_decides", rows: 2, hidden_size: 64, delta: false, tap: false, offset: 8, scale: 1e-3 },
];

/// What one call leaves behind: residual, out and tap.
struct Outcome {
    residual: Vec<f32>,
    out: Vec<f32>,
    tap: Option<Vec<f32>>,
}

fn run(device: &Device, case: &Case, residual: &[f32], delta: Option<&[f32]>, weight: &Tensor) -> Outcome {
    let (dtype, hidden_size) = (weight.dtype(), case.hidden_size);
    let rows = residual.len() / hidden_size;
    let residual = upload(device, dtype, residual, &[rows, hidden_size]);
    let delta = delta.map(|delta| upload(device, dtype, delta, &[rows, hidden_size]));
    let out = Guarded::new(device, dtype, rows, hidden_size, case.offset);
    let tap = case.tap.then(|| Guarded::new(device, dtype, rows, hidden_size, case.offset));
    let tap_view = tap.as_ref().map(Guarded::view);
    let args = RmsNormArgs {
        residual: &residual,
        delta: delta.as_ref(),
        weight,
        out: &out.view(),
        tap: tap_view.as_ref(),
        eps: EPS,
    };
    rmsnorm(device, args).unwrap();
    Outcome { residual: download(&residual), out: out.values(), tap: tap.map(|tap| tap.values()) }
}

fn inputs(dtype: DType, seed: u64, case: &Case, rows: usize) -> [Vec<f32>; 3] {
    let (mut rng, len) = (Rng::new(seed), rows * case.hidden_size);
    let scaled = |values: Vec<f32>| values.into_iter().map(|v| v * case.scale).collect();
    [scaled(rng.with_outliers(len)), scaled(rng.normals(len)), rng.normals(case.hidden_size)]
        .map(|values| rounded(dtype, values))
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (seed, case) in CASES.iter().enumerate() {
            let [residual, delta, weight] = inputs(dtype, seed as u64, case, case.rows);
            let delta = case.delta.then_some(&delta[..]);
            let mut added = residual.clone();
            let want = reference::rmsnorm::rmsnorm(&mut added, delta, &weight, EPS, |v| round_to(dtype, v));
            let weight = upload(&device, dtype, &weight, &[case.hidden_size]);
            for mode in device.modes() {
                device.enter(mode);
                let name = format!("{} {} {mode:?}", case.name, dtype.name());
                let got = run(&device, case, &residual, delta, &weight);
                // 2^-25: half a unit of the smallest f16
                close(&name, &got.out, &want, Tol::rounding(dtype, 1.0 / (1 << 25) as f32));
                same_bits(&name, &got.residual, &added);
                if let Some(tap) = got.tap {
                    same_bits(&name, &tap, &added);
                }
            }
        }
    }
}

#[test]
fn a_zero_row_stays_zero_and_nan_stays_in_its_row() {
    let device = device();
    let case = &CASES[0];
    for dtype in MODEL_DTYPES {
        let mut residual = vec![0.0; 3 * case.hidden_size];
        residual[case.hidden_size + 5] = f32::NAN;
        let weight = upload(&device, dtype, &vec![1.0; case.hidden_size], &[case.hidden_size]);
        for mode in device.modes() {
            device.enter(mode);
            let out = run(&device, case, &residual, None, &weight).out;
            for (i, value) in out.iter().enumerate() {
                let in_nan_row = i / case.hidden_size == 1;
                assert!(
                    if in_nan_row { value.is_nan() } else { *value == 0.0 },
                    "{mode:?}: element {i} is {value}"
                );
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_pass() {
    let device = device();
    let case = &CASES[3];
    let width = case.hidden_size;
    for dtype in MODEL_DTYPES {
        let [residual, delta, weight] = inputs(dtype, 20, case, 200);
        let weight = upload(&device, dtype, &weight, &[width]);
        for mode in device.modes() {
            device.enter(mode);
            rows_are_independent(&format!("{} {mode:?}", dtype.name()), width, |rows| {
                let elements = rows.start * width..rows.end * width;
                run(&device, case, &residual[elements.clone()], Some(&delta[elements]), &weight).out
            });
        }
    }
}

#[test]
fn schedules_do_not_change_a_bit() {
    let device = device();
    let case =
        Case { name: "two warps", rows: 2, hidden_size: 700, delta: true, tap: true, offset: 8, scale: 1.0 };
    for dtype in MODEL_DTYPES {
        let [residual, delta, weight] = inputs(dtype, 21, &case, case.rows);
        let weight = upload(&device, dtype, &weight, &[case.hidden_size]);
        device.enter(device.modes()[0]);
        let want = run(&device, &case, &residual, Some(&delta), &weight).out;
        for mode in device.schedules() {
            device.enter(mode);
            let got = run(&device, &case, &residual, Some(&delta), &weight).out;
            same_bits(&format!("{} {mode:?}", dtype.name()), &got, &want);
        }
    }
}

#[test]
fn a_delta_of_another_width_is_refused() {
    let device = device();
    let tensor = |width| Tensor::zeros(&device, DType::Bf16, &[2, width]).unwrap();
    let (residual, delta, out) = (tensor(64), tensor(32), tensor(64));
    let weight = Tensor::zeros(&device, DType::Bf16, &[64]).unwrap();
    let args = RmsNormArgs {
        residual: &residual,
        delta: Some(&delta),
        weight: &weight,
        out: &out,
        tap: None,
        eps: EPS,
    };
    let text = rmsnorm(&device, args).unwrap_err().to_string();
    assert!(text.contains("rmsnorm: delta: expected bf16[T=2, H=64]"), "{text}");
}
