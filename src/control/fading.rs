//! Evidence fades round by round, and is gone at last: numbers that went on fading would become subnormal, and arithmetic with those takes a
//! hundred times as long.
#![forbid(unsafe_code)]

/// What is smaller shows in nothing.
const GONE: f64 = 1e-12;

/// `value`, or nothing where it is next to nothing.
pub(super) fn unless_gone(value: f64) -> f64 {
    if value.abs() < GONE { 0.0 } else { value }
}

/// Whether sums may be made of `value` at full speed, for tests of what fades for long.
#[cfg(test)]
pub(super) fn is_fast(value: f64) -> bool {
    value == 0.0 || value.is_normal()
}
