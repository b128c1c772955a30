use std::time::{Duration, Instant};

use smart_run::Error;
use smart_run::device::{DType, Device, Tensor, TensorCoreFamily};
use smart_run::kernels::digest::{digest_buffer, draft_digest};
use smart_run::kernels::linear::{LinearArgs, LinearWorkspace, TunedLayer, TunedSums, linear};
use smart_run::reference;

use crate::common::compare::{Tol, close, rows_are_independent, same_bits};
use crate::common::device::{Mode, TestDevice, device, has_all, set_host_option};
use crate::common::inputs::{Guarded, MODEL_DTYPES, Rng, poisoned, rounded, upload};

struct Case {
    name: &'static str,
    rows: usize,
    n: usize,
    k: usize,
    bias: bool,
    f32_out: bool,
}

const fn case(name: &'static str, rows: usize, n: usize, k: usize, bias: bool, f32_out: bool) -> Case {
    Case { name, rows, n, k, bias, f32_out }
}

const CASES: [Case; 23] = [
    case("one_row", 1, 64, 64, false, false),
    case("one_output", 3, 1, 64, true, false),
    case("k_of_one_chunk", 4, 16, 8, false, false),
    case("k_not_multiple_of_tile", 8, 64, 200, false, false),
    case("k_shorter_than_the_pipeline", 8, 64, 128, false, true),
    case("n_not_multiple_of_tile", 5, 70, 128, true, false),
    case("n_odd", 6, 131, 72, false, false),
    case("ragged_token_tile_16", 9, 72, 72, false, false),
    case("full_token_tile_16", 16, 64, 64, false, false),
    case("ragged_token_tile_32", 29, 40, 136, true, true),
    case("ragged_token_tile_64", 33, 72, 72, false, false),
    case("two_warps_of_tokens", 64, 80, 64, true, false),
    case("ragged_token_tile_128", 65, 136, 72, false, false),
    case("two_warpgroups", 128, 128, 328, false, true),
    case("two_token_tiles", 200, 40, 40, true, false),
    case("beyond_the_widest_tile", 257, 72, 72, true, false),
    case("splits_of_k", 7, 24, 1024, true, false),
    case("last_split_of_one_chunk", 9, 72, 1032, true, true),
    case("as_many_splits_as_every_cluster_has_blocks", 5, 70, 4096, true, false),
    case("as_many_splits_as_a_cluster_has_blocks", 2, 24, 8192, false, false),
    case("more_splits_than_a_cluster_has_blocks", 3, 24, 16_392, true, true),
    case("splits_of_tiles_that_share_tokens", 65, 264, 1032, true, false),
    case("rows_beyond_one_workspace", 260, 8, 1024, true, false),
];

/// Weights, bias and a workspace on the device.
struct Layer {
    weight: Tensor,
    bias: Option<Tensor>,
    workspace: LinearWorkspace,
    n: usize,
    k: usize,
}

impl Layer {
    fn new(device: &Device, dtype: DType, weight: &[f32], bias: Option<&[f32]>, k: usize) -> Self {
        let n = weight.len() / k;
        let mut workspace = LinearWorkspace::new(device, 260, [(n, k)], 0).unwrap();
        workspace.partial = poisoned(device, DType::F32, workspace.partial.shape());
        Self {
            weight: upload(device, dtype, weight, &[n, k]),
            bias: bias.map(|bias| upload(device, dtype, bias, &[n])),
            workspace,
            n,
            k,
        }
    }

    /// `x` as a column view of a wider matrix, the output as a guarded one.
    fn run(&self, device: &Device, x: &[f32], out_dtype: DType) -> Vec<f32> {
        let rows = x.len() / self.k;
        let wide: Vec<f32> =
            x.chunks(self.k).flat_map(|row| [&[f32::NAN; 8], row, &[f32::NAN; 16]].concat()).collect();
        let x = upload(device, self.weight.dtype(), &wide, &[rows, self.k + 24]).columns(8..8 + self.k);
        let out = Guarded::new(device, out_dtype, rows, self.n, 3);
        let args = LinearArgs {
            x: &x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            out: &out.view(),
            workspace: &self.workspace,
        };
        linear(device, args).unwrap();
        out.values()
    }
}

/// Inputs that are exact in `dtype`: x with outliers, weights, bias.
fn inputs(dtype: DType, seed: u64, rows: usize, n: usize, k: usize) -> [Vec<f32>; 3] {
    let mut rng = Rng::new(seed);
    [rng.with_outliers(rows * k), rng.normals(n * k), rng.normals(n)].map(|values| rounded(dtype, values))
}

/// f32 accumulation errs by less than 2^-20 of the sum of the products' magnitudes, however it is ordered.
fn tolerance(out_dtype: DType, x: &[f32], weight: &[f32], k: usize) -> Tol {
    let magnitudes = |values: &[f32]| values.iter().map(|v| v.abs()).collect::<Vec<f32>>();
    let sums = reference::linear::linear(&magnitudes(x), &magnitudes(weight), None, k);
    Tol::rounding(out_dtype, sums.into_iter().fold(0.0, f32::max) / (1 << 20) as f32)
}

#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (seed, case) in CASES.iter().enumerate() {
            let [x, weight, bias] = inputs(dtype, seed as u64, case.rows, case.n, case.k);
            let bias = case.bias.then_some(&bias[..]);
            let want = reference::linear::linear(&x, &weight, bias, case.k);
            let layer = Layer::new(&device, dtype, &weight, bias, case.k);
            let out_dtype = if case.f32_out { DType::F32 } else { dtype };
            let tol = tolerance(out_dtype, &x, &weight, case.k);
            for (family, linear_device) in device.linear_families() {
                for mode in device.modes() {
                    device.enter(mode);
                    let name = format!("{} {} {family} {mode:?}", case.name, dtype.name());
                    close(&name, &layer.run(&linear_device, &x, out_dtype), &want, tol);
                }
            }
        }
    }
}

#[test]
fn f32_takes_any_k() {
    let device = device();
    for (rows, n, k) in [(1, 5, 1), (9, 18, 131), (3, 4, 126)] {
        let [x, weight, bias] = inputs(DType::F32, k as u64, rows, n, k);
        let want = reference::linear::linear(&x, &weight, Some(&bias), k);
        let layer = Layer::new(&device, DType::F32, &weight, Some(&bias), k);
        for mode in device.modes() {
            device.enter(mode);
            let tol = tolerance(DType::F32, &x, &weight, k);
            close(&format!("k={k} {mode:?}"), &layer.run(&device, &x, DType::F32), &want, tol);
        }
    }
}

/// The shapes of the invariance tests: with and without splits, ragged in N and K.
const INVARIANT_SHAPES: [(usize, usize); 2] = [(72, 72), (24, 1032)];

#[test]
fn a_row_has_the_same_bits_in_any_pass() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (n, k) in INVARIANT_SHAPES {
            let [x, weight, bias] = inputs(dtype, 7, 200, n, k);
            let layer = Layer::new(&device, dtype, &weight, Some(&bias), k);
            for (family, linear_device) in device.linear_families() {
                for mode in device.modes() {
                    device.enter(mode);
                    rows_are_independent(&format!("{n}x{k} {} {family} {mode:?}", dtype.name()), n, |rows| {
                        layer.run(&linear_device, &x[rows.start * k..rows.end * k], DType::F32)
                    });
                }
            }
        }
    }
}

#[test]
fn a_row_of_nan_spoils_no_other_row() {
    let device = device();
    for dtype in MODEL_DTYPES {
        let (rows, n, k) = (11, 24, 72);
        let [mut x, weight, _] = inputs(dtype, 8, rows, n, k);
        let layer = Layer::new(&device, dtype, &weight, None, k);
        for (family, linear_device) in device.linear_families() {
            for mode in device.modes() {
                device.enter(mode);
                let clean = layer.run(&linear_device, &x, dtype);
                let kept = std::mem::replace(&mut x[4 * k + 70], f32::NAN);
                let spoiled = layer.run(&linear_device, &x, dtype);
                x[4 * k + 70] = kept;
                let name = format!("{} {family} {mode:?}", dtype.name());
                same_bits(&name, &spoiled[..4 * n], &clean[..4 * n]);
                same_bits(&name, &spoiled[5 * n..], &clean[5 * n..]);
                assert!(
                    spoiled[4 * n..5 * n].iter().all(|v| v.is_nan()),
                    "{name}: NaN times a weight is NaN"
                );
            }
        }
    }
}

#[test]
fn infinities_arrive() {
    let device = device();
    for dtype in MODEL_DTYPES {
        let (n, k) = (8, 16);
        let [mut x, weight, _] = inputs(dtype, 9, 2, n, k);
        (x[3], x[16]) = (f32::INFINITY, f32::NEG_INFINITY);
        let want = reference::linear::linear(&x, &weight, None, k);
        let layer = Layer::new(&device, dtype, &weight, None, k);
        for (family, linear_device) in device.linear_families() {
            for mode in device.modes() {
                device.enter(mode);
                let name = format!("{} {family} {mode:?}", dtype.name());
                close(&name, &layer.run(&linear_device, &x, dtype), &want, Tol { abs: 0.0, rel: 0.0 });
            }
        }
    }
}

#[test]
fn schedules_do_not_change_a_bit() {
    let device = device();
    for dtype in MODEL_DTYPES {
        for (rows, n, k) in [(9, 24, 520), (3, 70, 1544)] {
            let [x, weight, bias] = inputs(dtype, 10, rows, n, k);
            let layer = Layer::new(&device, dtype, &weight, Some(&bias), k);
            for (family, linear_device) in device.linear_families() {
                device.enter(device.modes()[0]);
                let want = layer.run(&linear_device, &x, dtype);
                for mode in device.schedules() {
                    device.enter(mode);
                    let name = format!("{n}x{k} {} {family} {mode:?}", dtype.name());
                    same_bits(&name, &layer.run(&linear_device, &x, dtype), &want);
                }
            }
        }
    }
}

/// Tiles that the copy engine brings, through a ring that comes round: the wide ones of `wgmma`, whose two or four warpgroups share it, and those of
/// `mma`.
#[test]
fn schedules_do_not_change_a_bit_of_bulk_tiles() {
    let device = device();
    let Ok(wgmma) = device.with_linear_family(TensorCoreFamily::Wgmma) else { return };
    let (wide, bulk) = (wgmma.with_wide_tiles_from(1), device.with_bulk_tiles().unwrap());
    for (rows, n, k, device_of_case) in [
        (70, 72, 520, &wgmma),
        (130, 72, 328, &wgmma),
        (20, 136, 520, &wide),
        (40, 264, 392, &wide),
        (70, 200, 328, &wide),
        // In clusters of two and four that share tokens, the last with blocks beyond the weights.
        (40, 136, 776, &wgmma),
        (70, 520, 648, &wgmma),
        (130, 264, 392, &wgmma),
        (66, 300, 392, &wide),
        // Two and four of these by two and four parts of K.
        (40, 136, 2056, &wgmma),
        (70, 520, 2056, &wgmma),
        (66, 300, 1032, &wide),
        // The same of `mma`.
        (7, 72, 520, &bulk),
        (20, 136, 520, &bulk),
        (40, 520, 392, &bulk),
        (70, 520, 520, &bulk),
        (70, 520, 1032, &bulk),
        (40, 520, 2056, &bulk),
    ] {
        let [x, weight, bias] = inputs(DType::Bf16, 12, rows, n, k);
        let layer = Layer::new(&device, DType::Bf16, &weight, Some(&bias), k);
        device.enter(device.modes()[0]);
        // The other family has the same bits on the host driver, and gets its tiles in another way.
        let judge = if device.is_host() { &device } else { device_of_case };
        let want = layer.run(judge, &x, DType::Bf16);
        for mode in device.modes().into_iter().take(1).chain(device.schedules().into_iter().take(3)) {
            device.enter(mode);
            same_bits(
                &format!("{rows} rows of {n} {mode:?}"),
                &layer.run(device_of_case, &x, DType::Bf16),
                &want,
            );
        }
    }
}

/// Launches that were measured run in another way, perhaps, and come to the same.
#[test]
fn measured_launches_have_the_same_bits() {
    let device = device();
    device.enter(device.modes()[0]);
    let all = device.linear_families();
    for (family, linear_device) in all.iter().filter(|(family, _)| !family.contains(' ')) {
        for (n, k) in [(136, 72), (72, 1032)] {
            let [x, weight, bias] = inputs(DType::Bf16, 14, 70, n, k);
            let usual = Layer::new(&device, DType::Bf16, &weight, Some(&bias), k);
            let mut tuned = Layer::new(&device, DType::Bf16, &weight, Some(&bias), k);
            let layer = |name| TunedLayer {
                name,
                weights: vec![&usual.weight; 2],
                sums: TunedSums::Plain,
                x: poisoned(&device, DType::Bf16, &[70, k]),
                out: poisoned(&device, DType::Bf16, &[70, n]),
            };
            tuned.workspace.tune(linear_device, &[layer("late")], Instant::now()).unwrap();
            assert!(tuned.workspace.tuned().is_empty(), "no time, no measurement");
            let deadline = Instant::now() + Duration::from_secs(60);
            tuned.workspace.tune(linear_device, &[layer("layer")], deadline).unwrap();
            let launches = tuned.workspace.tuned();
            assert!(launches.iter().all(|launch| launch.layer == "layer" && launch.us <= launch.usual_us));
            let rows: Vec<usize> = launches.iter().map(|launch| launch.rows).collect();
            // Tiles of all widths up to the rows there are; of the small ones not all come in several ways everywhere.
            assert!(rows.is_sorted() && rows.ends_with(&[32, 64]), "{family}: {rows:?}");
            if has_all(&device) && (k > 1000 || family == "mma") {
                assert_eq!(rows, [8, 16, 32, 64], "{family}");
            }
            for rows in [1, 9, 30, 40, 70] {
                let x = &x[..rows * k];
                let name = format!("{rows} rows of {n}x{k} {family}");
                let got = tuned.run(linear_device, x, DType::Bf16);
                same_bits(&name, &got, &usual.run(linear_device, x, DType::Bf16));
            }
        }
    }
}

/// The last of all measurements, of full tiles, is what is left of the digests.
#[test]
fn heads_are_measured_with_their_digests() {
    let device = device();
    device.enter(device.modes()[0]);
    let (n, k) = (136, 72);
    let [x, weight, _] = inputs(DType::Bf16, 15, 64, n, k);
    let mut layer = Layer::new(&device, DType::Bf16, &weight, None, k);
    let weight = layer.weight.clone();
    let [left, wanted] = [(); 2].map(|()| digest_buffer(&device, 64, n).unwrap());
    let head = TunedLayer {
        name: "head",
        weights: vec![&weight],
        sums: TunedSums::Head(left.clone()),
        x: upload(&device, DType::Bf16, &x, &[64, k]),
        out: poisoned(&device, DType::F32, &[64, n]),
    };
    let (logits, deadline) = (head.out.clone(), Instant::now() + Duration::from_secs(60));
    layer.workspace.tune(&device, &[head], deadline).unwrap();
    assert_eq!(layer.workspace.tuned().last().unwrap().rows, 64);
    draft_digest(&device, &logits, &wanted).unwrap();
    assert_eq!(left.to_vec::<u64>().unwrap(), wanted.to_vec::<u64>().unwrap());
}

/// Both add in the same order. On a GPU what is within a step of K is the hardware's, so there the oracle judges each.
#[test]
fn families_have_the_same_bits_on_the_host_driver() {
    let device = device();
    if !has_all(&device) {
        return;
    }
    for dtype in MODEL_DTYPES {
        // In one part, two, four, eight, sixteen and more, of which sixteen make a cluster; over wide tiles, clusters that share tokens, and
        // that do so where K is in parts.
        let parts =
            [(1, 72, 200), (9, 24, 1032), (3, 24, 2056), (5, 40, 4096), (2, 24, 8200), (1, 8, 16_392)];
        let tiles = [(30, 136, 72), (66, 136, 72), (130, 40, 72), (34, 200, 136), (66, 136, 1032)];
        for (rows, n, k) in parts.into_iter().chain(tiles) {
            let [x, weight, bias] = inputs(dtype, 13, rows, n, k);
            let layer = Layer::new(&device, dtype, &weight, Some(&bias), k);
            for mode in device.modes() {
                device.enter(mode);
                let all = device.linear_families();
                let mma = layer.run(&all[0].1, &x, DType::F32);
                assert_eq!(all.len(), 7);
                for (family, other) in &all[1..] {
                    let name = format!("{rows}x{n}x{k} {} {family} {mode:?}", dtype.name());
                    same_bits(&name, &layer.run(other, &x, DType::F32), &mma);
                }
            }
        }
    }
}

#[test]
fn threads_of_the_twin_do_not_change_a_bit() {
    let device = device();
    if !device.is_host() {
        return;
    }
    device.enter(Mode::Twin);
    for dtype in MODEL_DTYPES {
        let [x, weight, _] = inputs(dtype, 11, 33, 200, 1032);
        let layer = Layer::new(&device, dtype, &weight, None, 1032);
        let [one, many] = [1, 4].map(|threads| {
            set_host_option(c"threads", threads);
            layer.run(&device, &x, dtype)
        });
        set_host_option(c"threads", 0);
        same_bits(dtype.name(), &one, &many);
    }
}

/// The twin's other instruction sets, each in a process of its own: the choice is made once. A set that the
/// machine lacks falls back to the next one, which is tested twice.
#[test]
fn older_instruction_sets_pass_the_same_tests() {
    if !device().is_host() || std::env::var_os("SIMT_VECTORS").is_some() {
        return;
    }
    for vectors in ["avx512", "avx2", "baseline"] {
        let tests = ["every_case", "f32_takes", "a_row_has", "a_row_of", "infinities", "threads_of"];
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(tests.map(|start| format!("linear::{start}")))
            .env("SIMT_VECTORS", vectors)
            // It would begin the file anew that this process writes.
            .env_remove("SMART_DUMP")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{vectors}: {text}");
        assert!(text.contains("6 passed"), "{vectors}: {text}");
    }
}

/// Runs `[rows, k] x [n, weight_k]` with an output of `out_columns` and returns the error's text.
fn refusal(device: &TestDevice, dtype: DType, shape: [usize; 4]) -> String {
    let [rows, k, n, weight_k] = shape;
    let tensor = |shape: &[usize]| Tensor::zeros(device, dtype, shape).unwrap();
    let (x, weight, out) = (tensor(&[rows, k]), tensor(&[n, weight_k]), tensor(&[rows, n]));
    let workspace = LinearWorkspace::new(device, 1, [], 1).unwrap();
    match linear(device, LinearArgs { x: &x, weight: &weight, bias: None, out: &out, workspace: &workspace })
    {
        Err(error @ Error::Shape { .. }) => error.to_string(),
        other => panic!("{shape:?} gave {other:?}"),
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let device = device();
    assert!(
        refusal(&device, DType::Bf16, [2, 64, 8, 72]).contains("linear: weight: expected bf16[N=8, K=64]")
    );
    assert!(refusal(&device, DType::F16, [2, 60, 8, 60]).contains("K and the row stride multiples of 8"));
    assert!(refusal(&device, DType::Bf16, [2, 1024, 8, 1024]).contains("workspace"));
    assert!(refusal(&device, DType::I32, [2, 64, 8, 64]).contains("bf16, f16 or f32"));
}

#[test]
fn no_rows_are_no_work() {
    let device = device();
    let [x, weight, out] =
        [[0, 64], [8, 64], [0, 8]].map(|shape| Tensor::zeros(&device, DType::Bf16, &shape).unwrap());
    let workspace = LinearWorkspace::new(&device, 0, [], 0).unwrap();
    linear(&device, LinearArgs { x: &x, weight: &weight, bias: None, out: &out, workspace: &workspace })
        .unwrap();
}
