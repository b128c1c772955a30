use smart_run::device::{DType, Device};
use smart_run::kernels::layernorm::{LayerNormArgs, layernorm};
use smart_run::reference;

use crate::common::compare::{Tol, close, rows_are_independent, same_bits};
use crate::common::device::device;
use crate::common::inputs::{MODEL_DTYPES, Rng, download, poisoned, round_to, rounded, upload};

const EPS: f32 = 1e-5;

/// name, rows, hidden size, whether there is a delta, mean of the residual
const CASES: [(&str, usize, usize, bool, f32); 6] = [
    ("one_row", 1, 64, false, 0.0),
    ("add", 3, 256, true, 0.0),
    ("ragged_row", 5, 75, true, 0.0),
    ("shorter_than_a_vector", 2, 3, true, 0.0),
    ("longer_than_the_block", 2, 4400, true, 0.0),
    // The variance of what is left would drown in rounding if it were a difference of two large sums.
    ("far_from_zero", 4, 1280, false, 200.0),
];

/// Residual, delta, weight and bias.
type Operands = [Vec<f32>; 4];

fn inputs(dtype: DType, seed: u64, rows: usize, hidden_size: usize, mean: f32) -> Operands {
    let mut rng = Rng::new(seed);
    let residual = rng.with_outliers(rows * hidden_size).into_iter().map(|v| v + mean).collect();
    [residual, rng.normals(rows * hidden_size), rng.normals(hidden_size), rng.normals(hidden_size)]
        .map(|values| rounded(dtype, values))
}

/// The residual and the output.
fn run(device: &Device, dtype: DType, operands: &Operands, with_delta: bool) -> [Vec<f32>; 2] {
    let [residual, delta, weight, bias] = operands;
    let shape = [residual.len() / weight.len(), weight.len()];
    let residual = upload(device, dtype, residual, &shape);
    let delta = with_delta.then(|| upload(device, dtype, delta, &shape));
    let [weight, bias] = [weight, bias].map(|values| upload(device, dtype, values, &shape[1..]));
    // A row more than the kernel may touch.
    let whole = poisoned(device, dtype, &[shape[0] + 1, shape[1]]);
    let out = whole.rows(0..shape[0]);
    let args = LayerNormArgs {
        residual: &residual,
        delta: delta.as_ref(),
        weight: &weight,
        bias: &bias,
        out: &out,
        eps: EPS,
    };
    layernorm(device, args).unwrap();
    assert!(download(&whole)[shape[0] * shape[1]..].iter().all(|v| v.is_nan()), "the row behind was written");
    [download(&residual), download(&out)]
}

/// The sum may cancel, so what f32 loses is relative to the terms.
fn tolerance(dtype: DType, mean: f32) -> Tol {
    Tol::rounding(dtype, 1e-5 + mean * 4e-6)
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (seed, (name, rows, hidden_size, with_delta, mean)) in CASES.into_iter().enumerate() {
            let operands = inputs(dtype, seed as u64, rows, hidden_size, mean);
            let [residual, delta, weight, bias] = &operands;
            let mut added = residual.clone();
            let delta = with_delta.then_some(&delta[..]);
            let want =
                reference::layernorm::layernorm(&mut added, delta, weight, bias, EPS, |v| round_to(dtype, v));
            for mode in device.modes() {
                device.enter(mode);
                let name = format!("{name} {} {mode:?}", dtype.name());
                let [residual, out] = run(&device, dtype, &operands, with_delta);
                close(&name, &out, &want, tolerance(dtype, mean));
                same_bits(&name, &residual, &added);
            }
        }
    }
}

#[test]
fn a_constant_row_becomes_the_bias_and_nan_stays_in_its_row() {
    let device = device();
    for dtype in MODEL_DTYPES {
        let mut operands = inputs(dtype, 8, 3, 64, 0.0);
        operands[0] = [vec![3.0; 64], vec![1.0; 63], vec![f32::NAN], vec![3.0; 64]].concat();
        for mode in device.modes() {
            device.enter(mode);
            let [_, out] = run(&device, dtype, &operands, false);
            same_bits(&format!("{mode:?}"), &out[..64], &operands[3]);
            assert!(out[64..128].iter().all(|v| v.is_nan()));
            same_bits(&format!("{mode:?}"), &out[128..], &operands[3]);
        }
    }
}

#[test]
fn rows_and_schedules_have_the_same_bits() {
    let device = device();
    for dtype in MODEL_DTYPES {
        let operands = inputs(dtype, 20, 200, 75, 0.0);
        for mode in device.modes() {
            device.enter(mode);
            rows_are_independent(&format!("{} {mode:?}", dtype.name()), 75, |rows| {
                let elements = rows.start * 75..rows.end * 75;
                let [residual, delta, weight, bias] = &operands;
                let part = [residual, delta].map(|values| values[elements.clone()].to_vec());
                let [residual, delta] = part;
                let [_, out] = run(&device, dtype, &[residual, delta, weight.clone(), bias.clone()], true);
                out
            });
        }
        let operands = inputs(dtype, 21, 2, 700, 0.0);
        device.enter(device.modes()[0]);
        let want = run(&device, dtype, &operands, true);
        for mode in device.schedules() {
            device.enter(mode);
            let got = run(&device, dtype, &operands, true);
            same_bits(&format!("{} {mode:?}", dtype.name()), &got[1], &want[1]);
            same_bits(&format!("{} {mode:?}", dtype.name()), &got[0], &want[0]);
        }
    }
}
