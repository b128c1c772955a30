//! `inspect` and `convert` as typed and as meant.

use std::path::PathBuf;

use clap::Args;

use smart_run::config::FloatType;

use super::{OutputFormat, from_str};

/// A folder to describe.
#[derive(Debug, PartialEq)]
pub struct InspectArgs {
    /// The model's folder.
    pub folder: PathBuf,
    /// For a drafter: the folder of the target that it should fit.
    pub target: Option<PathBuf>,
    /// What to print.
    pub format: OutputFormat,
}

/// A folder to write anew.
#[derive(Debug, PartialEq)]
pub struct ConvertArgs {
    /// The model's folder.
    pub folder: PathBuf,
    /// The folder to make.
    pub out: PathBuf,
    /// Type of the float tensors; `None` keeps them.
    pub dtype: Option<FloatType>,
    /// Bytes of tensors in a file at most, from 1.
    pub max_shard_bytes: usize,
}

/// `inspect` as typed.
#[derive(Args)]
pub struct LowInspect {
    /// Model folder: a target or a drafter
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Target that the drafter in DIR should fit
    #[arg(long, value_name = "DIR")]
    target: Option<PathBuf>,
    /// What to print: text, or one object as json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    format: OutputFormat,
}

/// `convert` as typed.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct LowConvert {
    /// Model folder: a target or a drafter
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Folder to make; it must not be there yet, or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type to convert float tensors to: bf16, f16 or f32 [default: as they are]
    #[arg(long, value_name = "DTYPE", value_parser = from_str::<FloatType>)]
    dtype: Option<FloatType>,
    /// Size of a file of weights at most, as in 500MiB or 5GB; a larger tensor has a file of its own
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = size)]
    max_shard_size: usize,
}

/// What `inspect` means.
pub fn inspect(typed: LowInspect) -> InspectArgs {
    InspectArgs { folder: typed.folder, target: typed.target, format: typed.format }
}

/// What `convert` means.
pub fn convert(typed: LowConvert) -> ConvertArgs {
    ConvertArgs {
        folder: typed.folder,
        out: typed.out,
        dtype: typed.dtype,
        max_shard_bytes: typed.max_shard_size,
    }
}

/// A number of bytes with or without a unit.
fn size(typed: &str) -> Result<usize, String> {
    const UNITS: [(&str, usize); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("", 1),
    ];
    let found = UNITS.iter().find_map(|(unit, bytes)| Some((typed.strip_suffix(unit)?, bytes)));
    let size = found.and_then(|(number, bytes)| {
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        number.parse::<usize>().ok().filter(|_| digits)?.checked_mul(*bytes)
    });
    size.filter(|&size| size > 0)
        .ok_or_else(|| "it should be a size above 0, as in 4GiB, 500MiB, 5GB or 1000000 (bytes)".into())
}
