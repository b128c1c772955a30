//! Whatever the drafter says, the target draws and the clock shows: connected trees within every bound, and no panic.

use proptest::prelude::*;
use smart_run::control::planner::tapout::BanditKind;
use smart_run::control::{
    Controller, ControllerConfig, CostModel, MAX_DRAFT_TOKENS, PhaseTimes, Policy, RoundReport,
    SequenceOutcome, SequenceView, SweepKind, SweepPoint, Treads,
};

use crate::common::Random;

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![
        4 => Just(Policy::Smart),
        2 => Just(Policy::SmartPaper),
        1 => Just(Policy::Plain),
        1 => Just(Policy::Eagle1),
        1 => Just(Policy::Medusa),
        1 => Just(Policy::AutoN),
        1 => (1usize..20).prop_map(Policy::Chain),
        1 => (2usize..257, prop_oneof![Just(0.0f32), 0.0f32..2.0])
            .prop_map(|(total, least_gain)| Policy::OptTree { total, least_gain }),
        1 => (2usize..257).prop_map(|total| Policy::Sequoia { total }),
        1 => (1usize..20).prop_map(|max_length| Policy::Goodput { max_length }),
        1 => (-8.0f32..0.5).prop_map(Policy::Ddd),
        1 => (0.0f32..2.0).prop_map(Policy::Svip),
        1 => (0.0f32..1.0).prop_map(Policy::SpecDecPlusPlus),
        1 => (0.0f32..1.0).prop_map(Policy::Disco),
        1 => prop_oneof![Just(BanditKind::Ucb1), Just(BanditKind::Thompson)].prop_map(Policy::TapOut),
        1 => (1usize..12, 0usize..6, 2usize..257).prop_map(|(top_k, depth, total)| Policy::Eagle2 { top_k, depth, total }),
    ]
}

/// Positive times from nothing to absurd, in no order.
fn sweep() -> impl Strategy<Value = Vec<SweepPoint>> {
    let kind = prop_oneof![Just(SweepKind::Verify), Just(SweepKind::Draft), Just(SweepKind::Plain)];
    let us = prop_oneof![Just(1e-300), Just(1e300), 1e-3f64..1e6, 100.0f64..5000.0];
    let point = (kind, 1usize..300, 1usize..9, 0usize..5000, us).prop_map(
        |(kind, tokens, sequences, context, us)| SweepPoint { kind, tokens, sequences, context, us },
    );
    prop::collection::vec(point, 1..12)
}

/// Log-probabilities as a drafter should not send them: certain, impossible, tied, positive, not numbers.
fn logp(random: &mut Random) -> f32 {
    match random.below(8) {
        0 => 0.0,
        1 => f32::NEG_INFINITY,
        2 => f32::NAN,
        3 => 0.1,
        4 => -0.5,
        _ => (random.unit() as f32).ln(),
    }
}

/// A measured time, or none, or nonsense.
fn measured(random: &mut Random) -> Option<f32> {
    match random.below(6) {
        0 => None,
        1 => Some(f32::NAN),
        2 => Some(0.0),
        3 => Some(f32::INFINITY),
        _ => Some(10f32.powf(8.0 * random.unit() as f32 - 2.0)),
    }
}

fn check_round(
    controller: &mut Controller,
    views: &[SequenceView],
    config: &ControllerConfig,
    random: &mut Random,
) {
    let plan = controller.begin_round(views);
    let policy = controller.policy();
    let round = controller.round_mut();
    let mut levels = 0;
    let mut slots = vec![0; views.len()];
    while let Some(rows) = round.next_level() {
        let rows = rows.to_vec();
        levels += 1;
        assert!(!rows.is_empty() && rows.is_sorted_by_key(|row| row.sequence));
        if policy == Policy::Smart && levels > 1 {
            assert!(rows.len() <= config.max_level_rows);
        }
        for row in &rows {
            let deepest = views[row.sequence as usize].max_depth.min(config.heads.unwrap_or(usize::MAX));
            assert!(usize::from(row.depth) < deepest);
            slots[row.sequence as usize] += usize::from(row.node > 0);
        }
        let children = rows.len() * round.top_k();
        let tokens: Vec<i32> = (0..children).map(|_| random.below(50) as i32).collect();
        let logps: Vec<f32> = (0..children).map(|_| logp(random)).collect();
        round.add_level(&tokens, &logps);
    }
    assert!(slots.iter().all(|&slots| slots <= 256));
    assert_eq!(levels > 0, plan.drafts());
    assert!(round.host_syncs() <= levels);

    let limit = round.plan().max_draft_tokens;
    let trees = round.select().to_vec();
    assert_eq!(trees.len(), views.len());
    let mut outcomes = vec![];
    for (sequence, (selected, view)) in trees.iter().zip(views).enumerate() {
        let tree = &selected.tree;
        assert_eq!(tree.token(0), view.root_token);
        assert_eq!(selected.pool_nodes.len(), tree.num_nodes());
        assert!(tree.num_draft_tokens() <= limit.min(MAX_DRAFT_TOKENS));
        for node in 1..tree.num_nodes() {
            let (parent, pool_node) = (tree.parent(node).unwrap(), selected.pool_nodes[node]);
            let state = &round.pool(sequence).nodes()[pool_node as usize];
            assert!(parent < node && tree.depth(node) <= view.max_depth);
            assert_eq!(state.parent, selected.pool_nodes[parent], "the parent of a kept node is kept");
            assert!((0.0..=1.0).contains(&state.path_prob));
        }
        let drawn: Vec<i32> = (0..tree.num_nodes()).map(|_| random.below(50) as i32).collect();
        let (accepted, _) = tree.walk(&drawn);
        outcomes.push((accepted.iter().map(|&node| node as u32).collect::<Vec<_>>(), drawn));
    }
    round.compute_ratios();
    assert!(round.speedup().is_finite());

    let outcomes: Vec<_> =
        outcomes.iter().map(|(accepted, drawn)| SequenceOutcome { accepted, drawn }).collect();
    let draft_levels: Vec<f32> = (0..levels).filter_map(|_| measured(random)).collect();
    let times = PhaseTimes { draft_levels: &draft_levels, verify: measured(random), total: measured(random) };
    controller.observe(&RoundReport { sequences: &outcomes, times });
    assert!(controller.predicted().total.is_finite());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_round_of_every_policy_is_well_formed(
        policy in policy(),
        sweep in sweep(),
        treads in (1usize..17, 1usize..17),
        top_k in 1usize..12,
        max_depth in 0usize..10,
        max_draft_tokens in 1usize..300,
        max_level_rows in 1usize..100,
        floor in prop_oneof![3 => Just(0usize), 1 => 1usize..300],
        heads in prop_oneof![2 => Just(None), 1 => (1usize..6).prop_map(Some)],
        batch in 1usize..6,
        seed in any::<u64>(),
    ) {
        let treads = Treads { tokens: treads.0, nodes: treads.1 };
        let cost = CostModel::from_sweep(&sweep, treads).unwrap_or_else(|_| CostModel::unmeasured());
        let config = ControllerConfig { top_k, max_depth, max_draft_tokens, max_level_rows, heads, floor };
        let mut controller = Controller::new(policy, config, cost);
        let mut random = Random(seed);
        for _ in 0..12 {
            let views: Vec<_> = (0..batch)
                .map(|sequence| SequenceView {
                    id: random.below(2) as u64 * 100 + sequence as u64,
                    root_token: sequence as i32,
                    context_len: random.below(100_000),
                    sampled: random.below(2) == 0,
                    backlog: random.below(40),
                    max_depth: [0, 1, 3, usize::MAX][random.below(4)],
                    weight: [1.0, 1.0, 3.0, 0.0, -1.0, f32::NAN, f32::MAX, f32::MIN_POSITIVE][random.below(8)],
                })
                .collect();
            check_round(&mut controller, &views, &config, &mut random);
        }
    }
}
