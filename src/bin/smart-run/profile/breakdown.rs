//! A pass taken apart, as a table and as JSON.

use std::fmt::Write as _;

use serde_json::json;
use smart_run::control::SweepKind;
use smart_run::engine::{PassBreakdown, PassPart};

use crate::plots::number;

/// A line for each kernel and shape, in the order of their first launches.
pub fn text(breakdown: &PassBreakdown) -> String {
    let PassBreakdown { kind, rows, context, parts, start_us } = breakdown;
    let total = breakdown.total_us();
    let pass = if *kind == SweepKind::Draft { "drafter pass" } else { "target pass" };
    let (plural, total_us) = (if *rows == 1 { "" } else { "s" }, number(total));
    let mut text = format!(
        "\nA {pass} of {rows} row{plural} behind {context} tokens, taken apart: {total_us} us\n  {:>8} {:>9} {:>9} {:>6}  {:<14} {:<9} {:<8} kernel\n",
        "launches", "us", "us each", "share", "blocks", "threads", "cluster"
    );
    let mut line = |count: usize, us: f64, [blocks, threads, cluster]: [&str; 3], kernel: &str| {
        let each = number(us / count as f64);
        let (us, share) = (number(us), 100.0 * us / total);
        let _ = writeln!(
            text,
            "  {count:>8} {us:>9} {each:>9} {share:>5.1}%  {blocks:<14} {threads:<9} {cluster:<8} {kernel}"
        );
    };
    line(1, *start_us, [""; 3], "the start of a graph");
    for PassPart { launch, count, us } in parts {
        let sides = [launch.grid, launch.block, launch.cluster].map(by_sides);
        line(*count, *us, sides.each_ref().map(String::as_str), &launch.kernel);
    }
    text
}

pub fn json(breakdown: &PassBreakdown) -> serde_json::Value {
    let PassBreakdown { kind, rows, context, parts, start_us } = breakdown;
    let parts: Vec<_> = parts
        .iter()
        .map(|PassPart { launch, count, us }| {
            json!({
                "kernel": launch.kernel, "grid": launch.grid, "block": launch.block, "cluster": launch.cluster,
                "launches": count, "us": us,
            })
        })
        .collect();
    json!({
        "kind": kind, "rows": rows, "context": context, "total_us": breakdown.total_us(), "start_us": start_us, "parts": parts,
    })
}

/// As in `48x2`, without sides of one at the end.
fn by_sides(sides: [u32; 3]) -> String {
    let used = sides.iter().rposition(|&side| side > 1).map_or(1, |last| last + 1);
    sides[..used].iter().map(u32::to_string).collect::<Vec<_>>().join("x")
}
