use smart_run::device::{DType, Device, Tensor, TensorCoreFamily};
use smart_run::kernels::digest::{digest_buffer, draft_digest};
use smart_run::kernels::linear::{LinearArgs, LinearWorkspace, head};
use smart_run::reference::draft as oracle;
use smart_run::sampling::DIGEST_LEN;

use crate::common::compare::same_bits;
use crate::common::device::device;
use crate::common::inputs::{MODEL_DTYPES, Rng, rounded, upload};

/// Digests of rows of `vocab_size` logits, by the oracle.
fn wanted(logits: &[f32], vocab_size: usize) -> Vec<u64> {
    let of_row = |row: &[f32]| -> Vec<u64> {
        let slices = row.chunks(DIGEST_LEN).enumerate();
        slices.flat_map(|(i, slice)| oracle::digest(slice, i * DIGEST_LEN)).collect()
    };
    logits.chunks(vocab_size).flat_map(of_row).collect()
}

/// Room for digests, and for those of a row more, full of ones.
fn guarded(device: &Device, rows: usize, vocab_size: usize) -> Tensor {
    let digests = digest_buffer(device, rows + 1, vocab_size).unwrap();
    digests.fill_bytes(0xff).unwrap();
    digests
}

/// Asserts that they are those of the oracle, and that the row behind them has not been touched.
fn assert_digests(name: &str, digests: &Tensor, logits: &[f32], vocab_size: usize) {
    let (wanted, got) = (wanted(logits, vocab_size), digests.to_vec::<u64>().unwrap());
    let wrong = wanted.iter().zip(&got).position(|(wanted, got)| wanted != got);
    assert!(wrong.is_none(), "{name}: word {wrong:?}, {wanted:x?} but {got:x?}");
    assert!(got[wanted.len()..].iter().all(|&word| word == u64::MAX), "{name}: written behind them");
}

/// Rows with ties across slices, without a possible token in some or all, with infinities and with both zeros.
fn risky_rows(vocab_size: usize) -> Vec<f32> {
    let mut rng = Rng::new(vocab_size as u64);
    let normals: Vec<f32> = rng.normals(vocab_size).into_iter().map(|x| 3.0 * x).collect();
    let mut some_nan = normals.clone();
    some_nan.iter_mut().step_by(3).for_each(|x| *x = f32::NAN);
    let mut first_slice_impossible = normals.clone();
    first_slice_impossible[..vocab_size.min(DIGEST_LEN)].fill(f32::NEG_INFINITY);
    let mut infinite = normals.clone();
    infinite.iter_mut().skip(1).step_by(40).for_each(|x| *x = f32::INFINITY);
    [
        normals.iter().map(|x| x.round()).collect(),
        normals.clone(),
        some_nan,
        first_slice_impossible,
        infinite,
        vec![f32::NAN; vocab_size],
        vec![f32::NEG_INFINITY; vocab_size],
        (0..vocab_size).map(|i| if i % 2 == 0 { -0.0 } else { 0.0 }).collect(),
        (0..vocab_size).map(|i| i as f32 * -100.0).collect(),
        (0..vocab_size).map(|i| i as f32 * 0.5 - 1e4).collect(),
    ]
    .concat()
}

fn check_rows(device: &Device, name: &str, logits: &[f32], vocab_size: usize) {
    let rows = logits.len() / vocab_size;
    let digests = guarded(device, rows, vocab_size);
    let tensor = Tensor::from_slice(device, logits, &[rows, vocab_size]).unwrap();
    draft_digest(device, &tensor, &digests.rows(0..rows)).unwrap();
    assert_digests(name, &digests, logits, vocab_size);
}

#[test]
fn digests_of_risky_rows_agree_with_the_oracle() {
    let device = device();
    for vocab_size in [1, 3, 63, 64, 65, 127, 130, 1024, 1027, 4098] {
        for mode in device.modes() {
            device.enter(mode);
            check_rows(&device, &format!("{mode:?}, {vocab_size}"), &risky_rows(vocab_size), vocab_size);
        }
    }
}

#[test]
fn schedules_do_not_change_a_digest() {
    let device = device();
    for mode in device.schedules() {
        device.enter(mode);
        check_rows(&device, &format!("{mode:?}"), &risky_rows(201), 201);
    }
}

/// A head with its inputs on the device.
struct Head {
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    workspace: LinearWorkspace,
    rows: usize,
    n: usize,
}

impl Head {
    fn new(device: &Device, dtype: DType, (rows, n, k): (usize, usize, usize), has_bias: bool) -> Self {
        let mut rng = Rng::new((rows * n + k) as u64);
        let mut normals =
            |len, shape: &[usize]| upload(device, dtype, &rounded(dtype, rng.normals(len)), shape);
        let (x, weight, bias) = (normals(rows * k, &[rows, k]), normals(n * k, &[n, k]), normals(n, &[n]));
        let workspace = LinearWorkspace::new(device, rows, [(n, k)], 0).unwrap();
        Self { x, weight, bias: has_bias.then_some(bias), workspace, rows, n }
    }

    /// Its digests are those of its logits, which are returned.
    fn check(&self, device: &Device, name: &str) -> Vec<f32> {
        let (rows, n) = (self.rows, self.n);
        let digests = guarded(device, rows, n);
        let out = Tensor::uninit(device, DType::F32, &[rows, n]).unwrap();
        let args = LinearArgs {
            x: &self.x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            out: &out,
            workspace: &self.workspace,
        };
        head(device, args, &digests.rows(0..rows)).unwrap();
        let logits = out.to_vec::<f32>().unwrap();
        assert_digests(name, &digests, &logits, n);
        logits
    }
}

/// Tiles of every width, ragged ones, several, and those of a layer whose K is cut, which has its digests made behind it.
#[test]
fn heads_leave_digests_of_their_logits() {
    let device = device();
    for dtype in MODEL_DTYPES.into_iter().chain([DType::F32]) {
        for shape in [
            (1, 64, 64),
            (3, 1, 64),
            (5, 70, 72),
            (9, 200, 72),
            (30, 131, 40),
            (40, 264, 72),
            (70, 300, 72),
            (130, 264, 40),
            (257, 72, 72),
            (7, 24, 1032),
        ] {
            let case = Head::new(&device, dtype, shape, shape.1 > 100);
            for (family, linear_device) in device.linear_families() {
                for mode in device.modes() {
                    device.enter(mode);
                    case.check(&linear_device, &format!("{shape:?} {} {family} {mode:?}", dtype.name()));
                }
            }
        }
    }
}

#[test]
fn schedules_do_not_change_a_digest_of_a_head() {
    let device = device();
    let mut devices = vec![device.clone()];
    if let Ok(wgmma) = device.with_linear_family(TensorCoreFamily::Wgmma) {
        devices.extend([wgmma.with_wide_tiles_from(1), wgmma, device.with_bulk_tiles().unwrap()]);
    }
    for shape in [(5, 70, 72), (20, 136, 200), (70, 520, 200)] {
        let case = Head::new(&device, DType::Bf16, shape, true);
        for linear_device in &devices {
            device.enter(device.modes()[0]);
            let logits = case.check(linear_device, &format!("{shape:?}"));
            for mode in device.schedules().into_iter().take(3) {
                device.enter(mode);
                let name = format!("{shape:?} {mode:?}");
                same_bits(&name, &case.check(linear_device, &name), &logits);
            }
        }
    }
}

/// NaN and infinities of a row arrive in its digests, and in no other's.
#[test]
fn impossible_logits_of_a_head_are_known_to_its_digests() {
    let device = device();
    let (rows, n, k) = (11, 136, 72);
    let mut case = Head::new(&device, DType::Bf16, (rows, n, k), false);
    let mut x = Rng::new(5).normals(rows * k);
    (x[3 * k], x[5 * k + 9]) = (f32::NAN, f32::INFINITY);
    case.x = upload(&device, DType::Bf16, &rounded(DType::Bf16, x), &[rows, k]);
    for (family, linear_device) in device.linear_families() {
        for mode in device.modes() {
            device.enter(mode);
            let logits = case.check(&linear_device, &format!("{family} {mode:?}"));
            assert!(logits[3 * n..4 * n].iter().all(|x| x.is_nan()));
            assert!(logits[5 * n..6 * n].contains(&f32::INFINITY));
        }
    }
}

#[test]
fn digests_that_do_not_fit_are_refused_by_name() {
    let device = device();
    device.enter(device.modes()[0]);
    let case = Head::new(&device, DType::Bf16, (2, 72, 64), false);
    let refusal = |digests: &Tensor, dtype| {
        let out = &Tensor::zeros(&device, dtype, &[2, 72]).unwrap();
        let (x, weight, workspace) = (&case.x, &case.weight, &case.workspace);
        head(&device, LinearArgs { x, weight, bias: None, out, workspace }, digests).unwrap_err().to_string()
    };
    let fitting = digest_buffer(&device, 2, 72).unwrap();
    assert!(refusal(&fitting, DType::Bf16).contains("head: out: expected f32"));
    for other in [digest_buffer(&device, 1, 72).unwrap(), digest_buffer(&device, 2, 64).unwrap()] {
        assert!(refusal(&other, DType::F32).contains("head: digests: expected u64 [2, 2, 2]"));
    }
}
