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
