//! `eagle2` against an independent account of EAGLE's `topK_genrate`: flat ids, parent table, rerank.

use smart_run::control::{Controller, ControllerConfig, CostModel, Policy};

use crate::common::{Random, view};

/// What the reference drafts: per pass the flat ids that it runs, then the flat ids that it keeps, with their parents' (0 = root,
/// else flat id + 1).
struct Reference {
    beams: Vec<Vec<usize>>,
    kept: Vec<(usize, usize)>,
}

/// Indices of the `count` largest scores, ties to the smaller index, best first.
fn top(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

/// Log-probabilities of the `k` children of the node with flat id `flat` (`None`: of the root), often tied.
fn children(flat: Option<usize>, k: usize, seed: u64, coarse: bool) -> Vec<f32> {
    let mut random = Random(seed ^ flat.map_or(0, |flat| flat as u64 + 1) << 20);
    let mut logps: Vec<f32> = (0..k)
        .map(|_| if coarse { -0.5 * random.below(4) as f32 } else { (random.unit().max(1e-9) as f32).ln() })
        .collect();
    logps.sort_by(|a, b| b.total_cmp(a));
    logps
}

fn reference(k: usize, d: usize, total: usize, seed: u64, coarse: bool) -> Reference {
    let mut scores = children(None, k, seed, coarse);
    let mut parent_table = vec![0];
    let mut beam: Vec<usize> = (0..k).collect();
    let mut beams = vec![];
    for step in 0..d {
        parent_table.extend(beam.iter().map(|flat| flat + 1));
        beams.push(beam.clone());
        let start = scores.len();
        assert_eq!(start, k + step * k * k);
        for &flat in &beam {
            let parent_score = scores[flat];
            scores.extend(children(Some(flat), k, seed, coarse).iter().map(|logp| parent_score + logp));
        }
        beam = top(&scores[start..], k).iter().map(|index| start + index).collect();
    }
    let mut kept = top(&scores, total - 1);
    kept.sort();
    Reference { beams, kept: kept.iter().map(|&flat| (flat, parent_table[flat / k])).collect() }
}

#[test]
fn beams_and_kept_nodes_equal_the_reference() {
    for (k, d, total) in
        [(10, 5, 60), (10, 7, 60), (1, 4, 4), (4, 0, 3), (4, 0, 60), (3, 6, 256), (2, 1, 2), (32, 3, 200)]
    {
        for seed in 0..20 {
            let coarse = seed % 2 == 1;
            let want = reference(k, d, total, seed, coarse);
            let policy = Policy::Eagle2 { top_k: k, depth: d, total };
            let mut controller =
                Controller::new(policy, ControllerConfig::default(), CostModel::unmeasured());
            controller.begin_round(&[view(7)]);
            let round = controller.round_mut();
            let mut passes = 0;
            while let Some(rows) = round.next_level() {
                let ran: Vec<_> = rows.iter().map(|row| (row.node as usize).checked_sub(1)).collect();
                if passes > 0 {
                    let beam: Vec<_> = want.beams[passes - 1].iter().map(|&flat| Some(flat)).collect();
                    assert_eq!(ran, beam, "pass {passes} of eagle2:{k},{d},{total}, seed {seed}");
                }
                let logps: Vec<f32> = ran.iter().flat_map(|&flat| children(flat, k, seed, coarse)).collect();
                round.add_level(&vec![1; logps.len()], &logps);
                passes += 1;
            }
            assert_eq!(passes, d + 1, "levels are one more than the depth");
            let selected = &round.select()[0];
            let mut got: Vec<(usize, usize)> = (1..selected.tree.num_nodes())
                .map(|node| {
                    let parent = selected.tree.parent(node).expect("only node 0 is the root");
                    (selected.pool_nodes[node] as usize - 1, selected.pool_nodes[parent] as usize)
                })
                .collect();
            got.sort();
            assert_eq!(got, want.kept, "eagle2:{k},{d},{total}, seed {seed}");
        }
    }
}

#[test]
fn broken_drafter_scores_still_give_a_tree() {
    let mut controller = Controller::new(
        "eagle2:4,3,20".parse().unwrap(),
        ControllerConfig::default(),
        CostModel::unmeasured(),
    );
    controller.begin_round(&[view(7)]);
    let round = controller.round_mut();
    let broken = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.3];
    while let Some(rows) = round.next_level() {
        let logps: Vec<f32> = rows.iter().flat_map(|_| broken).collect();
        round.add_level(&vec![1; logps.len()], &logps);
    }
    assert_eq!(round.select()[0].tree.num_nodes(), 20);
    assert!(
        round
            .pool(0)
            .nodes()
            .iter()
            .all(|node| (0.0..=1.0).contains(&node.path_prob) && node.path_logp <= 0.0)
    );
}
