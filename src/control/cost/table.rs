//! [`CostTable`]: a machine's costs as a file, with where they come from.
//!
//! It keeps the passes of a sweep, not the model fitted to them, so that a file stays readable when the model changes. JSON:
//! `version`, `name`, `source` (`roofline` or `measured`), `gpu`, `driver`, `commit`, `model`, `drafter`, `dtype`, `treads`
//! {`tokens`, `nodes`}, `overhead_us`, `plain_overhead_us`, `points` [{`kind` (`verify`, `draft` or `plain`), `tokens`, `sequences`,
//! `context`, `us`}] and, for a GPU that tells them, `conditions`. The rooflines of the catalogue need no file.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cache::write_whole;
use super::{CostModel, SweepKind, SweepPoint, Treads};
use crate::conditions::Conditions;
use crate::control::roofline;
use crate::error::{Error, Result};
use crate::tree::MAX_NODES;

/// Version of the format; changes whenever the meaning of a field does.
pub const COST_TABLE_VERSION: u32 = 1;

/// Bounds that no sane table reaches; within them no fit is slow and no sum overflows.
const MAX_FILE_BYTES: u64 = 4 << 20;
const MAX_POINTS: usize = 4096;
const MAX_ROWS: usize = 1 << 16;
const MAX_CONTEXT: usize = 1 << 24;
const MAX_TREAD: usize = 1024;
const MIN_US: f64 = 1e-3;
const MAX_US: f64 = 1e9;

/// Widest pass in the tables of the catalogue: 64 trees of 64 nodes.
const ROOFLINE_ROWS: usize = 4096;

/// Where a table comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CostSource {
    /// Computed: what a perfect implementation would take.
    Roofline,
    /// Measured by a sweep.
    Measured,
}

/// The costs of a target and a drafter on a card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostTable {
    /// [`COST_TABLE_VERSION`].
    pub version: u32,
    /// What to call it.
    pub name: String,
    /// Where it comes from.
    pub source: CostSource,
    /// The card.
    pub gpu: String,
    /// The driver that was measured, or nothing.
    pub driver: String,
    /// The source's commit that was measured, or nothing.
    pub commit: String,
    /// The target.
    pub model: String,
    /// The drafter.
    pub drafter: String,
    /// Type of weights and activations.
    pub dtype: String,
    /// Granularity of the kernels.
    pub treads: Treads,
    /// A drafted round outside its passes.
    pub overhead_us: f64,
    /// A plain round outside its pass.
    pub plain_overhead_us: f64,
    /// The passes.
    pub points: Vec<SweepPoint>,
    /// Clocks and power while this was measured, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Conditions>,
}

impl CostTable {
    /// The table that `--costs` means: a file, or a roofline of the catalogue such as `h200/llama-3.1-8b/eagle3`.
    ///
    /// # Errors
    /// [`Error::is_input`]: no such file and no such name; as [`CostTable::read`].
    pub fn open(file_or_name: &str) -> Result<Self> {
        let path = Path::new(file_or_name);
        if path.exists() {
            return Self::read(path);
        }
        let name = roofline::named(file_or_name);
        if name.is_err() && path.extension().is_some_and(|end| end == "json") {
            let reason = format!("no such cost table file; names without a file are {}", roofline::grammar());
            return Err(Error::format(path, reason));
        }
        name.map(|name| Self::of_roofline(&name))
    }

    /// The table of a roofline of the catalogue.
    pub fn of_roofline(named: &roofline::Named) -> Self {
        let roofline = &named.roofline;
        Self {
            version: COST_TABLE_VERSION,
            name: named.name.clone(),
            source: CostSource::Roofline,
            gpu: named.card.into(),
            driver: String::new(),
            commit: String::new(),
            model: named.model.into(),
            drafter: named.drafter.into(),
            dtype: "bf16".into(),
            treads: roofline.shape.treads(),
            overhead_us: roofline.overhead_us(),
            plain_overhead_us: roofline.plain_overhead_us(),
            points: roofline.sweep(ROOFLINE_ROWS),
            conditions: None,
        }
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Error::is_input`], one sentence: unreadable, no JSON, another version, a field missing or unknown, numbers that no
    /// measurement gives, no verification pass.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(Error::format(path, "a cost table is a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
        Self::from_json(&bytes).map_err(|reason| Error::format(path, reason))
    }

    /// Writes the file at `path`, replacing it whole.
    ///
    /// # Errors
    /// A table that could not be read back; a path that cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.check().map_err(|reason| Error::Input(format!("cost table {}: {reason}", self.name)))?;
        let text = serde_json::to_string_pretty(self).expect("plain data with finite numbers is JSON");
        write_whole(path, format!("{text}\n").as_bytes()).map_err(|error| Error::io(path, error))
    }

    /// The cost model of these passes.
    ///
    /// # Errors
    /// Numbers that [`CostTable::read`] would refuse.
    pub fn cost_model(&self) -> Result<CostModel> {
        self.fit().map_err(|reason| Error::Input(format!("cost table {}: {reason}", self.name)))
    }

    fn from_json(bytes: &[u8]) -> std::result::Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(format!("a cost table has at most {} MiB", MAX_FILE_BYTES >> 20));
        }
        let damaged = |error: serde_json::Error| format!("no usable cost table: {error}");
        // Asked first: the fields of another version say nothing.
        let Versioned { version } = serde_json::from_slice(bytes).map_err(damaged)?;
        if version != u64::from(COST_TABLE_VERSION) {
            return Err(format!(
                "version {version} of cost tables is not supported, only {COST_TABLE_VERSION}; measure again with `smart-run profile`"
            ));
        }
        let table: Self = serde_json::from_slice(bytes).map_err(damaged)?;
        table.fit()?;
        Ok(table)
    }

    /// Whether every number can be computed with.
    fn check(&self) -> std::result::Result<(), String> {
        for (field, us) in [("overhead_us", self.overhead_us), ("plain_overhead_us", self.plain_overhead_us)]
        {
            if !(0.0..=MAX_US).contains(&us) {
                return Err(format!("`{field}` is {us}; it should be from 0 to {MAX_US}"));
            }
        }
        check(&self.points, self.treads)
    }

    fn fit(&self) -> std::result::Result<CostModel, String> {
        self.check()?;
        let mut model = fit(&self.points, self.treads)?;
        model.set_overheads(self.overhead_us, self.plain_overhead_us);
        Ok(model)
    }
}

/// The model of passes that come from a file; what is wrong with them, if it cannot be computed with.
pub(super) fn fit(points: &[SweepPoint], treads: Treads) -> std::result::Result<CostModel, String> {
    check(points, treads)?;
    let model = CostModel::from_sweep(points, treads).map_err(|error| error.to_string())?;
    if model.is_sound() { Ok(model) } else { Err("its passes give no finite costs".into()) }
}

fn check(points: &[SweepPoint], treads: Treads) -> std::result::Result<(), String> {
    for (field, tread, most) in
        [("treads.tokens", treads.tokens, MAX_TREAD), ("treads.nodes", treads.nodes, MAX_NODES)]
    {
        if !(1..=most).contains(&tread) {
            return Err(format!("`{field}` is {tread}; it should be from 1 to {most}"));
        }
    }
    if points.len() > MAX_POINTS {
        return Err(format!("{} points; a table has at most {MAX_POINTS}", points.len()));
    }
    for (index, point) in points.iter().enumerate() {
        let wrong = |field, expected| Err(format!("`points[{index}].{field}` should be {expected}"));
        if !(1..=MAX_ROWS).contains(&point.tokens) {
            return wrong("tokens", format!("from 1 to {MAX_ROWS}"));
        }
        if !(1..=point.tokens).contains(&point.sequences) {
            return wrong("sequences", format!("from 1 to its {} tokens", point.tokens));
        }
        if point.context > MAX_CONTEXT {
            return wrong("context", format!("at most {MAX_CONTEXT}"));
        }
        if !(MIN_US..=MAX_US).contains(&point.us) {
            return wrong("us", format!("a time from {MIN_US} to {MAX_US} microseconds"));
        }
    }
    if !points.iter().any(|point| point.kind == SweepKind::Verify) {
        return Err("`points` has no verification pass (kind verify)".into());
    }
    Ok(())
}
