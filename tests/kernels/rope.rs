use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::rope::{HeadNorm, RopeArgs, rope_kv_write};
use smart_run::reference;

use crate::common::compare::{Tol, close, rows_are_independent, same_bits};
use crate::common::device::{TestDevice, device};
use crate::common::inputs::{MODEL_DTYPES, Rng, download, poisoned, round_to, rounded, upload};

const PAGES: usize = 20;
const PAGE_SIZE: usize = 16;
const MAX_POSITION: usize = 48;

#[derive(Clone, Copy)]
struct Heads {
    q: usize,
    kv: usize,
    dim: usize,
    /// M-RoPE: positions are `[3, rows]`.
    sections: Option<[usize; 3]>,
}

impl Heads {
    /// Elements of a row of qkv.
    fn width(self) -> usize {
        (self.q + 2 * self.kv) * self.dim
    }
}

/// Weights of the norm of q and of k heads.
struct Norm {
    q: Vec<f32>,
    k: Vec<f32>,
}

const EPS: f32 = 1e-6;

impl Norm {
    /// Random around 1, as they are in a model.
    fn new(dtype: DType, dim: usize, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut weights =
            || rounded(dtype, rng.normals(dim).into_iter().map(|x| 1.0 + 0.2 * x).collect::<Vec<f32>>());
        Norm { q: weights(), k: weights() }
    }
}

/// What one call leaves behind: rotated q, and the caches.
struct Outcome {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn run(
    device: &Device,
    dtype: DType,
    heads: Heads,
    qkv: &[f32],
    positions: &[i32],
    slots: &[i32],
    norm: Option<&Norm>,
) -> Outcome {
    let rows = slots.len();
    let weights = norm.map(|norm| [&norm.q, &norm.k].map(|w| upload(device, dtype, w, &[heads.dim])));
    let cache_shape = [PAGES, heads.kv, PAGE_SIZE, heads.dim];
    let [k_cache, v_cache] = [(), ()].map(|()| poisoned(device, dtype, &cache_shape));
    let q_out = poisoned(device, dtype, &[rows, heads.q * heads.dim]);
    let table = reference::rope::cos_sin_table(MAX_POSITION, heads.dim, 10_000.0);
    let args = RopeArgs {
        qkv: &upload(device, dtype, qkv, &[rows, heads.width()]),
        q_out: &q_out,
        k_cache: &k_cache,
        v_cache: &v_cache,
        cos_sin: &upload(device, DType::F32, &table, &[MAX_POSITION, heads.dim]),
        positions: &match heads.sections {
            Some(_) => Tensor::from_slice(device, positions, &[3, rows]).unwrap(),
            None => Tensor::from_slice(device, positions, &[rows]).unwrap(),
        },
        sections: heads.sections,
        slots: &Tensor::from_slice(device, slots, &[rows]).unwrap(),
        num_q_heads: heads.q,
        num_kv_heads: heads.kv,
        head_dim: heads.dim,
        norm: weights.as_ref().map(|[q, k]| HeadNorm { q, k, eps: EPS }),
    };
    rope_kv_write(device, args).unwrap();
    Outcome { q: download(&q_out), k: download(&k_cache), v: download(&v_cache) }
}

/// The oracle of one call; NaN where nothing is written.
fn expected(
    dtype: DType,
    heads: Heads,
    qkv: &[f32],
    positions: &[i32],
    slots: &[i32],
    norm: Option<&Norm>,
) -> Outcome {
    let normed = |head: &[f32], weight: fn(&Norm) -> &[f32]| match norm {
        Some(norm) => reference::rope::normalise(head, weight(norm), EPS, |v| round_to(dtype, v)),
        None => head.to_vec(),
    };
    let table = reference::rope::cos_sin_table(MAX_POSITION, heads.dim, 10_000.0);
    let cache = vec![f32::NAN; PAGES * heads.kv * PAGE_SIZE * heads.dim];
    let mut want = Outcome { q: vec![], k: cache.clone(), v: cache };
    let half = heads.dim / 2;
    for (at, (row, &slot)) in qkv.chunks(heads.width()).zip(slots).enumerate() {
        // Of every pair the axis, its position and the angle there.
        let axis_of = |pair: usize| match heads.sections {
            Some([first, ..]) if pair < first => 0,
            Some([first, second, _]) if pair < first + second => 1,
            Some(_) => 2,
            None => 0,
        };
        let angle = |i: usize| {
            let position = positions[axis_of(i % half) * slots.len() + at].clamp(0, MAX_POSITION as i32 - 1);
            table[position as usize * heads.dim + i]
        };
        let angles = &(0..heads.dim).map(angle).collect::<Vec<f32>>()[..];
        let head_rows: Vec<&[f32]> = row.chunks(heads.dim).collect();
        let (q, kv) = head_rows.split_at(heads.q);
        want.q
            .extend(q.iter().flat_map(|head| reference::rope::rotate(&normed(head, |norm| &norm.q), angles)));
        if !(0..(PAGES * PAGE_SIZE) as i32).contains(&slot) {
            continue;
        }
        let (page, offset) = (slot as usize / PAGE_SIZE, slot as usize % PAGE_SIZE);
        for head in 0..heads.kv {
            let at = ((page * heads.kv + head) * PAGE_SIZE + offset) * heads.dim;
            let key = reference::rope::rotate(&normed(kv[head], |norm| &norm.k), angles);
            want.k[at..][..heads.dim].copy_from_slice(&key);
            want.v[at..][..heads.dim].copy_from_slice(kv[heads.kv + head]);
        }
    }
    want
}

/// Holds a launch in every mode against the oracle; values pass as they are.
fn check(
    device: &TestDevice,
    name: &str,
    dtype: DType,
    heads: Heads,
    (qkv, positions, slots): (&[f32], &[i32], &[i32]),
    norm: Option<&Norm>,
    tol: Tol,
) {
    let want = expected(dtype, heads, qkv, positions, slots, norm);
    for mode in device.modes() {
        device.enter(mode);
        let name = format!("{name} {} {mode:?}", dtype.name());
        let got = run(device, dtype, heads, qkv, positions, slots, norm);
        close(&format!("{name} q"), &got.q, &want.q, tol);
        close(&format!("{name} k"), &got.k, &want.k, tol);
        close(&format!("{name} v"), &got.v, &want.v, Tol { abs: 0.0, rel: 0.0 });
    }
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    let cases = [
        ("grouped_heads", Heads { q: 4, kv: 2, dim: 64, sections: None }),
        ("one_kv_head", Heads { q: 3, kv: 1, dim: 128, sections: None }),
        ("half_head_not_a_power_of_two", Heads { q: 2, kv: 2, dim: 80, sections: None }),
        ("half_head_not_a_vector", Heads { q: 2, kv: 1, dim: 20, sections: None }),
        ("half_head_unaligned", Heads { q: 1, kv: 1, dim: 6, sections: None }),
    ];
    // Scattered slots over two pages, positions that repeat (siblings of a tree) and that lie outside the
    // table.
    let positions = [0, 1, 5, 5, 47, 48, -3, 9];
    let slots = [33, 3, 4, 40, 0, 15, 47, 16];
    for dtype in MODEL_DTYPES {
        for (seed, (name, heads)) in cases.into_iter().enumerate() {
            let qkv = rounded(dtype, Rng::new(seed as u64).with_outliers(positions.len() * heads.width()));
            // Two products that may cancel: their own rounding in f32, of values up to about 100.
            let tol = Tol::rounding(dtype, 100.0 / (1 << 23) as f32);
            check(&device, name, dtype, heads, (&qkv, &positions, &slots), None, tol);
        }
    }
}

/// A head's mean square is f32, so a scaled element may round to the other neighbour (one unit of the dtype), which the
/// weight and the second rounding carry on: two units and a half with the last rounding, of values up to head_dim^0.5 * 2.
fn normed_tolerance(dtype: DType) -> Tol {
    let Tol { rel, .. } = Tol::rounding(dtype, 0.0);
    Tol { abs: 12.0 * rel, rel: 6.0 * rel }
}

#[test]
fn heads_are_normalised_before_they_are_rotated() {
    let device = device();
    let cases = [
        ("qwen3", Heads { q: 4, kv: 2, dim: 128, sections: None }),
        ("more_heads_than_warps", Heads { q: 8, kv: 4, dim: 32, sections: None }),
        ("one_head_each", Heads { q: 1, kv: 1, dim: 64, sections: None }),
        ("not_a_vector", Heads { q: 2, kv: 1, dim: 20, sections: None }),
    ];
    let (positions, slots) = ([0, 7, 47], [33, -1, 16]);
    for dtype in MODEL_DTYPES {
        for (seed, (name, heads)) in cases.into_iter().enumerate() {
            let mut qkv = rounded(dtype, Rng::new(40 + seed as u64).normals(3 * heads.width()));
            qkv[..heads.dim].fill(0.0); // eps alone keeps this head finite
            let norm = Norm::new(dtype, heads.dim, 50 + seed as u64);
            let tol = normed_tolerance(dtype);
            check(&device, name, dtype, heads, (&qkv, &positions, &slots), Some(&norm), tol);
        }
    }
}

#[test]
fn each_section_turns_by_its_own_position() {
    let device = device();
    // Qwen2-VL's head of 128 has 16, 24 and 24 pairs; sections that end inside a vector; an empty one.
    let cases = [
        ("qwen2_vl", 128, [16, 24, 24]),
        ("inside_a_vector", 32, [3, 7, 6]),
        ("empty_middle", 20, [4, 0, 6]),
        ("last_alone", 16, [0, 0, 8]),
    ];
    let (positions, slots) = ([5, 0, 47, 9, 1, 47, 2, 3, 99], [33, -1, 16]);
    for dtype in MODEL_DTYPES {
        for (seed, (name, dim, sections)) in cases.into_iter().enumerate() {
            let heads = Heads { q: 2, kv: 1, dim, sections: Some(sections) };
            let qkv = rounded(dtype, Rng::new(70 + seed as u64).normals(3 * heads.width()));
            for norm in [None, Some(Norm::new(dtype, dim, 80))] {
                let tol = match norm {
                    Some(_) => normed_tolerance(dtype),
                    None => Tol::rounding(dtype, 1e-6),
                };
                check(&device, name, dtype, heads, (&qkv, &positions, &slots), norm.as_ref(), tol);
            }
        }
    }
}

#[test]
fn equal_positions_on_all_axes_are_the_rotation_of_text() {
    let device = device();
    let heads = Heads { q: 2, kv: 1, dim: 32, sections: None };
    for dtype in MODEL_DTYPES {
        let qkv = rounded(dtype, Rng::new(90).normals(2 * heads.width()));
        for mode in device.modes() {
            device.enter(mode);
            let text = run(&device, dtype, heads, &qkv, &[7, 40], &[0, 1], None);
            let seeing = Heads { sections: Some([4, 6, 6]), ..heads };
            let got = run(&device, dtype, seeing, &qkv, &[7, 40].repeat(3), &[0, 1], None);
            same_bits(&format!("{} {mode:?} q", dtype.name()), &got.q, &text.q);
            same_bits(&format!("{} {mode:?} k", dtype.name()), &got.k[..64], &text.k[..64]);
        }
    }
}

/// The order of rounding is that of transformers: scaled, rounded, weighed, rounded.
#[test]
fn the_norm_rounds_before_and_after_its_weight() {
    let device = device();
    let (heads, dtype) = (Heads { q: 1, kv: 1, dim: 32, sections: None }, DType::Bf16);
    // Position 0 does not rotate.
    let head: Vec<f32> = (0..32).map(|i| if i < 21 { 1.0 } else { 5.0 }).collect();
    let square: f32 = head.iter().map(|x| x * x).sum::<f32>() / 32.0;
    let norm = Norm { q: vec![1.25; 32], k: vec![0.75; 32] };
    let qkv = head.repeat(3);
    for mode in device.modes() {
        device.enter(mode);
        let got = run(&device, dtype, heads, &qkv, &[0], &[0], Some(&norm));
        for (i, &x) in head.iter().enumerate() {
            let scaled = round_to(dtype, x / (square + EPS).sqrt());
            assert_eq!(got.q[i], round_to(dtype, scaled * 1.25), "{mode:?} q {i}");
            assert_eq!(got.k[i], round_to(dtype, scaled * 0.75), "{mode:?} k {i}");
        }
        let once = round_to(dtype, 1.0 / (square + EPS).sqrt() * 0.75);
        assert_ne!(got.k[0], once, "one rounding must give another number, else this test says nothing");
    }
}

#[test]
fn a_slot_outside_the_cache_writes_nothing() {
    let device = device();
    let heads = Heads { q: 2, kv: 1, dim: 16, sections: None };
    let qkv = Rng::new(5).normals(3 * heads.width());
    for mode in device.modes() {
        device.enter(mode);
        let slots = [-1, (PAGES * PAGE_SIZE) as i32, i32::MAX];
        let got = run(&device, DType::F32, heads, &qkv, &[0, 1, 2], &slots, None);
        assert!(got.k.iter().chain(&got.v).all(|v| v.is_nan()), "{mode:?}: a cache was written");
        assert!(got.q.iter().all(|v| v.is_finite()), "{mode:?}: q is rotated all the same");
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_pass() {
    let device = device();
    let heads = Heads { q: 2, kv: 1, dim: 20, sections: None };
    let norms = |dtype| [None, Some(Norm::new(dtype, heads.dim, 60))];
    let positions: Vec<i32> = (0..200).map(|row| row % 48).collect();
    let slots: Vec<i32> = (0..200).map(|row| (row * 7 + 3) % 320).collect();
    for dtype in MODEL_DTYPES {
        let qkv = rounded(dtype, Rng::new(6).with_outliers(200 * heads.width()));
        for (mode, norm) in device.modes().into_iter().flat_map(|mode| norms(dtype).map(|norm| (mode, norm)))
        {
            device.enter(mode);
            // q, then this row's k and v, side by side
            let width = heads.width();
            rows_are_independent(&format!("{} {mode:?}", dtype.name()), width, |rows| {
                let elements = rows.start * width..rows.end * width;
                let (positions, slots) = (&positions[rows.clone()], &slots[rows]);
                let got = run(&device, dtype, heads, &qkv[elements], positions, slots, norm.as_ref());
                let row = |(i, &slot): (usize, &i32)| {
                    let at = slot as usize * heads.dim; // one KV head: pages are contiguous
                    let q = &got.q[i * heads.q * heads.dim..][..heads.q * heads.dim];
                    [q, &got.k[at..][..heads.dim], &got.v[at..][..heads.dim]].concat()
                };
                slots.iter().enumerate().flat_map(row).collect()
            });
        }
    }
}

#[test]
fn schedules_do_not_change_a_bit() {
    let device = device();
    let heads = Heads { q: 4, kv: 2, dim: 64, sections: None };
    for dtype in MODEL_DTYPES {
        let qkv = rounded(dtype, Rng::new(7).with_outliers(2 * heads.width()));
        let norm = Norm::new(dtype, heads.dim, 61);
        device.enter(device.modes()[0]);
        let want = run(&device, dtype, heads, &qkv, &[3, 4], &[8, 9], Some(&norm));
        for mode in device.schedules() {
            device.enter(mode);
            let got = run(&device, dtype, heads, &qkv, &[3, 4], &[8, 9], Some(&norm));
            same_bits(&format!("{} {mode:?}", dtype.name()), &got.q, &want.q);
            same_bits(&format!("{} {mode:?}", dtype.name()), &got.k, &want.k);
        }
    }
}

#[test]
fn an_odd_head_is_refused() {
    let device = device();
    let tensor = |dtype, shape: &[usize]| Tensor::zeros(&device, dtype, shape).unwrap();
    let cache = tensor(DType::F32, &[1, 1, 16, 7]);
    let args = RopeArgs {
        qkv: &tensor(DType::F32, &[1, 21]),
        q_out: &tensor(DType::F32, &[1, 7]),
        k_cache: &cache,
        v_cache: &cache,
        cos_sin: &tensor(DType::F32, &[4, 7]),
        positions: &tensor(DType::I32, &[1]),
        sections: None,
        slots: &tensor(DType::I32, &[1]),
        num_q_heads: 1,
        num_kv_heads: 1,
        head_dim: 7,
        norm: None,
    };
    assert!(rope_kv_write(&device, args).unwrap_err().to_string().contains("an even number"));
}
