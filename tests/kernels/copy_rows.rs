use half::bf16;
use smart_run::device::{DType, Device, Element, Tensor};
use smart_run::kernels::copy_rows::{CopyRowsArgs, copy_rows};
use smart_run::reference;

use crate::common::device::device;
use crate::common::inputs::Rng;

/// Targets are distinct; the last moves are from or to nowhere.
const MOVES: [[i32; 2]; 9] =
    [[4, 0], [0, 6], [4, 3], [-1, 1], [5, 2], [3, 5], [i32::MAX, 4], [2, 7], [1, i32::MIN]];
const TARGETS: usize = 7;

/// Copies by `MOVES` between columns `offset..` of wider matrices and compares bits with the oracle, also those that must stay.
fn check<T: Element + Default + PartialEq + std::fmt::Debug>(
    device: &Device,
    name: &str,
    values: &[T],
    columns: usize,
    offset: usize,
) {
    let wide = columns + offset;
    let (sources, before) = values.split_at(5 * wide);
    let mut want = before.to_vec();
    let narrow =
        |matrix: &[T]| matrix.chunks(wide).flat_map(|row| row[offset..].to_vec()).collect::<Vec<T>>();
    let mut moved = narrow(before);
    reference::copy_rows::copy_rows(&narrow(sources), columns, &MOVES, &mut moved);
    for (row, new) in want.chunks_mut(wide).zip(moved.chunks(columns)) {
        row[offset..].copy_from_slice(new);
    }
    let src = Tensor::from_slice(device, sources, &[5, wide]).unwrap();
    let out = Tensor::from_slice(device, before, &[TARGETS, wide]).unwrap();
    let moves = Tensor::from_slice(device, MOVES.as_flattened(), &[MOVES.len(), 2]).unwrap();
    let (from, to) = (src.columns(offset..wide), out.columns(offset..wide));
    copy_rows(device, CopyRowsArgs { src: &from, moves: &moves, out: &to }).unwrap();
    assert_eq!(out.to_vec::<T>().unwrap(), want, "{name}");
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    for (case, columns, offset) in
        [("aligned", 64, 8), ("ragged", 21, 8), ("unaligned", 64, 3), ("long", 1100, 0)]
    {
        let floats = Rng::new(5).normals((5 + TARGETS) * (columns + offset));
        let halves: Vec<bf16> = floats.iter().map(|&v| bf16::from_f32(v)).collect();
        let integers: Vec<i32> = (0..floats.len() as i32).collect();
        for mode in device.modes().into_iter().chain(device.schedules()) {
            device.enter(mode);
            let name = format!("{case} {mode:?}");
            check(&device, &name, &floats, columns, offset);
            check(&device, &name, &halves, columns, offset);
            check(&device, &name, &integers, columns, offset);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device();
    let matrix = |dtype, rows, columns| Tensor::zeros(&device, dtype, &[rows, columns]).unwrap();
    let moves = Tensor::zeros(&device, DType::I32, &[1, 2]).unwrap();
    let refusal = |src: &Tensor, moves: &Tensor, out: &Tensor| {
        copy_rows(&device, CopyRowsArgs { src, moves, out }).unwrap_err().to_string()
    };
    let long = matrix(DType::U64, 2, 4);
    assert!(refusal(&long, &moves, &long).contains("2 or 4 bytes"));
    let (narrow, wide) = (matrix(DType::F32, 2, 4), matrix(DType::F32, 2, 5));
    assert!(refusal(&narrow, &moves, &wide).contains("copy_rows"));
    let single = Tensor::zeros(&device, DType::I32, &[2]).unwrap();
    assert!(refusal(&narrow, &single, &narrow).contains("moves"));
}
