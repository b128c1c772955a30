//! [`TraceReader`]: a trace, record by record, each checked as it comes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{RoundTrace, SequenceTrace, TRACE_VERSION, TraceHeader, TreeTrace};
use crate::control::MAX_TOP_K;
use crate::tree::MAX_NODES;
use crate::{Error, Result};

/// Longest line read. The largest tree takes about a tenth of it.
pub const MAX_LINE_BYTES: u64 = 16 << 20;

/// Most nodes of a tree: the root, and [`MAX_TOP_K`] children of each node that the drafter can run.
pub const MAX_TREE_NODES: usize = 1 + MAX_NODES * MAX_TOP_K;

/// A line of a trace after the header.
#[derive(Clone, Debug, PartialEq)]
pub enum TraceRecord {
    /// One sequence in a round.
    Sequence(SequenceTrace),
    /// The round's times; ends the round.
    Round(RoundTrace),
}

/// Reads a trace as `--trace` writes it. Memory: one line and its record.
///
/// What it hands out is sound: rounds count up from 0, each of `batch` sequences and then its times; a tree's columns are of
/// equal length and its parents come before their children; accepted nodes are a verified path from the root. After an error
/// there are no more records.
#[derive(Debug)]
pub struct TraceReader<R> {
    input: R,
    path: PathBuf,
    header: TraceHeader,
    buffer: Vec<u8>,
    /// Lines read.
    line: u64,
    /// Present round.
    round: u64,
    /// Sequences in the present round; `None` before its first.
    batch: Option<usize>,
    /// Sequences of the present round read.
    sequences: usize,
    failed: bool,
}

/// The header of any version.
#[derive(Deserialize)]
struct AnyHeader {
    version: u64,
}

impl TraceReader<BufReader<File>> {
    /// Opens the trace at `path` and reads its header.
    ///
    /// # Errors
    /// As [`TraceReader::new`]; a file that cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        Self::new(BufReader::with_capacity(1 << 16, file), path)
    }
}

impl<R: BufRead> TraceReader<R> {
    /// Reads the header from `input`; `path` stands for it in messages.
    ///
    /// # Errors
    /// [`Error::Format`] if this is no trace, or one of another version; [`Error::Io`] if it cannot be read.
    pub fn new(input: R, path: impl Into<PathBuf>) -> Result<Self> {
        let mut reader = Self {
            input,
            path: path.into(),
            header: TraceHeader {
                version: TRACE_VERSION,
                model: String::new(),
                drafter: None,
                device: String::new(),
                policy: String::new(),
                seed: 0,
                temperature: 0.0,
            },
            buffer: Vec::new(),
            line: 0,
            round: 0,
            batch: None,
            sequences: 0,
            failed: false,
        };
        reader.header = reader.read_header()?;
        Ok(reader)
    }

    /// The first line.
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }

    fn read_header(&mut self) -> Result<TraceHeader> {
        const NO_TRACE: &str = "this is no trace; give a file that `smart-run generate --trace` wrote";
        if !self.read_line()? {
            return Err(self.error(format!("the file is empty: {NO_TRACE}")));
        }
        let version = serde_json::from_slice::<AnyHeader>(&self.buffer).map(|header| header.version);
        match version {
            Ok(version) if version == u64::from(TRACE_VERSION) => {
                serde_json::from_slice(&self.buffer).map_err(|error| self.error(format!("{NO_TRACE} ({error})")))
            }
            Ok(version) => Err(self.error(format!(
                "this trace is of version {version}, and this program reads version {TRACE_VERSION}: use the program that wrote it"
            ))),
            Err(_) => Err(self.error(NO_TRACE)),
        }
    }

    /// Takes the next line into the buffer, without its end; false at the end of the file.
    fn read_line(&mut self) -> Result<bool> {
        self.buffer.clear();
        let mut limited = (&mut self.input).take(MAX_LINE_BYTES + 1);
        let read = limited.read_until(b'\n', &mut self.buffer).map_err(|e| Error::io(&self.path, e))?;
        self.line += 1;
        if read as u64 > MAX_LINE_BYTES {
            return Err(self.error(format!("line {} is longer than any of a trace", self.line)));
        }
        if self.buffer.last() == Some(&b'\n') {
            self.buffer.pop();
        }
        Ok(read > 0)
    }

    fn read_record(&mut self) -> Result<Option<TraceRecord>> {
        if !self.read_line()? {
            return match self.batch {
                None => Ok(None),
                Some(_) => Err(self.error(format!(
                    "the trace ends within round {}: the run that wrote it did not; remove that round's lines",
                    self.round
                ))),
            };
        }
        if self.batch.is_some_and(|batch| self.sequences == batch) {
            let times: RoundTrace = self.parse("times of a round")?;
            self.expect_round(times.round)?;
            check_times(&times).map_err(|fault| self.fault(&fault))?;
            (self.round, self.batch, self.sequences) = (self.round + 1, None, 0);
            return Ok(Some(TraceRecord::Round(times)));
        }
        let sequence: SequenceTrace = self.parse("a sequence's round")?;
        self.expect_round(sequence.round)?;
        check_sequence(&sequence).map_err(|fault| self.fault(&fault))?;
        let batch = *self.batch.get_or_insert(sequence.batch);
        if batch != sequence.batch {
            return Err(
                self.fault(&format!("`batch` is {}, and {batch} before in this round", sequence.batch))
            );
        }
        self.sequences += 1;
        Ok(Some(TraceRecord::Sequence(sequence)))
    }

    /// The line as a record; `what` names the record that belongs here.
    fn parse<T: DeserializeOwned>(&self, what: &str) -> Result<T> {
        serde_json::from_slice(&self.buffer).map_err(|error| {
            if error.is_eof() {
                self.error(format!("line {} is cut off: remove the lines of round {}", self.line, self.round))
            } else {
                // Its place is a line too, always the first: only the column says something.
                let column = error.column();
                let text = error.to_string();
                let reason = text.split(" at line ").next().unwrap_or(&text);
                self.fault(&format!("damaged at column {column}: {reason}, where {what} should be"))
            }
        })
    }

    fn expect_round(&self, found: u64) -> Result<()> {
        if found == self.round {
            return Ok(());
        }
        Err(self.fault(&format!("`round` is {found} where round {} should be", self.round)))
    }

    fn fault(&self, fault: &str) -> Error {
        self.error(format!("line {}: {fault}", self.line))
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::format(&self.path, reason)
    }
}

impl<R: BufRead> Iterator for TraceReader<R> {
    type Item = Result<TraceRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let record = self.read_record().transpose();
        self.failed = matches!(record, None | Some(Err(_)));
        record
    }
}

fn check_sequence(sequence: &SequenceTrace) -> std::result::Result<(), String> {
    let tree = &sequence.tree;
    check_tree(tree)?;
    if sequence.batch == 0 {
        return Err("`batch` is 0, and a round has a sequence at least".into());
    }
    if sequence.speedup < 0.0 {
        return Err(format!("`speedup` is {}", sequence.speedup));
    }
    let mut last = 0;
    for &node in &sequence.accepted {
        let index = node as usize;
        if index == 0 || index >= tree.tokens.len() {
            return Err(format!(
                "`accepted` holds {node}, and the tree has nodes 1 to {}",
                tree.tokens.len() - 1
            ));
        }
        if tree.parents[index] != last || !tree.verified[index] {
            return Err(format!("`accepted` holds {node}, which is no verified child of node {last}"));
        }
        last = node as i32;
    }
    Ok(())
}

/// Numbers are finite: the parser refuses what an f32 cannot hold.
fn check_tree(tree: &TreeTrace) -> std::result::Result<(), String> {
    let nodes = tree.tokens.len();
    if nodes == 0 || nodes > MAX_TREE_NODES {
        return Err(format!("`tree.tokens` holds {nodes} nodes, and a tree has 1 to {MAX_TREE_NODES}"));
    }
    let columns = [
        ("parents", tree.parents.len()),
        ("logprob", tree.logprob.len()),
        ("q", tree.q.len()),
        ("path_prob", tree.path_prob.len()),
        ("ratio", tree.ratio.len()),
        ("expanded", tree.expanded.len()),
        ("verified", tree.verified.len()),
    ];
    if let Some((name, length)) = columns.into_iter().find(|&(_, length)| length != nodes) {
        return Err(format!("`tree.{name}` holds {length} nodes, and `tree.tokens` {nodes}"));
    }
    if tree.parents[0] != -1 {
        return Err(format!("`tree.parents` begins with {}, and the root's parent is -1", tree.parents[0]));
    }
    for (node, &parent) in tree.parents.iter().enumerate().skip(1) {
        if !usize::try_from(parent).is_ok_and(|parent| parent < node) {
            return Err(format!(
                "`tree.parents` holds {parent} for node {node}: a parent comes before its child"
            ));
        }
    }
    for (name, column) in [("q", &tree.q), ("path_prob", &tree.path_prob)] {
        if let Some(value) = column.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            return Err(format!("`tree.{name}` holds {value}, which is no probability"));
        }
    }
    Ok(())
}

fn check_times(times: &RoundTrace) -> std::result::Result<(), String> {
    for (name, phases) in [("predicted_us", times.predicted_us), ("measured_us", times.measured_us)] {
        for (phase, value) in [("draft", phases.draft), ("verify", phases.verify), ("total", phases.total)] {
            if let Some(value) = value.filter(|value| *value < 0.0) {
                return Err(format!("`{name}.{phase}` is {value}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
