//! `smart-run replay`: policies over recorded or synthetic texts, under the time that a cost table models, against the best static
//! tree and the oracle.

mod figures;
mod table;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde::Serialize;
use smart_run::control::{CostModel, CostTable, Policy};
use smart_run::replay::process::Process;
use smart_run::replay::{
    Interval, Knowledge, Outcome, Record, RecordShape, Settings, best_static, oracle, replay, static_grid,
};
use smart_run::{Error, Result};

use crate::args::{OutputFormat, Picture, ReplayArgs};
use crate::generate::print_now;
use crate::{interrupt, plots};

/// Changes whenever a field's meaning does.
const REPORT_VERSION: u32 = 1;
/// Texts and positions of a synthetic record.
const SYNTHETIC: (usize, usize) = (64, 200);

/// What replays came to.
#[derive(Serialize)]
struct Report {
    version: u32,
    program: &'static str,
    commit: &'static str,
    costs: CostTable,
    context: Option<usize>,
    repetitions: usize,
    seed: u64,
    noise: f64,
    belief: Option<String>,
    knowledge: Knowledge,
    texts: Vec<Text>,
    cells: Vec<Cell>,
}

/// Texts that are played together.
#[derive(Serialize)]
struct Text {
    name: String,
    sequences: usize,
    positions: usize,
    sampled: bool,
    #[serde(skip)]
    record: Record,
}

/// Who is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Role {
    Policy,
    BestStatic,
    Oracle,
}

/// One player at one batch size over one text.
#[derive(Serialize)]
struct Cell {
    text: String,
    batch: usize,
    role: Role,
    player: String,
    /// Speed relative to plain decoding; by expected tokens where the target's probabilities were recorded.
    speedup: Interval,
    /// Speed relative to the best static tree, repetition by repetition.
    against_best_static: Option<Interval>,
    /// Speed relative to the oracle, repetition by repetition.
    of_oracle: Option<Interval>,
    /// The first repetition.
    outcome: Outcome,
}

/// Runs the command.
pub fn run(args: &ReplayArgs) -> Result<()> {
    let costs = CostTable::open(&args.costs)?;
    let model = costs.cost_model()?;
    let belief = args.belief.as_deref().map(|name| CostTable::open(name)?.cost_model()).transpose()?;
    let texts = texts(args)?;
    if let Some((path, _)) = &args.out {
        // A wrong path should not cost minutes.
        plots::check_place(path)?;
    }
    interrupt::listen();
    let tasks: Vec<(&Text, usize)> =
        texts.iter().flat_map(|text| args.batches.iter().map(move |&batch| (text, batch))).collect();
    let style = ProgressStyle::with_template("replaying {bar:30} {pos}/{len}");
    let bar = ProgressBar::new(tasks.len() as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.tick();
    let played: Result<Vec<Vec<Cell>>> = tasks
        .par_iter()
        .filter(|_| !interrupt::requested())
        .map(|&(text, batch)| {
            let cells = play(args, text, batch, &model, belief.as_ref());
            bar.inc(1);
            cells
        })
        .collect();
    bar.finish_and_clear();
    let cells = played?.into_iter().flatten().collect();
    let report = Report {
        version: REPORT_VERSION,
        program: env!("CARGO_PKG_VERSION"),
        commit: smart_run::COMMIT,
        costs,
        context: args.context,
        repetitions: args.repetitions,
        seed: args.seed,
        noise: args.noise,
        belief: args.belief.clone(),
        knowledge: args.knowledge,
        texts,
        cells,
    };
    if let Some((path, picture)) = &args.out {
        let charts = figures::charts(&report);
        let drawn = match picture {
            Picture::Html => plots::page("Replay", &table::facts(&report), &charts)?,
            // The one that says it all.
            Picture::Svg => plots::sheet(&charts[..1.min(charts.len())])?,
        };
        std::fs::write(path, drawn).map_err(|error| Error::io(path, error))?;
    }
    match args.format {
        OutputFormat::Text => print_now(&table::text(&report)),
        OutputFormat::Json => {
            let json = serde_json::to_string(&report).map_err(|e| Error::Device(e.to_string()))?;
            print_now(&format!("{json}\n"))
        }
    }
}

fn texts(args: &ReplayArgs) -> Result<Vec<Text>> {
    let mut texts = Vec::new();
    let mut joined: Option<Record> = None;
    for path in &args.records {
        let (_, record) = Record::read(path)?;
        joined = Some(match joined {
            None => record,
            Some(before) => before.join(record).map_err(|error| Error::format(path, error.to_string()))?,
        });
    }
    if let Some(record) = joined {
        texts.push(Text::new(records_name(&args.records), record));
    }
    for name in &args.synthetic {
        let (sequences, positions) = SYNTHETIC;
        let record = Process::named(name, args.seed)
            .map_err(|error| Error::Input(format!("--synthetic: {error}")))?
            .record(RecordShape::DEFAULT, sequences, positions)?;
        texts.push(Text::new(name.clone(), record));
    }
    let flag = if args.oracle { "--oracle" } else { "--true-probabilities" };
    let needs_probs = args.oracle || args.knowledge.probabilities;
    if let Some(text) = texts.iter().find(|text| needs_probs && !text.record.has_probs()) {
        return Err(Error::Input(format!(
            "{flag}: {} does not hold the target's probabilities; record at a temperature above 0",
            text.name
        )));
    }
    Ok(texts)
}

/// What to call texts that are played together: the file, or the folder of all files.
fn records_name(paths: &[PathBuf]) -> String {
    let shown =
        |part: Option<&OsStr>| part.map_or("records".into(), |part| part.to_string_lossy().into_owned());
    match paths {
        [path] => shown(path.file_stem()),
        _ => {
            let folder = paths.first().and_then(|path| path.parent());
            let common = folder.filter(|folder| paths.iter().all(|path| path.parent() == Some(folder)));
            shown(common.and_then(Path::file_name))
        }
    }
}

impl Text {
    fn new(name: String, record: Record) -> Self {
        Self {
            name,
            sequences: record.sequences().len(),
            positions: record.num_positions(),
            sampled: record.sequences().iter().any(|sequence| sequence.sampled),
            record,
        }
    }
}

/// All players over one text at one batch size.
fn play(
    args: &ReplayArgs,
    text: &Text,
    batch: usize,
    costs: &CostModel,
    belief: Option<&CostModel>,
) -> Result<Vec<Cell>> {
    let record = &text.record;
    let tokens = args.tokens.unwrap_or_else(|| record.num_positions().max(100 * batch));
    let settings = |repetition: usize| Settings {
        context: args.context,
        seed: args.seed + repetition as u64,
        noise: args.noise,
        belief: belief.cloned(),
        knowledge: args.knowledge,
        ..Settings::new(batch, tokens)
    };
    let repeat = |play: &dyn Fn(&Settings) -> Result<Outcome>| -> Result<Vec<Outcome>> {
        (0..args.repetitions).map(|repetition| play(&settings(repetition))).collect()
    };
    let mut players: Vec<(Role, String, Vec<Outcome>)> = Vec::new();
    for &policy in &args.policies {
        let outcomes = repeat(&|settings| replay(record, costs, policy, settings))?;
        players.push((Role::Policy, policy.to_string(), outcomes));
    }
    if args.rivals {
        let best = best_static(record, costs, &static_grid(record.shape()), &settings(0))?;
        if let Some((policy, _)) = best {
            let outcomes = repeat(&|settings| replay(record, costs, policy, settings))?;
            players.push((Role::BestStatic, Policy::to_string(&policy), outcomes));
        }
    }
    if args.oracle {
        players.push((Role::Oracle, "oracle".into(), repeat(&|settings| oracle(record, costs, settings))?));
    }
    let speeds = |outcomes: &[Outcome]| -> Vec<f64> {
        outcomes
            .iter()
            .map(|outcome| outcome.expected_speedup().unwrap_or_else(|| outcome.speedup()))
            .collect()
    };
    let of = |role: Role| players.iter().find(|player| player.0 == role).map(|player| speeds(&player.2));
    let (best, ceiling) = (of(Role::BestStatic), of(Role::Oracle));
    let ratio = |own: &[f64], others: &Option<Vec<f64>>| {
        let others = others.as_ref()?;
        Some(Interval::of(&own.iter().zip(others).map(|(own, other)| own / other).collect::<Vec<_>>()))
    };
    let cell = |(role, player, outcomes): &(Role, String, Vec<Outcome>)| {
        let own = speeds(outcomes);
        Cell {
            text: text.name.clone(),
            batch,
            role: *role,
            player: player.clone(),
            speedup: Interval::of(&own),
            against_best_static: ratio(&own, &best),
            of_oracle: ratio(&own, &ceiling),
            outcome: outcomes.first().cloned().unwrap_or_default(),
        }
    };
    Ok(players.iter().map(cell).collect())
}
