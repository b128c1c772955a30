//! `smart-run replay`: policies over recorded or synthetic texts, under the time that a cost table models, against the best static
//! tree and the oracle.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;
use smart_run::control::{CostModel, CostTable, Policy};
use smart_run::replay::process::Process;
use smart_run::replay::{
    Knowledge, Outcome, Record, RecordShape, Settings, best_static, oracle, replay, static_grid,
};
use smart_run::{Error, Result};

use crate::args::ReplayArgs;
use crate::report::{self, Cell, Played, Results, Role, Text};
use crate::{interrupt, output};

/// Changes whenever a field's meaning does.
const REPORT_VERSION: u32 = 2;
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
    #[serde(flatten)]
    results: Results,
}

/// Runs the command.
pub fn run(args: &ReplayArgs) -> Result<()> {
    let costs = CostTable::open(&args.costs)?;
    let model = costs.cost_model()?;
    let belief = args.belief.as_deref().map(|name| CostTable::open(name)?.cost_model()).transpose()?;
    let records = records(args)?;
    if let Some((path, _)) = &args.out {
        // A wrong path should not cost minutes.
        output::check_place(path)?;
    }
    interrupt::listen();
    let tasks: Vec<(&(Text, Record), usize)> =
        records.iter().flat_map(|record| args.batches.iter().map(move |&batch| (record, batch))).collect();
    let bar = output::bar("replaying {bar:30} {pos}/{len}", tasks.len());
    bar.tick();
    let played: Result<Vec<Vec<Cell>>> = tasks
        .par_iter()
        .filter(|_| !interrupt::requested())
        .map(|&((text, record), batch)| {
            let cells = play(args, &text.name, record, batch, &model, belief.as_ref());
            bar.inc(1);
            cells
        })
        .collect();
    bar.finish_and_clear();
    let results = Results {
        cells: played?.into_iter().flatten().collect(),
        texts: records.into_iter().map(|(text, _)| text).collect(),
    };
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
        results,
    };
    let facts = report.facts();
    if let Some(out) = &args.out {
        report::draw(&report.results, "Replay", &facts, out)?;
    }
    report::print(&report.results, &facts, &report, args.format)
}

impl Report {
    /// What was played, a sentence each.
    fn facts(&self) -> Vec<String> {
        let context = match self.context {
            Some(tokens) => format!("{tokens} cached tokens at the first position"),
            None => "contexts as recorded".into(),
        };
        let mut facts = vec![format!(
            "Times are modelled by the cost table {} ({}, {}); {context}; {} repetitions, each with the texts in another order.",
            self.costs.name, self.costs.model, self.costs.drafter, self.repetitions
        )];
        let told = [
            (self.knowledge.probabilities, "the target's probabilities"),
            (self.knowledge.costs, "the true costs"),
        ];
        for (_, what) in told.iter().filter(|(is_told, _)| *is_told) {
            facts.push(format!("Policies are told {what}."));
        }
        if let Some(belief) = &self.belief {
            facts.push(format!("Policies begin with the costs of {belief}."));
        }
        for text in &self.results.texts {
            let draws = if text.sampled { "sampled" } else { "greedy" };
            facts.push(format!(
                "{}: {} texts, {} positions, {draws}.",
                text.name, text.sequences, text.positions
            ));
        }
        facts
    }
}

fn records(args: &ReplayArgs) -> Result<Vec<(Text, Record)>> {
    let mut records = Vec::new();
    let mut joined: Option<Record> = None;
    for path in &args.records {
        let (_, record) = Record::read(path)?;
        joined = Some(match joined {
            None => record,
            Some(before) => before.join(record).map_err(|error| Error::format(path, error.to_string()))?,
        });
    }
    if let Some(record) = joined {
        records.push((text(records_name(&args.records), &record), record));
    }
    for name in &args.synthetic {
        let (sequences, positions) = SYNTHETIC;
        let record = Process::named(name, args.seed)
            .map_err(|error| Error::Input(format!("--synthetic: {error}")))?
            .record(RecordShape::DEFAULT, sequences, positions)?;
        records.push((text(name.clone(), &record), record));
    }
    let flag = if args.oracle { "--oracle" } else { "--true-probabilities" };
    let needs_probs = args.oracle || args.knowledge.probabilities;
    if let Some((text, _)) = records.iter().find(|(_, record)| needs_probs && !record.has_probs()) {
        return Err(Error::Input(format!(
            "{flag}: {} does not hold the target's probabilities; record at a temperature above 0 with --uncoupled",
            text.name
        )));
    }
    Ok(records)
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

fn text(name: String, record: &Record) -> Text {
    Text {
        name,
        sequences: record.sequences().len(),
        positions: record.num_positions(),
        sampled: record.sequences().iter().any(|sequence| sequence.sampled),
    }
}

/// All players over one text at one batch size.
fn play(
    args: &ReplayArgs,
    text: &str,
    record: &Record,
    batch: usize,
    costs: &CostModel,
    belief: Option<&CostModel>,
) -> Result<Vec<Cell>> {
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
    let played = |(role, player, outcomes): (Role, String, Vec<Outcome>)| Played {
        role,
        player,
        tokens_per_second: outcomes.iter().map(Outcome::tokens_per_second).collect(),
        speedups: outcomes
            .iter()
            .map(|outcome| outcome.expected_speedup().unwrap_or_else(|| outcome.speedup()))
            .collect(),
        outcome: outcomes.into_iter().next().unwrap_or_default(),
    };
    Ok(report::compare(text, batch, players.into_iter().map(played).collect()))
}
