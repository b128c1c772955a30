use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::vision_rope::{VisionRopeArgs, vision_rope};
use smart_run::reference;

use crate::common::compare::{Tol, close, rows_are_independent, same_bits};
use crate::common::device::device;
use crate::common::inputs::{MODEL_DTYPES, Rng, download, rounded, upload};

const MAX_POSITION: usize = 9;

/// `positions` are (row, column) by patch.
fn run(
    device: &Device,
    dtype: DType,
    (num_heads, head_dim): (usize, usize),
    qkv: &[f32],
    positions: &[(i32, i32)],
) -> Vec<f32> {
    let qkv = upload(device, dtype, qkv, &[positions.len(), 3 * num_heads * head_dim]);
    let table = reference::rope::cos_sin_table(MAX_POSITION, head_dim / 2, 10_000.0);
    let axes: Vec<i32> = positions.iter().map(|p| p.0).chain(positions.iter().map(|p| p.1)).collect();
    let args = VisionRopeArgs {
        qkv: &qkv,
        cos_sin: &upload(device, DType::F32, &table, &[MAX_POSITION, head_dim / 2]),
        positions: &Tensor::from_slice(device, &axes, &[2, positions.len()]).unwrap(),
        num_heads,
        head_dim,
    };
    vision_rope(device, args).unwrap();
    download(&qkv)
}

fn expected((num_heads, head_dim): (usize, usize), qkv: &[f32], positions: &[(i32, i32)]) -> Vec<f32> {
    let table = reference::rope::cos_sin_table(MAX_POSITION, head_dim / 2, 10_000.0);
    let clamped = |p: i32| p.clamp(0, MAX_POSITION as i32 - 1) as usize;
    let mut out = Vec::new();
    for (row, &(r, c)) in qkv.chunks(3 * num_heads * head_dim).zip(positions) {
        for (i, head) in row.chunks(head_dim).enumerate() {
            match i < 2 * num_heads {
                true => {
                    out.extend(reference::vision_rope::vision_rope(head, &table, clamped(r), clamped(c)));
                }
                false => out.extend_from_slice(head),
            }
        }
    }
    out
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    // Qwen2-VL's head; the smallest; more pairs than threads. Positions beyond the table are clamped.
    let positions = [(0, 0), (1, 0), (0, 1), (3, 8), (8, 3), (-1, 9), (i32::MAX, i32::MIN)];
    for dtype in MODEL_DTYPES {
        for heads in [(2, 80), (1, 4), (5, 64)] {
            let qkv = rounded(dtype, Rng::new(3).normals(positions.len() * 3 * heads.0 * heads.1));
            let want = expected(heads, &qkv, &positions);
            for mode in device.modes() {
                device.enter(mode);
                let got = run(&device, dtype, heads, &qkv, &positions);
                close(
                    &format!("{heads:?} {} {mode:?}", dtype.name()),
                    &got,
                    &want,
                    Tol::rounding(dtype, 1e-6),
                );
            }
        }
    }
}

#[test]
fn rows_and_schedules_have_the_same_bits() {
    let device = device();
    let heads = (2, 24);
    let width = 3 * heads.0 * heads.1;
    let positions: Vec<(i32, i32)> = (0..200).map(|i| (i % 9, i / 9 % 9)).collect();
    for dtype in MODEL_DTYPES {
        let qkv = rounded(dtype, Rng::new(4).normals(200 * width));
        for mode in device.modes() {
            device.enter(mode);
            rows_are_independent(&format!("{} {mode:?}", dtype.name()), width, |rows| {
                run(&device, dtype, heads, &qkv[rows.start * width..rows.end * width], &positions[rows])
            });
        }
        device.enter(device.modes()[0]);
        let few = |device: &Device| run(device, dtype, heads, &qkv[..3 * width], &positions[..3]);
        let want = few(&device);
        for mode in device.schedules() {
            device.enter(mode);
            same_bits(&format!("{} {mode:?}", dtype.name()), &few(&device), &want);
        }
    }
}

#[test]
fn a_head_that_has_no_quarters_is_refused() {
    let device = device();
    let tensor = |dtype, shape: &[usize]| Tensor::zeros(&device, dtype, shape).unwrap();
    let args = VisionRopeArgs {
        qkv: &tensor(DType::F32, &[2, 18]),
        cos_sin: &tensor(DType::F32, &[2, 3]),
        positions: &tensor(DType::I32, &[2, 2]),
        num_heads: 1,
        head_dim: 6,
    };
    let text = vision_rope(&device, args).unwrap_err().to_string();
    assert!(text.contains("a multiple of 4"), "{text}");
}
