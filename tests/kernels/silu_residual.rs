use smart_run::device::{DType, Device};
use smart_run::kernels::silu_residual::{SiluResidualArgs, silu_residual};
use smart_run::reference;

use crate::common::compare::{Tol, close, rows_are_independent, same_bits};
use crate::common::device::device;
use crate::common::inputs::{Guarded, MODEL_DTYPES, Rng, download, rounded, upload};

/// name, rows, hidden size, groups, column where the output starts
const CASES: [(&str, usize, usize, usize, usize); 6] = [
    ("one_row", 1, 64, 1, 8),
    ("groups_begin_unaligned", 3, 75, 3, 8),
    ("unaligned_output", 2, 72, 2, 5),
    ("one_element", 4, 1, 5, 0),
    ("two_blocks_of_columns", 3, 1032, 1, 8),
    ("five_heads", 2, 1032, 5, 0),
];

fn run(
    device: &Device,
    dtype: DType,
    (x, y): (&[f32], &[f32]),
    (hidden, groups): (usize, usize),
    offset: usize,
) -> Vec<f32> {
    let rows = x.len() / hidden;
    let x = upload(device, dtype, x, &[rows, hidden]);
    let y = upload(device, dtype, y, &[rows, groups * hidden]);
    let out = Guarded::new(device, dtype, rows, groups * hidden, offset);
    silu_residual(device, SiluResidualArgs { x: &x, y: &y, out: &out.view() }).unwrap();
    out.values()
}

/// x and y of the given sizes.
fn inputs(dtype: DType, seed: u64, rows: usize, hidden: usize, groups: usize) -> (Vec<f32>, Vec<f32>) {
    let mut random = Rng::new(seed);
    let x = rounded(dtype, random.with_outliers(rows * hidden));
    (x, rounded(dtype, random.with_outliers(rows * groups * hidden)))
}

/// One rounding of a sum whose terms may cancel: f32 arithmetic with an exponential of a few units is off by their size, not by the sum's.
fn tolerance(dtype: DType) -> Tol {
    let rounding = Tol::rounding(dtype, 1.0 / (1 << 25) as f32);
    Tol { rel: rounding.rel + 1e-6, abs: rounding.abs.max(2e-5) }
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (seed, (name, rows, hidden, groups, offset)) in CASES.into_iter().enumerate() {
            let (x, y) = inputs(dtype, seed as u64, rows, hidden, groups);
            let want = reference::silu_residual::silu_residual(&x, &y, hidden);
            for mode in device.modes() {
                device.enter(mode);
                let got = run(&device, dtype, (&x, &y), (hidden, groups), offset);
                close(&format!("{name} {} {mode:?}", dtype.name()), &got, &want, tolerance(dtype));
            }
        }
    }
}

/// As the second and later blocks of a head do it: one head's columns, and over themselves.
#[test]
fn a_head_among_others_in_place() {
    let device = device();
    let (rows, hidden) = (3, 75);
    for dtype in MODEL_DTYPES {
        let (x, y) = inputs(dtype, 20, rows, 3 * hidden, 1);
        let is_middle = |i: usize| (hidden..2 * hidden).contains(&(i % (3 * hidden)));
        let middle = |values: &[f32]| -> Vec<f32> {
            (0..values.len()).filter(|&i| is_middle(i)).map(|i| values[i]).collect()
        };
        let want = reference::silu_residual::silu_residual(&middle(&x), &middle(&y), hidden);
        for mode in device.modes() {
            device.enter(mode);
            // Over x, then over y.
            for (over, before) in [&x, &y].into_iter().enumerate() {
                let all = [&x, &y].map(|values| upload(&device, dtype, values, &[rows, 3 * hidden]));
                let [x, y] = [0, 1].map(|operand| all[operand].columns(hidden..2 * hidden));
                let out = [&x, &y][over];
                silu_residual(&device, SiluResidualArgs { x: &x, y: &y, out }).unwrap();
                let got = download(&all[over]);
                let name = format!("{} {mode:?}, over operand {over}", dtype.name());
                close(&name, &middle(&got), &want, tolerance(dtype));
                let untouched = (0..got.len()).all(|i| is_middle(i) || got[i] == before[i]);
                assert!(untouched, "{name}: a neighbour was overwritten");
            }
        }
    }
}

#[test]
fn values_where_the_exponential_overflows_or_vanishes() {
    let device = device();
    let y =
        [0.0, -0.0, 87.5, -87.5, 88.5, -88.5, 104.0, -104.0, 30_000.0, -30_000.0, f32::INFINITY, f32::NAN];
    for dtype in MODEL_DTYPES {
        let (x, y) = (rounded(dtype, vec![2.0; y.len()]), rounded(dtype, y.to_vec()));
        let want = reference::silu_residual::silu_residual(&x, &y, y.len());
        for mode in device.modes() {
            device.enter(mode);
            let got = run(&device, dtype, (&x, &y), (y.len(), 1), 8);
            close(&format!("{} {mode:?}", dtype.name()), &got, &want, tolerance(dtype));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_pass() {
    let device = device();
    let (hidden, groups) = (75, 2);
    for dtype in MODEL_DTYPES {
        let (x, y) = inputs(dtype, 30, 200, hidden, groups);
        for mode in device.modes() {
            device.enter(mode);
            rows_are_independent(&format!("{} {mode:?}", dtype.name()), groups * hidden, |rows| {
                let x = &x[rows.start * hidden..rows.end * hidden];
                let y = &y[rows.start * groups * hidden..rows.end * groups * hidden];
                run(&device, dtype, (x, y), (hidden, groups), 8)
            });
        }
    }
}

#[test]
fn schedules_do_not_change_a_bit() {
    let device = device();
    for dtype in MODEL_DTYPES {
        let (x, y) = inputs(dtype, 31, 2, 75, 3);
        device.enter(device.modes()[0]);
        let want = run(&device, dtype, (&x, &y), (75, 3), 8);
        for mode in device.schedules() {
            device.enter(mode);
            let got = run(&device, dtype, (&x, &y), (75, 3), 8);
            same_bits(&format!("{} {mode:?}", dtype.name()), &got, &want);
        }
    }
}

#[test]
fn widths_that_are_no_groups_are_refused() {
    let device = device();
    let (x, y) =
        (upload(&device, DType::F32, &[0.0; 8], &[2, 4]), upload(&device, DType::F32, &[0.0; 12], &[2, 6]));
    let error = silu_residual(&device, SiluResidualArgs { x: &x, y: &y, out: &y }).unwrap_err();
    assert!(error.to_string().contains("groups of 4 columns"), "{error}");
}
