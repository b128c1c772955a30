//! Whole runs on an H200's roofline, by replay of synthetic records: SMART against fixed policies, against plain decoding, against bad luck.

use smart_run::control::roofline::{Card, Roofline, Shape};
use smart_run::control::{
    Controller, ControllerConfig, CostModel, Policy, RoundPlan, RoundReport, SelectedTree, SequenceOutcome,
    SequenceView, SweepKind, SweepPoint, Treads,
};
use smart_run::replay::process::{Ease, Process, Quality};
use smart_run::replay::{Outcome, Player, Record, RecordShape, Settings};

const H200: Roofline = Roofline::H200_LLAMA_8B;

/// A record of `sequences` texts of `positions` positions.
pub fn record(process: Process, sequences: usize, positions: usize) -> Record {
    process.record(RecordShape::DEFAULT, sequences, positions).expect("a sound shape")
}

/// `batch` sequences with 1024 cached tokens at the start.
pub fn settings(batch: usize) -> Settings {
    Settings { context: Some(1024), ..Settings::new(batch, 0) }
}

/// `rounds` rounds of `policy` on an H200.
pub fn run(policy: &str, record: &Record, batch: usize, rounds: usize) -> Outcome {
    run_with(policy, record, &H200.cost_model(batch * 61 + 256), &settings(batch), rounds)
}

fn run_with(policy: &str, record: &Record, costs: &CostModel, settings: &Settings, rounds: usize) -> Outcome {
    let mut player = Player::new(record, costs, policy.parse().expect("a policy"), settings).expect("sound");
    (0..rounds).for_each(|_| player.round());
    player.finish()
}

/// By expected tokens: what noise there is comes from what the controller learned from draws.
pub fn speed(outcome: &Outcome) -> f64 {
    outcome.expected_speedup().expect("synthetic records have probabilities")
}

/// What a player does from now until its sequences are at `position` on average: speed by expected tokens, and tokens a round.
fn until(player: &mut Player, batch: usize, position: usize) -> (f64, f64) {
    let start = player.outcome().clone();
    while player.outcome().tokens < (position * batch) as u64 {
        player.round();
    }
    let end = player.outcome();
    let tokens = (end.tokens - start.tokens) as f64;
    let expected = |outcome: &Outcome| outcome.expected_tokens.expect("probabilities are recorded");
    let luck = (expected(end) - expected(&start)) / tokens;
    let rounds = end.sequence_rounds - start.sequence_rounds;
    (luck * (end.plain_us - start.plain_us) / (end.us - start.us), tokens / rounds as f64)
}

fn texts() -> [(&'static str, Process); 3] {
    [
        ("uniform 0.6", Process::calibrated(1, Ease::Uniform(0.6))),
        ("mixed 0.95/0.2", Process::calibrated(2, Ease::Mixed(0.95, 0.2))),
        ("changing", Process::calibrated(3, Ease::Stretches(20))),
    ]
}

#[test]
fn at_batch_1_smart_is_at_least_the_best_fixed_policy() {
    let chains = (1..=8).map(|length| format!("chain:{length}"));
    let trees = [8, 16, 24, 32, 48, 60].map(|total| format!("eagle2:10,5,{total}"));
    let rivals: Vec<String> =
        chains.chain(trees).chain(["plain".into(), "eagle1".into(), "smart-paper".into()]).collect();
    for (text, process) in texts() {
        let record = record(process, 8, 200);
        let smart = speed(&run("smart", &record, 1, 300));
        for rival in &rivals {
            let rival_speed = speed(&run(rival, &record, 1, 300));
            assert!(smart >= rival_speed, "{text}: smart {smart:.3}, {rival} {rival_speed:.3}");
        }
    }
}

#[test]
fn at_larger_batches_smart_is_at_least_the_tree_tuned_for_the_batch() {
    for (text, process) in texts() {
        let record = record(process, 64, 120);
        for (batch, best) in [
            (4, "eagle2:10,4,48"),
            (8, "eagle2:10,4,24"),
            (16, "eagle2:10,3,8"),
            (32, "eagle2:10,2,4"),
            (64, "eagle2:10,1,4"),
        ] {
            let rounds = (400 / batch).max(30);
            let (smart, rival) =
                (speed(&run("smart", &record, batch, rounds)), speed(&run(best, &record, batch, rounds)));
            assert!(smart >= rival, "{text}, batch {batch}: smart {smart:.3}, {best} {rival:.3}");
        }
    }
}

#[test]
fn a_hopeless_drafter_costs_under_one_percent() {
    for quality in [0.02, 0.05, 0.1] {
        let process =
            Process { quality: Quality::Constant(quality), ..Process::calibrated(1, Ease::Uniform(0.6)) };
        let record = record(process, 64, 100);
        for (batch, rounds) in [(1, 400), (8, 300), (64, 100)] {
            let outcome = run("smart", &record, batch, rounds);
            assert!(speed(&outcome) >= 0.99, "quality {quality}, batch {batch}: {:.4}", speed(&outcome));
            assert!(outcome.probe_share <= 0.002 + 0.4 / rounds as f64, "{}", outcome.probe_share);
        }
    }
}

/// Against the same text without a collapse.
#[test]
fn a_collapse_heals_and_so_does_its_end() {
    for batch in [1, 8] {
        let calm = Process::calibrated(1, Ease::Uniform(0.95));
        let collapsing = Process { quality: Quality::Drops(600, 800, 0.02), ..calm };
        let (calm, collapsing) = (record(calm, batch, 2000), record(collapsing, batch, 2000));
        let costs = H200.cost_model(batch * 61 + 256);
        let settings = settings(batch);
        let start = |record| Player::new(record, &costs, Policy::Smart, &settings).expect("sound");
        let (mut undisturbed, mut player) = (start(&calm), start(&collapsing));
        let before = until(&mut player, batch, 550);
        assert!(before.1 > 4.5, "{before:?}");
        until(&mut player, batch, 680);
        let collapsed = until(&mut player, batch, 750);
        assert!(collapsed.1 < 1.05 && collapsed.0 > 0.97, "batch {batch}: {collapsed:?}");
        until(&mut player, batch, 1400);
        let healed = until(&mut player, batch, 1900);
        until(&mut undisturbed, batch, 1400);
        let wanted = until(&mut undisturbed, batch, 1900);
        assert!(healed.0 > 0.97 * wanted.0, "batch {batch}: {healed:?}, undisturbed {wanted:?}");
    }
}

/// What was useless for 200 tokens is used again within 120 of being good again, at every batch size, against the same text without a collapse.
#[test]
fn the_end_of_a_collapse_is_soon_noticed() {
    for batch in [1, 4, 16, 64] {
        let calm = Process::calibrated(1, Ease::Uniform(0.95));
        let collapsing = Process { quality: Quality::Drops(300, 500, 0.02), ..calm };
        let (costs, settings) = (H200.cost_model(batch * 61 + 256), settings(batch));
        let healed = |process| {
            let record = record(process, batch, 800);
            let mut player = Player::new(&record, &costs, Policy::Smart, &settings).expect("sound");
            until(&mut player, batch, 480);
            let collapsed = until(&mut player, batch, 495);
            until(&mut player, batch, 620);
            (until(&mut player, batch, 750).0, collapsed.1)
        };
        let ((healed, tokens), (wanted, _)) = (healed(collapsing), healed(calm));
        assert!(tokens < 1.2, "batch {batch}: {tokens} tokens a round while it is useless");
        assert!(healed > 0.97 * wanted, "batch {batch}: {healed}, undisturbed {wanted}");
    }
}

#[test]
fn a_distorted_drafter_is_corrected() {
    // Confidences to the power 0.4: far too hopeful about unlikely tokens.
    let honest = Process::calibrated(1, Ease::Uniform(0.6));
    let distorted = record(Process { distortion: 0.4, ..honest }, 16, 120);
    let honest = record(honest, 16, 120);
    for batch in [1, 16] {
        let (best, got) =
            (speed(&run("smart", &honest, batch, 120)), speed(&run("smart", &distorted, batch, 120)));
        assert!(got > 0.95 * best, "batch {batch}: {got:.3} against {best:.3} with honest confidences");
    }
}

/// Costs as a sweep would measure them whose times of some kinds are off by a factor.
fn wrong_costs(batch: usize, factor: f64, is_wrong: impl Fn(SweepKind) -> bool) -> CostModel {
    let mut sweep = H200.sweep(batch * 61 + 256);
    sweep.iter_mut().filter(|point| is_wrong(point.kind)).for_each(|point| point.us *= factor);
    CostModel::from_sweep(&sweep, H200.shape.treads()).expect("a sound sweep")
}

#[test]
fn wrong_cost_tables_heal_within_fifty_rounds() {
    let record = record(Process::calibrated(1, Ease::Uniform(0.6)), 16, 300);
    for (batch, kind, factor) in [
        (1, SweepKind::Draft, 3.0),
        (16, SweepKind::Draft, 0.33),
        (16, SweepKind::Verify, 3.0),
        (16, SweepKind::Verify, 0.33),
    ] {
        let costs = H200.cost_model(batch * 61 + 256);
        let late = |belief: Option<CostModel>| {
            let settings = Settings { belief, ..settings(batch) };
            let mut player = Player::new(&record, &costs, Policy::Smart, &settings).expect("sound");
            (0..50).for_each(|_| player.round());
            let position = player.outcome().tokens as usize / batch;
            until(&mut player, batch, position + 200).0
        };
        let (right, wrong) = (late(None), late(Some(wrong_costs(batch, factor, |wrong| wrong == kind))));
        assert!(
            wrong > 0.97 * right,
            "batch {batch}, {kind:?} off by {factor}: {wrong:.3} against {right:.3}"
        );
    }
}

/// The table was measured on an idle machine, or on a busy one.
#[test]
fn a_machine_that_changes_speed_is_noticed_at_once() {
    let record = record(Process::calibrated(1, Ease::Uniform(0.6)), 16, 120);
    for batch in [1, 16] {
        let right = speed(&run("smart", &record, batch, 60));
        let costs = H200.cost_model(batch * 61 + 256);
        for factor in [3.0, 1.0 / 3.0] {
            let settings = Settings { belief: Some(wrong_costs(batch, factor, |_| true)), ..settings(batch) };
            let outcome = run_with("smart", &record, &costs, &settings, 60);
            assert!(
                speed(&outcome) > 0.95 * right,
                "batch {batch}, off by {factor:.2}: {:.3} against {right:.3}",
                speed(&outcome)
            );
            assert!(outcome.prediction_error_p95.is_some(), "predictions are judged");
        }
    }
}

#[test]
fn a_noisy_clock_costs_little() {
    let record = record(Process::calibrated(1, Ease::Uniform(0.6)), 16, 120);
    for batch in [1, 16] {
        let quiet = speed(&run("smart", &record, batch, 150));
        let settings = Settings { noise: 0.15, ..settings(batch) };
        let costs = H200.cost_model(batch * 61 + 256);
        let noisy = speed(&run_with("smart", &record, &costs, &settings, 150));
        assert!(noisy > 0.95 * quiet, "batch {batch}: {noisy:.3} against {quiet:.3} by a quiet clock");
    }
}

/// A processor without tensor cores: a tread of eight tokens costs half of what streaming the weights does.
#[test]
fn on_a_slow_machine_smart_is_at_least_the_best_fixed_policy() {
    let shape = Shape {
        target_params: 10e6,
        drafter_params: 1.5e6,
        projection_params: 0.1e6,
        num_layers: 6,
        ..Shape::LLAMA_8B_EAGLE3
    };
    let card = Card { bandwidth: 10e9, matmul: 160e9, attention: 160e9 };
    let costs = Roofline { card, shape }.cost_model(256);
    let record = record(Process::calibrated(1, Ease::Uniform(0.6)), 8, 120);
    let settings = Settings { context: Some(64), ..settings(1) };
    let speed = |policy: &str| speed(&run_with(policy, &record, &costs, &settings, 200));
    let smart = speed("smart");
    let chains = (1..=8).map(|length| format!("chain:{length}"));
    let trees = [4, 8, 16, 24, 60]
        .into_iter()
        .flat_map(|total| [1, 3, 5].map(|depth| format!("eagle2:10,{depth},{total}")));
    for rival in chains.chain(trees) {
        assert!(smart >= speed(&rival), "smart {smart:.3}, {rival} {:.3}", speed(&rival));
    }
}

/// A round in which of each likeliest path the first `accepted` nodes are right, on an H200. Returns how many drafted other than to probe, and nodes.
fn drafted(controller: &mut Controller, ids: std::ops::Range<u64>, accepted: usize) -> (usize, usize) {
    let views: Vec<SequenceView> = ids.map(crate::common::view).collect();
    let plan = controller.begin_round(&views);
    let round = controller.round_mut();
    while let Some(rows) = round.next_level() {
        let children =
            (0..rows.len()).flat_map(|_| (0..plan.top_k as i32).map(|rank| (rank, -1.0 - rank as f32)));
        let (tokens, logps): (Vec<i32>, Vec<f32>) = children.unzip();
        round.add_level(&tokens, &logps);
    }
    let selected = if plan.drafts() { round.select().to_vec() } else { Vec::new() };
    let drawn: Vec<Vec<i32>> = selected.iter().map(|it| vec![0; it.tree.num_nodes()]).collect();
    let paths: Vec<Vec<u32>> = selected
        .iter()
        .zip(&drawn)
        .map(|(it, drawn)| it.tree.walk(drawn).0.iter().map(|&node| node as u32).take(accepted).collect())
        .collect();
    let outcomes: Vec<SequenceOutcome> =
        paths.iter().zip(&drawn).map(|(accepted, drawn)| SequenceOutcome { accepted, drawn }).collect();
    controller.observe(&RoundReport { sequences: &outcomes, ..RoundReport::default() });
    (plan.drafting - plan.probing, selected.iter().map(|it| it.tree.num_draft_tokens()).sum::<usize>())
}

/// What a sequence had verified alone is not what it takes among others: trees that were large as long as nobody else wanted the rows must not
/// make a full batch look too dear to draft for.
#[test]
fn a_batch_that_grows_goes_on_drafting() {
    let mut controller = Controller::new(Policy::Smart, ControllerConfig::default(), H200.cost_model(1280));
    let mut drafted = |ids| drafted(&mut controller, ids, 1);
    let alone = (0..40).map(|_| drafted(0..1)).last().unwrap();
    assert!(alone.1 > 40, "alone it takes the rows that are free: {alone:?}");
    let first = drafted(1..17);
    assert!(first.0 == 16 && first.1 < 400, "{first:?}");
    assert!((0..20).all(|_| drafted(1..17).0 == 16), "nobody is left out while rows are free");
}

/// The last of a batch have the free rows for themselves. That says nothing of the next full batch, of which the last one does. Speeds are what rounds
/// bring, relative to plain decoding, not what is expected of them: two nodes of each likeliest path are right.
#[test]
fn the_end_of_a_batch_is_not_taken_for_the_next() {
    let mut controller = Controller::new(Policy::Smart, ControllerConfig::default(), H200.cost_model(5120));
    let speed = |controller: &mut Controller, ids: std::ops::Range<u64>| {
        drafted(controller, ids, 2);
        let round = controller.round();
        let emitted = |it: &SelectedTree| 1 + it.tree.walk(&vec![0; it.tree.num_nodes()]).0.len().min(2);
        let emitted: usize = round.selected().iter().map(emitted).sum();
        let plain_us = round.costs().plain_ns as f64 / 1000.0;
        emitted as f64 / 64.0 * plain_us / f64::from(controller.predicted().total)
    };
    let full = (0..30).map(|_| speed(&mut controller, 0..64)).last().unwrap();
    for alone in [8..10, 8..9] {
        for _ in 0..40 {
            drafted(&mut controller, alone.clone(), 2);
        }
    }
    let again: Vec<f64> = (0..5).map(|_| speed(&mut controller, 100..164)).collect();
    assert!(again.iter().all(|&speed| speed > 0.97 * full), "{full} before, then {again:?}");
    assert!(full > 2.4, "{full}: all 64 could have two tokens more");
}

/// Every row costs and the text is nearly certain: one long path. A tree of one sure node must not look like all there is to gain, nor must a few
/// levels that brought nothing keep it from trying again: only running deep levels tells what they bring.
#[test]
fn on_sure_text_it_drafts_deep_even_where_every_row_costs() {
    for unlucky in [0, 1, 4] {
        drafts_deep_after(unlucky);
    }
}

/// On sure text after so many rounds in which nothing below the root's child was likely.
fn drafts_deep_after(unlucky: usize) {
    let point = |kind, tokens: usize, us| SweepPoint { kind, tokens, sequences: 1, context: 0, us };
    let rows = [1, 2, 4, 8, 16, 32];
    let verify = rows.map(|rows| point(SweepKind::Verify, rows, 300.0 + 40.0 * rows as f64));
    let draft = rows.map(|rows| point(SweepKind::Draft, rows, 80.0 + 5.0 * rows as f64));
    let cost = CostModel::from_sweep(&[verify, draft].concat(), Treads::default()).expect("a sound sweep");
    let mut controller = Controller::new(Policy::Smart, ControllerConfig::default(), cost);
    let mut depths = vec![];
    for played in 0..60 {
        let is_unlucky = played < unlucky;
        let plan = controller.begin_round(&[crate::common::view(1)]);
        let round = controller.round_mut();
        while let Some(rows) = round.next_level() {
            let best = if is_unlucky && rows[0].depth > 0 { -3.0 } else { -0.02 };
            let ranks = rows.iter().flat_map(|_| 0..plan.top_k as i32);
            let (tokens, logps): (Vec<i32>, Vec<f32>) =
                ranks.map(|rank| (rank, if rank == 0 { best } else { -6.0 })).unzip();
            round.add_level(&tokens, &logps);
        }
        let tree = round.select()[0].tree.clone();
        let drawn: Vec<i32> =
            (0..tree.num_nodes()).map(|node| if is_unlucky && node > 0 { -1 } else { 0 }).collect();
        let accepted: Vec<u32> = tree.walk(&drawn).0.iter().map(|&node| node as u32).collect();
        depths.push(accepted.len());
        let outcome = SequenceOutcome { accepted: &accepted, drawn: &drawn };
        controller.observe(&RoundReport { sequences: &[outcome], ..RoundReport::default() });
    }
    assert!(depths[30..].iter().all(|&depth| depth >= 4), "{unlucky} unlucky rounds: {depths:?}");
}

/// A machine on which every drafter row costs.
fn slow_rows() -> CostModel {
    let point = |kind, tokens: usize, us| SweepPoint { kind, tokens, sequences: 1, context: 0, us };
    let rows = [1, 2, 4, 8, 16, 32, 128];
    let verify = rows.map(|rows| point(SweepKind::Verify, rows, 300.0 + 40.0 * rows as f64));
    let draft = rows.map(|rows| point(SweepKind::Draft, rows, 80.0 + 5.0 * rows as f64));
    CostModel::from_sweep(&[verify, draft].concat(), Treads::default()).expect("a sound sweep")
}

/// The first plan for these backlogs, where so many tokens may still come.
fn first_plan<const N: usize>(backlogs: [usize; N], left: usize) -> (RoundPlan, [bool; N]) {
    let mut controller = Controller::new(Policy::Smart, ControllerConfig::default(), slow_rows());
    let views: [SequenceView; N] = std::array::from_fn(|i| SequenceView {
        backlog: backlogs[i],
        max_depth: left,
        ..crate::common::view(i as u64)
    });
    let plan = controller.begin_round(&views);
    let mut drafts = [false; N];
    for row in controller.round_mut().next_level().unwrap_or_default() {
        drafts[row.sequence as usize] = true;
    }
    (plan, drafts)
}

/// Where rows cost, a drafter that has been left out for long has much to catch up on. That is paid once: it must not look like the price of every
/// round, or a sequence that was left out could never come back.
#[test]
fn what_a_drafter_has_to_catch_up_on_does_not_keep_it_out() {
    let ((fresh, _), (late, _)) = (first_plan([0], usize::MAX), first_plan([120], usize::MAX));
    assert!(fresh.drafts() && late.drafts() && late.probing == 0, "{fresh:?}, then {late:?}");
    assert!(late.predicted_speedup > 0.9 * fresh.predicted_speedup, "{fresh:?}, then {late:?}");
    // It is not for nothing either.
    assert!(late.predicted_speedup < fresh.predicted_speedup);
}

#[test]
fn nobody_catches_up_on_much_for_little() {
    let drafting = |backlog, left| first_plan([backlog], left).0.drafting;
    assert_eq!(drafting(300, 200), 1);
    assert_eq!(drafting(300, 3), 0, "three tokens before its end");
    assert_eq!(drafting(0, 3), 1);
    assert_eq!(drafting(2000, usize::MAX), 0, "not back within a few rounds, and no gains to spend");
    // The one with nothing to catch up on does not wait for the other, whatever the order.
    assert_eq!(first_plan([2000, 0], usize::MAX).1, [false, true]);
    assert_eq!(first_plan([0, 2000], usize::MAX).1, [true, false]);
}
