//! What goes on a page, and what a page leaves out.

use smart_run::control::trace::{TRACE_VERSION, TreeTrace, write_line};

use super::*;

fn header() -> TraceHeader {
    TraceHeader {
        version: TRACE_VERSION,
        model: "</script><!--".into(),
        drafter: None,
        device: "host".into(),
        policy: "smart".into(),
        seed: u64::MAX,
        temperature: 0.0,
    }
}

/// A round of one sequence with a root, an accepted node and one that is drafted only, predicted at 1000 us.
fn round(number: u64, speedup: f32, measured: Option<f32>) -> Vec<u8> {
    let sequence = SequenceTrace {
        round: number,
        batch: 1,
        sequence: 3,
        position: 8,
        tree: TreeTrace {
            tokens: vec![10, 11, 12],
            parents: vec![-1, 0, 0],
            logprob: vec![Some(0.0), Some(-0.123_456_79), None],
            q: vec![1.0, 0.123_456_79, 1.234_567_8e-6],
            path_prob: vec![1.0, 0.5, 0.25],
            ratio: vec![None, Some(12.345_678), None],
            expanded: vec![true, false, false],
            verified: vec![true, true, false],
        },
        accepted: vec![1],
        bonus_token: 13,
        speedup,
    };
    let phases = |total| PhaseTrace { draft: None, verify: None, total };
    let times =
        RoundTrace { round: number, predicted_us: phases(Some(1000.0)), measured_us: phases(measured) };
    let mut lines = Vec::new();
    write_line(&mut lines, &sequence).unwrap();
    write_line(&mut lines, &times).unwrap();
    lines
}

fn collect(rounds: &[Vec<u8>], chosen: Range<u64>, max_bytes: usize) -> PageData {
    let mut file = Vec::new();
    write_line(&mut file, &header()).unwrap();
    file.extend(rounds.concat());
    PageData::collect(&mut TraceReader::new(&file[..], "t").unwrap(), chosen, max_bytes).unwrap()
}

#[test]
fn totals_are_those_of_the_whole_trace() {
    let measured: Vec<Option<f32>> =
        (1..=40).map(|tenth| Some(1000.0 + 50.0 * tenth as f32)).chain([None]).collect();
    let rounds: Vec<_> =
        measured.iter().zip(0..).map(|(&us, at)| round(at, if at < 40 { 1.5 } else { 3.55 }, us)).collect();
    let data = collect(&rounds, 5..7, usize::MAX);
    let totals = &data.totals;
    assert_eq!((totals.rounds, totals.sequence_rounds, totals.emitted, totals.accepted), (41, 41, 82, 41));
    assert_eq!((totals.verified, totals.drafted), (82, 123));
    assert_eq!((totals.predicted_us, totals.measured_us), (41_000.0, 40_000.0 + 50.0 * 820.0));
    assert!((totals.speedup.unwrap() - (40.0 * 1.5 + 3.55) / 41.0).abs() < 1e-6);
    // The 38th of 40 errors, that of the round measured at 2900 us.
    assert!((totals.error_p95.unwrap() - 1900.0 / 2900.0).abs() < 1e-6);
    assert_eq!(data.sentence(), "rounds 5..7 of 41, 6 nodes drafted, 4 verified, 2 accepted");
}

#[test]
fn a_page_holds_what_it_may_and_no_more() {
    let rounds: Vec<_> = (0..MAX_PAGE_ROUNDS + 5).map(|number| round(number, 1.0, None)).collect();
    let count = |data: &PageData| String::from_utf8_lossy(&data.rounds).matches("class=\"round\"").count();
    let all = collect(&rounds, 0..u64::MAX, usize::MAX);
    assert_eq!((count(&all), all.timeline.len()), (4000, 4000));
    assert_eq!(all.totals.rounds, 4005);
    let one = collect(&rounds[..1], 0..u64::MAX, usize::MAX).rounds.len();
    let few = collect(&rounds, 0..u64::MAX, 3 * one);
    assert_eq!((count(&few), few.timeline.len()), (3, 3));
    let nothing = collect(&rounds, 0..u64::MAX, 10);
    assert_eq!((count(&nothing), nothing.rounds.len()), (0, 0));
    assert!(nothing.sentence().starts_with("none of 4005 rounds"));
    assert_eq!(collect(&[], 0..u64::MAX, usize::MAX).sentence(), "a trace without rounds");
}

#[test]
fn numbers_keep_five_digits_and_nothing_ends_the_element() {
    let mut data = collect(&[round(0, 1.0, None)], 0..1, usize::MAX);
    let text = String::from_utf8(data.rounds.clone()).unwrap();
    for part in [
        "\"q\":[1.0,0.12346,0.0000012346]",
        "\"logprob\":[0.0,-0.12346,null]",
        "\"ratio\":[null,12.346,null]",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(data.seen, [10, 11, 12, 13].into());
    data.tokens.insert(10, "</ScRiPt><!--<script>".into());
    let summary = String::from_utf8(data.summary("<b>.jsonl", &header())).unwrap();
    assert!(!summary.contains('<'), "{summary}");
    let read: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(
        (&read["tokens"]["10"], &read["file"]),
        (&"</ScRiPt><!--<script>".into(), &"<b>.jsonl".into())
    );
    assert_eq!(read["header"]["model"], "</script><!--");
    assert_eq!(read["seed"], "18446744073709551615");
}
