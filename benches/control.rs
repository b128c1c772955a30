//! Time of the controller's decisions on one core, for 64 sequences with some 255 drafted nodes each. Goal: 300 us a decision.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use smart_run::control::cost::{CostModel, CostTables, SweepKind, SweepPoint, Treads};
use smart_run::control::roofline::Roofline;
use smart_run::control::scan::{Bounds, Candidate, scan_verification, sort_candidates};
use smart_run::control::{Controller, ControllerConfig, Policy, RoundReport, SequenceView};

const SEQUENCES: usize = 64;
const NODES: usize = 255;

const VIEW: SequenceView = SequenceView {
    id: 0,
    root_token: 0,
    context_len: 1024,
    sampled: false,
    backlog: 2,
    max_depth: 100,
    weight: 1.0,
};

/// SplitMix64 in [0, 1).
fn unit(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}

/// One verification decision: sort the union of all drafted nodes by path probability and scan it.
fn union_scan(criterion: &mut Criterion) {
    let mut state = 1;
    let nodes = (0..SEQUENCES).flat_map(|sequence| (1..=NODES).map(move |node| (sequence, node)));
    let pools: Vec<_> =
        nodes.map(|(sequence, node)| Candidate::new(unit(&mut state).powi(3), sequence, node)).collect();
    let cost = Roofline::H200_LLAMA_8B.cost_model(SEQUENCES * (NODES + 1));
    let mut tables = CostTables::default();
    tables.freeze(&cost, (0..SEQUENCES).map(|_| 1024), SEQUENCES * (NODES + 1), 640);
    let (mut scratch, mut counts) = (Vec::new(), Vec::new());
    criterion.bench_function("union scan of 64 x 255 nodes", |bencher| {
        bencher.iter_batched_ref(
            || pools.clone(),
            |candidates| {
                sort_candidates(candidates, &mut scratch);
                black_box(scan_verification(
                    candidates,
                    &tables,
                    1_000_000,
                    Bounds { floor: 0, cap: NODES },
                    &mut counts,
                ))
            },
            BatchSize::SmallInput,
        )
    });
}

/// What a drafted round's times teach of costs: six levels, a target pass and what is left.
fn cost_learning(criterion: &mut Criterion) {
    let mut cost = Roofline::H200_LLAMA_8B.cost_model(SEQUENCES * (NODES + 1));
    let mut state = 3;
    criterion.bench_function("learning the times of a round of six levels", |bencher| {
        bencher.iter(|| {
            let mut noise = || 0.97 + 0.06 * f64::from(unit(&mut state));
            for rows in [1, 8, 10, 12, 9, 4] {
                let us = noise() * cost.draft_us(rows, 1024);
                cost.observe_draft(rows, 1024, us);
            }
            let tree = [(40, 1024)];
            let us = noise() * cost.verify_us(40, tree);
            cost.observe_verify(40, tree.into_iter(), us);
            cost.observe_overhead(false, 40.0 * noise(), 4400.0);
            cost.observe_prediction(4400.0, 4400.0 * noise());
        })
    });
}

/// All host work of a round at an H200's costs but for the learning of its times: the decision to draft, all levels, selection, packing and learning
/// from trees. The outcome is withheld, so that the controller goes on hoping.
fn whole_round(criterion: &mut Criterion) {
    for (sequences, sampled) in
        [1, 4, 16, SEQUENCES].into_iter().flat_map(|batch| [(batch, false), (batch, true)])
    {
        let config = ControllerConfig { max_level_rows: 4 * SEQUENCES, ..ControllerConfig::default() };
        let cost = Roofline::H200_LLAMA_8B.cost_model(SEQUENCES * (NODES + 1));
        let mut controller = Controller::new(Policy::Smart, config, cost);
        let views: Vec<_> = (0..sequences as u64).map(|id| SequenceView { id, sampled, ..VIEW }).collect();
        let mut state = 2;
        let top_k = controller.begin_round(&views).top_k;
        let tokens: Vec<i32> = (0..(4 * SEQUENCES * top_k) as i32).collect();
        // Children as drafters bring them, likeliest first: each takes the same share of what its elder sisters have left.
        let logps: Vec<f32> = (0..4 * SEQUENCES)
            .map(|_| unit(&mut state).clamp(0.05, 0.95))
            .flat_map(|share| (0..top_k as i32).map(move |rank| (share * (1.0 - share).powi(rank)).ln()))
            .collect();
        let mut drafted: usize = 0;
        let kind = if sampled { "sampled" } else { "greedy" };
        criterion.bench_function(&format!("whole round of {sequences} {kind} sequences"), |bencher| {
            bencher.iter(|| {
                controller.begin_round(&views);
                let round = controller.round_mut();
                while let Some(rows) = round.next_level() {
                    let children = rows.len() * top_k;
                    round.add_level(&tokens[..children], &logps[..children]);
                }
                black_box(round.select());
                drafted = (0..sequences).map(|sequence| round.pool(sequence).nodes().len() - 1).sum();
                controller.observe(&RoundReport::default());
            })
        });
        println!("nodes drafted in the last round: {drafted}");
    }
}

/// A round in which nothing is drafted, where every row is a tread: what the controller costs a batch that it leaves alone.
fn plain_round(criterion: &mut Criterion) {
    const BATCH: usize = 16;
    let point = |kind, tokens: usize, us: f64| SweepPoint {
        kind,
        tokens,
        sequences: BATCH.min(tokens),
        context: 0,
        us,
    };
    let verify =
        (1..=64).chain([128, 256, 512]).map(|rows| point(SweepKind::Verify, rows, 100.0 * rows as f64));
    // So dear that not even a probe is ever due.
    let draft = (1..=64).map(|rows| point(SweepKind::Draft, rows, 1e9));
    let points: Vec<_> = verify.chain(draft).collect();
    let cost = CostModel::from_sweep(&points, Treads { tokens: 1, nodes: 1 }).expect("a sound sweep");
    let config = ControllerConfig { max_level_rows: 16 * BATCH, ..ControllerConfig::default() };
    let mut controller = Controller::new(Policy::Smart, config, cost);
    let views: Vec<_> = (0..BATCH as u64).map(|id| SequenceView { id, ..VIEW }).collect();
    criterion.bench_function(&format!("plain round of {BATCH} sequences, treads of one row"), |bencher| {
        bencher.iter(|| {
            assert_eq!(controller.begin_round(&views).drafting, 0);
            black_box(controller.round_mut().select());
            controller.observe(&RoundReport::default());
        })
    });
}

criterion_group!(benches, union_scan, cost_learning, whole_round, plain_round);
criterion_main!(benches);
