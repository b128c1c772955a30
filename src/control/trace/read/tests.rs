//! Sound traces come back as they were written; each fault is one sentence with its line.

use super::*;
use crate::control::trace::{PhaseTrace, write_line};

fn header() -> TraceHeader {
    TraceHeader {
        version: TRACE_VERSION,
        model: "m".into(),
        drafter: Some("d".into()),
        device: "host".into(),
        policy: "smart".into(),
        seed: u64::MAX,
        temperature: 0.7,
    }
}

/// A root, two children, and a child of the first.
fn sequence(round: u64, batch: usize, sequence: u64) -> SequenceTrace {
    SequenceTrace {
        round,
        batch,
        sequence,
        position: 3,
        tree: TreeTrace {
            tokens: vec![5, 6, 7, 8],
            parents: vec![-1, 0, 0, 1],
            logprob: vec![Some(0.0), Some(-0.5), None, Some(-1.5)],
            q: vec![1.0, 0.5, 0.25, 0.5],
            path_prob: vec![1.0, 0.5, 0.25, 0.25],
            ratio: vec![None, Some(1.5), Some(0.1), None],
            expanded: vec![true, true, false, false],
            verified: vec![true, true, false, true],
        },
        accepted: vec![1, 3],
        bonus_token: 9,
        speedup: 1.25,
    }
}

fn times(round: u64) -> RoundTrace {
    let phases = PhaseTrace { draft: None, verify: Some(2.0), total: Some(3.5) };
    RoundTrace { round, predicted_us: phases, measured_us: phases }
}

fn lines(records: &[TraceRecord]) -> Vec<u8> {
    let mut file = Vec::new();
    write_line(&mut file, &header()).unwrap();
    for record in records {
        match record {
            TraceRecord::Sequence(sequence) => write_line(&mut file, sequence).unwrap(),
            TraceRecord::Round(times) => write_line(&mut file, times).unwrap(),
        }
    }
    file
}

fn two_rounds() -> Vec<TraceRecord> {
    vec![
        TraceRecord::Sequence(sequence(0, 2, 4)),
        TraceRecord::Sequence(sequence(0, 2, 9)),
        TraceRecord::Round(times(0)),
        TraceRecord::Sequence(sequence(1, 1, 9)),
        TraceRecord::Round(times(1)),
    ]
}

fn read(file: &[u8]) -> Result<Vec<TraceRecord>> {
    TraceReader::new(file, "t.jsonl")?.collect()
}

/// The sentence that `file` is refused with.
fn refusal(file: &[u8]) -> String {
    let error = read(file).unwrap_err();
    assert!(error.is_input());
    let sentence = error.to_string();
    assert!(sentence.starts_with("t.jsonl: ") && !sentence.contains('\n'), "{sentence}");
    sentence
}

#[test]
fn what_was_written_is_read() {
    let file = lines(&two_rounds());
    let reader = TraceReader::new(&file[..], "t.jsonl").unwrap();
    assert_eq!(*reader.header(), header());
    assert_eq!(read(&file).unwrap(), two_rounds());
    assert_eq!(read(&file[..file.len() - 1]).unwrap(), two_rounds(), "the last line's end may be missing");
    assert_eq!(read(&lines(&[])).unwrap(), []);
}

#[test]
fn what_is_no_trace_is_called_so() {
    for file in
        [&b""[..], b"\n", b"{}", b"[1]", b"PK\x03\x04", b"{\"version\":\"1\"}\n", b"{\"version\":1}\n"]
    {
        assert!(refusal(file).contains("no trace"), "{}", refusal(file));
    }
    let newer = String::from_utf8(lines(&[])).unwrap().replace("\"version\":1", "\"version\":2,\"more\":[]");
    let sentence = refusal(newer.as_bytes());
    assert!(sentence.contains("version 2") && sentence.contains("version 1"), "{sentence}");
}

#[test]
fn a_file_cut_anywhere_is_refused_unless_it_ends_with_a_round() {
    let file = lines(&two_rounds());
    let ends: Vec<usize> = (1..=file.len()).filter(|&end| file[end - 1] == b'\n').collect();
    let whole = [ends[0], ends[3], ends[5]];
    for end in 0..file.len() {
        let sound = whole.iter().any(|&whole| end == whole || end + 1 == whole);
        assert_eq!(read(&file[..end]).is_ok(), sound, "cut at {end}");
    }
    assert!(refusal(&file[..ends[3] - 5]).contains("line 4 is cut off: remove the lines of round 0"));
    assert!(refusal(&file[..ends[4]]).contains("ends within round 1"));
}

#[test]
fn records_out_of_place_are_named_by_line() {
    let without = |gone: usize| {
        let mut records = two_rounds();
        records.remove(gone);
        refusal(&lines(&records))
    };
    assert!(without(0).contains("line 3: damaged"), "{}", without(0));
    assert!(without(2).contains("line 4: damaged"), "{}", without(2));
    let swapped = refusal(&lines(&[TraceRecord::Sequence(sequence(1, 1, 0))]));
    assert!(swapped.contains("line 2: `round` is 1 where round 0 should be"), "{swapped}");
    let batch = [TraceRecord::Sequence(sequence(0, 2, 0)), TraceRecord::Sequence(sequence(0, 3, 1))];
    assert!(refusal(&lines(&batch)).contains("line 3: `batch` is 3, and 2 before"));
}

/// What spoils a sequence, and what the sentence must contain.
type Case = (fn(&mut SequenceTrace), &'static str);

const CASES: &[Case] = &[
    (|s| s.tree.parents.truncate(3), "`tree.parents` holds 3 nodes, and `tree.tokens` 4"),
    (|s| s.tree.verified.push(true), "`tree.verified` holds 5 nodes"),
    (|s| s.tree.ratio.clear(), "`tree.ratio` holds 0 nodes"),
    (|s| s.tree = TreeTrace::default(), "holds 0 nodes"),
    (|s| s.tree.tokens = vec![0; MAX_TREE_NODES + 1], "a tree has 1 to"),
    (|s| s.tree.parents[0] = 0, "the root's parent is -1"),
    (|s| s.tree.parents[2] = -1, "holds -1 for node 2"),
    (|s| s.tree.parents[2] = 2, "holds 2 for node 2"),
    (|s| s.tree.parents[1] = i32::MAX, "for node 1"),
    (|s| s.tree.q[1] = 1.5, "`tree.q` holds 1.5"),
    (|s| s.tree.path_prob[1] = -0.5, "`tree.path_prob` holds -0.5"),
    (|s| s.accepted = vec![4], "`accepted` holds 4, and the tree has nodes 1 to 3"),
    (|s| s.accepted = vec![0], "`accepted` holds 0"),
    (|s| s.accepted = vec![u32::MAX], "`accepted` holds 4294967295"),
    (|s| s.accepted = vec![3], "no verified child of node 0"),
    (|s| s.accepted = vec![2], "no verified child of node 0"),
    (|s| s.accepted = vec![1, 1], "no verified child of node 1"),
    (|s| s.batch = 0, "`batch` is 0"),
    (|s| s.speedup = -1.0, "`speedup` is -1"),
];

#[test]
fn a_tree_that_is_none_is_refused() {
    for (spoil, expected) in CASES {
        let mut spoiled = sequence(0, 1, 0);
        spoil(&mut spoiled);
        let sentence = refusal(&lines(&[TraceRecord::Sequence(spoiled)]));
        assert!(sentence.contains("line 2: ") && sentence.contains(expected), "{expected:?}: {sentence}");
    }
}

#[test]
fn numbers_beyond_f32_and_negative_times_are_refused() {
    let file = String::from_utf8(lines(&two_rounds())).unwrap();
    for (from, to, expected) in [
        ("-1.5", "-1e39", "line 2: damaged at column 125: number out of range"),
        ("0.1,null]", "1e39,null]", "number out of range"),
        ("\"total\":3.5", "\"total\":-3.5", "line 4: `predicted_us.total` is -3.5"),
    ] {
        let sentence = refusal(file.replace(from, to).as_bytes());
        assert!(sentence.contains(expected), "{sentence}");
    }
}

#[test]
fn an_endless_line_is_refused() {
    #[derive(Debug)]
    struct Endless;
    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            into.fill(b'[');
            Ok(into.len())
        }
    }
    let error = TraceReader::new(BufReader::new(Endless), "t.jsonl").unwrap_err();
    assert!(error.to_string().contains("line 1 is longer"), "{error}");
}

#[test]
fn nothing_comes_after_an_error() {
    let file = [lines(&two_rounds()), b"{}\n".to_vec(), lines(&two_rounds())].concat();
    let mut reader = TraceReader::new(&file[..], "t.jsonl").unwrap();
    assert_eq!(reader.by_ref().filter(|record| record.is_ok()).count(), 5);
    assert!(reader.next().is_none());
}
