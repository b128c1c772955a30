//! Rules that stop a draft: at the very level that they say, each sequence by itself.

use smart_run::control::round::stop::Spread;
use smart_run::control::{Controller, ControllerConfig, CostModel, RoundReport, SequenceOutcome};

use crate::common::{Random, children, draft, view};

/// A round whose drafter answers with the distribution `levels[level]` for every row (the last one repeats); what is not said has no
/// probability. Returns levels run and draft tokens of the first tree.
fn run(controller: &mut Controller, levels: &[&[f32]]) -> (usize, usize) {
    controller.begin_round(&[view(1)]);
    run_begun(controller, |_| levels)
}

/// The same, by sequence, for a round that has begun.
fn run_begun<'a>(controller: &mut Controller, levels: impl Fn(u32) -> &'a [&'a [f32]]) -> (usize, usize) {
    let round = controller.round_mut();
    let mut level = 0;
    while let Some(rows) = round.next_level() {
        let rows = rows.to_vec();
        let mut logps = vec![];
        for row in &rows {
            let levels = levels(row.sequence);
            let probs = levels[level.min(levels.len() - 1)];
            logps
                .extend((0..round.top_k()).map(|rank| probs.get(rank).map_or(f32::NEG_INFINITY, |p| p.ln())));
        }
        let tokens: Vec<i32> = rows.iter().flat_map(|_| 0..round.top_k() as i32).collect();
        round.add_level(&tokens, &logps);
        level += 1;
    }
    (round.levels().len(), round.select()[0].tree.num_draft_tokens())
}

fn controller(policy: &str) -> Controller {
    let config = ControllerConfig { top_k: 4, max_depth: 8, ..ControllerConfig::default() };
    Controller::new(policy.parse().expect("a policy"), config, CostModel::unmeasured())
}

fn stop_level(policy: &str, levels: &[&[f32]]) -> usize {
    let mut controller = controller(policy);
    let (run, tokens) = run(&mut controller, levels);
    assert_eq!(tokens, run, "a chain, its last token included");
    let asked = controller.round().host_syncs();
    assert_eq!(asked, run.min(7), "after every level but the last possible one");
    run
}

const SURE: &[f32] = &[0.9, 0.05, 0.05];
const TORN: &[f32] = &[0.5, 0.25, 0.25];
const VAGUE: &[f32] = &[0.5, 0.1, 0.1];

#[test]
fn spread_is_that_of_the_distribution() {
    let spread = |probs: &[f32]| Spread::new(probs.iter().map(|p| p.ln()));
    let torn = spread(TORN);
    assert!((torn.entropy - 1.5 * 2f32.ln()).abs() < 1e-6, "{torn:?}");
    assert!((torn.confidence - 0.5).abs() < 1e-6 && (torn.margin - 0.25).abs() < 1e-6, "{torn:?}");
    // What is left over counts as one token of 0.3.
    let entropy: f32 = [0.5f32, 0.1, 0.1, 0.3].iter().map(|p| -p * p.ln()).sum();
    assert!((spread(VAGUE).entropy - entropy).abs() < 1e-6);
    assert_eq!(spread(&[1.0]), Spread { confidence: 1.0, margin: 1.0, entropy: 0.0 });
    // Nothing known: one token, which is certain; broken numbers are no probability.
    assert_eq!(spread(&[]), Spread::default());
    assert_eq!(Spread::new([f32::NEG_INFINITY; 3].into_iter()), Spread::default());
    // In any order.
    let (a, b) = (spread(&[0.2, 0.5, 0.1]), spread(&[0.5, 0.2, 0.1]));
    assert_eq!((a.confidence, a.margin), (b.confidence, b.margin));
}

#[test]
fn svip_stops_at_the_first_uncertain_distribution() {
    // sqrt(H): 0.63 sure, 1.02 torn, 1.08 vague.
    assert_eq!(stop_level("svip:1", &[SURE, SURE, TORN, SURE]), 3);
    assert_eq!(stop_level("svip:1.05", &[SURE, TORN, TORN, VAGUE, SURE]), 4);
    assert_eq!(stop_level("svip:1.1", &[SURE, TORN, VAGUE]), 8);
    assert_eq!(stop_level("svip:0.6", &[SURE]), 1);
    assert_eq!(stop_level("svip:0", &[&[1.0]]), 8, "certain tokens have no entropy");
}

#[test]
fn specdec_stops_when_a_rejection_is_likely() {
    // Before anything is learned q is the drafter's probability: 1 - 0.9^k passes 0.3 at k = 4, 0.5 at k = 7.
    assert_eq!(stop_level("specdec++:0.3", &[SURE]), 4);
    assert_eq!(stop_level("specdec++:0.5", &[SURE]), 7);
    assert_eq!(stop_level("specdec++:0.5", &[SURE, SURE, TORN]), 3);
    assert_eq!(stop_level("specdec++:1", &[TORN]), 8, "no probability is above 1");
    assert_eq!(stop_level("specdec++:0", &[SURE]), 1);
}

#[test]
fn disco_stops_by_its_classifier() {
    // Untrained: the log-odds are 4 confidence - 2, so 0.5 is even odds.
    assert_eq!(stop_level("disco:0.49", &[SURE, TORN, &[0.4, 0.3], SURE]), 3);
    assert_eq!(stop_level("disco:0.51", &[SURE, TORN, SURE]), 2);
    assert_eq!(stop_level("disco:0", &[&[0.1]]), 8);
}

#[test]
fn tapout_arms_stop_as_they_say() {
    // UCB1 tries every arm once, in order: entropy twice, rejection, confidence 0.4, margin 0.2, classifier.
    let mut controller = controller("tapout");
    let mut levels = vec![];
    for _ in 0..6 {
        // Confidence, then margin, then both are lost.
        let (run, tokens) = run(&mut controller, &[SURE, &[0.5, 0.4], &[0.3, 0.01], SURE]);
        levels.push(run);
        let drawn = vec![-1; tokens + 1];
        let outcome = SequenceOutcome { accepted: &[], drawn: &drawn };
        controller.observe(&RoundReport { sequences: &[outcome], ..RoundReport::default() });
    }
    assert_eq!(levels[3..5], [3, 2], "{levels:?}");
}

#[test]
fn ddd_stops_where_the_beam_has_lost_its_mass() {
    let mut stopped_early = 0;
    for seed in 0..60 {
        let threshold = -3.0 * Random(seed).unit();
        let mut controller = controller(&format!("ddd:{threshold}"));
        controller.begin_round(&[view(1)]);
        let round = controller.round_mut();
        let mut level = 0;
        while let Some(rows) = round.next_level() {
            let rows = rows.to_vec();
            if level > 0 {
                assert!(beam_mass(round.pool(0).nodes(), level).ln() >= threshold - 1e-5, "seed {seed}");
            }
            let (tokens, logps): (Vec<_>, Vec<_>) =
                rows.iter().map(|row| children(row, round.top_k(), seed)).unzip();
            round.add_level(&tokens.concat(), &logps.concat());
            level += 1;
        }
        assert_eq!(round.top_k(), 10);
        if level < 8 {
            stopped_early += 1;
            assert!(beam_mass(round.pool(0).nodes(), level).ln() < threshold + 1e-5, "seed {seed}");
        }
        let drafted = round.pool(0).nodes().len() - 1;
        assert_eq!(round.select()[0].tree.num_draft_tokens(), drafted.min(59));
    }
    assert!((10..60).contains(&stopped_early), "{stopped_early} of 60");
}

/// Probability of the ten best nodes at this depth together.
fn beam_mass(nodes: &[smart_run::control::PoolNode], depth: usize) -> f64 {
    let at_depth = nodes.iter().filter(|node| usize::from(node.depth) == depth);
    let mut probs: Vec<f64> = at_depth.map(|node| f64::from(node.path_logp).exp()).collect();
    probs.sort_by(|a, b| b.total_cmp(a));
    probs.iter().take(10).sum()
}

#[test]
fn each_sequence_stops_by_itself() {
    let mut controller = controller("svip:1");
    controller.begin_round(&[view(1), view(2)]);
    let (hard, easy): (&[&[f32]], &[&[f32]]) = (&[SURE, TORN], &[SURE]);
    run_begun(&mut controller, |sequence| if sequence == 0 { hard } else { easy });
    let tokens: Vec<_> =
        controller.round().selected().iter().map(|selected| selected.tree.num_draft_tokens()).collect();
    assert_eq!(tokens, [2, 8]);
    // One wait serves the batch.
    assert_eq!(controller.round().host_syncs(), 7);
}

#[test]
fn policies_that_a_device_can_run_alone_need_no_host() {
    for policy in
        ["smart", "smart-paper", "chain:5", "eagle1", "eagle2:4,3,20", "opt-tree:20", "sequoia:20", "goodput"]
    {
        let mut controller = controller(policy);
        run(&mut controller, &[SURE]);
        assert_eq!(controller.round().host_syncs(), 0, "{policy}");
    }
}

#[test]
fn opt_tree_stops_when_a_level_brings_too_little_and_keeps_the_best_tree() {
    let mut depths = [0; 9];
    for seed in 0..200 {
        let mut random = Random(seed);
        let (total, least_gain) = (2 + random.below(30), 0.6 * random.unit() as f32);
        let mut controller = controller(&format!("opt-tree:{total},{least_gain}"));
        controller.begin_round(&[view(1)]);
        let round = controller.round_mut();
        let mut sums = vec![0.0f64];
        while let Some(rows) = round.next_level() {
            let rows = rows.to_vec();
            let gain = sums.windows(2).last().map_or(f64::INFINITY, |pair| pair[1] - pair[0]);
            assert!(gain > f64::from(least_gain) - 1e-6, "seed {seed}: {sums:?}");
            let (tokens, logps): (Vec<_>, Vec<_>) =
                rows.iter().map(|row| children(row, round.top_k(), seed)).unzip();
            round.add_level(&tokens.concat(), &logps.concat());
            sums.push(best_sum(round.pool(0).nodes(), total - 1));
        }
        let levels = round.levels().len();
        depths[levels] += 1;
        if levels < 8 {
            // Too little gain, or nothing left that could get into the tree.
            let gain = sums[levels] - sums[levels - 1];
            let newest = round.pool(0).newest();
            round.select();
            let open = newest.clone().any(|node| round.pool(0).nodes()[node].verified);
            assert!(gain <= f64::from(least_gain) + 1e-6 || !open, "seed {seed}: {sums:?}");
        }
        round.select();
        let nodes = round.pool(0).nodes();
        let kept: f64 =
            nodes[1..].iter().filter(|node| node.verified).map(|node| f64::from(node.path_prob)).sum();
        assert!((kept - best_sum(nodes, total - 1)).abs() < 1e-6, "seed {seed}");
        assert_eq!(round.selected()[0].tree.num_nodes(), total.min(nodes.len()));
    }
    assert!(depths[1..].iter().filter(|&&count| count > 0).count() >= 4, "{depths:?}");
}

/// Sum of the `count` largest path probabilities.
fn best_sum(nodes: &[smart_run::control::PoolNode], count: usize) -> f64 {
    let mut probs: Vec<f64> = nodes[1..].iter().map(|node| f64::from(node.path_prob)).collect();
    probs.sort_by(|a, b| b.total_cmp(a));
    probs.iter().take(count).sum()
}

/// Running only those nodes of a level that are among the best so far loses nothing: the tree is the best of all that could be drafted.
#[test]
fn opt_tree_finds_the_best_tree_of_the_full_draft() {
    for seed in 0..50 {
        let config = ControllerConfig { top_k: 3, max_depth: 4, ..ControllerConfig::default() };
        let mut controller =
            Controller::new("opt-tree:12,0".parse().expect("a policy"), config, CostModel::unmeasured());
        controller.begin_round(&[view(1)]);
        draft(&mut controller, seed);
        let got = best_sum(controller.round().pool(0).nodes(), 11);
        let run: usize = controller.round().levels().iter().map(|level| level.rows).sum();
        // No bound on the tree: every node is run, 1 + 3 + 9 + 27 of them.
        let everything = "opt-tree:256,0".parse().expect("a policy");
        let mut controller = Controller::new(everything, config, CostModel::unmeasured());
        controller.begin_round(&[view(1)]);
        draft(&mut controller, seed);
        let nodes = controller.round().pool(0).nodes();
        assert_eq!(nodes.len(), 1 + 3 + 9 + 27 + 81, "seed {seed}");
        let best = best_sum(nodes, 11);
        assert!((got - best).abs() < 1e-6 && run < 40, "seed {seed}: {got} against {best}");
    }
}
