//! The scans against brute force, and staircases on which the per-node rule stalls.

use smart_run::control::cost::CostTables;
use smart_run::control::scan::{
    self, Bounds, Candidate, Selection, scan_verification, scan_width, sort_candidates,
};
use smart_run::control::{Controller, ControllerConfig, CostModel, Policy, SweepKind, SweepPoint, Treads};

use crate::common::{Random, draft, view};

/// No floor, the largest tree.
const CAP: Bounds = Bounds { floor: 0, cap: 255 };

/// Tables with a free choice of the time of every row count, without attention.
fn tables(batch: usize, verify_ns: Vec<u64>, draft_ns: Vec<u64>) -> CostTables {
    CostTables {
        tread: 1,
        verify_ns,
        draft_tread: 1,
        draft_ns,
        tile_nodes: 4,
        attention_rate: vec![0; 65],
        contexts: vec![0; batch],
        draft_attention_ns: vec![0; batch],
        plain_ns: 1,
        ..CostTables::default()
    }
}

/// A non-decreasing staircase with free stretches and sudden steps.
fn staircase(random: &mut Random, entries: usize) -> Vec<u64> {
    let mut ns = 500 + random.below(5000) as u64;
    (0..entries)
        .map(|_| {
            if random.unit() < 0.4 {
                ns += random.below(4000) as u64;
            }
            ns
        })
        .collect()
}

/// Acceptance probabilities with certain, hopeless and tied ones among them.
fn q(random: &mut Random) -> f32 {
    match random.below(6) {
        0 => 1.0,
        1 => 0.0,
        2 => 0.5,
        _ => random.unit() as f32,
    }
}

/// Every labelled tree of `nodes` nodes whose parents come first, as parent lists without the root.
fn all_trees(nodes: usize) -> Vec<Vec<usize>> {
    let mut trees = vec![vec![]];
    for node in 1..nodes {
        trees = trees
            .iter()
            .flat_map(|tree: &Vec<usize>| (0..node).map(move |parent| [&tree[..], &[parent]].concat()))
            .collect();
    }
    trees
}

fn sorted(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    sort_candidates(&mut candidates, &mut Vec::new());
    candidates
}

#[test]
fn best_prefix_is_the_best_of_all_subtrees() {
    let mut random = Random(1);
    for nodes in 1..=8 {
        for parents in all_trees(nodes) {
            let mut probs = vec![1.0f32];
            for &parent in &parents {
                probs.push(probs[parent] * q(&mut random));
            }
            let tables = tables(1, staircase(&mut random, 10), vec![0; 2]);
            let sunk_ns = random.below(3000) as u64;
            let candidates = sorted((1..nodes).map(|node| Candidate::new(probs[node], 0, node)).collect());
            let got = scan_verification(&candidates, &tables, sunk_ns, CAP, &mut vec![]);

            let mut best: f64 = 0.0;
            for subset in 0u32..1 << (nodes - 1) {
                let holds = |node: usize| node == 0 || subset >> (node - 1) & 1 == 1;
                if (1..nodes).any(|node| holds(node) && !holds(parents[node - 1])) {
                    continue;
                }
                let kept: Vec<_> = (1..nodes).filter(|&node| holds(node)).collect();
                let expected = scan::ONE + kept.iter().map(|&node| scan::fixed(probs[node])).sum::<u64>();
                best = best.max(scan::rate(expected, sunk_ns + tables.verify_ns[1 + kept.len()]));
            }
            assert_eq!(got.rate(), best, "{parents:?} {probs:?}");
            let kept: Vec<_> = candidates[..got.prefix].iter().map(|candidate| candidate.node()).collect();
            for &node in &kept {
                let parent = parents[node - 1];
                assert!(
                    parent == 0 || kept.contains(&parent),
                    "disconnected: {parents:?} {probs:?} {kept:?}"
                );
            }
        }
    }
}

#[test]
fn union_scan_is_the_best_split_over_sequences() {
    let mut random = Random(2);
    for _ in 0..500 {
        // Three sequences with up to four nodes each in descending order: any counts are subtrees of three chains.
        let chains: Vec<Vec<f32>> = (0..3)
            .map(|_| {
                let mut prob = 1.0;
                (0..random.below(5))
                    .map(|_| {
                        prob *= q(&mut random);
                        prob
                    })
                    .collect()
            })
            .collect();
        let tables = tables(3, staircase(&mut random, 16), vec![0; 2]);
        let candidates = chains.iter().enumerate().flat_map(|(sequence, chain)| {
            chain.iter().enumerate().map(move |(i, &prob)| Candidate::new(prob, sequence, i + 1))
        });
        let got = scan_verification(&sorted(candidates.collect()), &tables, 700, CAP, &mut vec![]);
        let mut best: f64 = 0.0;
        for a in 0..=chains[0].len() {
            for b in 0..=chains[1].len() {
                for c in 0..=chains[2].len() {
                    let kept = chains[0][..a].iter().chain(&chains[1][..b]).chain(&chains[2][..c]);
                    let expected = 3 * scan::ONE + kept.map(|&prob| scan::fixed(prob)).sum::<u64>();
                    best = best.max(scan::rate(expected, 700 + tables.verify_ns[3 + a + b + c]));
                }
            }
        }
        assert_eq!(got.rate(), best, "{chains:?}");
    }
}

/// Scans stop where nothing that is left could win, and read their tables tread by tread.
#[test]
fn long_scans_agree_with_trying_every_prefix() {
    let mut random = Random(5);
    let (mut stopped_early, mut whole) = (0, 0);
    for _ in 0..300 {
        let batch = 1 + random.below(5);
        let steepness = [0, 200, 2000, 20_000][random.below(4)];
        let mut ns = 20_000;
        let stairs = (0..400).map(|_| {
            ns += if random.unit() < 0.5 { random.below(1 + steepness) as u64 } else { 0 };
            ns
        });
        let mut tables = tables(batch, stairs.collect(), vec![0; 2]);
        tables.tread = 1 + random.below(9);
        tables.tile_nodes = 1 + random.below(9);
        tables.attention_rate = (0..65).map(|tiles| tiles << 20).collect();
        tables.contexts = (0..batch).map(|_| random.below(1 + steepness) as u64).collect();
        let power = 1 + random.below(12) as i32;
        let candidates: Vec<_> = (0..random.below(900))
            .map(|node| Candidate::new((random.unit() as f32).powi(power), random.below(batch), node))
            .collect();
        let candidates = sorted(candidates);
        let cap = 1 + random.below(250);
        let got = scan_verification(&candidates, &tables, 300, Bounds { floor: 0, cap }, &mut vec![]);

        let (mut expected, mut tokens, mut attention_ns) = (batch as u64 * scan::ONE, batch, 0);
        let mut held = vec![1; batch];
        let rate = |expected: u64, tokens: usize, attention_ns: u64| {
            scan::rate(expected, 300 + attention_ns + tables.verify_linear_ns(tokens))
        };
        let mut best = (rate(expected, tokens, 0), 0);
        for (i, candidate) in candidates.iter().enumerate() {
            let nodes = &mut held[candidate.sequence()];
            if *nodes <= cap && scan::fixed(candidate.value()) > 0 {
                expected += scan::fixed(candidate.value());
                tokens += 1;
                attention_ns += tables.attention_step_ns(candidate.sequence(), *nodes);
                *nodes += 1;
                let rate = rate(expected, tokens, attention_ns);
                if rate > best.0 {
                    best = (rate, i + 1);
                }
            }
        }
        assert_eq!((got.rate(), got.prefix), best);
        *(if got.prefix < candidates.len() / 2 { &mut stopped_early } else { &mut whole }) += 1;
    }
    assert!(stopped_early > 50 && whole > 50, "{stopped_early} short and {whole} long prefixes");
}

#[test]
fn attention_is_priced_by_tiles_of_each_sequence() {
    // Two sequences, the second with a long context: its fifth node opens a tile that does not pay.
    let mut tables = tables(2, vec![1_000_000; 32], vec![0; 2]);
    tables.attention_rate = (0..=64).map(|tiles| tiles << 20).collect();
    tables.contexts = vec![10, 2_000_000];
    tables.attention_ns = 2_000_010;
    let candidates =
        (1..=6).flat_map(|node| [Candidate::new(0.5, 0, node), Candidate::new(0.5, 1, node)]).collect();
    let candidates = sorted(candidates);
    let got = scan_verification(&candidates, &tables, 0, CAP, &mut vec![]);
    let of_second = candidates[..got.prefix].iter().filter(|candidate| candidate.sequence() == 1).count();
    // Ties go to the first sequence, so its six nodes come before the second's three that share the root's tile.
    assert_eq!((got.prefix, of_second), (9, 3));
    assert_eq!(got.ns, 1_000_000 + 2_000_010 + 10);
    assert_eq!(got.price, 0.5);
}

/// Two rows take 520 ns, three as long as four, five as long as eight. A tree that stands before an edge would take all the rows up to the next, so a
/// place costs a share of it; and what the last node pays bounds it.
#[test]
fn a_place_before_a_high_edge_costs_a_share_of_it() {
    let mut verify_ns = vec![0, 500, 520, 740, 740, 1300, 1300, 1300, 1300];
    verify_ns.resize(20, 9000);
    let tables = tables(1, verify_ns, vec![0; 2]);
    let price = |values: &[f32]| {
        let candidates: Vec<_> =
            (1..).zip(values).map(|(node, &value)| Candidate::new(value, 0, node)).collect();
        let got = scan_verification(&candidates, &tables, 0, CAP, &mut vec![]);
        (got.tokens, got.price)
    };
    let share = |expected: f64, ns: f64, step_ns: f64| (expected / ns * step_ns) as f32;
    assert_eq!(price(&[0.6, 0.1]), (2, share(f64::from(1.0 + 0.6_f32), 520.0, 220.0 / 2.0)));
    assert_eq!(price(&[0.9, 0.8, 0.7]).0, 4);
    assert!((price(&[0.9, 0.8, 0.7]).1 - share(3.4, 740.0, 560.0 / 4.0)).abs() < 1e-6);
    assert_eq!(price(&[0.9, 0.6, 0.4]), (4, 0.4), "no more than the last one pays");
}

#[test]
fn width_scan_agrees_with_trying_every_width() {
    let mut random = Random(3);
    for _ in 0..2000 {
        let count = random.below(12);
        let candidates =
            sorted((0..count).map(|node| Candidate::new(2.0 * q(&mut random), node % 3, node + 1)).collect());
        let mut tables = tables(3, vec![0; 2], staircase(&mut random, 14));
        tables.draft_tread = 1 + random.below(4);
        tables.draft_attention_ns = (0..3).map(|_| random.below(2000) as u64).collect();
        let current = Selection {
            expected: 3 * scan::ONE,
            ns: 20_000 + random.below(20_000) as u64,
            ..Selection::default()
        };
        let max_rows = random.below(12);

        let mut best = (current.rate(), 0);
        for width in 1..=count.min(max_rows) {
            let run = &candidates[..width];
            let expected =
                current.expected + run.iter().map(|candidate| scan::fixed(candidate.value())).sum::<u64>();
            let attention: u64 = (0..3)
                .filter(|&sequence| run.iter().any(|candidate| candidate.sequence() == sequence))
                .map(|sequence| tables.draft_attention_ns[sequence])
                .sum();
            let rate = scan::rate(expected, current.ns + attention + tables.draft_linear_ns(width));
            if rate > best.0 {
                best = (rate, width);
            }
        }
        assert_eq!(scan_width(&candidates, &tables, &current, max_rows, &mut vec![]), best.1);
    }
}

#[test]
fn sorting_is_by_value_then_identity_at_any_length() {
    let mut random = Random(4);
    for count in [0, 1, 511, 512, 5000] {
        let mut candidates: Vec<_> = (0..count)
            .map(|_| {
                let value =
                    [0.0, -1.0, f32::NAN, 1.0, 0.25, random.unit() as f32, 3.0 * random.unit() as f32]
                        [random.below(7)];
                Candidate::new(value, random.below(9), random.below(300))
            })
            .collect();
        let mut want = candidates.clone();
        want.sort();
        sort_candidates(&mut candidates, &mut Vec::new());
        assert!(candidates == want, "{count} candidates");
        let key = |candidate: &Candidate| (-candidate.value(), candidate.sequence(), candidate.node());
        assert!(candidates.is_sorted_by_key(key));
    }
}

#[test]
fn a_cap_holds_per_sequence_and_keeps_trees_connected() {
    let tables = tables(2, vec![1_000_000; 700], vec![0; 2]);
    let candidates =
        (1..=300).flat_map(|node| [Candidate::new(1.0, 0, node), Candidate::new(0.5, 1, node)]).collect();
    let mut nodes = vec![];
    let got = scan_verification(&sorted(candidates), &tables, 0, CAP, &mut nodes);
    assert_eq!(nodes, [256, 256]);
    assert_eq!(got.tokens, 512);
}

/// One sequence, treads of 8 with steps of `step_us`, no drafter cost to speak of.
fn stepped(policy: Policy, step_us: f64) -> Controller {
    let verify = (0..40).map(|tread| SweepPoint {
        kind: SweepKind::Verify,
        tokens: 8 * (tread + 1),
        sequences: 1,
        context: 0,
        us: 1000.0 + step_us * tread as f64,
    });
    let draft = SweepPoint { kind: SweepKind::Draft, tokens: 8, sequences: 1, context: 0, us: 0.01 };
    let points: Vec<_> = verify.chain([draft]).collect();
    let cost = CostModel::from_sweep(&points, Treads { tokens: 8, nodes: 4 }).unwrap();
    Controller::new(policy, ControllerConfig { top_k: 4, max_depth: 4, ..ControllerConfig::default() }, cost)
}

#[test]
fn the_per_node_rule_stalls_at_an_edge_that_the_scan_crosses() {
    let mut crossed = 0;
    for seed in 0..20 {
        let select = |policy| {
            // A step costs more than any one node brings, less than eight good ones do.
            let mut controller = stepped(policy, 150.0);
            controller.begin_round(&[view(1)]);
            let nodes = draft(&mut controller, seed)[0].tree.num_nodes();
            (nodes, controller.round().speedup())
        };
        let (paper_nodes, paper_speedup) = select(Policy::SmartPaper);
        let (nodes, speedup) = select(Policy::Smart);
        assert!(speedup >= paper_speedup, "seed {seed}: {speedup} against {paper_speedup}");
        if paper_nodes <= 8 && nodes > 8 && speedup > 1.02 * paper_speedup {
            crossed += 1;
        }
    }
    assert!(crossed >= 5, "the scan crossed only {crossed} of 20 edges");
}
