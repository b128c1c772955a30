use half::bf16;
use smart_run::device::{DType, Device, Element, Tensor};
use smart_run::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use smart_run::reference;

use crate::common::compare::rows_are_independent;
use crate::common::device::device;
use crate::common::inputs::{Guarded, Rng, poisoned, upload};

const INDEX: [i32; 9] = [4, 0, 4, -1, 5, 3, i32::MAX, i32::MIN, 1];

/// Gathers `INDEX` from columns `offset..` of a wider matrix into a dense one and compares bits with the
/// oracle.
fn check<T: Element + Default + PartialEq + std::fmt::Debug>(
    device: &Device,
    name: &str,
    values: &[T],
    columns: usize,
    offset: usize,
) {
    let wide_columns = columns + offset;
    let src = Tensor::from_slice(device, values, &[values.len() / wide_columns, wide_columns]).unwrap();
    let narrow: Vec<T> = values.chunks(wide_columns).flat_map(|row| row[offset..].to_vec()).collect();
    let want = reference::gather_rows::gather_rows(&narrow, columns, &INDEX);
    let out = poisoned(device, T::DTYPE, &[INDEX.len(), columns]);
    let index = Tensor::from_slice(device, &INDEX, &[INDEX.len()]).unwrap();
    gather_rows(device, GatherRowsArgs { src: &src.columns(offset..wide_columns), index: &index, out: &out })
        .unwrap();
    assert_eq!(out.to_vec::<T>().unwrap(), want, "{name}");
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    for (case, columns, offset) in
        [("aligned", 64, 8), ("ragged", 21, 8), ("unaligned", 64, 3), ("long", 1100, 0)]
    {
        let floats = Rng::new(3).normals(5 * (columns + offset));
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
fn a_row_has_the_same_bits_in_any_pass() {
    let device = device();
    let index: Vec<i32> = (0..200).map(|row| row * 7 % 50).collect();
    let src = upload(&device, DType::F16, &Rng::new(4).normals(50 * 24), &[50, 24]);
    for mode in device.modes() {
        device.enter(mode);
        rows_are_independent(&format!("{mode:?}"), 24, |rows| {
            let out = Guarded::new(&device, DType::F16, rows.len(), 24, 5);
            let index = Tensor::from_slice(&device, &index[rows.clone()], &[rows.len()]).unwrap();
            gather_rows(&device, GatherRowsArgs { src: &src, index: &index, out: &out.view() }).unwrap();
            out.values()
        });
    }
}

#[test]
fn eight_byte_elements_are_refused() {
    let device = device();
    let src = Tensor::zeros(&device, DType::U64, &[2, 4]).unwrap();
    let index = Tensor::zeros(&device, DType::I32, &[1]).unwrap();
    let out = Tensor::zeros(&device, DType::U64, &[1, 4]).unwrap();
    let text =
        gather_rows(&device, GatherRowsArgs { src: &src, index: &index, out: &out }).unwrap_err().to_string();
    assert!(text.contains("2 or 4 bytes"), "{text}");
}
