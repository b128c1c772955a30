use smart_run::Error;
use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::linear::{GATE_ROWS, LinearArgs, LinearWorkspace, linear, linear_swiglu};
use smart_run::reference;

use crate::common::compare::{Tol, close, rows_are_independent, same_bits};
use crate::common::device::device;
use crate::common::inputs::{Guarded, MODEL_DTYPES, Rng, rounded, upload};

/// name, rows, intermediate size, inputs, whether there is a bias
const CASES: [(&str, usize, usize, usize, bool); 9] = [
    ("one_row", 1, 32, 64, false),
    ("one_turn", 3, 8, 72, true),
    ("ragged_tile_16", 9, 40, 72, false),
    ("ragged_tile_32", 29, 72, 40, true),
    ("ragged_tile_64", 33, 40, 136, false),
    ("ragged_tile_128", 70, 136, 72, true),
    ("ragged_tile_256", 130, 72, 72, false),
    ("splits_of_k", 7, 24, 1032, true),
    ("splits_beyond_one_workspace", 260, 8, 1024, false),
];

/// Weights whose rows are gate and up in turns.
struct Layer {
    weight: Tensor,
    bias: Option<Tensor>,
    workspace: LinearWorkspace,
    /// Rows of the weight, and its columns.
    shape: (usize, usize),
}

impl Layer {
    fn new(device: &Device, dtype: DType, weight: &[f32], bias: Option<&[f32]>, k: usize) -> Self {
        let n = weight.len() / k;
        let workspace = LinearWorkspace::new(device, 260, [(n, k)], 0).unwrap();
        Self {
            weight: upload(device, dtype, weight, &[n, k]),
            bias: bias.map(|bias| upload(device, dtype, bias, &[n])),
            workspace,
            shape: (n, k),
        }
    }

    fn run(&self, device: &Device, x: &[f32], gated: bool) -> Vec<f32> {
        let ((n, k), dtype) = (self.shape, self.weight.dtype());
        let rows = x.len() / k;
        let x = upload(device, dtype, x, &[rows, k]);
        let out = Guarded::new(device, dtype, rows, if gated { n / 2 } else { n }, 3);
        let args = LinearArgs {
            x: &x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            out: &out.view(),
            workspace: &self.workspace,
        };
        if gated { linear_swiglu(device, args) } else { linear(device, args) }.unwrap();
        out.values()
    }

    /// The oracle of what comes behind the projection, which `linear` computes.
    fn wanted(&self, device: &Device, x: &[f32]) -> Vec<f32> {
        let n = self.shape.0;
        let projected = self.run(device, x, false);
        let apart = |row: &[f32]| {
            let turns = row.chunks(2 * GATE_ROWS);
            let half = |at: usize| turns.clone().flat_map(move |turn| turn[at..at + GATE_ROWS].to_vec());
            half(0).chain(half(GATE_ROWS)).collect::<Vec<f32>>()
        };
        let gate_up: Vec<f32> = projected.chunks(n).flat_map(apart).collect();
        reference::swiglu::swiglu(&gate_up, n / 2)
    }
}

fn inputs(dtype: DType, seed: u64, rows: usize, n: usize, k: usize) -> [Vec<f32>; 3] {
    let mut rng = Rng::new(seed);
    [rows * k, n * k, n].map(|count| rounded(dtype, rng.normals(count)))
}

/// One rounding, f32 arithmetic with an exponential of a few units, and a product that may fall below f16's range.
fn tolerance(dtype: DType) -> Tol {
    let rounding = Tol::rounding(dtype, 1.0 / (1 << 25) as f32);
    Tol { rel: rounding.rel + 1e-6, ..rounding }
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (seed, (name, rows, size, k, bias)) in CASES.into_iter().enumerate() {
            let [x, weight, biases] = inputs(dtype, seed as u64, rows, 2 * size, k);
            let layer = Layer::new(&device, dtype, &weight, bias.then_some(&biases[..]), k);
            for (family, linear_device) in device.linear_families() {
                for mode in device.modes() {
                    device.enter(mode);
                    let want = layer.wanted(&linear_device, &x);
                    let got = layer.run(&linear_device, &x, true);
                    close(
                        &format!("{name} {} {family} {mode:?}", dtype.name()),
                        &got,
                        &want,
                        tolerance(dtype),
                    );
                }
            }
        }
    }
}

/// The projection is the bias alone.
#[test]
fn gates_where_the_exponential_overflows_or_vanishes() {
    let device = device();
    let gates = [
        0.0,
        -0.0,
        87.5,
        -87.5,
        88.5,
        -88.5,
        104.0,
        -104.0,
        3e4,
        -3e4,
        f32::INFINITY,
        f32::NAN,
        1.0,
        2.0,
        3.0,
        4.0,
    ];
    let bias: Vec<f32> =
        gates.chunks(GATE_ROWS).flat_map(|gates| [gates, &[2.0; GATE_ROWS]].concat()).collect();
    for dtype in MODEL_DTYPES {
        let bias = rounded(dtype, bias.clone());
        let layer = Layer::new(&device, dtype, &[0.0; 32 * 16], Some(&bias), 16);
        let want = reference::swiglu::swiglu(&rounded(dtype, [&gates[..], &[2.0; 16]].concat()), 16);
        for (family, linear_device) in device.linear_families() {
            for mode in device.modes() {
                device.enter(mode);
                let got = layer.run(&linear_device, &[1.0; 16], true);
                close(&format!("{} {family} {mode:?}", dtype.name()), &got, &want, tolerance(dtype));
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_pass() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (size, k) in [(40, 72), (16, 1032)] {
            let [x, weight, bias] = inputs(dtype, 30, 200, 2 * size, k);
            let layer = Layer::new(&device, dtype, &weight, Some(&bias), k);
            for (family, linear_device) in device.linear_families() {
                for mode in device.modes() {
                    device.enter(mode);
                    rows_are_independent(
                        &format!("{size}x{k} {} {family} {mode:?}", dtype.name()),
                        size,
                        |rows| layer.run(&linear_device, &x[rows.start * k..rows.end * k], true),
                    );
                }
            }
        }
    }
}

#[test]
fn schedules_do_not_change_a_bit() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (rows, size, k) in [(9, 16, 328), (3, 8, 1032)] {
            let [x, weight, bias] = inputs(dtype, 31, rows, 2 * size, k);
            let layer = Layer::new(&device, dtype, &weight, Some(&bias), k);
            for (family, linear_device) in device.linear_families() {
                device.enter(device.modes()[0]);
                let want = layer.run(&linear_device, &x, true);
                for mode in device.schedules() {
                    device.enter(mode);
                    let got = layer.run(&linear_device, &x, true);
                    same_bits(&format!("{size}x{k} {} {family} {mode:?}", dtype.name()), &got, &want);
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let device = device();
    let refusal = |n: usize, columns: usize| {
        let tensor = |shape: &[usize]| Tensor::zeros(&device, DType::Bf16, shape).unwrap();
        let (x, weight, out) = (tensor(&[2, 64]), tensor(&[n, 64]), tensor(&[2, columns]));
        let workspace = LinearWorkspace::new(&device, 2, [(n, 64)], 0).unwrap();
        let args = LinearArgs { x: &x, weight: &weight, bias: None, out: &out, workspace: &workspace };
        match linear_swiglu(&device, args) {
            Err(error @ Error::Shape { .. }) => error.to_string(),
            other => panic!("{n} rows gave {other:?}"),
        }
    };
    assert!(refusal(24, 12).contains("rows in turns of 8, gate and up"));
    assert!(refusal(32, 32).contains("linear_swiglu: out: expected bf16[T=2, N/2=16]"));
}
