use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::rope::{RopeArgs, rope_kv_write};
use smart_run::reference;

use crate::common::compare::{Tol, close, rows_are_independent, same_bits};
use crate::common::device::device;
use crate::common::inputs::{MODEL_DTYPES, Rng, download, poisoned, rounded, upload};

const PAGES: usize = 20;
const PAGE_SIZE: usize = 16;
const MAX_POSITION: usize = 48;

#[derive(Clone, Copy)]
struct Heads {
    q: usize,
    kv: usize,
    dim: usize,
}

impl Heads {
    /// Elements of a row of qkv.
    fn width(self) -> usize {
        (self.q + 2 * self.kv) * self.dim
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
) -> Outcome {
    let rows = positions.len();
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
        positions: &Tensor::from_slice(device, positions, &[rows]).unwrap(),
        slots: &Tensor::from_slice(device, slots, &[rows]).unwrap(),
        num_q_heads: heads.q,
        num_kv_heads: heads.kv,
        head_dim: heads.dim,
    };
    rope_kv_write(device, args).unwrap();
    Outcome { q: download(&q_out), k: download(&k_cache), v: download(&v_cache) }
}

/// The oracle of one call; NaN where nothing is written.
fn expected(heads: Heads, qkv: &[f32], positions: &[i32], slots: &[i32]) -> Outcome {
    let table = reference::rope::cos_sin_table(MAX_POSITION, heads.dim, 10_000.0);
    let cache = vec![f32::NAN; PAGES * heads.kv * PAGE_SIZE * heads.dim];
    let mut want = Outcome { q: vec![], k: cache.clone(), v: cache };
    for (row, (&position, &slot)) in qkv.chunks(heads.width()).zip(positions.iter().zip(slots)) {
        let position = position.clamp(0, MAX_POSITION as i32 - 1) as usize;
        let angles = &table[position * heads.dim..][..heads.dim];
        let head_rows: Vec<&[f32]> = row.chunks(heads.dim).collect();
        let (q, kv) = head_rows.split_at(heads.q);
        want.q.extend(q.iter().flat_map(|head| reference::rope::rotate(head, angles)));
        if !(0..(PAGES * PAGE_SIZE) as i32).contains(&slot) {
            continue;
        }
        let (page, offset) = (slot as usize / PAGE_SIZE, slot as usize % PAGE_SIZE);
        for head in 0..heads.kv {
            let at = ((page * heads.kv + head) * PAGE_SIZE + offset) * heads.dim;
            want.k[at..][..heads.dim].copy_from_slice(&reference::rope::rotate(kv[head], angles));
            want.v[at..][..heads.dim].copy_from_slice(kv[heads.kv + head]);
        }
    }
    want
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    let cases = [
        ("grouped_heads", Heads { q: 4, kv: 2, dim: 64 }),
        ("one_kv_head", Heads { q: 3, kv: 1, dim: 128 }),
        ("half_head_not_a_power_of_two", Heads { q: 2, kv: 2, dim: 80 }),
        ("half_head_not_a_vector", Heads { q: 2, kv: 1, dim: 20 }),
        ("half_head_unaligned", Heads { q: 1, kv: 1, dim: 6 }),
    ];
    // Scattered slots over two pages, positions that repeat (siblings of a tree) and that lie outside the
    // table.
    let positions = [0, 1, 5, 5, 47, 48, -3, 9];
    let slots = [33, 3, 4, 40, 0, 15, 47, 16];
    for dtype in MODEL_DTYPES {
        for (seed, (name, heads)) in cases.into_iter().enumerate() {
            let qkv = rounded(dtype, Rng::new(seed as u64).with_outliers(positions.len() * heads.width()));
            let want = expected(heads, &qkv, &positions, &slots);
            for mode in device.modes() {
                device.enter(mode);
                let name = format!("{name} {} {mode:?}", dtype.name());
                let got = run(&device, dtype, heads, &qkv, &positions, &slots);
                // Two products that may cancel: their own rounding in f32, of values up to about 100.
                let tol = Tol::rounding(dtype, 100.0 / (1 << 23) as f32);
                close(&format!("{name} q"), &got.q, &want.q, tol);
                close(&format!("{name} k"), &got.k, &want.k, tol);
                close(&format!("{name} v"), &got.v, &want.v, Tol { abs: 0.0, rel: 0.0 });
            }
        }
    }
}

#[test]
fn a_slot_outside_the_cache_writes_nothing() {
    let device = device();
    let heads = Heads { q: 2, kv: 1, dim: 16 };
    let qkv = Rng::new(5).normals(3 * heads.width());
    for mode in device.modes() {
        device.enter(mode);
        let slots = [-1, (PAGES * PAGE_SIZE) as i32, i32::MAX];
        let got = run(&device, DType::F32, heads, &qkv, &[0, 1, 2], &slots);
        assert!(got.k.iter().chain(&got.v).all(|v| v.is_nan()), "{mode:?}: a cache was written");
        assert!(got.q.iter().all(|v| v.is_finite()), "{mode:?}: q is rotated all the same");
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_pass() {
    let device = device();
    let heads = Heads { q: 2, kv: 1, dim: 20 };
    let positions: Vec<i32> = (0..200).map(|row| row % 48).collect();
    let slots: Vec<i32> = (0..200).map(|row| (row * 7 + 3) % 320).collect();
    for dtype in MODEL_DTYPES {
        let qkv = rounded(dtype, Rng::new(6).with_outliers(200 * heads.width()));
        for mode in device.modes() {
            device.enter(mode);
            // q, then this row's k and v, side by side
            let width = heads.width();
            rows_are_independent(&format!("{} {mode:?}", dtype.name()), width, |rows| {
                let elements = rows.start * width..rows.end * width;
                let (positions, slots) = (&positions[rows.clone()], &slots[rows]);
                let got = run(&device, dtype, heads, &qkv[elements], positions, slots);
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
    let heads = Heads { q: 4, kv: 2, dim: 64 };
    for dtype in MODEL_DTYPES {
        let qkv = rounded(dtype, Rng::new(7).with_outliers(2 * heads.width()));
        device.enter(device.modes()[0]);
        let want = run(&device, dtype, heads, &qkv, &[3, 4], &[8, 9]);
        for mode in device.schedules() {
            device.enter(mode);
            let got = run(&device, dtype, heads, &qkv, &[3, 4], &[8, 9]);
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
        slots: &tensor(DType::I32, &[1]),
        num_q_heads: 1,
        num_kv_heads: 1,
        head_dim: 7,
    };
    assert!(rope_kv_write(&device, args).unwrap_err().to_string().contains("an even number"));
}
