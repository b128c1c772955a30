//! A device against the host driver: the same cases, value by value.
//!
//! Both agree with one oracle within a tolerance, so they can be at most two tolerances apart; what the table adds is how
//! close they are, and that no case is missing. Kernels that give tokens, masks or copies are compared for equality by their
//! own tests.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::dump::{Entry, read};

/// Two tolerances, and a little because they are relative to slightly different values.
const LIMIT: f32 = 2.05;

/// Over the comparisons of one kernel's tests.
#[derive(Default)]
struct Agreement {
    comparisons: usize,
    elements: usize,
    same_bits: usize,
    /// Largest difference, in tolerances.
    worst: f32,
}

impl Agreement {
    fn add(&mut self, host: &Entry, device: &Entry) {
        self.comparisons += 1;
        self.elements += host.values.len();
        for (&a, &b) in host.values.iter().zip(&device.values) {
            let equal = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            self.same_bits += usize::from(equal);
            if !equal {
                let apart = (a - b).abs() / (host.tol.abs + host.tol.rel * a.abs());
                self.worst = if apart.is_nan() { f32::INFINITY } else { self.worst.max(apart) };
            }
        }
    }
}

/// `SMART_DUMPS=HOST:DEVICE` names two files written under `SMART_DUMP`.
#[test]
#[ignore = "compares files that two other runs have written"]
fn dumps_agree() {
    let paths = std::env::var("SMART_DUMPS").expect("SMART_DUMPS=HOST:DEVICE");
    let (host, device) = paths.split_once(':').expect("SMART_DUMPS=HOST:DEVICE");
    let (host, device) = (read(Path::new(host)), read(Path::new(device)));
    assert!(!host.is_empty(), "the host driver's dump is empty");
    let mut kernels: BTreeMap<&str, Agreement> = BTreeMap::new();
    let mut missing = Vec::new();
    for (key, entry) in &host {
        let Some(other) = device.get(key).filter(|other| other.values.len() == entry.values.len()) else {
            missing.push(key);
            continue;
        };
        kernels.entry(key.split(':').next().unwrap_or("")).or_default().add(entry, other);
    }
    println!(
        "{:<16} {:>11} {:>9} {:>12} {:>22}",
        "tests", "comparisons", "values", "equal bits", "worst, in tolerances"
    );
    for (kernel, found) in &kernels {
        let equal = 100.0 * found.same_bits as f64 / found.elements.max(1) as f64;
        println!(
            "{kernel:<16} {:>11} {:>9} {equal:>10.2} % {:>22.3}",
            found.comparisons, found.elements, found.worst
        );
    }
    for (kernel, found) in &kernels {
        assert!(found.worst <= LIMIT, "{kernel}: {} tolerances apart", found.worst);
    }
    assert!(
        missing.is_empty(),
        "{} cases that the device did not run, or not so: {missing:#?}",
        missing.len()
    );
}
