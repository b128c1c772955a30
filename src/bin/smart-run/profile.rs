//! `smart-run profile`: what target and drafter passes cost, measured here or read from a table, as text and as pictures.

mod breakdown;
mod figures;

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use serde_json::json;
use smart_run::control::cost::COST_TABLE_VERSION;
use smart_run::control::{CostModel, CostSource, CostTable, Policy, SweepKind, SweepPoint};
use smart_run::engine::{IdleLevel, PassBreakdown};
use smart_run::kernels::linear::TunedLaunch;
use smart_run::{Error, Result};

use crate::args::{OutputFormat, Picture, ProfileArgs, ProfileSubject};
use crate::loading::{self, Models};
use crate::output::{self, print_now};
use crate::plots::{self, number};

/// Context that a profile measures at most: the sweep's farthest and room for its widest pass.
const MAX_CONTEXT: usize = 2048;
/// Nodes of a sequence that attention is listed for.
const ATTENTION_NODES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// A table, its model, and how it was measured, if it was.
struct Profile {
    table: CostTable,
    cost: CostModel,
    sweep: Option<Sweep>,
}

struct Sweep {
    took: Duration,
    measured: usize,
    planned: usize,
    idle_level: Option<IdleLevel>,
    /// Of the target, and of the drafter.
    tuned: [Vec<TunedLaunch>; 2],
    /// Passes whose time was taken apart, as asked for.
    breakdowns: Vec<PassBreakdown>,
}

/// Runs the command.
pub fn run(args: &ProfileArgs) -> Result<()> {
    // Where files go is tried before anything is measured: a wrong path should not cost minutes.
    for path in args.out.iter().map(|(path, _)| path).chain(&args.save_table) {
        output::check_place(path)?;
    }
    let profile = match &args.subject {
        ProfileSubject::Table(name) => {
            let table = CostTable::open(name)?;
            Profile { cost: table.cost_model()?, table, sweep: None }
        }
        ProfileSubject::Machine { .. } => measure(&args.subject)?,
    };
    if let Some(path) = &args.save_table {
        profile.table.write(path)?;
    }
    if let Some((path, picture)) = &args.out {
        let charts = figures::charts(&profile.table, &profile.cost);
        let drawn = match picture {
            Picture::Html => plots::page(&profile.title(), &profile.facts(), &charts)?,
            Picture::Svg => plots::sheet(&charts)?,
        };
        fs::write(path, drawn).map_err(|error| Error::io(path, error))?;
    }
    match args.format {
        OutputFormat::Text => print_now(&profile.text()),
        OutputFormat::Json => print_now(&format!("{}\n", profile.json())),
    }
}

fn measure(subject: &ProfileSubject) -> Result<Profile> {
    let ProfileSubject::Machine { models: args, max_sequences, dummy_weights, breakdown } = subject else {
        unreachable!("tables are not measured");
    };
    let models = Models::of(args)?;
    let (mut model_name, drafter_name) = (models.target.name(), models.drafter_name());
    // A plain engine: it does not sweep at its start.
    let builder =
        models.builder(args).policy(Policy::Plain).max_sequences(*max_sequences).max_context(MAX_CONTEXT);
    let builder = if *dummy_weights { builder.dummy_weights() } else { builder };
    if *dummy_weights {
        model_name.push_str(" (dummy weights)");
    }
    let mut engine = loading::build(builder)?;
    let measured = engine.measure_costs()?;
    let mut breakdowns = Vec::new();
    for &rows in breakdown {
        breakdowns.extend(engine.break_down_passes(rows)?);
    }
    let gpu = engine.device().name().to_owned();
    let table = CostTable {
        version: COST_TABLE_VERSION,
        name: format!("{model_name} on {gpu}"),
        source: CostSource::Measured,
        gpu,
        driver: engine.device().driver_version(),
        commit: smart_run::COMMIT.into(),
        model: model_name,
        drafter: drafter_name.unwrap_or_default(),
        dtype: engine.dtype().into(),
        treads: measured.treads,
        overhead_us: measured.overhead_us,
        plain_overhead_us: measured.plain_overhead_us,
        points: measured.points,
        conditions: measured.conditions,
    };
    let sweep = Sweep {
        took: measured.sweep_time,
        measured: table.points.len(),
        planned: measured.planned_points,
        idle_level: measured.idle_level,
        tuned: engine.tuned_launches().map(<[_]>::to_vec),
        breakdowns,
    };
    Ok(Profile { cost: table.cost_model()?, table, sweep: Some(sweep) })
}

impl Profile {
    /// Launches that were measured, each with whose it is.
    fn tuned(&self) -> impl Iterator<Item = (&'static str, &TunedLaunch)> {
        let networks =
            self.sweep.iter().flat_map(|sweep| ["target", "drafter"].into_iter().zip(&sweep.tuned));
        networks.flat_map(|(network, launches)| launches.iter().map(move |launch| (network, launch)))
    }

    fn breakdowns(&self) -> &[PassBreakdown] {
        self.sweep.as_ref().map_or(&[], |sweep| &sweep.breakdowns)
    }

    fn title(&self) -> String {
        format!("Costs of {}", self.table.name)
    }

    /// What the numbers are, a sentence each.
    fn facts(&self) -> Vec<String> {
        let table = &self.table;
        let pair = match table.drafter.as_str() {
            "" => format!("{} without a drafter", table.model),
            drafter => format!("{} with {drafter}", table.model),
        };
        let mut facts = vec![match table.source {
            CostSource::Roofline => {
                format!(
                    "{pair}, {}, on {}: computed, what a perfect implementation would take.",
                    table.dtype, table.gpu
                )
            }
            CostSource::Measured => format!(
                "{pair}, {}, on {}: measured (driver: {}; commit: {}).",
                table.dtype, table.gpu, table.driver, table.commit
            ),
        }];
        if let Some(sweep) = &self.sweep {
            facts.push(format!(
                "The sweep measured {} of {} passes in {:.2} s.",
                sweep.measured,
                sweep.planned,
                sweep.took.as_secs_f64()
            ));
        }
        if let Some(IdleLevel { us, prefetched_us }) = self.sweep.as_ref().and_then(|sweep| sweep.idle_level)
        {
            let (us, prefetched_us) = (number(us), number(prefetched_us));
            facts.push(format!(
                "Behind 20 us of idling a drafter level takes {us} us, with its first weights in the cache {prefetched_us}."
            ));
        }
        let (declared, seen) = (table.treads, self.cost.observed_tread());
        facts.push(match (declared.tokens, seen) {
            (1, _) => "These kernels have no treads: passes of any two widths may differ.".into(),
            (tokens, 1) => format!("Treads of {tokens} rows were expected, but passes of one tread differ."),
            (tokens, _) => format!(
                "Rows cost in treads of {tokens}; attention in tiles of {} nodes a sequence.",
                declared.nodes
            ),
        });
        let plain = number(table.plain_overhead_us);
        facts.push(match table.drafter.as_str() {
            "" => format!("Outside its pass a plain round takes {plain} us."),
            _ => {
                let drafted = number(table.overhead_us);
                format!("Outside its passes a drafted round takes {drafted} us and a plain one {plain} us.")
            }
        });
        let others = self.tuned().filter(|(_, launch)| launch.us < launch.usual_us).count();
        if let launches @ 1.. = self.tuned().count() {
            facts.push(format!(
                "Of {launches} launches of linear layers that could run in several ways {others} do not run in the usual one."
            ));
        }
        if let Some(conditions) = &table.conditions {
            facts.push(format!("GPU: {conditions}."));
            facts.extend(conditions.remarks().into_iter().map(|remark| format!("Note: {remark}.")));
        }
        facts
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.title());
        for fact in self.facts() {
            let _ = writeln!(text, "{fact}");
        }
        for (kind, title) in [
            (SweepKind::Verify, "Target pass"),
            (SweepKind::Plain, "Target pass, one row a sequence"),
            (SweepKind::Draft, "Drafter pass"),
        ] {
            text.push_str(&self.passes(kind, title));
        }
        text.push_str(&self.launches());
        for breakdown in self.breakdowns() {
            text.push_str(&breakdown::text(breakdown));
        }
        text.push_str("\nAttention of a target pass, us per sequence and 1000 cached tokens\n  nodes");
        for nodes in ATTENTION_NODES {
            let _ = write!(text, " {nodes:>9}");
        }
        text.push_str("\n     us");
        for nodes in ATTENTION_NODES {
            let _ = write!(text, " {:>9}", number(1000.0 * self.cost.attention_us_per_token(nodes)));
        }
        let _ = writeln!(
            text,
            "\n  of a drafter pass: {} us",
            number(1000.0 * self.cost.draft_attention_us_per_token())
        );
        text
    }

    /// Which way launches of linear layers run, where measurements said; nothing where they did not.
    fn launches(&self) -> String {
        let mut text = String::new();
        if self.tuned().next().is_some() {
            text.push_str(
                "\nLinear layers, each in the fastest way\n  network    layer  rows  weights a tile  bulk copies  blocks a cluster        us  usual way\n",
            );
        }
        for (network, launch) in self.tuned() {
            let TunedLaunch { layer, rows, weights, bulk, cluster, us, usual_us } = launch;
            let bulk = if *bulk { "yes" } else { "no" };
            let (us, usual_us) = (number(*us), number(*usual_us));
            let _ = writeln!(
                text,
                "  {network:>7} {layer:>8} {rows:>5} {weights:>15} {bulk:>12} {cluster:>17} {us:>9} {usual_us:>10}"
            );
        }
        text
    }

    /// Passes of one kind as a table; nothing if there are none.
    fn passes(&self, kind: SweepKind, title: &str) -> String {
        let mut points: Vec<&SweepPoint> =
            self.table.points.iter().filter(|point| point.kind == kind).collect();
        if points.is_empty() {
            return String::new();
        }
        points.sort_by_key(|point| (point.context, point.tokens, point.sequences));
        let what = if self.table.source == CostSource::Measured { "measured" } else { "computed" };
        let mut text = format!(
            "\n{title}\n  {:>7} {:>9} {:>7} {:>12} {:>10} {:>9} {:>9}\n",
            "context",
            "sequences",
            "rows",
            format!("{what} us"),
            "fitted us",
            "us a row",
            "of plain"
        );
        for point in points {
            // A plain pass of one sequence with the same context.
            let plain = self.cost.plain_us(1, point.context);
            let _ = writeln!(
                text,
                "  {:>7} {:>9} {:>7} {:>12} {:>10} {:>9} {:>9.2}",
                point.context,
                point.sequences,
                point.tokens,
                number(point.us),
                number(figures::fitted(&self.cost, point)),
                number(point.us / point.tokens as f64),
                point.us / plain
            );
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        let attention: Vec<_> = ATTENTION_NODES
            .iter()
            .map(|&nodes| json!({"nodes": nodes, "us_per_1000": 1000.0 * self.cost.attention_us_per_token(nodes)}))
            .collect();
        json!({
            "table": self.table,
            "fitted_us": self.table.points.iter().map(|point| figures::fitted(&self.cost, point)).collect::<Vec<_>>(),
            "observed_tread": self.cost.observed_tread(),
            "attention": attention,
            "draft_attention_us_per_1000": 1000.0 * self.cost.draft_attention_us_per_token(),
            "sweep": self.sweep.as_ref().map(|sweep| json!({
                "seconds": sweep.took.as_secs_f64(), "measured": sweep.measured, "planned": sweep.planned,
                "idle_level": sweep.idle_level.map(|level| json!({"us": level.us, "prefetched_us": level.prefetched_us})),
            })),
            "breakdowns": self.breakdowns().iter().map(breakdown::json).collect::<Vec<_>>(),
            "remarks": self.table.conditions.as_ref().map(|conditions| conditions.remarks()).unwrap_or_default(),
        })
    }
}
