//! Policies that plan from past rounds: each choice against enumeration, each learner against what it must find.

use std::collections::BTreeSet;

use smart_run::control::cost::CostTables;
use smart_run::control::plan::{StaticNode, StopRule, WidthRule};
use smart_run::control::planner::Stats;
use smart_run::control::planner::disco::Disco;
use smart_run::control::planner::goodput::Goodput;
use smart_run::control::planner::sequoia::{Sequoia, TreeTable};
use smart_run::control::planner::tapout::{ARMS, Bandit, BanditKind};
use smart_run::control::roofline::Roofline;
use smart_run::control::round::stop::Spread;
use smart_run::control::{
    Controller, ControllerConfig, CostModel, RoundReport, SequenceOutcome, SweepKind, SweepPoint, Treads,
};

use crate::common::{Random, view};
use smart_run::replay::Player;
use smart_run::replay::process::{Ease, Process};

use crate::simulation::{record, run, settings, speed};

/// Acceptance with certain, hopeless and tied ranks among them, in no order.
fn rates(random: &mut Random, ranks: usize) -> Vec<f64> {
    (0..ranks)
        .map(|_| match random.below(6) {
            0 => 1.0,
            1 => 0.0,
            2 => 0.25,
            _ => random.unit(),
        })
        .collect()
}

/// Costs that step at random, per row and per tile of four nodes.
fn tables(random: &mut Random, batch: usize) -> CostTables {
    let mut stairs = |entries: usize, first: usize, step: usize| -> Vec<u64> {
        let mut ns = 1 + random.below(first) as u64;
        (0..entries)
            .map(|_| {
                ns += if random.unit() < 0.4 { random.below(step) as u64 } else { 0 };
                ns
            })
            .collect()
    };
    let verify_ns = stairs(200, 20_000, 3000);
    let draft_ns = stairs(200, 2000, 400);
    let mut tables = CostTables {
        tread: 1,
        verify_ns,
        draft_tread: 1,
        draft_ns,
        tile_nodes: 4,
        attention_rate: (0..65).map(|tiles| tiles << 20).collect(),
        contexts: (0..batch).map(|_| random.below(500) as u64).collect(),
        draft_attention_ns: (0..batch).map(|_| random.below(200) as u64).collect(),
        overhead_ns: random.below(1000) as u64,
        plain_ns: 1 + random.below(20_000) as u64,
        ..CostTables::default()
    };
    tables.attention_ns = tables.contexts.iter().sum();
    tables
}

/// Time of a round in which each drafting sequence has these rows a level after the first and these draft tokens.
fn round_ns(stats: &Stats<'_>, widths: &[usize], draft_tokens: usize) -> u64 {
    let tables = stats.tables;
    let drafting = stats.drafting.len();
    let draft_attention: u64 =
        stats.drafting.iter().map(|&sequence| tables.draft_attention_ns[sequence]).sum();
    let attention: u64 = stats
        .drafting
        .iter()
        .map(|&sequence| tables.contexts[sequence] * (draft_tokens as u64 / 4))
        .sum::<u64>()
        + tables.attention_ns;
    let levels = std::iter::once(stats.catch_up_rows).chain(widths.iter().map(|width| width * drafting));
    let draft: u64 = levels.map(|rows| tables.draft_ns[rows] + draft_attention).sum();
    tables.overhead_ns + draft + tables.verify_ns[tables.batch() + drafting * draft_tokens] + attention
}

type Path = Vec<u32>;

/// Every tree over `ranks` ranks of up to `nodes` nodes, root excluded, no deeper than `depth`, as sets of paths.
fn all_trees(ranks: u32, nodes: usize, depth: usize) -> BTreeSet<BTreeSet<Path>> {
    let mut all = BTreeSet::from([BTreeSet::new()]);
    let mut newest = all.clone();
    for _ in 0..nodes {
        let mut larger = BTreeSet::new();
        for tree in &newest {
            let inner = tree.iter().cloned().chain([vec![]]).filter(|path: &Path| path.len() < depth);
            for child in inner.flat_map(|path| (0..ranks).map(move |rank| [&path[..], &[rank]].concat())) {
                let mut grown = tree.clone();
                if grown.insert(child) {
                    larger.insert(grown);
                }
            }
        }
        all.extend(larger.iter().cloned());
        newest = larger;
    }
    all
}

fn value(path: &[u32], rates: &[f64]) -> f64 {
    path.iter().map(|&rank| rates[rank as usize]).product()
}

fn paths(tree: &[StaticNode]) -> Vec<Path> {
    let mut paths: Vec<Path> = vec![vec![]];
    for node in tree {
        let path = [&paths[node.parent as usize][..], &[node.rank]].concat();
        paths.push(path);
    }
    paths.remove(0);
    paths
}

/// Rows of each drafter pass after the first.
fn widths(tree: &[StaticNode]) -> Vec<usize> {
    let parents: BTreeSet<u32> = tree.iter().map(|node| node.parent).filter(|&parent| parent > 0).collect();
    let paths = paths(tree);
    let mut widths = vec![0; paths.iter().map(Vec::len).max().unwrap_or(0).saturating_sub(1)];
    for parent in parents {
        widths[paths[parent as usize - 1].len() - 1] += 1;
    }
    widths
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * (1.0 + a.abs())
}

#[test]
fn sequoia_tables_hold_the_best_of_all_trees() {
    let mut random = Random(1);
    let trees: Vec<_> = (1..=3).map(|depth| all_trees(3, 5, depth)).collect();
    for _ in 0..200 {
        let rates = rates(&mut random, 3);
        let table = TreeTable::new(&rates, 5, 3);
        for depth in 1..=3 {
            for nodes in 1..=5 {
                let best = trees[depth - 1]
                    .iter()
                    .filter(|tree| tree.len() <= nodes)
                    .map(|tree| tree.iter().map(|path| value(path, &rates)).sum())
                    .fold(0.0, f64::max);
                let held = nodes.min(table.max_nodes(depth));
                let got = table.accepted(held, depth);
                assert!(close(got, best), "{rates:?}, {nodes} nodes, depth {depth}: {got} against {best}");

                let tree = table.tree(held, depth);
                let paths = paths(&tree);
                let sum: f64 = paths.iter().map(|path| value(path, &rates)).sum();
                assert_eq!(tree.len(), held);
                assert_eq!(paths.iter().collect::<BTreeSet<_>>().len(), held, "every node once");
                assert!(close(sum, best), "the tree is worth what the table says");
                assert!(paths.iter().all(|path| path.len() <= depth));
                assert!(tree.is_sorted_by_key(|node| (node.parent, node.rank)), "level by level, by rank");
            }
        }
    }
}

#[test]
fn sequoia_tables_of_many_nodes_take_the_largest_products() {
    let mut random = Random(2);
    for _ in 0..20 {
        let rates: Vec<f64> = (0..10).map(|_| 0.6 * random.unit()).collect();
        let table = TreeTable::new(&rates, 63, 6);
        // The value of a tree is a sum over nodes and no node is worth more than its parent: the best tree is the best nodes.
        let (mut open, mut best) = (vec![(1.0, 0)], 0.0);
        for nodes in 1..=63 {
            if nodes == 1 {
                open = rates.iter().map(|&rate| (rate, 1)).collect();
            }
            let (at, &(gain, depth)) = open
                .iter()
                .enumerate()
                .max_by(|a, b| a.1.0.total_cmp(&b.1.0))
                .expect("more nodes than asked for");
            open.swap_remove(at);
            if depth < 6 {
                open.extend(rates.iter().map(|&rate| (gain * rate, depth + 1)));
            }
            best += gain;
            assert!(close(table.accepted(nodes, 6), best), "{nodes} nodes of {rates:?}");
        }
    }
}

#[test]
fn sequoia_chooses_the_size_and_depth_that_pay_best() {
    let mut random = Random(3);
    let mut sizes = BTreeSet::new();
    for _ in 0..200 {
        let batch = 1 + random.below(4);
        let tables = tables(&mut random, batch);
        let drafting: Vec<usize> = (0..batch).filter(|_| random.unit() < 0.7).collect();
        let stats = Stats { tables: &tables, drafting: &drafting, catch_up_rows: 2 * drafting.len() };
        let mut sequoia = Sequoia::new(4, 15, 5);
        let tree = sequoia.tree(&stats);
        if drafting.is_empty() {
            assert!(tree.is_empty());
            continue;
        }
        let rates = sequoia.rates();
        let table = TreeTable::new(&rates, 15, 5);
        let rate = |tree: &[StaticNode]| {
            let accepted = paths(tree).iter().map(|path| value(path, &rates)).sum();
            stats.rate(accepted, round_ns(&stats, &widths(tree), tree.len()))
        };
        let best = (1..=5)
            .flat_map(|depth| (1..=15).map(move |nodes| (nodes, depth)))
            .filter(|&(nodes, depth)| nodes <= table.max_nodes(depth))
            .map(|(nodes, depth)| rate(&table.tree(nodes, depth)))
            .fold(0.0, f64::max);
        assert!(close(rate(&tree) / best, 1.0), "{} against {best}", rate(&tree));
        sizes.insert(tree.len());
    }
    assert!(sizes.len() > 5, "costs decide: {sizes:?}");
}

/// A controller whose passes all cost the same at any width that matters here.
fn controller(policy: &str, max_depth: usize) -> Controller {
    let point = |kind, us| SweepPoint { kind, tokens: 1, sequences: 1, context: 0, us };
    let points = [point(SweepKind::Verify, 1000.0), point(SweepKind::Draft, 60.0)];
    let cost = CostModel::from_sweep(&points, Treads::default()).expect("a sound sweep");
    let config = ControllerConfig { top_k: 3, max_depth, ..ControllerConfig::default() };
    Controller::new(policy.parse().expect("a policy"), config, cost)
}

/// One round of one sequence: every row proposes tokens 0, 1, 2 with these log-probabilities, and the target draws `token` always.
/// Returns the number of accepted tokens.
fn one_round(controller: &mut Controller, logps: [f32; 3], token: i32) -> usize {
    controller.begin_round(&[view(1)]);
    let round = controller.round_mut();
    while let Some(num_rows) = round.next_level().map(<[_]>::len) {
        let children = (0..num_rows).flat_map(|_| (0..).zip(logps).take(round.top_k()));
        let (tokens, logps): (Vec<i32>, Vec<f32>) = children.unzip();
        round.add_level(&tokens, &logps);
    }
    let tree = round.select()[0].tree.clone();
    let drawn = vec![token; tree.num_nodes()];
    let accepted: Vec<u32> = tree.walk(&drawn).0.iter().map(|&node| node as u32).collect();
    let outcome = SequenceOutcome { accepted: &accepted, drawn: &drawn };
    controller.observe(&RoundReport { sequences: &[outcome], ..RoundReport::default() });
    accepted.len()
}

#[test]
fn sequoia_learns_ranks_that_its_tree_left_out() {
    // The target takes the third choice always, which the first tree hardly tries below the root.
    let mut controller = controller("sequoia:8", 6);
    let logps = [-0.1, -3.0, -4.0];
    for _ in 0..40 {
        one_round(&mut controller, logps, 2);
    }
    assert_eq!(one_round(&mut controller, logps, 2), 6, "as deep as allowed");
    let WidthRule::Static(tree) = controller.round().plan().width.clone() else { panic!("a static tree") };
    assert!(paths(&tree).contains(&vec![2; 6]), "{tree:?}");
    // Without a host: the tree is known beforehand.
    assert_eq!(controller.round().host_syncs(), 0);
}

#[test]
fn sequoia_plans_anew_after_32_rounds_or_soon_after_the_batch_has_changed() {
    let mut random = Random(4);
    let tables: Vec<_> = [1, 3].map(|batch| tables(&mut random, batch)).into();
    let stats = |batch: usize| Stats {
        tables: &tables[usize::from(batch > 1)],
        drafting: &[0, 1, 2][..batch],
        catch_up_rows: batch,
    };
    let mut sequoia = Sequoia::new(4, 15, 5);
    let first = sequoia.tree(&stats(1));
    let kept = (0..3).filter(|_| std::sync::Arc::ptr_eq(&first, &sequoia.tree(&stats(3)))).count();
    assert_eq!(kept, 3, "a batch that just changed is no reason yet");
    sequoia.tree(&stats(3));
    let second = sequoia.tree(&stats(3));
    assert!(!std::sync::Arc::ptr_eq(&first, &second));
    let rounds = (0..100).take_while(|_| std::sync::Arc::ptr_eq(&second, &sequoia.tree(&stats(3)))).count();
    assert!((31..=32).contains(&rounds), "{rounds}");
}

#[test]
fn goodput_chooses_the_best_of_all_lengths() {
    let mut random = Random(5);
    let mut lengths = BTreeSet::new();
    for _ in 0..500 {
        let batch = 1 + random.below(5);
        let tables = tables(&mut random, batch);
        let drafting: Vec<usize> = (0..batch).filter(|_| random.unit() < 0.8).collect();
        let stats = Stats { tables: &tables, drafting: &drafting, catch_up_rows: 3 * drafting.len() };
        let mut goodput = Goodput::new(8);
        let ease = random.unit();
        for _ in 0..random.below(50) {
            let accepted = (0..8).take_while(|_| random.unit() < ease).count();
            goodput.observe(8, accepted);
        }
        let rates: Vec<f64> = goodput.rates().collect();
        let speed = |length: usize| {
            let accepted: f64 = (1..=length).map(|depth| rates[..depth].iter().product::<f64>()).sum();
            let ns = match length {
                0 => tables.plain_ns,
                length => round_ns(&stats, &vec![1; length - 1], length),
            };
            stats.rate(accepted, ns)
        };
        let longest = if drafting.is_empty() { 0 } else { 8 };
        let best = (0..=longest).map(speed).fold(0.0, f64::max);
        let length = goodput.choose(&stats);
        assert!(close(speed(length) / best, 1.0), "length {length} of {rates:?}");
        lengths.insert(length);
    }
    assert!(lengths.len() >= 6 && lengths.contains(&0), "costs and acceptance decide: {lengths:?}");
}

#[test]
fn goodput_learns_each_position_from_chains_that_reached_it() {
    let mut goodput = Goodput::new(4);
    for _ in 0..400 {
        goodput.observe(3, 1);
    }
    let rates: Vec<f64> = goodput.rates().collect();
    assert!(rates[0] > 0.98 && rates[1] < 0.04, "{rates:?}");
    // The third was drafted but never reached, the fourth never drafted: both as good as the one before.
    assert_eq!((rates[2], rates[3]), (rates[1], rates[1]));
}

#[test]
fn goodput_leaves_plain_rounds_by_rare_probes() {
    // At first drafting costs more than any gain.
    let mut controller = controller("goodput:4", 8);
    for _ in 0..60 {
        one_round(&mut controller, [-0.1; 3], 7);
    }
    let mut probes = vec![];
    for round in 0..500 {
        let plan = controller.begin_round(&[view(1)]);
        if plan.drafts() {
            assert_eq!(plan.probing, 1);
            assert_eq!(controller.round().plan().max_levels, 1);
            probes.push(round);
        }
        one_round_after_begin(&mut controller);
    }
    assert!((3..=5).contains(&probes.len()), "{probes:?}");
    let gaps: Vec<_> = probes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.windows(2).all(|pair| pair[1] >= 2 * pair[0] - 1), "they back off: {gaps:?}");
    // The text turns easy: the next probes see it, and chains grow from there.
    let accepted: Vec<usize> = (0..2500).map(|_| one_round(&mut controller, [-0.1; 3], 0)).collect();
    assert!(accepted[2400..].iter().all(|&accepted| accepted == 4), "{:?}", &accepted[2400..]);
}

/// Ends a round that has begun, in which the target takes nothing.
fn one_round_after_begin(controller: &mut Controller) {
    let round = controller.round_mut();
    while let Some(num_rows) = round.next_level().map(<[_]>::len) {
        round.add_level(&vec![0; num_rows], &vec![-0.1; num_rows]);
    }
    let drawn = vec![7; round.select()[0].tree.num_nodes()];
    let outcome = SequenceOutcome { accepted: &[], drawn: &drawn };
    controller.observe(&RoundReport { sequences: &[outcome], ..RoundReport::default() });
}

#[test]
fn bandits_settle_on_the_best_arm_and_repeat_themselves() {
    for kind in [BanditKind::Ucb1, BanditKind::Thompson] {
        let run = || {
            let (mut bandit, mut random) = (Bandit::new(kind, 4), Random(6));
            let choices: Vec<usize> = (0..1000)
                .map(|_| {
                    let arm = bandit.choose();
                    let mean = [0.2, 0.5, 0.8, 0.3][arm];
                    bandit.reward(arm, mean + 0.2 * (random.unit() - 0.5));
                    arm
                })
                .collect();
            (choices, bandit.pulls().collect::<Vec<_>>())
        };
        let (choices, pulls) = run();
        assert_eq!(pulls.iter().sum::<u64>(), 1000);
        assert!(pulls[2] > 700 && pulls.iter().all(|&pulls| pulls > 0), "{kind}: {pulls:?}");
        let late = choices[800..].iter().filter(|&&arm| arm == 2).count();
        assert!(late > 150, "{kind}: {late} of the last 200");
        assert_eq!(choices, run().0, "{kind} is deterministic");
    }
}

#[test]
fn a_broken_reward_is_none() {
    let mut bandit = Bandit::new(BanditKind::Ucb1, 2);
    for _ in 0..200 {
        let arm = bandit.choose();
        bandit.reward(arm, if arm == 0 { f64::NAN } else { 0.5 });
    }
    let pulls: Vec<u64> = bandit.pulls().collect();
    assert!(pulls[1] > 4 * pulls[0], "{pulls:?}");
}

#[test]
fn tapout_tries_every_rule_and_gives_the_same_run_twice() {
    let rules = |policy: &str| {
        let record = record(Process::calibrated(3, Ease::Mixed(0.95, 0.2)), 2, 200);
        let costs = Roofline::H200_LLAMA_8B.cost_model(512);
        let settings = settings(2);
        let policy = policy.parse().expect("a policy");
        let mut player = Player::new(&record, &costs, policy, &settings).expect("sound");
        let rules: Vec<StopRule> = (0..300)
            .map(|_| {
                player.round();
                player.controller().round().plan().stop
            })
            .collect();
        (rules, player.finish())
    };
    for policy in ["tapout:ucb1", "tapout:thompson"] {
        let (stops, outcome) = rules(policy);
        assert_eq!(stops[..ARMS.len()], ARMS, "every arm once, in order");
        assert!(matches!(stops[ARMS.len()], StopRule::Classifier { .. }));
        assert_eq!((stops, outcome), rules(policy), "{policy}");
    }
}

#[test]
fn tapout_prefers_the_rule_that_suits_the_text() {
    // A confident and right drafter, whose second choice is close behind: rules on its confidence let it draft, the one on its
    // lead stops at once.
    let mut controller = controller("tapout:ucb1", 8);
    let mut counts = [0; ARMS.len() + 1];
    for _ in 0..600 {
        one_round(&mut controller, [-0.6, -0.8, -9.0], 0);
        let stop = controller.round().plan().stop;
        counts[ARMS.iter().position(|&rule| rule == stop).unwrap_or(ARMS.len())] += 1;
    }
    let margin = ARMS.iter().position(|rule| matches!(rule, StopRule::MarginBelow(_))).expect("an arm");
    let confidence =
        ARMS.iter().position(|rule| matches!(rule, StopRule::ConfidenceBelow(_))).expect("an arm");
    assert!(counts[confidence] > 2 * counts[margin], "{counts:?}");
}

#[test]
fn disco_learns_that_a_drafter_is_wrong_about_itself() {
    // Accepted where it is unsure.
    let mut disco = Disco::new(0.5);
    let unsure = Spread::new([0.3f32.ln(), 0.3f32.ln()].into_iter()).features(1);
    let sure = Spread::new([0.95f32.ln()].into_iter()).features(1);
    for _ in 0..2000 {
        disco.learn(&unsure, true);
        disco.learn(&sure, false);
    }
    let StopRule::Classifier { weights, threshold } = disco.stop_rule() else { panic!("a classifier") };
    let probability = |features: &[f32; 4]| smart_run::control::round::stop::logistic(&weights, features);
    assert!(probability(&unsure) > 0.9 && probability(&sure) < 0.1);
    assert_eq!(threshold, 0.5);
}

#[test]
fn planners_beat_plain_decoding_where_drafting_pays() {
    let record = record(Process::calibrated(1, Ease::Uniform(0.6)), 4, 200);
    for policy in ["opt-tree:60", "sequoia:64", "goodput", "ddd", "svip", "specdec++", "disco", "tapout"] {
        let speedup = speed(&run(policy, &record, 1, 100));
        assert!(speedup > 1.5, "{policy}: {speedup:.3}");
    }
}

#[test]
fn planners_that_read_costs_adapt_to_the_batch() {
    let record = record(Process::calibrated(1, Ease::Uniform(0.6)), 64, 120);
    for policy in ["sequoia:64", "goodput"] {
        let nodes = |batch| run(policy, &record, batch, 60).mean_nodes();
        let (alone, crowded) = (nodes(1), nodes(64));
        assert!(crowded < 0.7 * alone, "{policy}: {alone} nodes alone, {crowded} in a batch of 64");
    }
}
