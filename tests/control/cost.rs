//! The cost model: treads, attention, healing, and its file.

use std::fs;

use proptest::prelude::*;
use smart_run::control::cost::Staircase;
use smart_run::control::roofline::Roofline;
use smart_run::control::{
    Controller, ControllerConfig, CostModel, KeptSweep, PhaseTimes, Policy, RoundReport, SequenceOutcome,
    SequenceView, SweepKind, SweepPoint, Treads,
};

use crate::common::{Random, draft, view};

fn verify(tokens: usize, context: usize, us: f64) -> SweepPoint {
    SweepPoint { kind: SweepKind::Verify, tokens, sequences: 1, context, us }
}

#[test]
fn time_is_flat_over_a_tread_and_extrapolates_by_its_slope() {
    let stairs = Staircase::new(8, &[(8, 100.0), (16, 120.0), (32, 160.0), (64, 240.0)]);
    for (rows, us) in [
        (1, 100.0),
        (8, 100.0),
        (9, 120.0),
        (16, 120.0),
        (17, 140.0),
        (24, 140.0),
        (25, 160.0),
        (64, 240.0),
        (128, 400.0),
    ] {
        assert_eq!(stairs.at(rows), us, "{rows} rows");
    }
}

#[test]
fn a_measured_dip_is_read_as_flat() {
    let stairs = Staircase::new(1, &[(1, 100.0), (2, 130.0), (3, 110.0), (4, 150.0)]);
    assert_eq!([1, 2, 3, 4].map(|rows| stairs.at(rows).round()), [100.0, 120.0, 120.0, 150.0]);
}

#[test]
fn kernels_without_treads_are_recognised() {
    let sweep = |us: fn(usize) -> f64| -> CostModel {
        let points: Vec<_> = [1, 2, 4, 8, 16, 32].map(|rows| verify(rows, 0, us(rows))).to_vec();
        CostModel::from_sweep(&points, Treads { tokens: 8, nodes: 4 }).unwrap()
    };
    let tiled = sweep(|rows| 100.0 + 20.0 * rows.div_ceil(8) as f64 + rows as f64 * 0.5);
    assert_eq!(tiled.verify_us(1, []), tiled.verify_us(8, []));
    let by_row = sweep(|rows| 100.0 + 20.0 * rows as f64);
    for rows in [1, 2, 3, 8, 12, 32] {
        assert!((by_row.verify_us(rows, []) - (100.0 + 20.0 * rows as f64)).abs() < 1e-6, "{rows} rows");
    }
}

#[test]
fn attention_is_told_from_the_rest_by_context() {
    let points: Vec<_> = [(4, 0), (4, 1000), (16, 0), (16, 1000)]
        .map(|(tokens, context)| {
            verify(tokens, context, 500.0 + tokens as f64 + context as f64 * 0.01 * (tokens / 4) as f64)
        })
        .to_vec();
    let cost = CostModel::from_sweep(&points, Treads { tokens: 4, nodes: 4 }).unwrap();
    assert!((cost.verify_us(4, [(4, 5000)]) - (504.0 + 50.0)).abs() < 0.1);
    assert!((cost.verify_us(16, [(16, 5000)]) - (516.0 + 200.0)).abs() < 0.1);
    assert!((cost.verify_us(8, [(4, 5000), (4, 0)]) - (508.0 + 50.0)).abs() < 0.1);
}

#[test]
fn unusable_sweeps_are_refused_in_one_sentence() {
    for us in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = CostModel::from_sweep(&[verify(8, 0, us)], Treads::default()).unwrap_err().to_string();
        assert!(error.contains("times must be positive and finite"), "{error}");
    }
    let draft = SweepPoint { kind: SweepKind::Draft, ..verify(8, 0, 1.0) };
    assert!(CostModel::from_sweep(&[draft], Treads::default()).is_err());
    assert!(CostModel::from_sweep(&[], Treads::default()).is_err());
    assert!(CostModel::from_sweep(&[verify(0, 0, 1.0)], Treads::default()).is_err());
}

/// Rounds of random widths on a machine whose true times are `factor` times the table's.
fn heal(factor: f64, rounds: usize) -> (f64, CostModel) {
    let roofline = Roofline::H200_LLAMA_8B;
    let mut cost = roofline.cost_model(512);
    let mut random = Random(9);
    for _ in 0..rounds {
        let nodes = 2 + random.below(60);
        let noise = 0.98 + 0.04 * random.unit();
        let us = factor * roofline.verify_us([(nodes, 1024)].into_iter()) * noise;
        cost.observe_prediction(cost.verify_us(nodes, [(nodes, 1024)]), us);
        cost.observe_verify(nodes, [(nodes, 1024)].into_iter(), us);
        cost.observe_draft(nodes, 1024, factor * roofline.draft_us(nodes, 1024) * noise);
    }
    let errors = (2..60).map(|nodes| {
        let verify = cost.verify_us(nodes, [(nodes, 1024)])
            / (factor * roofline.verify_us([(nodes, 1024)].into_iter()));
        let draft = cost.draft_us(nodes, 1024) / (factor * roofline.draft_us(nodes, 1024));
        (verify - 1.0).abs().max((draft - 1.0).abs())
    });
    (errors.fold(0.0, f64::max), cost)
}

#[test]
fn a_table_off_by_three_heals_within_fifty_rounds() {
    for factor in [3.0, 1.0 / 3.0] {
        let (error, _) = heal(factor, 50);
        assert!(error < 0.05, "off by {factor:.2}: {error:.3} after 50 rounds");
    }
    let (error, cost) = heal(1.0, 300);
    assert!(error < 0.03, "a right table stays right: {error:.3}");
    assert!(cost.prediction_error_p95().unwrap() < 0.03);
}

/// Target rows of a tree, and of plain rounds.
const TREE: usize = 4;

/// What a tree of 4 nodes and a drafter row cost in plain rounds, on a machine where every row costs.
fn beside_plain(cost: &CostModel) -> [f64; 2] {
    let plain = cost.plain_us(1, 0);
    [cost.verify_us(TREE, [(TREE, 0)]) / plain, cost.draft_us(1, 0) / plain]
}

fn small_machine() -> CostModel {
    let rows = [1, 2, 4, 8, 16];
    let target = rows.map(|rows| verify(rows, 0, 300.0 + 40.0 * rows as f64));
    let draft =
        rows.map(|rows| SweepPoint { kind: SweepKind::Draft, ..verify(rows, 0, 50.0 + 12.0 * rows as f64) });
    CostModel::from_sweep(&[target, draft].concat(), Treads { tokens: 1, nodes: 1 }).unwrap()
}

/// While nobody drafts only plain passes are measured. If what they teach were theirs alone, a machine that was slow for a while would make
/// drafting look dear for ever.
#[test]
fn what_slows_plain_rounds_is_taken_to_slow_all() {
    let mut cost = small_machine();
    let wanted = beside_plain(&cost);
    let us = cost.plain_us(1, 0);
    let mut random = Random(5);
    for round in 0..2000 {
        let busy = if (round / 250) % 2 == 0 { 1.6 } else { 1.0 };
        cost.observe_plain(1, 0, us * busy * (0.9 + 0.2 * random.unit()));
        let got = beside_plain(&cost);
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((got / wanted - 1.0).abs() < 0.08, "round {round}: {got} of a plain round, not {wanted}");
        }
    }
    assert!((cost.plain_us(1, 0) / us - 1.0).abs() < 0.1, "the pace itself is followed");
}

/// A level that the system stalls teaches next to nothing, whatever came before it.
#[test]
fn a_stalled_drafter_pass_does_not_make_drafting_dear() {
    let mut cost = small_machine();
    let us = cost.draft_us(1, 0);
    for slowdown in [1.3, 1.3, 1.3, 5.0, 1.3, 1.3] {
        cost.observe_draft(1, 0, us * slowdown);
    }
    assert!(cost.draft_us(1, 0) < 1.35 * us, "{} us, at first {us}", cost.draft_us(1, 0));
}

/// A round of `chain:3` on a small machine, or a plain one, whose passes took so long.
fn play(controller: &mut Controller, drafts: bool, levels: [f32; 3], verify: f32) {
    let max_depth = if drafts { usize::MAX } else { 0 };
    let plan = controller.begin_round(&[SequenceView { max_depth, context_len: 0, ..view(0) }]);
    assert_eq!(plan.drafts(), drafts);
    let trees = if drafts { draft(controller, 3) } else { Vec::new() };
    let drawn = vec![-1; trees.first().map_or(1, |it| it.tree.num_nodes())];
    let levels: &[f32] = if drafts { &levels } else { &[] };
    let total = Some(levels.iter().sum::<f32>() + verify);
    let times = PhaseTimes { draft_levels: levels, verify: Some(verify), total };
    let outcome = SequenceOutcome { accepted: &[], drawn: &drawn };
    controller.observe(&RoundReport { sequences: &[outcome], times });
}

fn chain_on_a_small_machine() -> Controller {
    Controller::new(Policy::Chain(3), ControllerConfig::default(), small_machine())
}

#[test]
fn what_a_first_pass_takes_beyond_a_level_is_overhead() {
    let mut controller = chain_on_a_small_machine();
    let (level, tree) = (controller.cost().draft_us(1, 0), controller.cost().verify_us(TREE, [(TREE, 0)]));
    for _ in 0..200 {
        play(&mut controller, true, [level as f32 + 200.0, level as f32, level as f32], tree as f32);
    }
    let cost = controller.cost();
    assert!((cost.draft_us(1, 0) / level - 1.0).abs() < 0.02, "{} us, not {level}", cost.draft_us(1, 0));
    assert!((cost.overhead_us() - 200.0).abs() < 10.0, "{} us of overhead", cost.overhead_us());
}

/// Drafted rounds among plain ones are cold: a few of them must not become what drafting seems to cost. Where drafting is the rule, the same times
/// soon are its price.
#[test]
fn cold_rounds_are_little_believed() {
    let dear = |between: usize, rounds: usize| {
        let mut controller = chain_on_a_small_machine();
        let level = controller.cost().draft_us(1, 0);
        let (plain, tree) =
            (controller.cost().plain_us(1, 0), controller.cost().verify_us(TREE, [(TREE, 0)]));
        for _ in 0..rounds {
            play(&mut controller, true, [2.0 * level as f32; 3], 1.5 * tree as f32);
            (0..between).for_each(|_| play(&mut controller, false, [0.0; 3], plain as f32));
        }
        (controller.cost().draft_us(1, 0) / level, controller.cost().plain_us(1, 0) / plain)
    };
    let (cold, warm) = (dear(4, 5), dear(0, 15));
    assert!(cold.0 < 1.4 && warm.0 > 1.8, "drafter passes of {cold:?} cold, {warm:?} warm");
    assert!((cold.1 - 1.0).abs() < 0.1, "plain passes are as they are: {cold:?}");
}

/// Passes of one width that are off while others are not say nothing of the machine.
#[test]
fn a_width_that_was_swept_wrong_is_corrected_alone() {
    let mut cost = small_machine();
    let (plain, tree) = (cost.plain_us(1, 0), cost.verify_us(TREE, [(TREE, 0)]));
    for _ in 0..100 {
        cost.observe_plain(1, 0, plain);
        cost.observe_verify(TREE, [(TREE, 0)].into_iter(), 1.3 * tree);
    }
    assert!((cost.plain_us(1, 0) / plain - 1.0).abs() < 0.05, "{} us, not {plain}", cost.plain_us(1, 0));
    let got = cost.verify_us(TREE, [(TREE, 0)]);
    assert!((got / tree / 1.3 - 1.0).abs() < 0.05, "{got} us, not 1.3 times {tree}");
}

#[test]
fn two_stalled_rounds_do_not_rewrite_the_table() {
    let mut stairs = Staircase::new(8, &[(8, 100.0), (64, 200.0), (256, 800.0)]);
    for _ in 0..20 {
        stairs.observe(64, 200.0);
    }
    stairs.observe(64, 20_000.0);
    stairs.observe(64, 20_000.0);
    assert!(stairs.at(64) < 210.0, "{}", stairs.at(64));
    assert!((stairs.at(8) - 100.0).abs() < 5.0 && (stairs.at(256) - 800.0).abs() < 40.0);
}

#[test]
fn widths_never_swept_are_learned() {
    let mut cost = CostModel::unmeasured();
    for _ in 0..60 {
        for (tokens, us) in [(1, 3000.0), (40, 3600.0), (300, 9000.0)] {
            cost.observe_verify(tokens, [(tokens, 0)].into_iter(), us);
        }
    }
    for (tokens, us) in [(1, 3000.0), (40, 3600.0), (300, 9000.0)] {
        let got = cost.verify_us(tokens, [(tokens, 0)]);
        assert!((got / us - 1.0).abs() < 0.1, "{tokens} tokens: {got:.0} against {us}");
    }
}

/// A sweep of passes of 1, 2 and 8 rows.
fn sweep(us: [f64; 3]) -> Vec<SweepPoint> {
    [1, 2, 8].into_iter().zip(us).map(|(rows, us)| verify(rows, 0, us)).collect()
}

const ROWS: Treads = Treads { tokens: 1, nodes: 1 };

#[test]
fn no_pass_costs_more_than_a_larger_one() {
    let mut points = sweep([250.0, 600.0, 460.0]);
    points.push(verify(8, 1000, 440.0));
    points.push(SweepPoint { kind: SweepKind::Draft, ..verify(8, 0, 30.0) });
    let cost = CostModel::from_sweep(&points, ROWS).unwrap();
    assert_eq!([1, 2, 8].map(|rows| cost.verify_us(rows, [])), [250.0, 440.0, 440.0]);
    assert_eq!(cost.draft_us(8, 0), 30.0, "passes of other kinds say nothing");
}

#[test]
fn a_sweep_in_a_bad_moment_is_not_kept_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/costs.json");
    let sweeps = [sweep([250.0, 440.0, 460.0]), sweep([800.0, 260.0, 900.0]), sweep([280.0, 270.0, 470.0])];
    for (taken, points) in sweeps.iter().enumerate() {
        let mut kept = KeptSweep::load(&path, "gpu");
        assert!(!kept.is_settled(), "after {taken} sweeps");
        kept.add(points, ROWS);
        assert!(kept.save(&path));
    }
    let kept = KeptSweep::load(&path, "gpu");
    assert!(kept.is_settled());
    let cost = kept.cost_model().unwrap();
    assert_eq!([1, 2, 8].map(|rows| cost.verify_us(rows, [])), [250.0, 260.0, 460.0]);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no partial file is left");
}

#[test]
fn a_file_keeps_the_sweeps_taken_last_each_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("costs.json");
    let us = |model: usize| sweep([100.0 + model as f64; 3]);
    let start = |model: usize| {
        let mut kept = KeptSweep::load(&path, &format!("model {model}"));
        kept.add(&us(model), ROWS);
        kept.save(&path);
        kept
    };
    (0..17).for_each(|model| drop(start(model)));
    for model in 0..17 {
        let kept = KeptSweep::load(&path, &format!("model {model}"));
        assert_eq!(kept.cost_model().is_ok(), model > 0, "model {model}: 16 fit, the oldest went");
    }
    start(1);
    start(17);
    assert!(KeptSweep::load(&path, "model 1").cost_model().is_ok(), "measured since");
    assert!(KeptSweep::load(&path, "model 2").cost_model().is_err(), "not measured since");
}

#[test]
fn a_damaged_file_is_as_good_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("costs.json");
    let mut kept = KeptSweep::load(&path, "gpu");
    assert_eq!(kept, KeptSweep::new("gpu"), "no file yet");
    kept.add(&sweep([250.0, 260.0, 460.0]), ROWS);
    assert!(kept.save(&path));
    assert_eq!(KeptSweep::load(&path, "gpu"), kept);
    assert_eq!(KeptSweep::load(&path, "another gpu"), KeptSweep::new("another gpu"));

    let text = fs::read_to_string(&path).unwrap();
    for (what, damaged) in [
        ("cut off", text[..text.len() / 2].to_string()),
        ("empty", String::new()),
        ("not ours", "{\"hello\": 1}".to_string()),
        ("negative", text.replacen("\"us\":", "\"us\":-", 1)),
        ("null", text.replacen("\"context\":", "\"context\":null,\"was\":", 1)),
        ("huge", text.replacen("\"context\":", "\"context\":99999999999", 1)),
        ("no rows", text.replacen("\"tokens\":2,", "\"tokens\":0,", 1)),
        ("no passes", {
            let (head, tail) = text.split_once("\"points\":[").unwrap();
            format!("{head}\"points\":[{}", &tail[tail.find(']').unwrap()..])
        }),
        ("another version", text.replacen("\"version\":", "\"version\":99", 1)),
    ] {
        assert_ne!(damaged, text, "{what}: the damage missed");
        fs::write(&path, damaged).unwrap();
        assert_eq!(KeptSweep::load(&path, "gpu"), KeptSweep::new("gpu"), "{what}");
        assert!(kept.save(&path), "{what}: whatever was there is replaced");
        assert_eq!(KeptSweep::load(&path, "gpu"), kept, "{what}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let blocker = folder.path().join("file");
    fs::write(&blocker, "x").unwrap();
    assert!(!KeptSweep::new("gpu").save(&blocker.join("costs.json")));
    assert!(!KeptSweep::new("gpu").save(folder.path()), "a folder is in the way");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_measured_the_staircase_is_finite_positive_and_monotone(
        tread in prop::sample::select(vec![1usize, 8]),
        sweep in prop::collection::vec((1usize..600, 1e-3f64..1e7), 1..12),
        rounds in prop::collection::vec((0usize..5000, prop_oneof![Just(f64::NAN), Just(0.0), Just(-5.0), Just(f64::INFINITY), 1e-6f64..1e12]), 0..80),
    ) {
        let mut stairs = Staircase::new(tread, &sweep);
        for (rows, us) in rounds {
            stairs.observe(rows, us);
        }
        prop_assert!(stairs.is_sound());
        let mut last = 0.0;
        for rows in 0..700 {
            let us = stairs.at(rows);
            prop_assert!(us.is_finite() && us > 0.0 && us >= last);
            last = us;
        }
    }
}
