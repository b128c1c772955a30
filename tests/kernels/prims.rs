//! Every primitive of `kernels/prims.cuh` against its oracle. On a GPU this judges the PTX, on the host driver its stand-in.

use half::{bf16, f16};
use smart_run::device::{DType, Device, Tensor, TensorMap};
use smart_run::kernels::prims_check::{BULK_COLUMNS, BULK_STRIDE, Check, WgmmaForm, prims_check};
use smart_run::reference::prims_check as oracle;

use crate::common::compare::{Tol, close};
use crate::common::device::{device, has_all};
use crate::common::inputs::{Rng, round_to};

const BF16: oracle::Format = oracle::Format {
    to_bits: |x| bf16::from_f32(x).to_bits(),
    from_bits: |bits| bf16::from_bits(bits).to_f32(),
};
const F16: oracle::Format = oracle::Format {
    to_bits: |x| f16::from_f32(x).to_bits(),
    from_bits: |bits| f16::from_bits(bits).to_f32(),
};

fn words(seed: u64, count: usize) -> Vec<u32> {
    let mut random = Rng::new(seed);
    (0..count).map(|_| random.next() as u32).collect()
}

/// Runs `check` in every mode and under random schedules, and compares its words one by one.
#[track_caller]
fn exact(check: Check, input: &[u32], want: &[u32]) {
    let device = device();
    for mode in device.modes().into_iter().chain(device.schedules()) {
        device.enter(mode);
        let got = prims_check(&device, check, input).unwrap();
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert_eq!(got, want, "{check:?} {mode:?}: word {i} is {got:#x} instead of {want:#x}");
        }
    }
}

#[test]
fn conversions_round_to_nearest_even() {
    let ties = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0];
    let edges =
        [0.0, -0.0, f32::INFINITY, 65504.0, 65519.9, 65520.0, 6e-8, 2.9e-8, 3.0e-8, 6.1e-5, f32::MAX, 1e-40];
    let mut values: Vec<f32> = ties.into_iter().chain(edges).collect();
    let mut random = Rng::new(1);
    values.resize_with(128, || random.normal() * 2f32.powi(random.below(40) as i32 - 20));
    let want: Vec<u32> = values
        .iter()
        .flat_map(|&x| [oracle::conversions(x, BF16), oracle::conversions(x, F16)].concat())
        .collect();
    exact(Check::Conversions, &bits(&values), &want);
}

#[test]
fn conversions_keep_nan() {
    let device = device();
    for mode in device.modes() {
        device.enter(mode);
        let got = prims_check(&device, Check::Conversions, &[f32::NAN.to_bits(); 128]).unwrap();
        for i in [1, 3, 4, 6, 8, 9] {
            assert!(f32::from_bits(got[i]).is_nan(), "{mode:?}: word {i} is {:#x}", got[i]);
        }
    }
}

#[test]
fn exp2_is_within_two_units() {
    let device = device();
    let mut random = Rng::new(2);
    let mut values =
        vec![0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -200.0, 200.0, 127.5, -125.9];
    values.resize_with(128, || random.unit() * 126.0 - 125.0);
    let want: Vec<f32> = values.iter().map(|&x| f64::from(x).exp2() as f32).collect();
    for mode in device.modes() {
        device.enter(mode);
        let got = floats(&prims_check(&device, Check::Exp2, &bits(&values)).unwrap());
        assert_eq!((got[0], got[1], got[2]), (1.0, 1.0, 0.0), "{mode:?}: exact at 0 and at -infinity");
        let two_units = Tol { abs: f32::MIN_POSITIVE, rel: 2.0 / (1 << 23) as f32 };
        close(&format!("exp2 {mode:?}"), &got, &want, two_units);
    }
}

#[test]
fn mma_multiplies_with_f32_accumulation() {
    let device = device();
    for (check, dtype, format) in [(Check::MmaBf16, DType::Bf16, BF16), (Check::MmaF16, DType::F16, F16)] {
        for seed in 0..4 {
            let mut random = Rng::new(seed);
            let mut factor = |count| -> Vec<f32> {
                random.with_outliers(count).into_iter().map(|x| round_to(dtype, x)).collect()
            };
            let (a, b) = (factor(256), factor(128));
            let c = random.normals(128);
            let input = [pairs(&a, format), pairs(&b, format), bits(&c)].concat();
            let magnitudes = |values: &[f32]| values.iter().map(|x| x.abs()).collect::<Vec<f32>>();
            let sums = oracle::mma(&magnitudes(&a), &magnitudes(&b), &magnitudes(&c));
            // Tensor cores align 17 terms to the largest and cut each below 2^-23 of it, or lower.
            let tol = Tol { abs: sums.into_iter().fold(0.0, f32::max) / (1 << 19) as f32, rel: 0.0 };
            for mode in device.modes().into_iter().chain(device.schedules()) {
                device.enter(mode);
                let got = floats(&prims_check(&device, check, &input).unwrap());
                close(&format!("{check:?} {seed} {mode:?}"), &got, &oracle::mma(&a, &b, &c), tol);
            }
        }
    }
}

/// Small integers have one exact answer: every element is where the fragment layout says.
#[test]
fn mma_of_small_integers_is_exact() {
    for (check, format) in [(Check::MmaBf16, BF16), (Check::MmaF16, F16)] {
        let mut random = Rng::new(9);
        let mut integers =
            |count: usize| -> Vec<f32> { (0..count).map(|_| random.below(17) as f32 - 8.0).collect() };
        let (a, b, c) = (integers(256), integers(128), integers(128));
        let input = [pairs(&a, format), pairs(&b, format), bits(&c)].concat();
        let device = device();
        for mode in device.modes() {
            device.enter(mode);
            let got = floats(&prims_check(&device, check, &input).unwrap());
            assert_eq!(got, oracle::mma(&a, &b, &c), "{check:?} {mode:?}");
        }
    }
}

/// Every place of the factors, at every width that kernels use: small integers, which have one exact answer, so that every element is where the
/// layouts of tiles, fragments and sums say; then real numbers.
#[test]
fn wgmma_multiplies_tiles_and_registers() {
    let device = device();
    if !runs(&device, Check::Wgmma(WgmmaForm::Tiles, DType::Bf16, 8)) {
        return;
    }
    let dtypes = [(DType::Bf16, BF16), (DType::F16, F16)];
    let forms =
        WgmmaForm::ALL.into_iter().flat_map(|(form, widths)| widths.iter().map(move |&width| (form, width)));
    for ((form, width), (dtype, format)) in forms.flat_map(|form| dtypes.map(|dtype| (form, dtype))) {
        let check = Check::Wgmma(form, dtype, width);
        for integers in [true, false] {
            let mut random = Rng::new(width as u64);
            let mut numbers = |count: usize| -> Vec<f32> {
                match integers {
                    true => (0..count).map(|_| random.below(17) as f32 - 8.0).collect(),
                    false => random.with_outliers(count).into_iter().map(|x| round_to(dtype, x)).collect(),
                }
            };
            let (a, b, c) = (numbers(64 * 64), numbers(width * 64), numbers(64 * width));
            let input = [pairs(&a, format), pairs(&b, format), bits(&c)].concat();
            let want = oracle::wgmma(&a, &b, &c);
            let magnitudes = |values: &[f32]| values.iter().map(|x| x.abs()).collect::<Vec<f32>>();
            let sums = oracle::wgmma(&magnitudes(&a), &magnitudes(&b), &magnitudes(&c));
            let share = if integers { 0.0 } else { 1.0 / (1 << 19) as f32 };
            let tol = Tol { abs: sums.into_iter().fold(0.0, f32::max) * share, rel: 0.0 };
            let schedules = device.schedules().into_iter().take(if width <= 32 { 8 } else { 2 });
            for mode in device.modes().into_iter().chain(schedules) {
                device.enter(mode);
                let got = floats(&prims_check(&device, check, &input).unwrap());
                close(&format!("{check:?} integers: {integers} {mode:?}"), &got, &want, tol);
            }
        }
    }
}

/// Whether the device can run the check, as the host driver can; says so if not.
fn runs(device: &Device, check: Check) -> bool {
    let runs = check.runs_on(device).unwrap();
    if !runs {
        assert!(!has_all(device), "{check:?}");
        eprintln!("skipped: {} cannot run {check:?}", device.name());
    }
    runs
}

#[test]
fn bulk_copies_bring_boxes_through_slots() {
    if !runs(&device(), Check::BulkLoad) {
        return;
    }
    let input = words(7, Check::BulkLoad.num_inputs());
    let want = oracle::boxes(&halves(&input), [BULK_STRIDE, BULK_COLUMNS], [-4, -8], [4, 3, 16]);
    exact(Check::BulkLoad, &input, &whole(&want));
}

#[test]
fn small_boxes_fill_a_tile_one_after_the_other() {
    if !runs(&device(), Check::BulkParts) {
        return;
    }
    let input = words(8, Check::BulkParts.num_inputs());
    exact(Check::BulkParts, &input, &input);
}

#[test]
fn blocks_of_a_cluster_bring_each_other_boxes() {
    for blocks in [2, 4] {
        let check = Check::BulkMulticast(blocks);
        if runs(&device(), check) {
            let input = words(9, check.num_inputs());
            exact(check, &input, &input.repeat(blocks));
        }
    }
}

/// Without a fence between the copies and tensor cores.
#[test]
fn wgmma_multiplies_what_bulk_copies_bring() {
    if !runs(&device(), Check::BulkWgmma(DType::Bf16)) {
        return;
    }
    for (dtype, format) in [(DType::Bf16, BF16), (DType::F16, F16)] {
        let mut random = Rng::new(11);
        let mut integers =
            |count: usize| -> Vec<f32> { (0..count).map(|_| random.below(17) as f32 - 8.0).collect() };
        let (a, b, c) = (integers(64 * 64), integers(32 * 64), integers(64 * 32));
        let input = [pairs(&a, format), pairs(&b, format), bits(&c)].concat();
        exact(Check::BulkWgmma(dtype), &input, &bits(&oracle::wgmma(&a, &b, &c)));
    }
}

#[test]
fn tensor_maps_of_what_cannot_be_copied_so_are_refused() {
    let device = device();
    if !runs(&device, Check::BulkLoad) {
        return;
    }
    let tensor = |dtype, shape: &[usize]| Tensor::zeros(&device, dtype, shape).unwrap();
    let good = tensor(DType::Bf16, &[4, 80]);
    let map = TensorMap::new(&good.columns(8..71), 256).unwrap();
    assert_eq!((map.box_rows(), map.box_bytes()), (256, 256 * 128));
    let refused = |tensor: &Tensor, box_rows, reason: &str| {
        let error = TensorMap::new(tensor, box_rows).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    refused(&good, 0, "boxes of 1 to 256 rows");
    refused(&good, 257, "boxes of 1 to 256 rows");
    refused(&good.columns(4..68), 8, "multiples of 16 bytes");
    refused(&tensor(DType::Bf16, &[4, 68]), 8, "multiples of 16 bytes");
    refused(&tensor(DType::F32, &[4, 64]), 8, "bf16 or f16");
    refused(&tensor(DType::Bf16, &[64]), 8, "[rows, columns]");
    refused(&good.rows(0..0), 8, "1 to 2^31 - 1 rows");
}

#[test]
fn ldmatrix_deals_out_rows_or_columns() {
    let input = words(3, 128);
    let matrices = halves(&input);
    let want = [oracle::ldmatrix(&matrices, false), oracle::ldmatrix(&matrices, true)].concat();
    exact(Check::Ldmatrix, &input, &want);
}

#[test]
fn cp_async_groups_arrive_in_order_and_invalid_copies_are_zero() {
    let input = words(4, 768);
    exact(Check::CpAsync, &input, &oracle::cp_async(&input));
}

#[test]
fn named_barriers_order_pairs_of_warps() {
    let input = words(5, 128);
    exact(Check::NamedBarrier, &input, &oracle::named_barrier(&input));
}

#[test]
fn blocks_of_a_cluster_see_each_others_shared_memory() {
    if !runs(&device(), Check::Cluster) {
        return;
    }
    let input = words(9, Check::Cluster.num_inputs());
    exact(Check::Cluster, &input, &oracle::cluster(&input));
}

#[test]
fn warp_and_bit_operations() {
    for seed in 0..4 {
        let mut input = words(6 + seed, 32);
        if seed == 3 {
            (input[4], input[11]) = (0, 1 << 31);
        }
        exact(Check::Warp, &input, &oracle::warp(&input));
    }
}

#[test]
fn a_wrong_number_of_words_is_refused() {
    let device = device();
    assert!(prims_check(&device, Check::Warp, &[0; 31]).unwrap_err().to_string().contains("words=32"));
    assert_eq!(Check::Warp.num_inputs(), 32);
}

/// Neighbours in one word, the first in the low half.
fn pairs(values: &[f32], format: oracle::Format) -> Vec<u32> {
    let pair = |p: &[f32]| u32::from((format.to_bits)(p[0])) | u32::from((format.to_bits)(p[1])) << 16;
    values.chunks(2).map(pair).collect()
}

/// The 16-bit elements of words, the low half first.
fn halves(words: &[u32]) -> Vec<u16> {
    words.iter().flat_map(|&word| [word as u16, (word >> 16) as u16]).collect()
}

fn whole(halves: &[u16]) -> Vec<u32> {
    halves.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|&word| f32::from_bits(word)).collect()
}
