//! Cost tables: what is written is read back, what cannot be computed with is refused in one sentence.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};
use smart_run::Error;
use smart_run::conditions::{Conditions, Reading, Slowdown};
use smart_run::control::roofline::{self, Roofline};
use smart_run::control::{CostSource, CostTable, SweepKind, SweepPoint, Treads};

struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.json");
    Place { _folder: folder, path }
}

fn measured() -> CostTable {
    let point = |kind, tokens, context, us| SweepPoint { kind, tokens, sequences: 1, context, us };
    CostTable {
        version: 1,
        name: "here".into(),
        source: CostSource::Measured,
        gpu: "cuda:0 (NVIDIA H200)".into(),
        driver: "CUDA 13.0".into(),
        commit: "0123456789ab".into(),
        model: "m".into(),
        drafter: "d".into(),
        dtype: "bf16".into(),
        treads: Treads { tokens: 8, nodes: 4 },
        overhead_us: 40.0,
        plain_overhead_us: 5.0,
        points: vec![
            point(SweepKind::Verify, 8, 64, 3600.0),
            point(SweepKind::Verify, 8, 1024, 3650.0),
            point(SweepKind::Verify, 64, 64, 3700.0),
            point(SweepKind::Draft, 8, 64, 200.0),
        ],
        conditions: Some(Conditions {
            start: Reading { sm_mhz: Some(1980), ..Reading::default() },
            end: Reading { sm_mhz: Some(1400), slowdowns: vec![Slowdown::PowerCap], ..Reading::default() },
        }),
    }
}

/// The sentence for `error`, which must blame the input and read as one line.
fn sentence(error: Error) -> String {
    assert!(error.is_input(), "{error:?} would exit with 1");
    let sentence = error.to_string();
    assert!(!sentence.contains('\n') && sentence.len() < 500, "{sentence}");
    sentence
}

#[test]
fn a_table_written_is_the_table_read() {
    let place = place();
    for table in [measured(), CostTable::open("l40s/llava-1.5-7b/msd").unwrap()] {
        table.write(&place.path).unwrap();
        assert!(CostTable::read(&place.path).unwrap() == table, "{}", table.name);
        assert!(CostTable::open(place.path.to_str().unwrap()).unwrap() == table, "{}", table.name);
    }
}

#[test]
fn every_name_of_the_catalogue_is_a_table_with_the_costs_of_its_roofline() {
    for name in roofline::names() {
        let table = CostTable::open(&name).unwrap();
        assert_eq!((table.name.as_str(), table.source), (name.as_str(), CostSource::Roofline));
        let (cost, roofline) = (table.cost_model().unwrap(), roofline::named(&name).unwrap().roofline);
        assert_eq!(cost.overhead_us(), roofline.overhead_us());
        assert_eq!(cost.plain_overhead_us(), roofline.plain_overhead_us());
        for rows in [1, 10, 100] {
            let (got, want) = (cost.draft_us(rows, 1000), roofline.draft_us(rows, 1000));
            assert!((got / want - 1.0).abs() < 0.02, "{name}, {rows} rows: {got} against {want}");
        }
    }
    let cost = CostTable::open("h200/llama-3.1-8b/eagle3").unwrap().cost_model().unwrap();
    assert_eq!(cost, Roofline::H200_LLAMA_8B.cost_model(4096), "the same model as without a table");
}

#[test]
fn what_is_neither_file_nor_name_lists_what_there_is() {
    for (name, expected) in [
        ("no-such-file.json", "no such cost table file"),
        ("h200", "rtx-pro-6000"),
        ("h200/llama-3.1-8b/medusa", "eagle3"),
    ] {
        let sentence = sentence(CostTable::open(name).unwrap_err());
        assert!(sentence.contains(name) && sentence.contains(expected), "{sentence}");
    }
}

/// Writes `text` and says why it is refused.
fn refused(place: &Place, text: &str) -> String {
    fs::write(&place.path, text).unwrap();
    let sentence = sentence(CostTable::read(&place.path).expect_err(text));
    assert!(sentence.contains("table.json"), "the file is not named: {sentence}");
    sentence
}

#[test]
fn unusable_tables_are_refused_in_one_sentence() {
    let place = place();
    let sound = serde_json::to_value(measured()).unwrap();
    type Spoil = fn(&mut Value);
    let cases: [(Spoil, &str); 24] = [
        (|t| t["version"] = json!(2), "version 2"),
        (|t| t["version"] = json!("1"), "no usable cost table"),
        (|t| drop(t.as_object_mut().unwrap().remove("version")), "version"),
        (|t| t["treads"]["tokens"] = json!(0), "`treads.tokens` is 0"),
        (|t| t["treads"]["nodes"] = json!(0), "`treads.nodes` is 0"),
        (|t| t["treads"]["nodes"] = json!(u64::MAX), "`treads.nodes`"),
        (|t| t["overhead_us"] = json!(-1.0), "`overhead_us` is -1"),
        (|t| t["plain_overhead_us"] = json!(1e300), "`plain_overhead_us`"),
        (|t| drop(t.as_object_mut().unwrap().remove("overhead_us")), "overhead_us"),
        (|t| t["overhead_us"] = json!(null), "null"),
        (|t| t["points"] = json!([]), "no verification pass"),
        (|t| drop(t["points"].as_array_mut().unwrap().drain(..3)), "no verification pass"),
        (|t| t["points"][1]["us"] = json!(0.0), "`points[1].us`"),
        (|t| t["points"][1]["us"] = json!(-3650.0), "`points[1].us`"),
        (|t| t["points"][1]["us"] = json!(1e12), "`points[1].us`"),
        (|t| t["points"][1]["us"] = json!(1e-320), "`points[1].us`"),
        (|t| t["points"][1]["us"] = json!(null), "null"),
        (|t| drop(t["points"][1].as_object_mut().unwrap().remove("us")), "us"),
        (|t| t["points"][0]["tokens"] = json!(0), "`points[0].tokens`"),
        (|t| t["points"][0]["tokens"] = json!(u64::MAX), "`points[0].tokens`"),
        (|t| t["points"][0]["sequences"] = json!(9), "`points[0].sequences`"),
        (|t| t["points"][0]["context"] = json!(1u64 << 40), "`points[0].context`"),
        (|t| t["points"][0]["kind"] = json!("prefill"), "prefill"),
        (|t| t["price"] = json!(1), "price"),
    ];
    for (spoil, expected) in cases {
        let mut table = sound.clone();
        spoil(&mut table);
        let sentence = refused(&place, &table.to_string());
        assert!(sentence.contains(expected), "{expected:?} is not in {sentence:?}");
    }
    let text = sound.to_string();
    for cut in [0, 1, text.len() / 2, text.len() - 1] {
        assert!(refused(&place, &text[..cut]).contains("no usable cost table"));
    }
    for (number, written) in [("NaN", "3600.0"), ("1e999", "3600.0"), ("Infinity", "3600.0")] {
        refused(&place, &text.replacen(written, number, 1));
    }
    let mut many = measured();
    many.points = vec![many.points[0]; 5000];
    let sentence = refused(&place, &serde_json::to_string(&many).unwrap());
    assert!(sentence.contains("5000 points"), "{sentence}");
    assert!(refused(&place, &" ".repeat(5 << 20)).contains("at most 4 MiB"));
    assert!(many.write(&place.path).is_err(), "what cannot be read is not written");
    let folder = place.path.parent().unwrap();
    assert!(self::sentence(CostTable::read(folder).unwrap_err()).contains("regular file"));
    self::sentence(CostTable::read(&folder.join("missing.json")).unwrap_err());
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => 1e-3f64..1e9,
        1 => prop::sample::select(vec![0.0, -1.0, f64::NAN, f64::INFINITY, 1e-320, 1e300, 1e-3, 1e9]),
    ]
}

fn points() -> impl Strategy<Value = Vec<SweepPoint>> {
    let kind = prop::sample::select(vec![SweepKind::Verify, SweepKind::Draft, SweepKind::Plain]);
    let point = (kind, 0usize..70_000, 0usize..300, 0usize..(1 << 25), number());
    let point = point.prop_map(|(kind, tokens, sequences, context, us)| SweepPoint {
        kind,
        tokens,
        sequences,
        // Equal contexts and far ones.
        context: if context % 2 == 0 { 64 } else { context },
        us,
    });
    prop::collection::vec(point, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_accepted_can_be_computed_with_and_comes_back(
        points in points(),
        tokens in 0usize..1200,
        nodes in 0usize..300,
        overheads in (number(), number()),
    ) {
        let table = CostTable {
            treads: Treads { tokens, nodes },
            overhead_us: overheads.0,
            plain_overhead_us: overheads.1,
            points,
            ..measured()
        };
        let place = place();
        match table.cost_model() {
            Err(error) => {
                sentence(error);
                prop_assert!(table.write(&place.path).is_err() || CostTable::read(&place.path).is_err());
            }
            Ok(cost) => {
                table.write(&place.path).unwrap();
                prop_assert_eq!(&CostTable::read(&place.path).unwrap(), &table);
                for tokens in [1usize, 7, 64, 1000, 100_000] {
                    let verify = cost.verify_us(tokens, [(tokens.min(64), 1 << 20)]);
                    let draft = cost.draft_us(tokens, 1 << 20);
                    prop_assert!(verify.is_finite() && verify > 0.0 && draft.is_finite() && draft > 0.0);
                }
                prop_assert!(cost.plain_us(8, 4096).is_finite());
            }
        }
    }
}
