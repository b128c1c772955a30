//! A [`Record`] as JSON Lines: a [`RecordHeader`]; then for every text a line that opens it and one line a position, as they are drawn.
//! A record that was interrupted between lines is a shorter record.
#![forbid(unsafe_code)]

use std::io::{self, BufRead, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::record::{Record, RecordShape, RecordedSequence, RecordedTree};
use crate::error::{Error, Result};

/// Changes whenever a line's meaning does.
pub const RECORD_VERSION: u32 = 1;
/// No line of ours is longer.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// First line of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordHeader {
    /// [`RECORD_VERSION`].
    pub record_version: u32,
    /// How widely every position was drafted.
    pub shape: RecordShape,
    /// Target model.
    pub model: String,
    /// Drafter.
    pub drafter: String,
    /// Device, in words.
    pub device: String,
    /// Type of weights and activations.
    pub dtype: String,
    /// Temperature of the draws; 0 is greedy.
    pub temperature: f32,
    /// Other filters of the draws.
    pub top_p: f32,
    /// See `top_p`; 0 is off.
    pub top_k: u32,
    /// See `top_p`.
    pub min_p: f32,
    /// Seed of the draws.
    pub seed: u64,
}

/// A line after the first.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Sequence { sequence: usize, prompt_len: usize },
    Position(PositionLine),
}

#[derive(Serialize, Deserialize)]
struct PositionLine {
    root: i32,
    drawn: i32,
    rows: Vec<u32>,
    tokens: Vec<i32>,
    /// Null where it is minus infinity.
    logps: Vec<Option<f32>>,
    probs: Vec<f32>,
}

/// Writes a record as it comes about.
pub struct RecordWriter {
    out: Box<dyn Write + Send>,
    sequences: usize,
}

impl RecordWriter {
    /// Writes the header.
    ///
    /// # Errors
    /// What the writer says.
    pub fn new(out: impl Write + Send + 'static, header: &RecordHeader) -> io::Result<Self> {
        let mut writer = Self { out: Box::new(out), sequences: 0 };
        writer.line(header)?;
        Ok(writer)
    }

    /// Opens the next text.
    ///
    /// # Errors
    /// What the writer says.
    pub fn begin_sequence(&mut self, prompt_len: usize) -> io::Result<()> {
        self.sequences += 1;
        self.line(&Line::Sequence { sequence: self.sequences - 1, prompt_len })
    }

    /// Adds the next position of the open text.
    ///
    /// # Errors
    /// What the writer says.
    pub fn push(&mut self, tree: &RecordedTree) -> io::Result<()> {
        let rows =
            (1..tree.num_rows()).filter_map(|row| tree.child_of(row)).map(|child| child as u32).collect();
        // Six decimals: far finer than any use of a target's probability.
        let probs = tree.probs().unwrap_or_default().iter().map(|prob| (prob * 1e6).round() / 1e6).collect();
        self.line(&Line::Position(PositionLine {
            root: tree.root_token,
            drawn: tree.drawn,
            rows,
            tokens: tree.tokens().to_vec(),
            logps: tree.logps().iter().map(|logp| logp.is_finite().then_some(*logp)).collect(),
            probs,
        }))
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// What the writer says.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")
    }
}

impl Record {
    /// Reads the record at `path`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] naming the line: not a record, of another version, damaged or cut off.
    pub fn read(path: &Path) -> Result<(RecordHeader, Record)> {
        let file = std::fs::File::open(path).map_err(|error| Error::io(path, error))?;
        Self::parse(io::BufReader::with_capacity(1 << 20, file), path)
    }

    /// Reads a record from `input`; `path` names it in errors.
    ///
    /// # Errors
    /// As [`Record::read`].
    pub fn parse(mut input: impl BufRead, path: &Path) -> Result<(RecordHeader, Record)> {
        let mut line = Vec::new();
        if !next_line(&mut input, &mut line, path, 1)? {
            return Err(Error::format(path, "the file is empty; write a record with generate --record"));
        }
        let header = header(&line, path)?;
        header.shape.validate().map_err(|error| Error::format(path, format!("line 1: {error}")))?;
        let mut sequences: Vec<RecordedSequence> = Vec::new();
        for number in 2.. {
            if !next_line(&mut input, &mut line, path, number)? {
                break;
            }
            let at = |reason: String| Error::format(path, format!("line {number}: {reason}"));
            let parsed: Line = serde_json::from_slice(&line)
                .map_err(|_| at("this is no line of a record; the file is damaged or was cut off".into()))?;
            match parsed {
                Line::Sequence { prompt_len, .. } => {
                    let sampled = header.temperature > 0.0;
                    sequences.push(RecordedSequence { prompt_len, sampled, trees: Vec::new() });
                }
                Line::Position(position) => {
                    let tree = position.tree(header.shape.top_k).map_err(|error| at(error.to_string()))?;
                    match sequences.last_mut() {
                        Some(sequence) => sequence.trees.push(tree),
                        None => return Err(at("a position comes before any sequence".into())),
                    }
                }
            }
        }
        let record =
            Record::new(header.shape, sequences).map_err(|error| Error::format(path, error.to_string()))?;
        Ok((header, record))
    }
}

impl PositionLine {
    fn tree(self, top_k: usize) -> Result<RecordedTree> {
        let logps = self.logps.into_iter().map(|logp| logp.unwrap_or(f32::NEG_INFINITY)).collect();
        RecordedTree::new(self.root, self.drawn, top_k, self.rows, self.tokens, logps, self.probs)
    }
}

fn header(line: &[u8], path: &Path) -> Result<RecordHeader> {
    #[derive(Deserialize)]
    struct Version {
        record_version: u32,
    }
    let not_ours = "this is no record; write one with generate --record";
    let version: Version = serde_json::from_slice(line).map_err(|_| Error::format(path, not_ours))?;
    if version.record_version != RECORD_VERSION {
        let found = version.record_version;
        let reason =
            format!("record version {found}, this program reads version {RECORD_VERSION}; record it again");
        return Err(Error::format(path, reason));
    }
    serde_json::from_slice(line).map_err(|error| Error::format(path, format!("line 1: {error}")))
}

/// Reads a line into `line`; false at the end of the file.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>, path: &Path, number: usize) -> Result<bool> {
    line.clear();
    let read = io::Read::take(&mut *input, MAX_LINE_BYTES)
        .read_until(b'\n', line)
        .map_err(|error| Error::io(path, error))?;
    if read as u64 == MAX_LINE_BYTES && line.last() != Some(&b'\n') {
        return Err(Error::format(path, format!("line {number} is too long for a record")));
    }
    Ok(read > 0)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A writer whose bytes stay readable.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written() -> Vec<u8> {
        let header = RecordHeader {
            record_version: RECORD_VERSION,
            shape: RecordShape { top_k: 2, levels: 2, beam: 1 },
            model: "m".into(),
            drafter: "d".into(),
            device: "host".into(),
            dtype: "bf16".into(),
            temperature: 0.7,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 3,
        };
        let bytes = Shared::default();
        let mut writer = RecordWriter::new(bytes.clone(), &header).unwrap();
        writer.begin_sequence(3).unwrap();
        for (root, drawn) in [(1, 6), (6, 9)] {
            let logps = vec![-0.1, f32::NEG_INFINITY, -0.25, -3.5];
            let tree = RecordedTree::new(root, drawn, 2, vec![1], vec![5, 6, 7, 8], logps, vec![0.5; 4]);
            writer.push(&tree.unwrap()).unwrap();
        }
        writer.finish().unwrap();
        let bytes = bytes.0.lock().unwrap();
        bytes.clone()
    }

    #[test]
    fn what_is_written_is_read() {
        let (header, record) = Record::parse(&written()[..], Path::new("r")).unwrap();
        assert_eq!((header.seed, record.num_positions(), record.has_probs()), (3, 2, true));
        let tree = &record.sequences()[0].trees[1];
        assert_eq!((tree.root_token, tree.drawn, tree.row_of(1)), (6, 9, Some(1)));
        assert_eq!(tree.logps(), [-0.1, f32::NEG_INFINITY, -0.25, -3.5]);
        assert!(record.sequences()[0].sampled);
    }

    /// A cut anywhere is either a shorter record (between lines) or one sentence that names the line.
    #[test]
    fn a_cut_is_noticed_wherever_it_falls() {
        let whole = written();
        for cut in 0..whole.len() {
            let between_lines = cut > 0 && (whole[cut - 1] == b'\n' || whole[cut] == b'\n');
            match Record::parse(&whole[..cut], Path::new("r.jsonl")) {
                Ok((_, record)) => assert!(between_lines && record.num_positions() < 3, "cut at {cut}"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(
                        error.is_input() && text.starts_with("r.jsonl: ") && !text.contains('\n'),
                        "{text}"
                    );
                }
            }
        }
    }

    #[test]
    fn another_version_and_other_files_are_refused() {
        let text = String::from_utf8(written()).unwrap();
        let later = text.replace("\"record_version\":1", "\"record_version\":2");
        let says = |text: &str| Record::parse(text.as_bytes(), Path::new("r")).unwrap_err().to_string();
        assert!(says(&later).contains("record version 2"));
        assert!(says("{\"version\":1}\n").contains("no record"));
        assert!(says("").contains("empty"));
        assert!(says(&text.replace("\"drawn\":6", "\"drawn\":7")).contains("position 1"));
    }
}
