//! A replay on the terminal.

use std::fmt::Write as _;

use smart_run::replay::geometric_mean;

use super::{Cell, Report, Role};

/// Lines that say what was played.
pub fn facts(report: &Report) -> Vec<String> {
    let context = match report.context {
        Some(tokens) => format!("{tokens} cached tokens at the first position"),
        None => "contexts as recorded".into(),
    };
    let mut facts = vec![format!(
        "Times are modelled by the cost table {} ({}, {}); {context}; {} repetitions, each with the texts in another order.",
        report.costs.name, report.costs.model, report.costs.drafter, report.repetitions
    )];
    let told = [
        (report.knowledge.probabilities, "the target's probabilities"),
        (report.knowledge.costs, "the true costs"),
    ];
    for (_, what) in told.iter().filter(|(is_told, _)| *is_told) {
        facts.push(format!("Policies are told {what}."));
    }
    if let Some(belief) = &report.belief {
        facts.push(format!("Policies begin with the costs of {belief}."));
    }
    for text in &report.texts {
        let draws = if text.sampled { "sampled" } else { "greedy" };
        facts
            .push(format!("{}: {} texts, {} positions, {draws}.", text.name, text.sequences, text.positions));
    }
    facts
}

/// The table: a block a text, a line a player and batch size.
pub fn text(report: &Report) -> String {
    let mut out = facts(report).join("\n");
    out.push('\n');
    let width = report.cells.iter().map(|cell| name(cell).len()).max().unwrap_or(6).max(6);
    for text in &report.texts {
        let cells = || report.cells.iter().filter(|cell| cell.text == text.name);
        let _ = writeln!(
            out,
            "\n{}\n{:>5}  {:width$}  {:>7} {:>15}  {:>11} {:>9}  {:>8} {:>6} {:>6} {:>6} {:>6}",
            text.name,
            "batch",
            "player",
            "speedup",
            "95 %",
            "best static",
            "oracle",
            "accepted",
            "nodes",
            "levels",
            "draft",
            "ECE"
        );
        let mut last = 0;
        for cell in cells() {
            let outcome = &cell.outcome;
            let batch = if cell.batch == last { String::new() } else { cell.batch.to_string() };
            last = cell.batch;
            let versus = |interval: &Option<smart_run::replay::Interval>| {
                interval.map_or("-".into(), |interval| format!("{:.3}", interval.mean))
            };
            let _ = writeln!(
                out,
                "{batch:>5}  {:width$}  {:>6.3}x {:>15}  {:>11} {:>9}  {:>8.2} {:>6.1} {:>6.1} {:>5.0}% {:>6.3}{}",
                name(cell),
                cell.speedup.mean,
                format!("{:.3} to {:.3}", cell.speedup.low, cell.speedup.high),
                versus(&cell.against_best_static),
                versus(&cell.of_oracle),
                outcome.mean_accepted_len(),
                outcome.mean_nodes(),
                outcome.levels as f64 / (outcome.rounds as f64).max(1.0),
                100.0 * outcome.draft_us / outcome.us.max(1.0),
                outcome.calibration_error(),
                refused(cell)
            );
        }
        for player in players(report) {
            let own = || cells().filter(|cell| cell.player == player && cell.role == Role::Policy);
            let mean = geometric_mean(own().map(|cell| cell.speedup.mean));
            let _ = write!(out, "{player}: geometric mean {mean:.3}x");
            let against =
                geometric_mean(own().filter_map(|cell| cell.against_best_static).map(|best| best.mean));
            if against > 0.0 {
                let least = own()
                    .filter_map(|cell| Some((cell.against_best_static?, cell.batch)))
                    .min_by(|a, b| a.0.mean.total_cmp(&b.0.mean));
                let _ = write!(out, ", {against:.3} of the best static tree");
                if let Some((least, batch)) = least {
                    let _ =
                        write!(out, " (least {:.3}, from {:.3}, at batch {batch})", least.mean, least.low);
                }
            }
            let ceiling = geometric_mean(own().filter_map(|cell| cell.of_oracle).map(|oracle| oracle.mean));
            if ceiling > 0.0 {
                let _ = write!(out, ", {ceiling:.3} of the oracle");
            }
            out.push('\n');
        }
    }
    out
}

/// Policies in the order of play.
pub fn players(report: &Report) -> Vec<&str> {
    let mut players: Vec<&str> = Vec::new();
    for cell in report.cells.iter().filter(|cell| cell.role == Role::Policy) {
        if !players.contains(&cell.player.as_str()) {
            players.push(&cell.player);
        }
    }
    players
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
