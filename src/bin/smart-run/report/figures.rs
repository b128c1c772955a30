//! Results as charts.

use smart_run::replay::Interval;

use super::{Cell, Results, Role, policies};
use crate::plots::{Axis, Chart, Series};

/// Colour of the best static tree and of the oracle, in every chart.
const BEST_STATIC: usize = 5;
/// Paths, or children, that a share of them must rest on.
const LEAST_PATHS: u64 = 20;
/// Policies drawn as lines; more cannot be told apart.
const MAX_LINES: usize = 5;

/// Charts of every text: speed, size of trees, depth, calibration, shares of time, predicted times.
pub fn charts(results: &Results) -> Vec<Chart> {
    results.texts.iter().flat_map(|text| charts_of(results, &text.name)).collect()
}

fn charts_of(results: &Results, text: &str) -> Vec<Chart> {
    let cells: Vec<&Cell> = results.cells.iter().filter(|cell| cell.text == text).collect();
    let players: Vec<&str> = policies(results).into_iter().take(MAX_LINES).collect();
    let by_batch =
        |title: &str, axis: &str, value: &dyn Fn(&Cell) -> f64, sure: &dyn Fn(&Cell) -> Option<Interval>| {
            let mut chart =
                Chart::new(format!("{title}: {text}"), Axis::log("batch (log scale)"), Axis::linear(axis));
            for (colour, player) in players.iter().enumerate() {
                let own = || cells.iter().filter(|cell| cell.role == Role::Policy && cell.player == *player);
                let data = own().map(|cell| (cell.batch as f64, value(cell))).collect();
                let spread =
                    own().filter_map(|cell| sure(cell).map(|sure| (cell.batch as f64, sure.low, sure.high)));
                chart = chart.with(Series::line(*player, colour, data).spread(spread.collect()));
            }
            for (role, name) in [(Role::BestStatic, "best static tree"), (Role::Oracle, "oracle")] {
                let data: Vec<(f64, f64)> = cells
                    .iter()
                    .filter(|cell| cell.role == role)
                    .map(|cell| (cell.batch as f64, value(cell)))
                    .collect();
                if !data.is_empty() {
                    chart = chart.with(match role {
                        Role::Oracle => Series::points(name, BEST_STATIC, data),
                        _ => Series::line(name, BEST_STATIC, data),
                    });
                }
            }
            chart
        };
    let mut charts = vec![
        by_batch("Speed against plain decoding", "speedup", &|cell| cell.speedup.mean, &|cell| {
            Some(cell.speedup)
        }),
        by_batch("Size of trees", "nodes verified a sequence", &|cell| cell.outcome.mean_nodes(), &|_| None),
    ];
    let Some(first) = cells.iter().find(|cell| cell.role == Role::Policy) else { return charts };
    charts.push(acceptance(text, &cells, &players, first.batch));
    charts.push(reliability(text, first));
    charts.push(shares(text, &cells, first));
    charts.push(predictions(text, &cells, first));
    charts
}

/// Chance that an accepted path goes on, by depth, at one batch size.
fn acceptance(text: &str, cells: &[&Cell], players: &[&str], batch: usize) -> Chart {
    let title = format!("Acceptance by depth at batch {batch}: {text}");
    let mut chart = Chart::new(title, Axis::linear("depth"), Axis::linear("share of paths that go on"));
    for (colour, player) in players.iter().enumerate() {
        let own = cells.iter().find(|cell| cell.player == *player && cell.batch == batch);
        let counts = own.map_or(&[][..], |cell| &cell.outcome.accepted_by_depth);
        let share = |(depth, &(tried, accepted)): (usize, &(u64, u64))| {
            (tried >= LEAST_PATHS).then(|| (depth as f64 + 1.0, accepted as f64 / tried as f64))
        };
        chart =
            chart.with(Series::line(*player, colour, counts.iter().enumerate().filter_map(share).collect()));
    }
    chart
}

/// Estimated against observed acceptance.
fn reliability(text: &str, cell: &Cell) -> Chart {
    let bins = cell.outcome.reliability.iter().filter(|bin| bin.count >= LEAST_PATHS);
    let data =
        bins.map(|bin| (bin.predicted / bin.count as f64, bin.accepted as f64 / bin.count as f64)).collect();
    Chart::new(
        format!("Reliability of {} at batch {}: {text}", cell.player, cell.batch),
        Axis::linear("estimated chance of acceptance"),
        Axis::linear("observed"),
    )
    .note(format!("expected calibration error {:.4}", cell.outcome.calibration_error()))
    .with(Series::line("as estimated", BEST_STATIC, vec![(0.0, 0.0), (1.0, 1.0)]))
    .with(Series::points(cell.player.clone(), 0, data))
}

/// Where a policy's time goes.
fn shares(text: &str, cells: &[&Cell], first: &Cell) -> Chart {
    let own = || cells.iter().filter(|cell| cell.player == first.player && cell.role == Role::Policy);
    let share = |part: &dyn Fn(&Cell) -> f64| -> Vec<(f64, f64)> {
        own().map(|cell| (cell.batch as f64, part(cell) / cell.outcome.us.max(1.0))).collect()
    };
    Chart::new(
        format!("Where the time of {} goes: {text}", first.player),
        Axis::log("batch (log scale)"),
        Axis::linear("share of time"),
    )
    .with(Series::line("drafting", 0, share(&|cell| cell.outcome.draft_us)))
    .with(Series::line("target passes", 1, share(&|cell| cell.outcome.verify_us)))
    .with(Series::line("controller", 3, share(&|cell| cell.outcome.control_us)))
    .with(Series::line(
        "the rest of a round",
        2,
        share(&|cell| {
            let outcome = &cell.outcome;
            outcome.us - outcome.draft_us - outcome.verify_us - outcome.control_us
        }),
    ))
}

/// How well rounds were predicted.
fn predictions(text: &str, cells: &[&Cell], first: &Cell) -> Chart {
    let own: Vec<&&Cell> =
        cells.iter().filter(|cell| cell.player == first.player && cell.role == Role::Policy).collect();
    let pairs = |cell: &Cell| -> Vec<(f64, f64)> {
        let both = cell.outcome.predictions.iter().map(|&(predicted, us)| (predicted.into(), us.into()));
        both.filter(|&(predicted, us): &(f64, f64)| predicted > 0.0 && us > 0.0).collect()
    };
    let all = own.iter().flat_map(|cell| pairs(cell)).map(|(_, us)| us);
    let (low, high) = all.fold((f64::INFINITY, 0.0_f64), |(low, high), us| (low.min(us), high.max(us)));
    let mut chart = Chart::new(
        format!("Rounds of {}: {text}", first.player),
        Axis::log("predicted time, us (log scale)"),
        Axis::log("actual time, us (log scale)"),
    );
    let errors: Vec<String> = own
        .iter()
        .filter_map(|cell| Some((cell.batch, cell.outcome.prediction_error_p95?)))
        .map(|(batch, error)| format!("{:.1} % at {batch}", 100.0 * error))
        .collect();
    if !errors.is_empty() {
        chart = chart.note(format!("95 % of the latest within: {}", errors.join(", ")));
    }
    if high > 0.0 {
        chart = chart.with(Series::line("as predicted", BEST_STATIC, vec![(low, low), (high, high)]));
    }
    // As many as there are colours.
    for (colour, cell) in own.into_iter().take(MAX_LINES).enumerate() {
        chart = chart.with(Series::points(format!("batch {}", cell.batch), colour, pairs(cell)));
    }
    chart
}
