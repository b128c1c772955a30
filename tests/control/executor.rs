//! What the executor hands to the engine: rows and trees of every policy.

use smart_run::control::{NONE, Policy};
use smart_run::tree::DraftTree;

use crate::common::{draft, first_round};

fn policies() -> Vec<Policy> {
    ["plain", "chain:5", "eagle1", "eagle2:10,5,60", "eagle2:3,2,256", "auto-n", "smart-paper", "smart"]
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
    assert_eq!(sizes("eagle2:10,5,60"), [60, 60]);
    // The pool of 3 + 2 * 9 nodes is smaller than asked for.
    assert_eq!(sizes("eagle2:3,2,256"), [22, 22]);
}

#[test]
fn likeliest_path_is_packed_first() {
    let (mut controller, _) = first_round("eagle2:4,3,30".parse().unwrap(), 1);
    let selected = draft(&mut controller, 3).remove(0);
    let pool = controller.round().pool(0).nodes();
    let prob = |tree: &DraftTree, node: usize| {
        let _ = tree;
        pool[selected.pool_nodes[node] as usize].path_prob
    };
    let mut node = 0;
    while let Some(best) = selected
        .tree
        .children(node)
        .max_by(|&a, &b| prob(&selected.tree, a).total_cmp(&prob(&selected.tree, b)).then(b.cmp(&a)))
    {
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
