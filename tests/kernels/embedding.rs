use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::embedding::{EmbeddingArgs, embedding};
use smart_run::reference;

use crate::common::compare::{rows_are_independent, same_bits};
use crate::common::device::device;
use crate::common::inputs::{Guarded, MODEL_DTYPES, Rng, rounded, upload};

const VOCAB: usize = 37;

fn run(device: &Device, table: &Tensor, tokens: &[i32], offset: usize) -> Vec<f32> {
    let out = Guarded::new(device, table.dtype(), tokens.len(), table.dim(1), offset);
    let tokens = Tensor::from_slice(device, tokens, &[tokens.len()]).unwrap();
    embedding(device, EmbeddingArgs { tokens: &tokens, table, out: &out.view() }).unwrap();
    out.values()
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    // name, hidden size, column where the output starts
    let cases = [
        ("aligned", 256, 8),
        ("ragged_row", 75, 8),
        ("unaligned_output", 64, 3),
        ("longer_than_the_block", 1100, 8),
    ];
    let tokens = [0, 36, 5, 5, -1, 37, i32::MAX, i32::MIN, 12];
    for dtype in MODEL_DTYPES {
        for (name, hidden_size, offset) in cases {
            let values = rounded(dtype, Rng::new(1).with_outliers(VOCAB * hidden_size));
            let want = reference::embedding::embedding(&values, hidden_size, &tokens);
            let table = upload(&device, dtype, &values, &[VOCAB, hidden_size]);
            for mode in device.modes().into_iter().chain(device.schedules()) {
                device.enter(mode);
                same_bits(
                    &format!("{name} {} {mode:?}", dtype.name()),
                    &run(&device, &table, &tokens, offset),
                    &want,
                );
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_pass() {
    let device = device();
    let tokens: Vec<i32> = (0..200).map(|row| row * 11 % VOCAB as i32).collect();
    let table = upload(&device, DType::Bf16, &Rng::new(2).normals(VOCAB * 72), &[VOCAB, 72]);
    for mode in device.modes() {
        device.enter(mode);
        rows_are_independent(&format!("{mode:?}"), 72, |rows| run(&device, &table, &tokens[rows], 8));
    }
}
