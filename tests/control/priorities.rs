//! Weights and floors: an urgent sequence gets more of the shared pass, a hopeless one keeps its share.

use smart_run::control::cost::CostTables;
use smart_run::control::scan::{self, Bounds, Candidate, scan_verification, sort_candidates};
use smart_run::control::{
    Controller, ControllerConfig, CostModel, Policy, SelectedTree, SequenceView, SweepKind, SweepPoint,
    Treads,
};

use crate::common::{Random, children, draft, view};

/// A pass whose every row costs, whatever the context; drafting is nearly free.
fn cost() -> CostModel {
    let point = |kind, tokens, us| SweepPoint { kind, tokens, sequences: 1, context: 0, us };
    let verify = (1..80).map(|rows| point(SweepKind::Verify, rows, 300.0 + 20.0 * rows as f64));
    let points: Vec<_> = verify.chain([point(SweepKind::Draft, 8, 1.0)]).collect();
    CostModel::from_sweep(&points, Treads { tokens: 1, nodes: 4 }).expect("a sound sweep")
}

fn controller(floor: usize) -> Controller {
    let config = ControllerConfig { top_k: 4, max_depth: 4, floor, ..ControllerConfig::default() };
    Controller::new(Policy::Smart, config, cost())
}

fn weighted(weights: &[f32]) -> Vec<SequenceView> {
    weights.iter().zip(0..).map(|(&weight, id)| SequenceView { weight, ..view(id) }).collect()
}

fn select(weights: &[f32], seed: u64) -> (Controller, Vec<SelectedTree>) {
    let mut controller = controller(0);
    controller.begin_round(&weighted(weights));
    let trees = draft(&mut controller, seed);
    (controller, trees)
}

#[test]
fn only_ratios_of_weights_matter_and_senseless_ones_count_as_1() {
    for seed in 0..20 {
        let (controller, plain) = select(&[1.0; 3], seed);
        let nonsense = [f32::NAN, 0.0, -3.0];
        for weights in [[7.3; 3], [1e-30; 3], [f32::MAX; 3], nonsense, [f32::INFINITY, 1.0, -0.0]] {
            let (other, trees) = select(&weights, seed);
            assert!(trees == plain, "{weights:?}");
            assert_eq!(other.round().speedup(), controller.round().speedup());
        }
        let (_, a) = select(&[1.0, 2.0, 4.0], seed);
        let (_, b) = select(&[0.25, 0.5, 1.0], seed);
        assert!(a == b, "seed {seed}");
    }
}

#[test]
fn an_urgent_sequence_gets_more_of_the_pass() {
    let mut gained = 0;
    for seed in 0..40 {
        let nodes = |trees: &[SelectedTree]| [0, 1].map(|sequence| trees[sequence].tree.num_nodes());
        let (_, plain) = select(&[1.0, 1.0], seed);
        let (_, urgent) = select(&[8.0, 1.0], seed);
        let (plain, urgent) = (nodes(&plain), nodes(&urgent));
        assert!(urgent[0] >= plain[0] && urgent[1] <= plain[1], "seed {seed}: {plain:?}, then {urgent:?}");
        gained += usize::from(urgent[0] > plain[0]);
    }
    assert!(gained > 20, "{gained} of 40");
}

#[test]
fn weighted_selection_is_the_best_of_all_splits() {
    let cost = cost();
    for seed in 0..40 {
        let mut random = Random(seed);
        let weights = [0.2 + 4.0 * random.unit() as f32, 1.0];
        let (controller, trees) = select(&weights, seed);
        let round = controller.round();
        let scale = 2.0 / f64::from(weights[0] + weights[1]);
        let worths: Vec<Vec<f64>> = (0..2)
            .map(|sequence| {
                let weight = scale * f64::from(weights[sequence]);
                let nodes = &round.pool(sequence).nodes()[1..];
                let mut worths: Vec<f64> =
                    nodes.iter().map(|node| weight * f64::from(node.path_prob)).collect();
                worths.sort_by(|a, b| b.total_cmp(a));
                worths
            })
            .collect();
        let sunk = f64::from(controller.predicted().draft) + cost.overhead_us();
        let rate = |a: usize, b: usize| {
            let expected = 2.0 + worths[0][..a].iter().sum::<f64>() + worths[1][..b].iter().sum::<f64>();
            expected / (sunk + cost.verify_us(2 + a + b, []))
        };
        let counts = [0, 1].map(|sequence| trees[sequence].tree.num_draft_tokens());
        let best = (0..=worths[0].len())
            .flat_map(|a| (0..=worths[1].len()).map(move |b| (a, b)))
            .map(|(a, b)| rate(a, b))
            .fold(0.0, f64::max);
        assert!(rate(counts[0], counts[1]) > 0.99999 * best, "seed {seed}: {counts:?}");
    }
}

#[test]
fn the_scan_is_exact_subject_to_the_floor() {
    let mut random = Random(9);
    let mut bound = 0;
    for _ in 0..2000 {
        let floor = 1 + random.below(3);
        let cap = floor + random.below(4);
        let chains: Vec<Vec<f32>> = (0..3)
            .map(|_| {
                let mut prob = 1.0;
                (0..random.below(6))
                    .map(|_| {
                        prob *= [0.0, 1.0, 0.5, random.unit() as f32][random.below(4)];
                        prob
                    })
                    .collect()
            })
            .collect();
        let mut ns = 500 + random.below(5000) as u64;
        let verify_ns = (0..24).map(|_| {
            ns += if random.unit() < 0.4 { random.below(4000) as u64 } else { 0 };
            ns
        });
        let tables = CostTables {
            tread: 1,
            verify_ns: verify_ns.collect(),
            draft_tread: 1,
            draft_ns: vec![0; 2],
            tile_nodes: 4,
            attention_rate: vec![0; 65],
            contexts: vec![0; 3],
            draft_attention_ns: vec![0; 3],
            plain_ns: 1,
            ..CostTables::default()
        };
        let mut candidates: Vec<Candidate> = chains
            .iter()
            .enumerate()
            .flat_map(|(sequence, chain)| {
                chain.iter().enumerate().map(move |(i, &prob)| Candidate::new(prob, sequence, i + 1))
            })
            .collect();
        sort_candidates(&mut candidates, &mut vec![]);
        let mut nodes = vec![];
        let got = scan_verification(&candidates, &tables, 700, Bounds { floor, cap }, &mut nodes);
        let free = scan_verification(&candidates, &tables, 700, Bounds { floor: 0, cap }, &mut nodes);
        let range = |chain: &Vec<f32>| chain.len().min(floor)..=chain.len().min(cap);
        let mut best: f64 = 0.0;
        for a in range(&chains[0]) {
            for b in range(&chains[1]) {
                for c in range(&chains[2]) {
                    let kept = chains[0][..a].iter().chain(&chains[1][..b]).chain(&chains[2][..c]);
                    let expected = 3 * scan::ONE + kept.map(|&prob| scan::fixed(prob)).sum::<u64>();
                    best = best.max(scan::rate(expected, 700 + tables.verify_ns[3 + a + b + c]));
                }
            }
        }
        assert_eq!(got.rate(), best, "floor {floor}, cap {cap}: {chains:?}");
        assert!(got.rate() <= free.rate());
        bound += usize::from(got.rate() < free.rate());
    }
    assert!(bound > 300, "the floor cost something in {bound} of 2000");
}

/// A round of a sequence that accepts nothing and one that accepts all; draft tokens of both trees.
fn hopeless_and_easy(controller: &mut Controller) -> Vec<SelectedTree> {
    controller.begin_round(&weighted(&[1.0, 1.0]));
    let round = controller.round_mut();
    while let Some(rows) = round.next_level() {
        let rows = rows.to_vec();
        let top_k = round.top_k();
        let (mut tokens, mut logps) = (vec![], vec![]);
        for row in &rows {
            let (row_tokens, _) = children(row, top_k, 1);
            tokens.extend(row_tokens);
            let first = if row.sequence == 0 { -14.0 } else { -0.05 };
            logps.extend((0..top_k).map(|rank| first - 2.0 * rank as f32));
        }
        round.add_level(&tokens, &logps);
    }
    round.select().to_vec()
}

#[test]
fn a_hopeless_sequence_keeps_its_floor() {
    let drafted = |floor| hopeless_and_easy(&mut controller(floor));
    let without = drafted(0);
    assert_eq!(without[0].tree.num_draft_tokens(), 0);
    assert!(without[1].tree.num_draft_tokens() >= 3);
    for floor in 1..=4 {
        let mut controller = controller(floor);
        let trees = hopeless_and_easy(&mut controller);
        assert_eq!(trees[0].tree.num_draft_tokens(), floor);
        assert!(trees[1].tree.num_draft_tokens() >= 3.max(floor));
        for (sequence, selected) in trees.iter().enumerate() {
            let nodes = controller.round().pool(sequence).nodes();
            for node in 1..selected.tree.num_nodes() {
                let parent = selected.tree.parent(node).expect("only node 0 is the root");
                assert_eq!(nodes[selected.pool_nodes[node] as usize].parent, selected.pool_nodes[parent]);
            }
        }
        let rows = trees.iter().map(|selected| selected.tree.num_nodes()).sum::<usize>();
        assert_eq!(controller.round().selection().tokens, rows, "the prediction is of what is verified");
    }
    // A floor beyond what was drafted takes it all.
    let mut controller = controller(200);
    let trees = hopeless_and_easy(&mut controller);
    assert_eq!(trees[0].tree.num_nodes(), controller.round().pool(0).nodes().len());
}
