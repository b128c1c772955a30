//! What the executor hands to the engine: rows and trees of every policy.

use smart_run::control::roofline::Roofline;
use smart_run::control::trace::{PhaseTrace, RoundTrace, SequenceTrace};
use smart_run::control::{Controller, ControllerConfig, NONE, Policy, RoundReport, SequenceOutcome};

use crate::common::{draft, first_round, view};

fn policies() -> Vec<Policy> {
    [
        "plain",
        "chain:5",
        "eagle1",
        "medusa",
        "eagle2:10,5,60",
        "eagle2:3,2,256",
        "auto-n",
        "smart-paper",
        "smart",
        "opt-tree:40,0.01",
        "sequoia:40",
        "goodput:6",
        "ddd",
        "svip:2",
        "specdec++",
        "disco:0.1",
        "tapout",
    ]
    .iter()
    .map(|text| text.parse().unwrap())
    .collect()
}

#[test]
fn every_policy_selects_connected_trees_with_parents_first() {
    for policy in policies() {
        for seed in 0..20 {
            let (mut controller, _) = first_round(policy, 3);
            for (sequence, selected) in draft(&mut controller, seed).iter().enumerate() {
                let pool = controller.round().pool(sequence).nodes();
                let tree = &selected.tree;
                assert_eq!(tree.token(0), 1000 + sequence as i32);
                assert!(tree.num_draft_tokens() <= 255);
                for node in 1..tree.num_nodes() {
                    let parent = tree.parent(node).unwrap();
                    assert!(parent < node, "{policy}");
                    let pool_node = &pool[selected.pool_nodes[node] as usize];
                    assert_eq!(pool_node.token, tree.token(node));
                    assert_eq!(pool_node.parent, selected.pool_nodes[parent], "{policy}");
                }
                let verified = pool.iter().filter(|node| node.verified).count();
                assert_eq!(verified, tree.num_nodes(), "{policy}");
            }
        }
    }
}

#[test]
fn shapes_of_the_fixed_policies() {
    let sizes = |text: &str| -> Vec<usize> {
        let (mut controller, _) = first_round(text.parse().unwrap(), 2);
        draft(&mut controller, 1).iter().map(|selected| selected.tree.num_nodes()).collect()
    };
    assert_eq!(sizes("plain"), [1, 1]);
    assert_eq!(sizes("chain:7"), [8, 8]);
    assert_eq!(sizes("eagle1"), [26, 26]);
    assert_eq!(sizes("medusa"), [64, 64]);
    assert_eq!(sizes("eagle2:10,5,60"), [60, 60]);
    // The pool of 3 + 2 * 9 nodes is smaller than asked for.
    assert_eq!(sizes("eagle2:3,2,256"), [22, 22]);
}

#[test]
fn likeliest_path_is_packed_first() {
    let (mut controller, _) = first_round("eagle2:4,3,30".parse().unwrap(), 1);
    let selected = draft(&mut controller, 3).remove(0);
    let pool = controller.round().pool(0).nodes();
    let prob = |node: usize| pool[selected.pool_nodes[node] as usize].path_prob;
    let likelier = |a: &usize, b: &usize| prob(*a).total_cmp(&prob(*b)).then(b.cmp(a));
    let mut node = 0;
    while let Some(best) = selected.tree.children(node).max_by(likelier) {
        assert_eq!(best, node + 1);
        node = best;
    }
    assert!(node >= 1);
}

#[test]
fn rows_carry_what_the_drafter_needs() {
    for policy in policies() {
        let (mut controller, _) = first_round(policy, 3);
        let round = controller.round_mut();
        let mut run: Vec<(u32, u32)> = vec![];
        while let Some(rows) = round.next_level() {
            let rows = rows.to_vec();
            assert!(rows.is_sorted_by_key(|row| row.sequence));
            let (mut tokens, mut logps) = (vec![], vec![]);
            for row in &rows {
                let pool = round.pool(row.sequence as usize);
                let node = &pool.nodes()[row.node as usize];
                assert_eq!((row.token, row.depth), (node.token, node.depth));
                assert_eq!(run.len() as u32, node.row);
                run.push((row.sequence, row.node));
                if row.node == 0 {
                    assert_eq!((row.parent_row, row.slot, row.ancestors), (NONE, NONE, [0; 4]));
                } else {
                    assert_eq!(run[row.parent_row as usize], (row.sequence, node.parent));
                    let bits: u32 = row.ancestors.iter().map(|word| word.count_ones()).sum();
                    assert_eq!(bits, u32::from(row.depth), "as many visible tree rows as edges to the root");
                    let highest = (0..256).rev().find(|&bit| row.ancestors[bit / 64] >> (bit % 64) & 1 == 1);
                    assert_eq!(highest, Some(row.slot as usize), "its own bit is the highest");
                }
                let (row_tokens, row_logps) = crate::common::children(row, round.top_k(), 5);
                tokens.extend(row_tokens);
                logps.extend(row_logps);
            }
            round.add_level(&tokens, &logps);
        }
    }
}

#[test]
fn traces_have_the_documented_fields() {
    let (mut controller, _) = first_round("smart".parse().unwrap(), 2);
    let trees = draft(&mut controller, 4);
    controller.round_mut().compute_ratios();
    let tree = &trees[1].tree;
    let accepted = [1];
    let mut drawn = vec![-1; tree.num_nodes()];
    drawn[1] = 77;
    let outcome = SequenceOutcome { accepted: &accepted, drawn: &drawn };
    let trace = SequenceTrace::new(&controller, 3, 1, &outcome);
    assert_eq!(
        (trace.round, trace.batch, trace.sequence, trace.position, trace.bonus_token),
        (3, 2, 1, 100, 77)
    );
    assert_eq!(trace.accepted, [trees[1].pool_nodes[1]]);

    let json = serde_json::to_value(&trace).unwrap();
    // In alphabetical order: whether objects keep theirs depends on the features that are built.
    let keys = |value: &serde_json::Value| -> Vec<String> {
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(
        keys(&json),
        ["accepted", "batch", "bonus_token", "position", "round", "sequence", "speedup", "tree"]
    );
    let columns = ["expanded", "logprob", "parents", "path_prob", "q", "ratio", "tokens", "verified"];
    assert_eq!(keys(&json["tree"]), columns);
    let nodes = controller.round().pool(1).nodes().len();
    assert!(columns.iter().all(|column| json["tree"][column].as_array().unwrap().len() == nodes));
    let verified = trace.tree.verified.iter().filter(|&&verified| verified).count();
    assert_eq!(verified, tree.num_nodes());
    let round = RoundTrace {
        round: 3,
        predicted_us: controller.predicted().into(),
        measured_us: PhaseTrace::default(),
    };
    let json = serde_json::to_value(round).unwrap();
    assert_eq!(keys(&json), ["measured_us", "predicted_us", "round"]);
    assert_eq!(keys(&json["predicted_us"]), ["draft", "total", "verify"]);
}

#[test]
fn ratios_rank_runs_around_the_speedup() {
    // On a roofline far from its ridge: places are free up to the ridge, then cost the same per tread, so ratios fall along the
    // scan and cross the speedup where the selection ends.
    let mut controller = Controller::new(
        "smart".parse().unwrap(),
        ControllerConfig::default(),
        Roofline::H200_LLAMA_8B.cost_model(4096),
    );
    let views: Vec<_> = (0..32).map(view).collect();
    // In the first round so large a batch is careful.
    controller.begin_round(&views);
    draft(&mut controller, 6);
    controller.observe(&RoundReport::default());
    controller.begin_round(&views);
    draft(&mut controller, 6);
    let round = controller.round_mut();
    round.compute_ratios();
    let speedup = round.speedup();
    let nodes = || (0..32).flat_map(|sequence| &round.pool(sequence).nodes()[1..]);
    assert!(nodes().any(|node| node.verified && node.ratio.is_infinite()));
    assert!(nodes().any(|node| !node.verified && node.ratio < speedup));
    let lowest_kept =
        nodes().filter(|node| node.verified).map(|node| node.ratio).fold(f32::INFINITY, f32::min);
    let left_out: Vec<f32> = nodes().filter(|node| !node.verified).map(|node| node.ratio).collect();
    let below = left_out.iter().filter(|&&ratio| ratio < lowest_kept).count();
    assert!(
        below * 10 > left_out.len() * 9,
        "{below} of {} left-out nodes rank below {lowest_kept}",
        left_out.len()
    );
}
