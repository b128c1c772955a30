//! `smart-run bench`: policies against each other on this machine, in one process, on the same requests.
//!
//! A repetition visits every text, batch size and policy once, and begins with another policy each time, so that a machine that
//! grows slower or faster slows and speeds all of them. The first repetition warms up: it counts for nothing but the texts.

mod pass;
mod prompts;

use serde::Serialize;
use smart_run::conditions::Conditions;
use smart_run::config::ModelConfig;
use smart_run::control::{Controller, Policy};
use smart_run::device::ConditionsProbe;
use smart_run::engine::{Engine, Request};
use smart_run::replay::Outcome;
use smart_run::sampling::SamplingParams;
use smart_run::text::Tokenizer;
use smart_run::{Error, Result};

use crate::args::BenchArgs;
use crate::loading::{self, Models};
use crate::report::{self, Cell, Played, Results, Role, Text};
use crate::{interrupt, output};
use prompts::PromptSet;

/// Changes whenever a field's meaning does.
const REPORT_VERSION: u32 = 1;

/// What was measured.
#[derive(Serialize)]
struct Report {
    version: u32,
    program: &'static str,
    commit: &'static str,
    model: String,
    drafter: Option<String>,
    dtype: String,
    device: String,
    driver: String,
    /// Whether times are those of a cost table (`SIMT_CLOCK`).
    modelled_time: bool,
    max_new_tokens: usize,
    ignore_eos: bool,
    repetitions: usize,
    cold: bool,
    seed: u64,
    /// The GPU around each repetition, if it tells.
    conditions: Vec<Option<Conditions>>,
    /// Texts that were held against plain decoding's, token by token.
    texts_compared: usize,
    #[serde(flatten)]
    results: Results,
}

/// A prompt set at one temperature.
struct Workload<'a> {
    set: &'a PromptSet,
    temperature: f32,
    /// What plain decoding gave for the first requests.
    plain: Vec<Vec<i32>>,
}

/// One policy at one batch size on one workload.
struct Entry {
    workload: usize,
    batch: usize,
    policy: Policy,
    /// What it has learned, unless passes start cold.
    controller: Option<Controller>,
    /// Of all passes that count.
    outcome: Outcome,
    tokens_per_second: Vec<f64>,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<()> {
    if let Some((path, _)) = &args.out {
        // A wrong path should not cost minutes.
        output::check_place(path)?;
    }
    let models = Models::of(&args.models)?;
    let config = ModelConfig::from_hf(&models.target)?;
    let tokenizer = Tokenizer::open(&models.target)?;
    let sets = prompts::prompt_sets(&args.prompts, tokenizer.as_ref())?;
    let (model_name, drafter_name) = (models.target.name(), models.drafter_name());
    // The engine asks again; here a wrong prompt does not cost the time to load the weights.
    for set in &sets {
        let check = |prompt: &Vec<i32>| {
            request(args, prompt, 0.0, 0).validate(config.geometry.vocab_size, config.max_position)
        };
        set.prompts
            .iter()
            .try_for_each(check)
            .map_err(|error| Error::Input(format!("{}: {error}", set.name)))?;
    }
    let longest = sets.iter().flat_map(|set| &set.prompts).map(Vec::len).max().unwrap_or(0);
    let builder = models
        .builder(&args.models)
        .policy(Policy::Plain)
        .max_sequences(args.batches.iter().copied().max().unwrap_or(1))
        .max_context(longest.saturating_add(args.max_new_tokens));
    interrupt::listen();
    let mut engine = loading::build(builder)?;
    let mut workloads: Vec<Workload> = sets
        .iter()
        .flat_map(|set| {
            args.temperatures.iter().map(move |&temperature| Workload { set, temperature, plain: Vec::new() })
        })
        .collect();
    let mut entries = entries(args, workloads.len());
    let Some((conditions, texts_compared)) = measure(args, &mut engine, &mut workloads, &mut entries)? else {
        return Ok(());
    };
    let report = Report {
        version: REPORT_VERSION,
        program: env!("CARGO_PKG_VERSION"),
        commit: smart_run::COMMIT,
        model: model_name,
        drafter: drafter_name,
        dtype: engine.dtype().to_owned(),
        device: engine.device().name().to_owned(),
        driver: engine.device().driver_version(),
        modelled_time: engine.device().has_modelled_time(),
        max_new_tokens: args.max_new_tokens,
        ignore_eos: args.ignore_eos,
        repetitions: args.repetitions,
        cold: args.cold,
        seed: args.seed,
        conditions,
        texts_compared,
        results: results(&workloads, entries),
    };
    let facts = report.facts();
    if let Some(out) = &args.out {
        report::draw(&report.results, "Policies on this machine", &facts, out)?;
    }
    report::print(&report.results, &facts, &report, args.format)
}

/// Every combination, plain decoding first of its batch size.
fn entries(args: &BenchArgs, workloads: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    for workload in 0..workloads {
        for &batch in &args.batches {
            let policies = std::iter::once(Policy::Plain).chain(args.policies.iter().copied());
            entries.extend(policies.map(|policy| Entry {
                workload,
                batch,
                policy,
                controller: None,
                outcome: Outcome::default(),
                tokens_per_second: Vec::new(),
            }));
        }
    }
    entries
}

/// All passes; the state of the GPU around each repetition, and how many texts were compared. `None` if the user has had enough.
fn measure(
    args: &BenchArgs,
    engine: &mut Engine,
    workloads: &mut [Workload],
    entries: &mut [Entry],
) -> Result<Option<(Vec<Option<Conditions>>, usize)>> {
    let passes = (args.repetitions + 1) * entries.len();
    let bar = output::bar("{msg} {bar:30} {pos}/{len}, {eta} left", passes);
    let (mut conditions, mut compared) = (Vec::new(), 0);
    for repetition in 0..=args.repetitions {
        bar.set_message(if repetition == 0 { "warming up" } else { "measuring" });
        bar.tick();
        let probe = ConditionsProbe::start(engine.device());
        for group in entries.chunk_by_mut(|a, b| (a.workload, a.batch) == (b.workload, b.batch)) {
            let count = group.len();
            for turn in 0..count {
                let entry = &mut group[(turn + repetition) % count];
                let workload = &mut workloads[entry.workload];
                let texts = one_pass(args, engine, entry, workload, repetition > 0)?;
                if interrupt::requested() {
                    return Ok(None);
                }
                compared += check_texts(workload, entry, &texts)?;
                bar.inc(1);
            }
        }
        if repetition > 0 {
            conditions.push(probe.and_then(ConditionsProbe::finish));
        }
    }
    bar.finish_and_clear();
    Ok(Some((conditions, compared)))
}

fn one_pass(
    args: &BenchArgs,
    engine: &mut Engine,
    entry: &mut Entry,
    workload: &Workload,
    counts: bool,
) -> Result<Vec<Vec<i32>>> {
    let requests = requests(args, workload, entry.batch);
    let controller = match entry.controller.take() {
        Some(controller) => controller,
        None => engine.new_controller(entry.policy)?,
    };
    let idle = engine.set_controller(controller)?;
    let mut warm_up = Outcome::default();
    let outcome = if counts { &mut entry.outcome } else { &mut warm_up };
    let (tokens, us) = (outcome.tokens, outcome.us);
    let texts = pass::run(engine, &requests, entry.batch, outcome)?;
    let (tokens, us) = (outcome.tokens - tokens, outcome.us - us);
    if counts {
        entry.tokens_per_second.push(tokens as f64 * 1e6 / us);
        entry.outcome.conclude(engine.controller());
    }
    let controller = engine.set_controller(idle)?;
    if tokens == 0 && !interrupt::requested() {
        return Err(Error::Input(format!(
            "no round ran {} sequences, so there is nothing to measure: raise --max-new-tokens or --requests",
            entry.batch
        )));
    }
    entry.controller = Some(controller).filter(|_| !args.cold);
    Ok(texts)
}

/// The requests of a pass: the set from its first prompt, over again if it is too short, each with a seed of its own.
fn requests(args: &BenchArgs, workload: &Workload, batch: usize) -> Vec<Request> {
    let prompts = workload.set.prompts.iter().cycle();
    // Half of a pass at the least runs at its full batch.
    let numbered = (0..).zip(prompts).take(args.requests.max(2 * batch));
    numbered.map(|(index, prompt)| request(args, prompt, workload.temperature, index)).collect()
}

fn request(args: &BenchArgs, prompt: &[i32], temperature: f32, index: u64) -> Request {
    let seed = args.seed.wrapping_add(index);
    Request {
        sampling: SamplingParams { temperature, seed, ..SamplingParams::default() },
        ignore_eos: args.ignore_eos,
        ..Request::new(prompt.to_vec(), args.max_new_tokens)
    }
}

/// Holds the texts of a pass against plain decoding's; how many were compared.
fn check_texts(workload: &mut Workload, entry: &Entry, texts: &[Vec<i32>]) -> Result<usize> {
    for (index, (text, plain)) in texts.iter().zip(&workload.plain).enumerate() {
        if text == plain {
            continue;
        }
        let at = text.iter().zip(plain).take_while(|(own, plain)| own == plain).count();
        return Err(Error::Defect(format!(
            "policy {} at batch {} and temperature {} changed the text of request {index} of {} at token {at}: it has {:?}, plain decoding {:?}; please report this",
            entry.policy,
            entry.batch,
            workload.temperature,
            workload.set.name,
            text.get(at),
            plain.get(at)
        )));
    }
    let known = workload.plain.len();
    if entry.policy == Policy::Plain && texts.len() > known {
        workload.plain.extend_from_slice(&texts[known..]);
    }
    Ok(texts.len().min(known))
}

/// Cells and texts of the report; the best static tree of each batch size is the fastest of those that were asked for.
fn results(workloads: &[Workload], mut entries: Vec<Entry>) -> Results {
    let texts: Vec<Text> = workloads
        .iter()
        .map(|workload| Text {
            name: format!("{}, T = {}", workload.set.name, workload.temperature),
            sequences: workload.plain.len(),
            positions: workload.plain.iter().map(Vec::len).sum(),
            sampled: workload.temperature > 0.0,
        })
        .collect();
    let mut cells: Vec<Cell> = Vec::new();
    for group in entries.chunk_by_mut(|a, b| (a.workload, a.batch) == (b.workload, b.batch)) {
        let (workload, batch) = (group[0].workload, group[0].batch);
        let plain = group[0].tokens_per_second.clone();
        let speed = |entry: &Entry| entry.outcome.tokens_per_second();
        let plain_us = 1e6 / speed(&group[0]);
        let best = group.iter().filter(|entry| entry.policy.is_static_tree());
        let best = best.max_by(|a, b| speed(a).total_cmp(&speed(b))).map(|entry| entry.policy);
        let (mut players, mut best_played) = (Vec::new(), None);
        for entry in group {
            entry.outcome.plain_us = plain_us * entry.outcome.tokens as f64;
            let speedups = entry.tokens_per_second.iter().zip(&plain).map(|(own, plain)| own / plain);
            let played = |role| Played {
                role,
                player: entry.policy.to_string(),
                tokens_per_second: entry.tokens_per_second.clone(),
                speedups: speedups.clone().collect(),
                outcome: entry.outcome.clone(),
            };
            players.push(played(Role::Policy));
            if best == Some(entry.policy) {
                best_played = Some(played(Role::BestStatic));
            }
        }
        // The policy that was asked for first is the one that charts are about; plain decoding comes last.
        players.rotate_left(1);
        players.extend(best_played);
        cells.extend(report::compare(&texts[workload].name, batch, players));
    }
    Results { texts, cells }
}

impl Report {
    /// What was measured, a sentence each.
    fn facts(&self) -> Vec<String> {
        let pair = match &self.drafter {
            Some(drafter) => format!("{} with {drafter}", self.model),
            None => format!("{} without a drafter", self.model),
        };
        let start = if self.cold { "starts cold" } else { "keeps what it has learned" };
        let mut facts = vec![
            format!(
                "{pair}, {}, on {} (driver: {}; commit: {}).",
                self.dtype, self.device, self.driver, self.commit
            ),
            format!(
                "{} repetitions, policies in turn, after one that warms up; up to {} tokens a request; from pass to pass a policy {start}.",
                self.repetitions, self.max_new_tokens
            ),
            format!("Each of {} texts is the one of plain decoding, token by token.", self.texts_compared),
        ];
        if self.modelled_time {
            facts.push("Times are those of the cost table in SIMT_CLOCK, not this machine's.".into());
        }
        let mut remarks: Vec<String> = Vec::new();
        for remark in self.conditions.iter().flatten().flat_map(Conditions::remarks) {
            if !remarks.contains(&remark) {
                remarks.push(remark);
            }
        }
        facts.extend(self.conditions.iter().flatten().next().map(|conditions| format!("GPU: {conditions}.")));
        facts.extend(remarks.into_iter().map(|remark| format!("Note: {remark}.")));
        facts
    }
}
