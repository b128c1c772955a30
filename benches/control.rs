//! Time of the controller's decisions on one core: 64 sequences with 255 drafted nodes each.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use smart_run::control::cost::CostTables;
use smart_run::control::scan::{Candidate, scan_verification, sort_candidates};
use smart_run::control::{CostModel, SweepKind, SweepPoint, Treads};

const SEQUENCES: usize = 64;
const NODES: usize = 255;

/// Falling path probabilities with a spread, as drafted pools have them.
fn pools() -> Vec<Candidate> {
    let mut state = 1u64;
    let mut candidates = Vec::new();
    for sequence in 0..SEQUENCES {
        for node in 1..=NODES {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let unit = (state >> 40) as f32 / (1u64 << 24) as f32;
            candidates.push(Candidate::new(unit * unit * unit, sequence, node));
        }
    }
    candidates
}

fn tables() -> CostTables {
    let point = |tokens: usize, context| {
        let us = 3500.0f64.max(19.0 * tokens as f64) + context as f64 * 0.03;
        SweepPoint { kind: SweepKind::Verify, tokens, sequences: 1, context, us }
    };
    let points: Vec<_> =
        [8, 64, 128, 184, 256, 512].iter().flat_map(|&n| [point(n, 0), point(n, 1000)]).collect();
    let cost = CostModel::from_sweep(&points, Treads::default()).unwrap();
    let mut tables = CostTables::default();
    tables.freeze(&cost, (0..SEQUENCES).map(|_| 1024), SEQUENCES * (NODES + 1), 640);
    tables
}

fn decision(criterion: &mut Criterion) {
    let (pools, tables) = (pools(), tables());
    let (mut scratch, mut counts) = (Vec::new(), Vec::new());
    criterion.bench_function("union scan, 64 x 255 nodes", |bencher| {
        bencher.iter_batched_ref(
            || pools.clone(),
            |candidates| {
                sort_candidates(candidates, &mut scratch);
                black_box(scan_verification(candidates, &tables, 1_000_000, NODES, &mut counts))
            },
            BatchSize::SmallInput,
        )
    });
}

criterion_group!(benches, decision);
criterion_main!(benches);
