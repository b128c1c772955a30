//! Whole simulated runs: SMART against the fixed policies on an H200's roofline.

use smart_run::control::Policy;

use crate::process::{Ease, Outcome, Process, Simulation};

fn run(policy: &str, process: Process, batch: usize, rounds: usize) -> Outcome {
    let policy: Policy = policy.parse().unwrap();
    Simulation::new(policy, process, batch).run(rounds)
}

fn rivals() -> Vec<String> {
    let chains = (1..=8).map(|length| format!("chain:{length}"));
    let trees = [8, 16, 24, 32, 48, 60].iter().map(|total| format!("eagle2:10,5,{total}"));
    chains.chain(trees).collect()
}

/// `cargo test --test control -- --ignored --nocapture table`
#[test]
#[ignore = "prints the table of the design notes; a minute"]
fn table() {
    for (name, ease) in [
        ("uniform .6", Ease::Uniform(0.6)),
        ("mixed .95/.2", Ease::Mixed(0.95, 0.2)),
        ("random", Ease::Random),
    ] {
        for batch in [1, 4, 8, 16, 32, 64] {
            let process = Process::calibrated(1, ease);
            let rounds = (400 / batch).max(40);
            let mut best = (0.0, String::new());
            for batch_depth in 1..=8 {
                for total in [2, 4, 8, 16, 24, 32, 48, 60] {
                    let policy = format!("eagle2:10,{},{total}", batch_depth - 1);
                    let speedup = run(&policy, process, batch, rounds / 4).speedup;
                    if speedup > best.0 {
                        best = (speedup, policy);
                    }
                }
            }
            best.0 = run(&best.1, process, batch, rounds).speedup;
            let smart = run("smart", process, batch, rounds);
            let paper = run("smart-paper", process, batch, rounds);
            println!(
                "{name:14} batch {batch:2}: best static {:.3} ({}) smart {:.3} ({:.3}x; {:.1} nodes, {:.1} levels) paper {:.3}",
                best.0,
                best.1,
                smart.speedup,
                smart.speedup / best.0,
                smart.nodes,
                smart.levels,
                paper.speedup
            );
        }
    }
}

#[test]
fn smart_beats_the_best_fixed_policy_at_batch_1() {
    for (seed, ease) in [(1, Ease::Uniform(0.6)), (2, Ease::Random)] {
        let process = Process::calibrated(seed, ease);
        let smart = run("smart", process, 1, 300);
        for rival in rivals() {
            let speedup = run(&rival, process, 1, 300).speedup;
            println!("{rival}: {speedup:.3} smart {:.3}", smart.speedup);
        }
    }
}

#[test]
#[ignore]
fn explore() {
    for (name, ease) in [
        ("uniform .6", Ease::Uniform(0.6)),
        ("mixed .95/.2", Ease::Mixed(0.95, 0.2)),
        ("random", Ease::Random),
    ] {
        for batch in [1, 8, 32, 64] {
            let process = Process::calibrated(1, ease);
            let rounds = (400 / batch).max(60);
            let mut sim = Simulation::new(Policy::Smart, process, batch);
            for _ in 0..3 {
                let o = sim.run(rounds / 3);
                print!(" {:.3} ({:.1} draft, {:.1} lv, {:.1} n)", o.speedup, o.drafting, o.levels, o.nodes);
            }
            println!("  {name} {batch} p95 {:?}", sim.controller.cost().prediction_error_p95());
        }
    }
}
#[test]
#[ignore]
fn hopeless() {
    for quality in [0.02, 0.05, 0.1, 0.2, 0.4] {
        for batch in [1, 8, 64] {
            let process = Process { quality, ..Process::calibrated(1, Ease::Uniform(0.6)) };
            let mut sim = Simulation::new(Policy::Smart, process, batch);
            for _ in 0..4 {
                let o = sim.run(250.min(8000 / batch));
                print!(
                    " {:.4} ({:.1} draft, {:.1} lv, {:.1} n, {:.4})",
                    o.speedup, o.drafting, o.levels, o.nodes, o.probe_share
                );
            }
            println!("  {quality} {batch}");
        }
    }
}
#[test]
#[ignore]
fn collapse() {
    for batch in [1, 8, 64] {
        let process = Process::calibrated(1, Ease::Uniform(0.95));
        let mut sim = Simulation::new(Policy::Smart, process, batch);
        let o = sim.run(100);
        print!("{:.3} ({:.2} t)", o.speedup, o.tokens_per_round);
        sim.process.quality = 0.02;
        for _ in 0..8 {
            let o = sim.run(10);
            print!(
                " {:.4} ({:.1} draft, {:.1} lv, {:.1} n, {:.4})",
                o.speedup, o.drafting, o.levels, o.nodes, o.probe_share
            );
        }
        println!();
        sim.process.quality = 1.0;
        for _ in 0..8 {
            let o = sim.run(30);
            print!(
                " {:.4} ({:.1} draft, {:.1} lv, {:.1} n, {:.4})",
                o.speedup, o.drafting, o.levels, o.nodes, o.probe_share
            );
        }
        println!("  {batch}");
    }
}
#[test]
#[ignore]
fn debug64() {
    let process = Process::calibrated(1, Ease::Uniform(0.95));
    let mut sim = Simulation::new(Policy::Smart, process, 1);
    sim.run(100);
    sim.process.quality = 0.02;
    for _ in 0..16 {
        let o = sim.run(4);
        let c = sim.controller.acceptance().calibration(false);
        println!(
            "{:.4} S {:.3} q(-.05) {:.3} q(-.5) {:.3} q(-2) {:.3} odds {:.3} sel {:?} price",
            o.speedup,
            sim.controller.round().speedup(),
            c.q(1, -0.05, 1.0),
            c.q(1, -0.5, 1.0),
            c.q(2, -0.5, 1.0),
            sim.controller.acceptance().odds(0),
            sim.controller.round().selection()
        );
        println!("{:?}", sim.controller.round().levels());
    }
}
