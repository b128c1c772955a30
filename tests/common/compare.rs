//! Comparison of a kernel's output with its oracle's.

use std::ops::Range;

use smart_run::device::DType;

use super::dump;

/// What may differ: |got - want| <= abs + rel * |want|.
#[derive(Clone, Copy, Debug)]
pub struct Tol {
    pub abs: f32,
    pub rel: f32,
}

impl Tol {
    /// Rounding once to `dtype` (half a unit in the last place) on top of f32 arithmetic whose error is at
    /// most `abs`.
    pub fn rounding(dtype: DType, abs: f32) -> Self {
        let half_unit = match dtype {
            DType::Bf16 => 1.0 / 256.0,  // 8 significant bits
            DType::F16 => 1.0 / 2048.0,  // 11
            _ => 1.0 / (1 << 22) as f32, // 24; two more units for the arithmetic
        };
        Self { abs, rel: half_unit * 1.01 }
    }
}

/// Panics unless `got` equals `want`: non-finite values at the same places first, then the rest within `tol`.
#[track_caller]
pub fn close(name: &str, got: &[f32], want: &[f32], tol: Tol) {
    dump::record(name, got, tol);
    assert_eq!(got.len(), want.len(), "{name}: number of elements");
    let same_class =
        |a: f32, b: f32| a.is_nan() == b.is_nan() && (a.is_nan() || a.is_finite() == b.is_finite());
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let infinite_alike = !want.is_infinite() || got == want;
        assert!(same_class(got, want) && infinite_alike, "{name}: element {i} is {got}, expected {want}");
    }
    let excess =
        |&(_, (&got, &want)): &(usize, (&f32, &f32))| (got - want).abs() - tol.abs - tol.rel * want.abs();
    let finite = got.iter().zip(want).enumerate().filter(|(_, (_, want))| want.is_finite());
    let Some(worst) = finite.max_by(|a, b| excess(a).total_cmp(&excess(b))) else { return };
    let (i, (got, want)) = worst;
    assert!(excess(&worst) <= 0.0, "{name}: element {i} is {got}, expected {want} within {tol:?}");
}

/// Panics unless both have the same bits everywhere.
#[track_caller]
pub fn same_bits(name: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{name}: number of elements");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            got.to_bits() == want.to_bits(),
            "{name}: element {i} is {got:?}, expected the bits of {want:?}"
        );
    }
}

/// Panics unless a row of `width` has the same bits whichever rows share the pass: `run` gives the output for
/// a range of 200 input rows.
#[track_caller]
pub fn rows_are_independent(name: &str, width: usize, run: impl Fn(Range<usize>) -> Vec<f32>) {
    let whole = run(0..200);
    for range in [0..1, 59..60, 199..200, 0..8, 137..145, 0..60, 100..160] {
        let (got, want) = (run(range.clone()), &whole[range.start * width..range.end * width]);
        same_bits(&format!("{name}, rows {range:?} alone"), &got, want);
    }
}
