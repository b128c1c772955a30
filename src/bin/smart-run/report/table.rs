//! Results on the terminal.

use std::fmt::Write as _;

use smart_run::replay::{Interval, geometric_mean};

use super::{Cell, Results, Role, Text, policies};

/// `facts`, then a block a text, a line a player and batch size.
pub fn text(results: &Results, facts: &[String]) -> String {
    let mut out = facts.join("\n");
    out.push('\n');
    let width = results.cells.iter().map(|cell| name(cell).len()).max().unwrap_or(6).max(6);
    for text in &results.texts {
        let cells: Vec<&Cell> = results.cells.iter().filter(|cell| cell.text == text.name).collect();
        out.push_str(&block(text, &cells, width));
        for policy in policies(results) {
            let own = cells.iter().filter(|cell| cell.player == policy && cell.role == Role::Policy);
            out.push_str(&summary(policy, &own.copied().collect::<Vec<_>>()));
        }
    }
    out
}

fn block(text: &Text, cells: &[&Cell], width: usize) -> String {
    let mut out = format!(
        "\n{}\n{:>5}  {:width$}  {:>10} {:>8} {:>15}  {:>11} {:>7}  {:>8} {:>6} {:>6} {:>6} {:>8} {:>6}\n",
        text.name,
        "batch",
        "player",
        "tokens/s",
        "speedup",
        "95 %",
        "best static",
        "oracle",
        "accepted",
        "nodes",
        "levels",
        "draft",
        "control",
        "ECE"
    );
    let versus =
        |interval: &Option<Interval>| interval.map_or("-".into(), |interval| format!("{:.3}", interval.mean));
    let mut last = 0;
    for cell in cells {
        let outcome = &cell.outcome;
        let batch = if cell.batch == last { String::new() } else { cell.batch.to_string() };
        last = cell.batch;
        let share = |us: f64| 100.0 * us / outcome.us.max(1.0);
        let _ = writeln!(
            out,
            "{batch:>5}  {:width$}  {:>10.1} {:>7.3}x {:>15}  {:>11} {:>7}  {:>8.2} {:>6.1} {:>6.1} {:>5.0}% {:>7.2}% {:>6.3}{}",
            name(cell),
            cell.tokens_per_second.mean,
            cell.speedup.mean,
            format!("{:.3} to {:.3}", cell.speedup.low, cell.speedup.high),
            versus(&cell.against_best_static),
            versus(&cell.of_oracle),
            outcome.mean_accepted_len(),
            outcome.mean_nodes(),
            outcome.levels as f64 / (outcome.rounds as f64).max(1.0),
            share(outcome.draft_us),
            share(outcome.control_us),
            outcome.calibration_error(),
            refused(cell)
        );
    }
    out
}

/// A policy over all batch sizes, in a line.
fn summary(policy: &str, cells: &[&Cell]) -> String {
    let speedup = geometric_mean(cells.iter().map(|cell| cell.speedup.mean));
    let mut out = format!("{policy}: geometric mean {speedup:.3}x");
    let against = || cells.iter().filter_map(|cell| Some((cell.against_best_static?, cell.batch)));
    let mean = geometric_mean(against().map(|(best, _)| best.mean));
    if mean > 0.0 {
        let _ = write!(out, ", {mean:.3} of the best static tree");
        if let Some((least, batch)) = against().min_by(|a, b| a.0.mean.total_cmp(&b.0.mean)) {
            let _ = write!(out, " (least {:.3}, from {:.3}, at batch {batch})", least.mean, least.low);
        }
    }
    let ceiling = geometric_mean(cells.iter().filter_map(|cell| cell.of_oracle).map(|oracle| oracle.mean));
    if ceiling > 0.0 {
        let _ = write!(out, ", {ceiling:.3} of the oracle");
    }
    out.push('\n');
    out
}

fn name(cell: &Cell) -> String {
    match cell.role {
        Role::BestStatic => format!("best static: {}", cell.player),
        Role::Policy | Role::Oracle => cell.player.clone(),
    }
}

/// A mark where the record did not hold what the policy would have run.
fn refused(cell: &Cell) -> String {
    let outcome = &cell.outcome;
    let share = outcome.rows_refused as f64 / (outcome.drafter_rows + outcome.rows_refused).max(1) as f64;
    if share >= 0.005 {
        format!("  {:.0} % of its rows are not recorded", 100.0 * share)
    } else {
        String::new()
    }
}
