//! Packing the chosen nodes of a pool into the tree that the target sees.
#![forbid(unsafe_code)]

use super::SelectedTree;
use crate::control::pool::{CandidatePool, NONE};
use crate::control::scan::Candidate;

/// First verified child and next verified sibling of a pool node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    child: u32,
    sibling: u32,
}

/// Packs the verified nodes of `pool`, depth first, at every fork the likelier child first: the likeliest path lies at the
/// front, where its K/V rows need not move when it is accepted. `order` and `links` are scratch.
pub(super) fn pack(
    pool: &CandidatePool,
    root_token: i32,
    selected: &mut SelectedTree,
    order: &mut Vec<Candidate>,
    links: &mut Vec<Links>,
) {
    let nodes = pool.nodes();
    order.clear();
    let verified = nodes.iter().enumerate().skip(1).filter(|(_, node)| node.verified);
    order.extend(verified.map(|(node, state)| Candidate::new(state.path_prob, 0, node)));
    order.sort_unstable();
    links.clear();
    links.resize(nodes.len(), Links { child: NONE, sibling: NONE });
    // Inserting the unlikeliest first leaves the likeliest in front.
    for node in order.iter().rev().map(|candidate| candidate.node()) {
        let parent = nodes[node].parent as usize;
        links[node].sibling = links[parent].child;
        links[parent].child = node as u32;
    }

    let SelectedTree { tree, pool_nodes } = selected;
    tree.reset(root_token);
    pool_nodes.clear();
    pool_nodes.push(0);
    let (mut at, mut packed) = (0, 0);
    loop {
        let mut next = links[at].child;
        while next == NONE && at != 0 {
            next = links[at].sibling;
            at = nodes[at].parent as usize;
            packed = tree.parent(packed).unwrap_or(0);
        }
        if next == NONE {
            break;
        }
        at = next as usize;
        packed = tree.push(packed, nodes[at].token);
        pool_nodes.push(next);
    }
}
