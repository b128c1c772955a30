//! The claim, by replay: SMART against the best static tree of a grid, against the oracle, against plain decoding, on synthetic records
//! of known acceptance under the roofline of one H200 and one L40S.

use smart_run::control::{CostModel, CostTable, Policy, SweepKind, SweepPoint, Treads};
use smart_run::replay::process::{Process, SUITE};
use smart_run::replay::{
    Knowledge, Outcome, Record, RecordShape, Settings, best_static, oracle, replay, static_grid,
};

fn costs(name: &str) -> CostModel {
    CostTable::open(name).unwrap().cost_model().unwrap()
}

fn h200() -> CostModel {
    costs("h200/llama-3.1-8b/eagle3")
}

fn record(process: &str, sequences: usize, positions: usize) -> Record {
    Process::named(process, 1).unwrap().record(RecordShape::DEFAULT, sequences, positions).unwrap()
}

fn settings(batch: usize, tokens: usize) -> Settings {
    Settings { context: Some(1024), ..Settings::new(batch, tokens) }
}

/// Speed by expected tokens: what noise is left comes from what the policy learned from draws.
fn speed(outcome: &Outcome) -> f64 {
    outcome.expected_speedup().expect("synthetic records have probabilities")
}

fn play(record: &Record, costs: &CostModel, policy: &str, settings: &Settings) -> f64 {
    speed(&replay(record, costs, policy.parse().unwrap(), settings).unwrap())
}

/// The rival gets what a person who tunes would give it: every shape of the grid that could win at the batch, chosen on this very text.
#[test]
fn smart_is_at_least_the_best_static_tree_and_near_the_oracle() {
    let soak = std::env::var("SMART_SOAK").is_ok_and(|v| v == "1");
    let mut log_ratio = 0.0;
    let mut count = 0;
    for (card, batches) in [("h200", &[1, 8, 64][..]), ("l40s", &[16])] {
        let costs = costs(&format!("{card}/llama-3.1-8b/eagle3"));
        for process in ["accepts-2", "accepts-3", "accepts-4.5"] {
            let record = record(process, 64, 80);
            let grid: Vec<Policy> = static_grid(record.shape())
                .into_iter()
                .enumerate()
                .filter(|(i, _)| soak || i % 7 == 0)
                .map(|(_, policy)| policy)
                .collect();
            for &batch in batches {
                let settings = settings(batch, 1600.max(40 * batch));
                let smart = play(&record, &costs, "smart", &settings);
                let (policy, rival) = best_static(&record, &costs, &grid, &settings).unwrap().unwrap();
                let ratio = smart / speed(&rival);
                assert!(
                    ratio >= 0.99,
                    "{process} on {card}, batch {batch}: smart {smart:.3}, {policy} {:.3}",
                    speed(&rival)
                );
                let ceiling = speed(&oracle(&record, &costs, &settings).unwrap());
                assert!(
                    smart >= 0.97 * ceiling,
                    "{process} on {card}, batch {batch}: smart {smart:.3}, oracle {ceiling:.3}"
                );
                log_ratio += ratio.ln();
                count += 1;
            }
        }
    }
    let mean = (log_ratio / f64::from(count)).exp();
    assert!(mean >= 1.01, "geometric mean {mean:.3} of the best static trees");
}

#[test]
fn smart_beats_the_default_tree_on_the_papers_cards() {
    for card in ["l40s", "rtx-pro-6000"] {
        let costs = costs(&format!("{card}/llama-3.1-8b/eagle3"));
        let record = record("accepts-3", 32, 120);
        let ratios = [1, 2, 4, 8, 16].map(|batch| {
            let settings = settings(batch, 1500);
            play(&record, &costs, "smart", &settings) / play(&record, &costs, "eagle2:10,5,60", &settings)
        });
        let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / 5.0).exp();
        assert!(mean >= 1.2, "{card}: {mean:.3} ({ratios:?})");
    }
}

/// What passes cost where kernels work rows off in groups of 1, 2, 4 and 8, as those of the host driver do: nodes are dear, and edges high and close
/// to each other.
fn steep() -> CostModel {
    let verify = [
        (1, 500),
        (2, 530),
        (3, 740),
        (4, 750),
        (5, 1280),
        (8, 1370),
        (9, 1610),
        (12, 2030),
        (16, 2710),
        (32, 5400),
    ];
    let draft = [(1, 50), (2, 70), (3, 115), (4, 120), (5, 205), (8, 225), (16, 440), (32, 860)];
    let of = |kind, points: &[(usize, i32)]| -> Vec<SweepPoint> {
        let point = |&(tokens, us)| SweepPoint { kind, tokens, sequences: 1, context: 64, us: f64::from(us) };
        points.iter().map(point).collect()
    };
    let points = [of(SweepKind::Verify, &verify), of(SweepKind::Draft, &draft)].concat();
    let mut costs = CostModel::from_sweep(&points, Treads { tokens: 1, nodes: 1 }).unwrap();
    costs.set_overheads(12.0, 3.0);
    costs
}

/// A chain of three fills the four rows before an edge. To find that, the price of a row has to see past the edge behind two; and not to stop drafting
/// for the luck of a few rounds, rounds that have three rows on average must not seem to cost what three rows would.
#[test]
fn smart_finds_its_way_between_high_edges() {
    let costs = steep();
    for (process, least) in
        [("accepts-2", 0.98), ("accepts-3", 0.98), ("accepts-4.5", 1.005), ("mixed", 1.02), ("changing", 1.0)]
    {
        let record = record(process, 64, 200);
        let settings = Settings { context: Some(64), ..Settings::new(1, 6400) };
        let smart = replay(&record, &costs, Policy::Smart, &settings).unwrap();
        let (policy, rival) =
            best_static(&record, &costs, &static_grid(record.shape()), &settings).unwrap().unwrap();
        let (smart_speed, rival_speed) = (speed(&smart), speed(&rival));
        assert!(
            smart_speed >= least * rival_speed,
            "{process}: smart {smart_speed:.3}, {policy} {rival_speed:.3}"
        );
        let plain = smart.plain_rounds as f64 / smart.rounds as f64;
        assert!(plain < 0.02, "{process}: {:.0} % of rounds did not draft, though that pays", 100.0 * plain);
    }
}

/// Where drafter rows are dear, what has been left to catch up on must not keep the oracle from drafting for ever: who knows acceptance beforehand is
/// not behind a tree that knows nothing.
#[test]
fn the_oracle_is_a_ceiling_where_catching_up_is_dear() {
    let costs = steep();
    for process in ["accepts-3", "mixed", "changing"] {
        let record = record(process, 64, 200);
        let settings = Settings { context: Some(64), ..Settings::new(2, 4000) };
        let (policy, rival) =
            best_static(&record, &costs, &static_grid(record.shape()), &settings).unwrap().unwrap();
        let ceiling = speed(&oracle(&record, &costs, &settings).unwrap());
        assert!(
            ceiling >= 0.98 * speed(&rival),
            "{process}: oracle {ceiling:.3}, {policy} {:.3}",
            speed(&rival)
        );
    }
}

/// From 4.5 accepted tokens to next to none within a text, and back with the next text.
#[test]
fn a_collapse_in_mid_text_heals() {
    let record = record("collapsing", 16, 200);
    for batch in [1, 8] {
        let settings = settings(batch, 3200);
        let smart = play(&record, &h200(), "smart", &settings);
        let ceiling = speed(&oracle(&record, &h200(), &settings).unwrap());
        assert!(smart >= 0.88 * ceiling, "batch {batch}: smart {smart:.3}, oracle {ceiling:.3}");
    }
}

/// Nothing is known of the drafter in the first round of a large batch: what it promises and does not keep must not use up what drafting may lose,
/// or nobody would draft for long.
#[test]
fn a_first_round_does_not_stake_more_than_it_may_lose() {
    let record = record("distorted", 64, 120);
    for card in ["h200", "h100-sxm", "rtx-pro-6000"] {
        let costs = costs(&format!("{card}/llama-3.1-8b/eagle3"));
        let settings = settings(64, 6000);
        let [smart, chain, tree] =
            ["smart", "chain:1", "eagle2:4,1,4"].map(|policy| play(&record, &costs, policy, &settings));
        assert!(smart >= 0.99 * chain.max(tree), "{card}: smart {smart:.3}, {chain:.3}, {tree:.3}");
    }
}

/// What is lost to wrong beliefs, apart: costs off by three heal; a noisy clock costs little; known probabilities and costs give no less
/// than learned ones.
#[test]
fn losses_to_calibration_and_to_costs_can_be_told_apart() {
    let record = record("distorted", 32, 120);
    let costs = h200();
    let table = CostTable::open("h200/llama-3.1-8b/eagle3").unwrap();
    for batch in [1, 16] {
        let right = settings(batch, 2400);
        let learned = play(&record, &costs, "smart", &right);
        let known = Settings { knowledge: Knowledge { probabilities: true, costs: true }, ..right.clone() };
        assert!(play(&record, &costs, "smart", &known) > 0.985 * learned, "batch {batch}");
        let noisy = Settings { noise: 0.15, ..right.clone() };
        let noisy = play(&record, &costs, "smart", &noisy);
        assert!(noisy > 0.95 * learned, "batch {batch}: {noisy:.3} by a noisy clock, {learned:.3}");
        let mut wrong = table.clone();
        for point in wrong.points.iter_mut().filter(|point| point.kind == SweepKind::Draft) {
            point.us *= 3.0;
        }
        let belief = Settings { belief: Some(wrong.cost_model().unwrap()), ..right.clone() };
        let healed = play(&record, &costs, "smart", &belief);
        assert!(healed > 0.97 * learned, "batch {batch}: {healed:.3} after a wrong table, {learned:.3}");
        let blind = Settings { knowledge: Knowledge { probabilities: false, costs: true }, ..belief };
        assert!(play(&record, &costs, "smart", &blind) > 0.99 * learned, "known costs override beliefs");
    }
}

#[test]
fn estimates_are_calibrated_once_learned() {
    for process in ["accepts-3", "distorted", "mixed"] {
        let record = record(process, 32, 120);
        let outcome = replay(&record, &h200(), Policy::Smart, &settings(8, 3800)).unwrap();
        assert!(outcome.calibration_error() < 0.02, "{process}: {:.4}", outcome.calibration_error());
        let labels: u64 = outcome.reliability.iter().map(|bin| bin.count).sum();
        assert!(labels > 10_000, "{labels}");
    }
}

/// All policies emit the same text in rounds that add up.
#[test]
fn every_policy_plays_the_same_tokens() {
    let record = record("changing", 4, 60);
    let policies = [
        "plain",
        "chain:4",
        "eagle1",
        "eagle2:10,5,60",
        "auto-n",
        "smart-paper",
        "smart",
        "opt-tree:40",
        "sequoia:40",
        "goodput",
        "ddd",
        "svip",
        "specdec++",
        "disco",
        "tapout",
        "tapout:thompson",
    ];
    for policy in policies {
        let outcome = replay(&record, &h200(), policy.parse().unwrap(), &settings(2, 240)).unwrap();
        assert!(outcome.tokens >= 240, "{policy}");
        assert_eq!(outcome.tokens, outcome.accepted + outcome.sequence_rounds, "{policy}");
        assert!(outcome.us.is_finite() && outcome.us > 0.0 && outcome.verify_us <= outcome.us, "{policy}");
        assert_eq!(
            policy == "plain",
            outcome.plain_rounds == outcome.rounds && outcome.levels == 0,
            "{policy}"
        );
        let stepped = matches!(policy, "ddd" | "svip" | "specdec++" | "disco" | "tapout" | "tapout:thompson");
        assert_eq!(stepped, outcome.host_syncs > 0, "{policy}: {} synchronisations", outcome.host_syncs);
    }
    let plain = replay(&record, &h200(), Policy::Plain, &settings(2, 240)).unwrap();
    assert!((plain.speedup() - 1.0).abs() < 1e-9);
}

#[test]
fn a_seed_is_a_replay() {
    let record = record("mixed", 8, 60);
    let noisy = Settings { noise: 0.1, ..settings(4, 400) };
    let run = |settings: &Settings| replay(&record, &h200(), Policy::Smart, settings).unwrap();
    assert_eq!(run(&noisy), run(&noisy));
    assert_ne!(run(&noisy), run(&Settings { seed: 1, ..noisy.clone() }));
}

#[test]
fn what_cannot_be_replayed_is_one_sentence() {
    let record = record(SUITE[0], 2, 20);
    let wide = replay(&record, &h200(), "eagle2:16,1,20".parse().unwrap(), &settings(1, 10)).unwrap_err();
    assert!(wide.is_input() && wide.to_string().contains("16 children"), "{wide}");
    assert!(replay(&record, &h200(), Policy::Plain, &settings(0, 10)).unwrap_err().is_input());
    let narrow = Process::named("accepts-3", 1).unwrap();
    let other = narrow.record(RecordShape { beam: 4, ..RecordShape::DEFAULT }, 2, 20).unwrap();
    assert!(record.join(other).unwrap_err().is_input());
    assert!(Process::named("accepts-9", 1).unwrap_err().to_string().contains("accepts-4.5"));
}
