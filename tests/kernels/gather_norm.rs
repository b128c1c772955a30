use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::gather_norm::{GatherNormPart, RowCopy, gather_norm};
use smart_run::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use smart_run::kernels::rmsnorm::{RmsNormArgs, rmsnorm};

use crate::common::compare::{Tol, close, same_bits};
use crate::common::device::{TestDevice, device};
use crate::common::inputs::{Guarded, MODEL_DTYPES, Rng, round_to, rounded, upload};
use smart_run::reference;

const EPS: f32 = 1e-5;
const INDEX: [i32; 7] = [3, 0, 4, -1, 3, 5, i32::MAX];
const SOURCE_ROWS: usize = 5;

/// Sizes, and the column where outputs start in their wider rows; odd means that no row is aligned.
const CASES: [(usize, usize); 6] = [(64, 8), (75, 8), (72, 3), (3, 0), (4400, 8), (256, 16)];

/// What a part is to do, beside its index.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    NormedAndGathered,
    NormedTwice,
    Normed,
    Copied,
    CopiedTwice,
}

const KINDS: [Kind; 5] =
    [Kind::NormedAndGathered, Kind::NormedTwice, Kind::Normed, Kind::Copied, Kind::CopiedTwice];

impl Kind {
    fn is_normed(self) -> bool {
        !matches!(self, Self::Copied | Self::CopiedTwice)
    }
}

/// A part's inputs, as the host has them.
struct Inputs {
    src: Vec<f32>,
    weight: Vec<f32>,
    index: Option<Vec<i32>>,
    kind: Kind,
    columns: usize,
}

impl Inputs {
    fn new(dtype: DType, seed: u64, columns: usize, indexed: bool, kind: Kind) -> Self {
        let mut rng = Rng::new(seed);
        let rows = if indexed { SOURCE_ROWS } else { INDEX.len() };
        Self {
            src: rounded(dtype, rng.with_outliers(rows * columns)),
            weight: rounded(dtype, rng.normals(columns)),
            index: indexed.then(|| INDEX.to_vec()),
            kind,
            columns,
        }
    }

    /// Rows as gathered, and as they go out, by the oracles.
    fn wanted(&self, dtype: DType) -> [Vec<f32>; 2] {
        let all: Vec<i32> = (0..INDEX.len() as i32).collect();
        let index = self.index.as_ref().unwrap_or(&all);
        let gathered = reference::gather_rows::gather_rows(&self.src, self.columns, index);
        let normed = match self.kind.is_normed() {
            true => reference::rmsnorm::rmsnorm(&mut gathered.clone(), None, &self.weight, EPS, |v| {
                round_to(dtype, v)
            }),
            false => gathered.clone(),
        };
        [gathered, normed]
    }
}

/// What a launch leaves of each part: out, and its copy.
fn run(device: &Device, dtype: DType, parts: &[Inputs], offset: usize) -> Vec<[Option<Vec<f32>>; 2]> {
    let columns = parts[0].columns;
    let matrices: Vec<_> = parts
        .iter()
        .enumerate()
        .map(|(p, part)| {
            let rows = part.src.len() / columns;
            let copies = !matches!(part.kind, Kind::Normed | Kind::Copied);
            // Every matrix has rows of another length.
            let guarded =
                |extra: usize| Guarded::new(device, dtype, INDEX.len(), columns + 16 * p + 8 * extra, offset);
            (
                upload(device, dtype, &part.src, &[rows, columns]),
                part.index.as_ref().map(|index| Tensor::from_slice(device, index, &[index.len()]).unwrap()),
                part.kind.is_normed().then(|| upload(device, dtype, &part.weight, &[columns])),
                guarded(0),
                copies.then(|| guarded(1)),
            )
        })
        .collect();
    let cut = |matrix: &Guarded| matrix.view().columns(0..columns);
    let views: Vec<_> = matrices.iter().map(|part| (cut(&part.3), part.4.as_ref().map(cut))).collect();
    let args: Vec<GatherNormPart> = matrices
        .iter()
        .zip(&views)
        .zip(parts)
        .map(|((part, (out, copy)), inputs)| GatherNormPart {
            src: &part.0,
            index: part.1.as_ref(),
            weight: part.2.as_ref(),
            out,
            copy: copy.as_ref().map(|copy| match inputs.kind {
                Kind::NormedTwice => RowCopy::Normed(copy),
                _ => RowCopy::Gathered(copy),
            }),
        })
        .collect();
    gather_norm(device, &args, EPS).unwrap();
    let values = |matrix: &Guarded| -> Vec<f32> {
        let all = matrix.values();
        all.chunks(all.len() / INDEX.len()).flat_map(|row| row[..columns].to_vec()).collect()
    };
    matrices.iter().map(|part| [Some(values(&part.3)), part.4.as_ref().map(values)]).collect()
}

fn check(device: &TestDevice, dtype: DType, name: &str, parts: &[Inputs], offset: usize) {
    // 2^-25: half a unit of the smallest f16
    let mut tol = Tol::rounding(dtype, 1.0 / (1 << 25) as f32);
    // Beyond rounding: what the sum of up to 4400 squares errs by, in whatever order.
    tol.rel += 2f32.powi(-20);
    for (p, ([out, copy], part)) in run(device, dtype, parts, offset).into_iter().zip(parts).enumerate() {
        let name = format!("{name}, part {p}");
        let ([gathered, normed], out) = (part.wanted(dtype), out.unwrap());
        if part.kind.is_normed() {
            close(&name, &out, &normed, tol);
        } else {
            same_bits(&name, &out, &gathered);
        }
        if let Some(copy) = copy {
            same_bits(&name, &copy, if part.kind == Kind::NormedTwice { &out } else { &gathered });
        }
    }
}

#[test]
fn every_case_matches_the_oracles() {
    let device = device();
    for dtype in MODEL_DTYPES.into_iter().chain([DType::F32]) {
        for (seed, (columns, offset)) in CASES.into_iter().enumerate() {
            for (i, kind) in KINDS.into_iter().enumerate() {
                let other = KINDS[(i + seed) % KINDS.len()];
                let part =
                    |salt, indexed, kind| Inputs::new(dtype, 10 * seed as u64 + salt, columns, indexed, kind);
                let parts = [part(1, true, kind), part(2, seed % 2 == 0, other)];
                for mode in device.modes() {
                    device.enter(mode);
                    let name = format!("{columns} columns {} {kind:?} {other:?} {mode:?}", dtype.name());
                    check(&device, dtype, &name, &parts, offset);
                    check(&device, dtype, &name, &parts[1..], offset);
                }
            }
        }
    }
}

#[test]
fn schedules_do_not_change_a_bit() {
    let device = device();
    let dtype = DType::Bf16;
    let parts = [
        Inputs::new(dtype, 1, 520, true, Kind::NormedAndGathered),
        Inputs::new(dtype, 2, 520, false, Kind::NormedTwice),
    ];
    device.enter(device.modes()[0]);
    let wanted = run(&device, dtype, &parts, 8);
    for mode in device.schedules() {
        device.enter(mode);
        assert_eq!(run(&device, dtype, &parts, 8), wanted, "{mode:?}");
    }
}

/// The bits of what it takes the place of, on whatever device.
#[test]
fn bits_are_those_of_gather_and_norm() {
    let device = device();
    for dtype in MODEL_DTYPES.into_iter().chain([DType::F32]) {
        for columns in [75, 256, 4096] {
            let part = Inputs::new(dtype, 3, columns, true, Kind::Normed);
            let rows = INDEX.len();
            let src = upload(&device, dtype, &part.src, &[SOURCE_ROWS, columns]);
            let weight = &upload(&device, dtype, &part.weight, &[columns]);
            let index = Tensor::from_slice(&device, &INDEX, &[rows]).unwrap();
            for mode in device.modes() {
                device.enter(mode);
                let gathered = Guarded::new(&device, dtype, rows, columns, 0);
                let normed = Guarded::new(&device, dtype, rows, columns, 0);
                let (residual, out) = (&gathered.view(), &normed.view());
                gather_rows(&device, GatherRowsArgs { src: &src, index: &index, out: residual }).unwrap();
                let args = RmsNormArgs { residual, delta: None, weight, out, tap: None, eps: EPS };
                rmsnorm(&device, args).unwrap();
                let got = run(&device, dtype, std::slice::from_ref(&part), 0).remove(0)[0].take().unwrap();
                same_bits(&format!("{columns} {} {mode:?}", dtype.name()), &got, &normed.values());
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device();
    let matrix = |dtype, rows, columns| Tensor::zeros(&device, dtype, &[rows, columns]).unwrap();
    let (src, out) = (&matrix(DType::F32, 4, 8), &matrix(DType::F32, 3, 8));
    let index = &Tensor::zeros(&device, DType::I32, &[3]).unwrap();
    let part = GatherNormPart { src, index: Some(index), weight: None, out, copy: None };
    let refusal = |parts: &[GatherNormPart]| gather_norm(&device, parts, EPS).unwrap_err().to_string();
    assert!(refusal(&[]).contains("gather_norm: parts: expected 1 to 2"));
    assert!(refusal(&[part; 3]).contains("got 3"));
    assert!(refusal(&[GatherNormPart { index: None, ..part }]).contains("out"), "four rows into three");
    let narrow = &matrix(DType::F32, 3, 7);
    assert!(refusal(&[part, GatherNormPart { out: narrow, ..part }]).contains("gather_norm: out"));
    let copy = Some(RowCopy::Normed(narrow));
    assert!(refusal(&[GatherNormPart { copy, ..part }]).contains("gather_norm: copy"));
    let other = &matrix(DType::Bf16, 4, 8);
    assert!(refusal(&[part, GatherNormPart { src: other, ..part }]).contains("gather_norm: src"));
}
