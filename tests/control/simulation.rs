//! Whole simulated runs on an H200's roofline: SMART against fixed policies, against plain decoding, against bad luck.

use smart_run::control::roofline::{Card, Roofline, Shape};
use smart_run::control::{
    Controller, ControllerConfig, CostModel, Policy, RoundReport, SequenceOutcome, SweepKind, SweepPoint,
    Treads,
};

use crate::process::{Ease, Outcome, Process, Simulation};

const TEXTS: [(&str, Ease); 3] = [
    ("uniform 0.6", Ease::Uniform(0.6)),
    ("mixed 0.95/0.2", Ease::Mixed(0.95, 0.2)),
    ("random", Ease::Random),
];

fn run(policy: &str, process: Process, batch: usize, rounds: usize) -> Outcome {
    let policy: Policy = policy.parse().expect("a policy");
    Simulation::new(policy, process, batch).run(rounds)
}

/// Speeds are expectations over the trees that were verified, so what noise there is comes from what the controller learned from
/// draws; over 300 rounds it stays below a percent, a tenth of the lead.
#[test]
fn at_batch_1_smart_is_at_least_the_best_fixed_policy() {
    let chains = (1..=8).map(|length| format!("chain:{length}"));
    let trees = [8, 16, 24, 32, 48, 60].map(|total| format!("eagle2:10,5,{total}"));
    let rivals: Vec<String> =
        chains.chain(trees).chain(["plain".into(), "eagle1".into(), "smart-paper".into()]).collect();
    for (seed, (text, ease)) in (1..).zip(TEXTS) {
        let process = Process::calibrated(seed, ease);
        let smart = run("smart", process, 1, 300).speedup;
        for rival in &rivals {
            let speedup = run(rival, process, 1, 300).speedup;
            assert!(smart >= speedup, "{text}: smart {smart:.3}, {rival} {speedup:.3}");
        }
    }
}

#[test]
fn at_larger_batches_smart_is_at_least_the_tree_tuned_for_the_batch() {
    // The best of 64 static trees for each batch size; see `table`.
    for (batch, best) in [
        (4, "eagle2:10,4,48"),
        (8, "eagle2:10,4,24"),
        (16, "eagle2:10,3,8"),
        (32, "eagle2:10,2,4"),
        (64, "eagle2:10,1,4"),
    ] {
        for (text, ease) in TEXTS {
            let process = Process::calibrated(1, ease);
            let rounds = (400 / batch).max(30);
            let (smart, rival) =
                (run("smart", process, batch, rounds).speedup, run(best, process, batch, rounds).speedup);
            assert!(smart >= rival, "{text}, batch {batch}: smart {smart:.3}, {best} {rival:.3}");
        }
    }
}

#[test]
fn a_hopeless_drafter_costs_under_one_percent() {
    for quality in [0.02, 0.05, 0.1] {
        for (batch, rounds) in [(1, 400), (8, 300), (64, 100)] {
            let process = Process { quality, ..Process::calibrated(1, Ease::Uniform(0.6)) };
            let outcome = run("smart", process, batch, rounds);
            assert!(outcome.speedup >= 0.99, "quality {quality}, batch {batch}: {outcome:?}");
            assert!(outcome.probe_share <= 0.005 + 0.4 / rounds as f64, "{outcome:?}");
        }
    }
}

#[test]
fn a_collapse_heals_and_so_does_its_end() {
    for batch in [1, 8] {
        let mut simulation =
            Simulation::new(Policy::Smart, Process::calibrated(1, Ease::Uniform(0.95)), batch);
        let before = simulation.run(100);
        assert!(before.tokens_per_round > 4.5, "{before:?}");
        simulation.process.quality = 0.02;
        simulation.run(40);
        let collapsed = simulation.run(60);
        assert!(
            collapsed.tokens_per_round < 1.05 && collapsed.speedup > 0.97,
            "batch {batch}: {collapsed:?}"
        );
        simulation.process.quality = 1.0;
        simulation.run(100);
        let healed = simulation.run(50);
        assert!(healed.speedup > 0.97 * before.speedup, "batch {batch}: {before:?}, then {healed:?}");
    }
}

#[test]
fn a_distorted_drafter_is_corrected() {
    // Confidences to the power 0.4: far too hopeful about unlikely tokens.
    let honest = Process::calibrated(1, Ease::Uniform(0.6));
    let distorted = Process { distortion: 0.4, ..honest };
    for batch in [1, 16] {
        let (best, got) =
            (run("smart", honest, batch, 120).speedup, run("smart", distorted, batch, 120).speedup);
        assert!(got > 0.95 * best, "batch {batch}: {got:.3} against {best:.3} with honest confidences");
    }
}

#[test]
fn wrong_cost_tables_heal_within_fifty_rounds() {
    let process = Process::calibrated(1, Ease::Uniform(0.6));
    for (batch, kind, factor) in [
        (1, SweepKind::Draft, 3.0),
        (16, SweepKind::Draft, 0.33),
        (16, SweepKind::Verify, 3.0),
        (16, SweepKind::Verify, 0.33),
    ] {
        let mut right = Simulation::new(Policy::Smart, process, batch);
        let roofline = Roofline::H200_LLAMA_8B;
        let mut sweep = roofline.sweep(batch * 61 + 256);
        for point in sweep.iter_mut().filter(|point| point.kind == kind) {
            point.us *= factor;
        }
        let mut wrong = Simulation::on(roofline, sweep, Policy::Smart, process, batch);
        right.run(50);
        wrong.run(50);
        let (right, wrong) = (right.run(50).speedup, wrong.run(50).speedup);
        assert!(
            wrong > 0.97 * right,
            "batch {batch}, {kind:?} off by {factor}: {wrong:.3} against {right:.3}"
        );
    }
}

/// The table was measured on an idle machine, or on a busy one.
#[test]
fn a_machine_that_changes_speed_is_noticed_at_once() {
    let process = Process::calibrated(1, Ease::Uniform(0.6));
    let roofline = Roofline::H200_LLAMA_8B;
    for batch in [1, 16] {
        let right = run("smart", process, batch, 60).speedup;
        for factor in [3.0, 1.0 / 3.0] {
            let mut sweep = roofline.sweep(batch * 61 + 256);
            sweep.iter_mut().for_each(|point| point.us *= factor);
            let mut simulation = Simulation::on(roofline, sweep, Policy::Smart, process, batch);
            let speedup = simulation.run(60).speedup;
            assert!(
                speedup > 0.95 * right,
                "batch {batch}, off by {factor:.2}: {speedup:.3} against {right:.3}"
            );
            let error = simulation.controller.cost().prediction_error_p95();
            assert!(error.is_some(), "predictions are judged");
        }
    }
}

#[test]
fn a_noisy_clock_costs_little() {
    let process = Process::calibrated(1, Ease::Uniform(0.6));
    for batch in [1, 16] {
        let quiet = run("smart", process, batch, 150).speedup;
        let mut simulation = Simulation::new(Policy::Smart, process, batch);
        simulation.noise = 0.15;
        let noisy = simulation.run(150).speedup;
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
    let roofline = Roofline { card, shape };
    let process = Process::calibrated(1, Ease::Uniform(0.6));
    let speed = |policy: &str| {
        let sweep = roofline.sweep(256);
        let mut simulation = Simulation::on(roofline, sweep, policy.parse().expect("a policy"), process, 1);
        simulation.context = 64;
        simulation.run(200)
    };
    let smart = speed("smart");
    let chains = (1..=8).map(|length| format!("chain:{length}"));
    let trees = [4, 8, 16, 24, 60]
        .into_iter()
        .flat_map(|total| [1, 3, 5].map(|depth| format!("eagle2:10,{depth},{total}")));
    for rival in chains.chain(trees) {
        let speedup = speed(&rival).speedup;
        assert!(smart.speedup >= speedup, "smart {smart:?}, {rival} {speedup:.3}");
    }
}

#[test]
fn the_same_seeds_give_the_same_run() {
    let process = Process::calibrated(5, Ease::Random);
    let (a, b) = (run("smart", process, 4, 40), run("smart", process, 4, 40));
    assert_eq!(a, b);
}

/// SMART against the best static tree tuned per batch size over n and depth.
/// `cargo test --test control -- --ignored --nocapture table`
#[test]
#[ignore = "prints a table; a minute"]
fn table() {
    println!(
        "| text | batch | best static | smart | ratio | nodes | levels | smart-paper |\n|---|---|---|---|---|---|---|---|"
    );
    let mut log_sum = 0.0;
    for (text, ease) in TEXTS {
        for batch in [1, 2, 4, 8, 16, 32, 64] {
            let process = Process::calibrated(1, ease);
            let rounds = (400 / batch).max(40);
            let mut best = (0.0, String::new());
            for depth in 0..8 {
                for total in [2, 4, 8, 16, 24, 32, 48, 60] {
                    let policy = format!("eagle2:10,{depth},{total}");
                    let speedup = run(&policy, process, batch, rounds / 4).speedup;
                    if speedup > best.0 {
                        best = (speedup, policy);
                    }
                }
            }
            best.0 = run(&best.1, process, batch, rounds).speedup;
            let smart = run("smart", process, batch, rounds);
            let paper = run("smart-paper", process, batch, rounds).speedup;
            let ratio = smart.speedup / best.0;
            log_sum += ratio.ln();
            println!(
                "| {text} | {batch} | {:.2} ({}) | {:.2} | {ratio:.3} | {:.1} | {:.1} | {paper:.2} |",
                best.0, best.1, smart.speedup, smart.nodes, smart.levels
            );
        }
    }
    println!("geometric mean {:.3}", (log_sum / 21.0f64).exp());
}

/// Every row costs and the text is nearly certain: one long path. A tree of one sure node must not look like all there is to gain.
#[test]
fn on_sure_text_it_drafts_deep_even_where_every_row_costs() {
    let point = |kind, tokens: usize, us| SweepPoint { kind, tokens, sequences: 1, context: 0, us };
    let rows = [1, 2, 4, 8, 16, 32];
    let verify = rows.map(|rows| point(SweepKind::Verify, rows, 300.0 + 40.0 * rows as f64));
    let draft = rows.map(|rows| point(SweepKind::Draft, rows, 80.0 + 5.0 * rows as f64));
    let cost = CostModel::from_sweep(&[verify, draft].concat(), Treads::default()).expect("a sound sweep");
    let mut controller = Controller::new(Policy::Smart, ControllerConfig::default(), cost);
    let mut depths = vec![];
    for _ in 0..60 {
        let plan = controller.begin_round(&[crate::common::view(1)]);
        let round = controller.round_mut();
        while let Some(rows) = round.next_level() {
            let ranks = rows.iter().flat_map(|_| 0..plan.top_k as i32);
            let (tokens, logps): (Vec<i32>, Vec<f32>) =
                ranks.map(|rank| (rank, if rank == 0 { -0.02 } else { -6.0 })).unzip();
            round.add_level(&tokens, &logps);
        }
        let tree = round.select()[0].tree.clone();
        let drawn = vec![0; tree.num_nodes()];
        let accepted: Vec<u32> = tree.walk(&drawn).0.iter().map(|&node| node as u32).collect();
        depths.push(accepted.len());
        let outcome = SequenceOutcome { accepted: &accepted, drawn: &drawn };
        controller.observe(&RoundReport { sequences: &[outcome], ..RoundReport::default() });
    }
    assert!(depths[10..].iter().all(|&depth| depth >= 4), "{depths:?}");
}
