//! The acceptance model: prior, law, forgetting, and what it may learn from.

use proptest::prelude::*;
use smart_run::control::acceptance::{AcceptanceModel, Label};
use smart_run::control::{Controller, ControllerConfig, CostModel, RoundReport, SequenceOutcome};

use crate::common::{Random, view};

/// One round of labels for one sequence: at each depth one child per confidence, accepted with probability `truth(p)`.
fn teach(
    model: &mut AcceptanceModel,
    sequence: u64,
    sampled: bool,
    random: &mut Random,
    truth: impl Fn(f64) -> f64,
) {
    let odds = model.odds(sequence);
    let labels: Vec<_> = (1..=3)
        .flat_map(|depth| [0.95, 0.7, 0.4, 0.15, 0.03].map(|p| (depth, p)))
        .map(|(depth, p): (usize, f64)| {
            let logp = p.ln() as f32;
            let q = model.calibration(sampled).q(depth, logp, odds);
            Label { depth, logp, q, accepted: random.unit() < truth(p) }
        })
        .collect();
    model.observe(sequence, sampled, &labels);
    model.refit();
}

fn q(model: &AcceptanceModel, depth: usize, p: f64, sequence: u64) -> f64 {
    f64::from(model.calibration(false).q(depth, p.ln() as f32, model.odds(sequence)))
}

#[test]
fn prior_is_the_drafters_own_probability() {
    let model = AcceptanceModel::new();
    for i in 1..=100 {
        let p = f64::from(i) / 100.0;
        assert!((q(&model, 1, p, 0) - p).abs() < 0.012, "{p}: {}", q(&model, 1, p, 0));
    }
    assert_eq!(model.calibration(false).q(1, -1e30, 1.0), (-16.0f32).exp());
    assert_eq!(model.calibration(false).q(1, f32::NEG_INFINITY, 2.0), 0.0);
    assert_eq!(model.calibration(false).q(1, f32::NAN, 1.0), (-16.0f32).exp());
    assert_eq!(model.calibration(false).q(9, 0.0, 1.0), 1.0);
}

#[test]
fn an_overconfident_drafter_is_corrected_at_every_confidence() {
    let mut model = AcceptanceModel::new();
    let mut random = Random(1);
    let truth = |p: f64| 0.6 * p * p;
    let mut error = 0.0;
    for round in 0..600 {
        // Sixteen sequences alike, so that the law is the curve's to learn.
        teach(&mut model, round % 16, false, &mut random, truth);
        if round >= 300 {
            for p in [0.95, 0.7, 0.4, 0.15, 0.03] {
                error += (q(&model, 2, p, round % 16) - truth(p)).abs() / (300.0 * 5.0);
            }
        }
    }
    assert!(error < 0.04, "mean error {error:.3}; the drafter's own is 0.25");
}

#[test]
fn greedy_and_sampled_are_kept_apart() {
    let mut model = AcceptanceModel::new();
    let mut random = Random(2);
    for round in 0..200 {
        teach(&mut model, round, false, &mut random, |_| 0.0);
    }
    assert!(model.calibration(false).q(1, -0.05, 1.0) < 0.2);
    assert_eq!(
        model.calibration(true).q(1, -0.05, 1.0),
        AcceptanceModel::new().calibration(true).q(1, -0.05, 1.0)
    );
}

#[test]
fn a_collapse_heals_within_thirty_rounds_and_stays_with_its_sequence() {
    let mut model = AcceptanceModel::new();
    let mut random = Random(3);
    for _ in 0..100 {
        for sequence in 0..4 {
            teach(&mut model, sequence, false, &mut random, |p| p);
        }
    }
    for _ in 0..30 {
        teach(&mut model, 0, false, &mut random, |p| 0.03 * p);
        for sequence in 1..4 {
            teach(&mut model, sequence, false, &mut random, |p| p);
        }
    }
    assert!(q(&model, 1, 0.95, 0) < 0.2, "collapsed: {}", q(&model, 1, 0.95, 0));
    for sequence in 1..4 {
        assert!(q(&model, 1, 0.95, sequence) > 0.75, "neighbour: {}", q(&model, 1, 0.95, sequence));
    }
}

#[test]
fn children_that_were_not_verified_teach_too() {
    // Two children drafted, the likelier verified; the target always draws the other.
    let mut controller = Controller::new(
        "eagle2:2,0,2".parse().unwrap(),
        ControllerConfig::default(),
        CostModel::unmeasured(),
    );
    let logps = [0.6f32.ln(), 0.3f32.ln()];
    for _ in 0..60 {
        controller.begin_round(&[view(1)]);
        let round = controller.round_mut();
        while round.next_level().is_some() {
            round.add_level(&[11, 12], &logps);
        }
        assert_eq!(round.select()[0].tree.tokens()[1..], [11]);
        let outcome = SequenceOutcome { accepted: &[], drawn: &[12, 0] };
        controller.observe(&RoundReport { sequences: &[outcome], ..RoundReport::default() });
    }
    let curve = controller.acceptance().calibration(false);
    let (likelier, other) = (curve.q(1, logps[0], 1.0), curve.q(1, logps[1], 1.0));
    // Monotone in confidence, so the two meet in the middle: far above what the verified child alone would say.
    assert!(other > 0.4, "{other}");
    assert!((likelier - 0.5).abs() < 0.1, "{likelier}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn curves_are_monotone_probabilities(
        labels in prop::collection::vec((1usize..12, -20.0f32..0.5, 0.0f32..1.0, any::<bool>()), 0..300),
        odds in 0.0f32..200.0,
    ) {
        let mut model = AcceptanceModel::new();
        for chunk in labels.chunks(10) {
            let labels: Vec<_> =
                chunk.iter().map(|&(depth, logp, q, accepted)| Label { depth, logp, q, accepted }).collect();
            model.observe(1, false, &labels);
            model.refit();
        }
        prop_assert!(model.odds(1).is_finite() && model.odds(1) > 0.0);
        for depth in 1..10 {
            let mut last = 0.0;
            for i in 0..=200 {
                let q = model.calibration(false).q(depth, -20.0 + 0.1 * i as f32, odds);
                prop_assert!((0.0..=1.0).contains(&q));
                prop_assert!(q >= last - 1e-6, "falls from {last} to {q}");
                last = q;
            }
        }
    }
}
