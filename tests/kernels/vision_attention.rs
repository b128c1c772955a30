use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::vision_attention::{VisionAttentionArgs, vision_attention};
use smart_run::reference;

use crate::common::compare::{Tol, close, same_bits};
use crate::common::device::device;
use crate::common::inputs::{MODEL_DTYPES, Rng, download, poisoned, rounded, upload};

/// Segments by length, (heads, head_dim), factor of the scores.
struct Case {
    name: &'static str,
    segments: &'static [usize],
    heads: (usize, usize),
    scale: f32,
}

const CASES: [Case; 9] = [
    Case { name: "one_row", segments: &[1], heads: (2, 64), scale: 1.0 },
    Case { name: "one_tile", segments: &[64], heads: (1, 64), scale: 1.0 },
    Case { name: "a_row_more_than_a_tile", segments: &[65], heads: (2, 80), scale: 1.0 },
    Case { name: "ragged_segments", segments: &[3, 0, 130, 17, 64], heads: (2, 64), scale: 1.0 },
    Case { name: "siglip_head", segments: &[70], heads: (2, 72), scale: 1.0 },
    Case { name: "narrow_head", segments: &[33, 31], heads: (3, 8), scale: 1.0 },
    Case { name: "thirty_two", segments: &[129], heads: (1, 32), scale: 1.0 },
    Case { name: "widest_head", segments: &[67], heads: (1, 128), scale: 1.0 },
    // Weights of all keys but one vanish: a maximum that came too late would overflow.
    Case { name: "sharp", segments: &[100], heads: (1, 64), scale: 60.0 },
];

fn starts(segments: &[usize]) -> Vec<usize> {
    segments.iter().fold(vec![0], |mut starts, len| {
        starts.push(starts[starts.len() - 1] + len);
        starts
    })
}

fn run(
    device: &Device,
    dtype: DType,
    segments: &[usize],
    (num_heads, head_dim): (usize, usize),
    qkv: &[f32],
    sm_scale: f32,
) -> Vec<f32> {
    let starts: Vec<i32> = starts(segments).into_iter().map(|start| start as i32).collect();
    let rows = starts[starts.len() - 1] as usize;
    let width = num_heads * head_dim;
    let whole = poisoned(device, dtype, &[rows + 1, width]);
    let args = VisionAttentionArgs {
        qkv: &upload(device, dtype, qkv, &[rows, 3 * width]),
        seq_start: &Tensor::from_slice(device, &starts, &[starts.len()]).unwrap(),
        out: &whole.rows(0..rows),
        max_rows: segments.iter().copied().max().unwrap_or(0),
        num_heads,
        head_dim,
        sm_scale,
    };
    vision_attention(device, args).unwrap();
    let mut out = download(&whole);
    assert!(out.split_off(rows * width).iter().all(|v| v.is_nan()), "the row behind was written");
    out
}

/// Weights and output are rounded once each; the sum over weights averages what the former lose.
fn tolerance(dtype: DType) -> Tol {
    match dtype {
        DType::Bf16 => Tol { abs: 8e-3, rel: 8e-3 },
        DType::F16 => Tol { abs: 1e-3, rel: 1e-3 },
        _ => Tol { abs: 2e-6, rel: 4e-6 },
    }
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (seed, Case { name, segments, heads, scale }) in CASES.iter().enumerate() {
            let starts = starts(segments);
            let qkv = Rng::new(seed as u64).normals(starts[segments.len()] * 3 * heads.0 * heads.1);
            let qkv = rounded(dtype, qkv);
            let sm_scale = scale / (heads.1 as f32).sqrt();
            let want =
                reference::vision_attention::vision_attention(&qkv, &starts, heads.0, heads.1, sm_scale);
            for mode in device.modes() {
                device.enter(mode);
                let got = run(&device, dtype, segments, *heads, &qkv, sm_scale);
                // Scores that are 60 times as large have 60 times the error, and so has their exponential.
                let Tol { abs, rel } = tolerance(dtype);
                let tol = if dtype == DType::F32 {
                    Tol { abs: abs * scale, rel: rel * scale }
                } else {
                    Tol { abs, rel }
                };
                close(&format!("{name} {} {mode:?}", dtype.name()), &got, &want, tol);
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_beside_any_other_segment() {
    let device = device();
    let heads = (2, 24);
    let width = heads.0 * heads.1;
    for dtype in MODEL_DTYPES {
        let qkv = rounded(dtype, Rng::new(40).normals(150 * 3 * width));
        for mode in device.modes() {
            device.enter(mode);
            let together = run(&device, dtype, &[10, 70, 70], heads, &qkv, 0.2);
            let alone = run(&device, dtype, &[70], heads, &qkv[10 * 3 * width..80 * 3 * width], 0.2);
            same_bits(&format!("{} {mode:?}", dtype.name()), &together[10 * width..80 * width], &alone);
        }
    }
}

#[test]
fn schedules_do_not_change_a_bit() {
    let device = device();
    let heads = (1, 40);
    for dtype in MODEL_DTYPES {
        let qkv = rounded(dtype, Rng::new(41).normals(70 * 3 * 40));
        device.enter(device.modes()[0]);
        let want = run(&device, dtype, &[5, 65], heads, &qkv, 0.2);
        for mode in device.schedules() {
            device.enter(mode);
            let got = run(&device, dtype, &[5, 65], heads, &qkv, 0.2);
            same_bits(&format!("{} {mode:?}", dtype.name()), &got, &want);
        }
    }
}

#[test]
fn heads_that_the_kernel_cannot_hold_are_refused() {
    let device = device();
    for head_dim in [12, 136] {
        let tensor = |dtype, shape: &[usize]| Tensor::zeros(&device, dtype, shape).unwrap();
        let args = VisionAttentionArgs {
            qkv: &tensor(DType::Bf16, &[2, 3 * head_dim]),
            seq_start: &tensor(DType::I32, &[2]),
            out: &tensor(DType::Bf16, &[2, head_dim]),
            max_rows: 2,
            num_heads: 1,
            head_dim,
            sm_scale: 1.0,
        };
        let text = vision_attention(&device, args).unwrap_err().to_string();
        assert!(text.contains("a multiple of 8 up to 128"), "{text}");
    }
}
