//! `smart-run trace`: a trace as one page that needs nothing but a browser.

mod collect;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use smart_run::control::trace::{TraceHeader, TraceReader};
use smart_run::text::{TokenTexts, Tokenizer};
use smart_run::{Error, Result};

use crate::args::{TraceArgs, TraceOutput};
use crate::demo_model;

use collect::{MAX_PAGE_MIB, PageData};

/// The page without its data. It asks for nothing from outside, and its policy forbids it to.
const PAGE: &str = include_str!("pages/trace.html");
/// Where the data go in [`PAGE`]: an element a round, then the summary.
const ROUNDS: &str = "<!-- rounds -->";
const SUMMARY: &str = "\"the summary\"";

/// Runs the command.
pub fn run(args: &TraceArgs) -> Result<()> {
    // Seen before the trace is read: a long one takes seconds.
    if let TraceOutput::File(page) = &args.out
        && is_same_file(&args.trace, page)
    {
        return Err(Error::Input(format!(
            "--out {}: this is the trace itself; name another file",
            page.display()
        )));
    }
    let mut reader = TraceReader::open(&args.trace)?;
    let header = reader.header().clone();
    let tokenizer = find_tokenizer(args.tokenizer.as_deref(), &header)?;
    let mut data =
        PageData::collect(&mut reader, args.rounds.clone().unwrap_or(0..u64::MAX), MAX_PAGE_MIB << 20)?;
    if let Some(chosen) = &args.rounds
        && data.totals.rounds <= chosen.start
    {
        return Err(Error::Input(format!(
            "--rounds {}..{}: {} has {} rounds",
            chosen.start,
            chosen.end,
            args.trace.display(),
            data.totals.rounds
        )));
    }
    if let Some(tokenizer) = tokenizer {
        data.tokens = TokenTexts::new(tokenizer)?.of(&data.seen)?;
    }
    let name = args.trace.file_name().unwrap_or(args.trace.as_os_str()).to_string_lossy();
    let summary = data.summary(&name, &header);
    let holds = data.sentence();
    match &args.out {
        TraceOutput::Stdout => {
            write_page(std::io::stdout().lock(), &data.rounds, &summary)
                .map_err(|error| Error::io("standard output", error))?;
            eprintln!("standard output: {holds}");
        }
        TraceOutput::File(page) => {
            File::create(page)
                .and_then(|file| write_page(file, &data.rounds, &summary))
                .map_err(|error| Error::io(page, error))?;
            crate::output::print_now(&format!("{}: {holds}\n", page.display()))?;
        }
    }
    Ok(())
}

fn write_page(out: impl Write, rounds: &[u8], summary: &[u8]) -> std::io::Result<()> {
    let (head, rest) = PAGE.split_once(ROUNDS).unwrap_or((PAGE, ""));
    let (middle, tail) = rest.split_once(SUMMARY).unwrap_or((rest, ""));
    let mut out = BufWriter::new(out);
    for part in [head.as_bytes(), rounds, middle.as_bytes(), summary, tail.as_bytes()] {
        out.write_all(part)?;
    }
    out.flush()
}

/// Whether both paths lead to one existing file.
fn is_same_file(left: &Path, right: &Path) -> bool {
    match (left.canonicalize(), right.canonicalize()) {
        (Ok(left), Ok(right)) => left == right,
        _ => false,
    }
}

/// The tokenizer of `--tokenizer`, else of the model that the trace names, if that is a folder here or the demo pair.
fn find_tokenizer(folder: Option<&Path>, header: &TraceHeader) -> Result<Option<Tokenizer>> {
    if let Some(folder) = folder {
        return match Tokenizer::open(&folder.into())? {
            Some(tokenizer) => Ok(Some(tokenizer)),
            None => Err(Error::format(
                folder,
                "no tokenizer.json here; --tokenizer takes a model folder with one",
            )),
        };
    }
    let model = Path::new(&header.model);
    if model.is_dir() {
        return Ok(Tokenizer::open(&model.into()).unwrap_or_else(|error| {
            tracing::warn!("the page shows token ids without texts: {error}");
            None
        }));
    }
    match demo_model::pair() {
        Ok((target, _)) if target.name() == header.model => Tokenizer::open(&target),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_place_for_each_part() {
        for place in [ROUNDS, SUMMARY] {
            assert_eq!(PAGE.matches(place).count(), 1, "{place}");
        }
        assert!(PAGE.find(ROUNDS) < PAGE.find(SUMMARY));
        let mut page = Vec::new();
        write_page(&mut page, b"<r>", b"{}").unwrap();
        let page = String::from_utf8(page).unwrap();
        assert_eq!(page.len(), PAGE.len() - ROUNDS.len() - SUMMARY.len() + 5);
    }

    #[test]
    fn the_page_names_no_other_place() {
        for outside in ["http:", "https:", "//cdn", "@import", "url(", "fetch(", "XMLHttpRequest"] {
            let allowed = "xmlns"; // SVG is made with its namespace, which is a name and no address
            let found = PAGE.lines().filter(|line| line.contains(outside) && !line.contains(allowed));
            assert_eq!(found.collect::<Vec<_>>(), Vec::<&str>::new(), "{outside}");
        }
    }
}
