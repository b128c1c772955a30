//! What policies came to over texts and batch sizes, replayed or measured: as numbers, a table and charts.

mod figures;
mod table;

use std::path::Path;

use serde::Serialize;
use smart_run::replay::{Interval, Outcome};
use smart_run::{Error, Result};

use crate::args::{OutputFormat, Picture};
use crate::output::print_now;
use crate::plots;

/// All of it.
#[derive(Serialize)]
pub struct Results {
    /// In the order of play.
    pub texts: Vec<Text>,
    /// Text by text, batch by batch.
    pub cells: Vec<Cell>,
}

/// Texts that are played together.
#[derive(Clone, Serialize)]
pub struct Text {
    pub name: String,
    pub sequences: usize,
    /// Positions that are played at least once.
    pub positions: usize,
    pub sampled: bool,
}

/// Who is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Policy,
    BestStatic,
    Oracle,
}

/// One player at one batch size over one text.
#[derive(Clone, Serialize)]
pub struct Cell {
    pub text: String,
    pub batch: usize,
    pub role: Role,
    pub player: String,
    /// Over all sequences.
    pub tokens_per_second: Interval,
    /// Speed relative to plain decoding; by expected tokens where the target's probabilities were recorded.
    pub speedup: Interval,
    /// Speed relative to the best static tree, repetition by repetition.
    pub against_best_static: Option<Interval>,
    /// Speed relative to the oracle, repetition by repetition.
    pub of_oracle: Option<Interval>,
    /// The first repetition of a replay; all repetitions where rounds were run.
    pub outcome: Outcome,
}

/// One player's repetitions, before they are compared with the others'.
pub struct Played {
    pub role: Role,
    pub player: String,
    /// Tokens per second of each repetition.
    pub tokens_per_second: Vec<f64>,
    /// Speed relative to plain decoding, repetition by repetition.
    pub speedups: Vec<f64>,
    pub outcome: Outcome,
}

/// The cells of all players over `text` at one batch size.
pub fn compare(text: &str, batch: usize, players: Vec<Played>) -> Vec<Cell> {
    let of = |role: Role| players.iter().find(|player| player.role == role).map(|own| own.speedups.clone());
    let (best, ceiling) = (of(Role::BestStatic), of(Role::Oracle));
    let ratio = |own: &[f64], others: &Option<Vec<f64>>| {
        let others = others.as_ref()?;
        Some(Interval::of(&own.iter().zip(others).map(|(own, other)| own / other).collect::<Vec<_>>()))
    };
    let cell = |player: Played| Cell {
        text: text.to_owned(),
        batch,
        role: player.role,
        tokens_per_second: Interval::of(&player.tokens_per_second),
        speedup: Interval::of(&player.speedups),
        against_best_static: ratio(&player.speedups, &best),
        of_oracle: ratio(&player.speedups, &ceiling),
        player: player.player,
        outcome: player.outcome,
    };
    players.into_iter().map(cell).collect()
}

/// Draws `results` to a file.
pub fn draw(
    results: &Results,
    title: &str,
    facts: &[String],
    (path, picture): &(impl AsRef<Path>, Picture),
) -> Result<()> {
    let charts = figures::charts(results);
    let drawn = match picture {
        Picture::Html => plots::page(title, facts, &charts)?,
        // The one that says it all.
        Picture::Svg => plots::sheet(&charts[..1.min(charts.len())])?,
    };
    std::fs::write(path, drawn).map_err(|error| Error::io(path.as_ref(), error))
}

/// Prints `results`, or as JSON the whole `report` that they are part of.
pub fn print(
    results: &Results,
    facts: &[String],
    report: &impl Serialize,
    format: OutputFormat,
) -> Result<()> {
    match format {
        OutputFormat::Text => print_now(&table::text(results, facts)),
        OutputFormat::Json => {
            let json = serde_json::to_string(report).map_err(|e| Error::Device(e.to_string()))?;
            print_now(&format!("{json}\n"))
        }
    }
}

/// Policies in the order of play.
fn policies(results: &Results) -> Vec<&str> {
    let mut policies: Vec<&str> = Vec::new();
    for cell in results.cells.iter().filter(|cell| cell.role == Role::Policy) {
        if !policies.contains(&cell.player.as_str()) {
            policies.push(&cell.player);
        }
    }
    policies
}
