//! `profile` as typed and as meant.

use std::path::PathBuf;

use clap::Args;

use super::model::LowModel;
use super::{ModelArgs, OutputFormat, integer};

/// Most sequences that a batch is measured for.
const MAX_SEQUENCES: usize = 256;
/// Most rows of a pass that is taken apart: those of a sequence.
const MAX_ROWS: usize = 256;

/// What to show the costs of.
#[derive(Debug, PartialEq)]
pub struct ProfileArgs {
    /// A machine to measure, or a table to draw.
    pub subject: ProfileSubject,
    /// File to draw to.
    pub out: Option<(PathBuf, Picture)>,
    /// File to write the table to.
    pub save_table: Option<PathBuf>,
    /// What to print.
    pub format: OutputFormat,
}

/// Where costs come from.
#[derive(Debug, PartialEq)]
pub enum ProfileSubject {
    /// A table: a file or a name of the catalogue.
    Table(String),
    /// Passes of a model on a device.
    Machine {
        /// What runs, and where.
        models: ModelArgs,
        /// Sequences of the largest batch, from 1.
        max_sequences: usize,
        /// Whether weights are made up.
        dummy_weights: bool,
        /// Rows of the passes whose time is taken apart.
        breakdown: Vec<usize>,
    },
}

/// Kinds of pictures, by the end of the file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Picture {
    /// A page that needs nothing else.
    Html,
    /// One SVG document.
    Svg,
}

/// `profile` as typed.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct LowProfile {
    #[command(flatten)]
    models: LowModel,
    /// Sequences of the largest batch to measure [default: 1]
    #[arg(long, value_name = "N", value_parser = max_sequences, conflicts_with = "costs")]
    max_sequences: Option<usize>,
    /// Make the weights up: of the model's and drafter's folders only config.json is read
    #[arg(long, conflicts_with = "costs", requires = "model")]
    dummy_weights: bool,
    /// Also take passes of so many rows of one sequence apart: what each kernel adds to them, in the order of its launches
    #[arg(long, value_name = "ROWS,...", value_delimiter = ',', value_parser = rows, conflicts_with = "costs")]
    breakdown: Vec<usize>,
    /// Show this table instead of measuring: a file, or CARD/MODEL/DRAFTER as in h200/llama-3.1-8b/eagle3
    #[arg(long, value_name = "NAME", conflicts_with = "LowModel")]
    costs: Option<String>,
    /// File to draw the costs to: .html or .svg
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// File to write the cost table to, as JSON
    #[arg(long, value_name = "FILE")]
    save_table: Option<PathBuf>,
    /// What to print: text, or one object as json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    format: OutputFormat,
}

/// Sees the flags of `profile` together.
pub fn profile(typed: LowProfile) -> Result<ProfileArgs, String> {
    let out = typed.out.map(picture).transpose()?;
    let subject = match typed.costs {
        Some(costs) => ProfileSubject::Table(costs),
        None => ProfileSubject::Machine {
            models: typed.models.into(),
            max_sequences: typed.max_sequences.unwrap_or(1),
            dummy_weights: typed.dummy_weights,
            breakdown: typed.breakdown,
        },
    };
    Ok(ProfileArgs { subject, out, save_table: typed.save_table, format: typed.format })
}

/// A file to draw to, and how: by the end of its name.
pub fn picture(path: PathBuf) -> Result<(PathBuf, Picture), String> {
    match path.extension().and_then(|end| end.to_str()) {
        Some("html") => Ok((path, Picture::Html)),
        Some("svg") => Ok((path, Picture::Svg)),
        _ => Err(format!("--out {}: the name of the file should end in .html or .svg", path.display())),
    }
}

fn max_sequences(typed: &str) -> Result<usize, String> {
    integer(typed, 1, MAX_SEQUENCES)
}

fn rows(typed: &str) -> Result<usize, String> {
    integer(typed, 1, MAX_ROWS)
}
