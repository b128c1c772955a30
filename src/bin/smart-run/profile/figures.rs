//! The charts of a cost table: measured passes over what was fitted to them.

use std::collections::BTreeMap;

use smart_run::control::cost::attention_rates;
use smart_run::control::{CostModel, CostSource, CostTable, SweepKind, SweepPoint};

use crate::plots::{Axis, Chart, Series};

/// Width up to which treads can be seen.
const NARROW: usize = 128;
/// Nodes of a sequence in passes wider than that.
const NODES_PER_SEQUENCE: usize = 64;

/// The fitted time of the pass that `point` measured.
pub fn fitted(cost: &CostModel, point: &SweepPoint) -> f64 {
    let SweepPoint { kind, tokens, sequences, context, .. } = *point;
    let trees = std::iter::repeat_n((tokens.div_ceil(sequences), context), sequences);
    match kind {
        SweepKind::Verify => cost.verify_us(tokens, trees),
        SweepKind::Plain => cost.plain_us(tokens, tokens * context),
        SweepKind::Draft => cost.draft_us(tokens, sequences * context),
    }
}

/// All charts that this table has numbers for.
pub fn charts(table: &CostTable, cost: &CostModel) -> Vec<Chart> {
    let mut charts = vec![passes(table, cost, SweepKind::Verify, NARROW)];
    let widest = of_kind(table, SweepKind::Verify).map(|point| point.tokens).max().unwrap_or(0);
    if widest > NARROW {
        charts.push(passes(table, cost, SweepKind::Verify, widest));
    }
    if of_kind(table, SweepKind::Draft).next().is_some() {
        charts.push(passes(table, cost, SweepKind::Draft, NARROW));
    }
    charts.extend(attention(table, cost));
    charts.push(anatomy(table, cost));
    charts
}

fn of_kind(table: &CostTable, kind: SweepKind) -> impl Iterator<Item = &SweepPoint> {
    table.points.iter().filter(move |point| point.kind == kind)
}

/// Time by rows up to `most`, at each context that was measured.
fn passes(table: &CostTable, cost: &CostModel, kind: SweepKind, most: usize) -> Chart {
    let wide = most > NARROW;
    let points = || of_kind(table, kind).filter(|point| point.tokens <= most);
    let widest = points().map(|point| point.tokens).max().unwrap_or(1);
    let slowest = points().map(|point| point.us).fold(0.0, f64::max);
    let (unit, scale) = unit(slowest);
    let y = format!("time of a pass ({unit})");
    let (title, x) = match kind {
        SweepKind::Draft => ("Drafter pass by rows", "rows of the drafter pass"),
        _ if wide => ("Target pass by tokens, all widths", "tokens of the target pass (log scale)"),
        _ => ("Target pass by tokens", "tokens of the target pass"),
    };
    let tread = if kind == SweepKind::Draft { cost.observed_draft_tread() } else { cost.observed_tread() };
    let mut chart = if wide {
        Chart::new(title, Axis::log(x), Axis::log(format!("{y}, log scale")))
    } else {
        let treads: Vec<f64> =
            (1..).map(|i| (i * tread) as f64).take_while(|&at| at < widest as f64).collect();
        Chart::new(title, Axis::linear(x), Axis::linear(y))
            .marked(if tread > 1 { treads } else { vec![] })
            .note(if tread > 1 { format!("marks: treads of {tread} rows") } else { "no treads".into() })
    };
    let contexts = main_contexts(points());
    for (colour, &context) in contexts.iter().enumerate() {
        let at = |tokens: usize| {
            let sequences = tokens.div_ceil(NODES_PER_SEQUENCE);
            scale * fitted(cost, &SweepPoint { kind, tokens, sequences, context, us: 0.0 })
        };
        let measured = points()
            .filter(|point| point.context == context)
            .map(|p| (p.tokens as f64, scale * p.us))
            .collect();
        chart = chart
            .with(Series::line(format!("fitted, context {context}"), colour, stairs(widest, tread, wide, at)))
            .with(Series::points(format!("{}, context {context}", origin(table)), colour, measured));
    }
    chart
}

/// The contexts that most of `points` have, ascending: as many as a legend has room for.
fn main_contexts<'a>(points: impl Iterator<Item = &'a SweepPoint>) -> Vec<usize> {
    const SHOWN: usize = 2;
    let mut counts = BTreeMap::new();
    for point in points {
        *counts.entry(point.context).or_insert(0) += 1;
    }
    let mut contexts: Vec<usize> = counts.keys().copied().collect();
    contexts.sort_by_key(|context| std::cmp::Reverse(counts[context]));
    contexts.truncate(SHOWN);
    contexts.sort_unstable();
    contexts
}

/// The flat parts and edges of `at`, which is constant over treads: a tread ends at a multiple of its width.
fn stairs(widest: usize, tread: usize, log: bool, at: impl Fn(usize) -> f64) -> Vec<(f64, f64)> {
    const MOST_STEPS: usize = 512;
    // Of more steps than a picture can show, only some are computed.
    let stride = tread * widest.div_ceil(tread).div_ceil(MOST_STEPS);
    let mut vertices = Vec::new();
    let mut start = 0;
    while start < widest {
        let end = (start + stride).min(widest.max(tread));
        // Zero has no place on a logarithmic axis.
        let left = if log && start == 0 { 1.0 } else { start as f64 };
        let us = at(end);
        vertices.extend([(left, us), (end as f64, us)]);
        start = end;
    }
    vertices
}

/// Attention by nodes of a sequence; nothing if time was not seen to depend on context.
fn attention(table: &CostTable, cost: &CostModel) -> Option<Chart> {
    let points: Vec<SweepPoint> = of_kind(table, SweepKind::Verify).copied().collect();
    let measured: Vec<(f64, f64)> =
        attention_rates(&points).into_iter().map(|(nodes, us)| (nodes as f64, 1000.0 * us)).collect();
    let widest = measured.iter().map(|point| point.0 as usize).max()?;
    let tile = table.treads.nodes;
    let fit = stairs(widest, tile, false, |nodes| 1000.0 * cost.attention_us_per_token(nodes));
    let tiles = (1..).map(|i| (i * tile) as f64).take_while(|&at| at < widest as f64).collect();
    Some(
        Chart::new(
            "Attention by nodes of a sequence",
            Axis::linear("nodes of the sequence"),
            Axis::linear("us per 1000 cached tokens"),
        )
        .note(if tile > 1 { format!("marks: tiles of {tile} nodes") } else { String::new() })
        .marked(if tile > 1 { tiles } else { vec![] })
        .with(Series::line("fitted", 2, fit))
        .with(Series::points(origin(table), 2, measured)),
    )
}

/// What the parts of a round of one sequence cost.
fn anatomy(table: &CostTable, cost: &CostModel) -> Chart {
    const CONTEXT: usize = 1024;
    let verify = |nodes: usize| cost.verify_us(nodes, [(nodes, CONTEXT)]);
    let parts = [
        ("plain\npass", 0, cost.plain_us(1, CONTEXT)),
        ("verify\n8 nodes", 0, verify(8)),
        ("verify\n32 nodes", 0, verify(32)),
        ("verify\n64 nodes", 0, verify(64)),
        ("draft\n1 row", 1, cost.draft_us(1, CONTEXT)),
        ("draft\n10 rows", 1, cost.draft_us(10, CONTEXT)),
        ("outside,\ndrafted", 3, table.overhead_us),
        ("outside,\nplain", 3, table.plain_overhead_us),
    ];
    let drafts = of_kind(table, SweepKind::Draft).next().is_some();
    let shown: Vec<_> = parts.into_iter().filter(|(_, colour, _)| drafts || *colour != 1).collect();
    let (unit, scale) = unit(shown.iter().map(|part| part.2).fold(0.0, f64::max));
    let bars = |wanted: usize| {
        let places = shown.iter().enumerate().filter(|(_, (_, colour, _))| *colour == wanted);
        places.map(|(place, (_, _, us))| (place as f64, scale * us)).collect::<Vec<_>>()
    };
    let names = shown.iter().map(|(name, _, _)| (*name).to_owned()).collect();
    Chart::new(
        "Parts of a round of one sequence",
        Axis::categories("", names),
        Axis::linear(format!("time ({unit})")),
    )
    .note(format!("fitted, context {CONTEXT}"))
    .with(Series::bars("target", 0, bars(0)))
    .with(Series::bars("drafter", 1, bars(1)))
    .with(Series::bars("outside the passes", 3, bars(3)))
}

/// The unit in which times up to `us` microseconds are short numbers, and what to multiply by.
fn unit(us: f64) -> (&'static str, f64) {
    if us >= 10_000.0 { ("ms", 1e-3) } else { ("us", 1.0) }
}

fn origin(table: &CostTable) -> &'static str {
    match table.source {
        CostSource::Measured => "measured",
        CostSource::Roofline => "computed",
    }
}
