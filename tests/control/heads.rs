//! Drafters that bring all levels of a round in one pass (`ControllerConfig::heads`): depth, price, and what is learned of it.

use smart_run::control::{
    Controller, ControllerConfig, CostModel, PhaseTimes, Policy, RoundReport, SequenceOutcome, SweepKind,
    SweepPoint, Treads,
};

use crate::common::view;

const DRAFT_US: f64 = 300.0;
const VERIFY_US: f64 = 1000.0;

/// Passes that cost the same whatever their width, a drafter's a third of a target's.
fn costs() -> CostModel {
    let point = |kind, us| SweepPoint { kind, tokens: 1, sequences: 1, context: 0, us };
    let sweep = [point(SweepKind::Verify, VERIFY_US), point(SweepKind::Draft, DRAFT_US)];
    CostModel::from_sweep(&sweep, Treads { tokens: 256, nodes: 256 }).unwrap()
}

fn controller(policy: &str, heads: Option<usize>) -> Controller {
    let config = ControllerConfig { heads, ..ControllerConfig::default() };
    Controller::new(policy.parse().unwrap(), config, costs())
}

/// Drafts and selects a round of `batch` sequences whose likeliest child has probability `best`; its levels.
fn round(controller: &mut Controller, batch: u64, best: f32) -> usize {
    let views: Vec<_> = (0..batch).map(view).collect();
    assert!(controller.begin_round(&views).drafts(), "{}", controller.policy());
    let round = controller.round_mut();
    while let Some(rows) = round.next_level() {
        let (rows, top_k) = (rows.len(), round.top_k());
        let tokens: Vec<i32> = (0..rows * top_k).map(|i| (i % top_k) as i32).collect();
        let other = (1.0 - best) / 20.0;
        let logps: Vec<f32> =
            (0..rows * top_k).map(|i| if i % top_k == 0 { best.ln() } else { other.ln() }).collect();
        round.add_level(&tokens, &logps);
    }
    round.select();
    round.levels().len()
}

#[test]
fn no_policy_drafts_deeper_than_there_are_heads() {
    for policy in
        ["chain:8", "eagle1", "medusa", "eagle2:10,5,60", "opt-tree:60,0", "sequoia:60", "smart", "svip:9"]
    {
        for heads in [1, 3] {
            let mut controller = controller(policy, Some(heads));
            assert_eq!(round(&mut controller, 2, 0.9), heads, "{policy}");
            let trees = controller.round().selected();
            let deepest = trees.iter().flat_map(|selected| selected.tree.depths()).max();
            assert_eq!(deepest.copied().map(usize::from), Some(heads), "{policy}");
        }
    }
}

#[test]
fn a_round_pays_for_one_pass_whatever_its_levels() {
    for (policy, levels) in [("chain:1", 1), ("chain:4", 4), ("eagle2:10,5,60", 4)] {
        let mut heads = controller(policy, Some(4));
        assert_eq!(round(&mut heads, 3, 0.8), levels);
        let predicted = heads.predicted();
        assert!((f64::from(predicted.draft) - DRAFT_US).abs() < 0.01, "{policy}: {predicted:?}");
        assert!((f64::from(predicted.verify) - VERIFY_US).abs() < 0.01, "{policy}: {predicted:?}");
        let whole = predicted.draft + predicted.verify;
        let overhead = heads.cost().overhead_us();
        assert!((f64::from(predicted.total - whole) - overhead).abs() < 0.01, "{policy}: {predicted:?}");
    }
    let mut network = controller("chain:4", None);
    round(&mut network, 3, 0.8);
    assert!((f64::from(network.predicted().draft) - 4.0 * DRAFT_US).abs() < 0.01);
}

/// A level that costs a third of a target pass does not pay for a likelihood that a free one still takes.
#[test]
fn smart_and_goodput_go_deeper_where_levels_are_free() {
    for policy in ["smart", "goodput"] {
        let levels = |heads| round(&mut controller(policy, heads), 1, 0.5);
        let (free, paid) = (levels(Some(6)), levels(None));
        assert_eq!(free, 6, "{policy}");
        assert!(paid < free, "{policy}: {paid} levels");
    }
}

/// What the host takes to answer later levels is no pass: the price of a pass stays what the first level took.
#[test]
fn only_the_first_level_teaches_the_price_of_a_pass() {
    let mut controller = controller("chain:4", Some(4));
    assert_eq!(controller.policy(), Policy::Chain(4));
    for _ in 0..200 {
        round(&mut controller, 1, 0.9);
        let outcome = SequenceOutcome { accepted: &[], drawn: &[7; 5] };
        let times = PhaseTimes {
            draft_levels: &[600.0, 1.0, 1.0, 1.0],
            verify: Some(VERIFY_US as f32),
            total: Some(1650.0),
        };
        controller.observe(&RoundReport { sequences: &[outcome], times });
    }
    let (draft, overhead) = (controller.cost().draft_us(1, 0), controller.cost().overhead_us());
    assert!((draft - 600.0).abs() < 20.0, "{draft}");
    // 1650 less the passes; the host's answers are part of it.
    assert!((overhead - 50.0).abs() < 5.0, "{overhead}");
}
