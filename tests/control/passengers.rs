//! Prompts that are read in a round's target pass: nodes are priced at the width that the pass then has, the prompt itself is nobody's fault.

use smart_run::control::{
    Controller, ControllerConfig, CostModel, Passenger, PhaseTimes, Policy, RoundReport, SweepKind,
    SweepPoint, Treads,
};

use crate::common::{draft, view};

/// Rows are free up to 64 and dear beyond; drafting is nearly free.
fn cost() -> CostModel {
    let point = |kind, tokens, us| SweepPoint { kind, tokens, sequences: 1, context: 0, us };
    let us = |rows: usize| 1000.0 + 30.0 * rows.saturating_sub(64) as f64;
    let verify = (1..=40).map(|tread| point(SweepKind::Verify, 8 * tread, us(8 * tread)));
    let points: Vec<_> = verify.chain([point(SweepKind::Draft, 8, 1.0)]).collect();
    CostModel::from_sweep(&points, Treads { tokens: 8, nodes: 4 }).expect("a sound sweep")
}

fn controller(policy: Policy) -> Controller {
    let config = ControllerConfig { top_k: 4, max_depth: 4, ..ControllerConfig::default() };
    Controller::new(policy, config, cost())
}

/// Nodes selected for two sequences beside `passengers`, and the predicted time.
fn nodes_beside(passengers: &[Passenger], seed: u64) -> (usize, f32) {
    let mut controller = controller(Policy::Smart);
    controller.begin_shared_round(&[view(0), view(1)], passengers);
    let trees = draft(&mut controller, seed);
    (trees.iter().map(|tree| tree.tree.num_nodes()).sum(), controller.predicted().verify)
}

#[test]
fn trees_shrink_where_a_prompt_takes_the_free_rows() {
    let passenger = |rows| [Passenger { rows, context_len: 0 }];
    for seed in 0..10 {
        let (alone, _) = nodes_beside(&[], seed);
        assert!(alone > 20, "rows up to 64 are free: {alone} nodes");
        let (with_room, _) = nodes_beside(&passenger(16), seed);
        let (crowded, _) = nodes_beside(&passenger(56), seed);
        let (full, _) = nodes_beside(&passenger(128), seed);
        assert!(
            with_room <= alone && crowded < alone && full <= crowded,
            "{alone}, {with_room}, {crowded}, {full}"
        );
        assert!(2 * full < alone, "every node costs: {full} of {alone}");
    }
}

#[test]
fn rows_that_cost_nothing_change_nothing() {
    // The roots, the prompt and what is selected stay within the free rows.
    let mut flat = CostModel::from_sweep(
        &[
            SweepPoint { kind: SweepKind::Verify, tokens: 512, sequences: 1, context: 0, us: 1000.0 },
            SweepPoint { kind: SweepKind::Draft, tokens: 8, sequences: 1, context: 0, us: 1.0 },
        ],
        Treads { tokens: 8, nodes: 4 },
    )
    .unwrap();
    flat.set_overheads(0.0, 0.0);
    let select = |passengers: &[Passenger]| {
        let mut controller = Controller::new(Policy::Smart, ControllerConfig::default(), flat.clone());
        controller.begin_shared_round(&[view(0)], passengers);
        draft(&mut controller, 3)
    };
    assert!(select(&[]) == select(&[Passenger { rows: 200, context_len: 40 }]));
}

#[test]
fn the_prediction_holds_the_prompt_and_the_comparison_does_not() {
    for rows in [8, 64, 100, 256] {
        let mut alone = controller(Policy::Plain);
        alone.begin_round(&[view(0), view(1)]);
        let mut shared = controller(Policy::Plain);
        shared.begin_shared_round(&[view(0), view(1)], &[Passenger { rows, context_len: 0 }]);
        let extra = shared.predicted().total - alone.predicted().total;
        // Two roots and the prompt, in treads of 8.
        let width = 8 + rows.div_ceil(8) * 8;
        let wanted = 30.0 * width.saturating_sub(64) as f32;
        assert!((extra - wanted).abs() <= 0.02 * wanted + 1.0, "{rows} rows: {extra} us more, not {wanted}");
    }
}

#[test]
fn what_a_shared_pass_takes_teaches_the_cost_of_its_width() {
    let mut controller = controller(Policy::Plain);
    let before = (controller.cost().verify_us(200, [(1, 0)]), controller.cost().plain_us(2, 0));
    for _ in 0..200 {
        controller.begin_shared_round(&[view(0), view(1)], &[Passenger { rows: 198, context_len: 0 }]);
        let times = PhaseTimes { draft_levels: &[], verify: Some(9000.0), total: Some(9100.0) };
        controller.observe(&RoundReport { sequences: &[], times });
    }
    let after = (controller.cost().verify_us(200, [(1, 0)]), controller.cost().plain_us(2, 0));
    assert!(after.0 > 1.3 * before.0, "200 rows: {} us, then {}", before.0, after.0);
    assert!(after.1 < 1.05 * before.1, "a plain round: {} us, then {}", before.1, after.1);
}
