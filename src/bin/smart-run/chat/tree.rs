//! A round's draft tree as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use smart_run::control::trace::SequenceTrace;

/// Draws the tree of `round`: a node a line, below its parent, the likelier sibling first.
pub fn drawn(round: &SequenceTrace, texts: &BTreeMap<i32, String>) -> String {
    let tree = &round.tree;
    let text = |token: i32| texts.get(&token).map_or_else(|| format!("#{token}"), |text| format!("{text:?}"));
    let mut children = vec![Vec::new(); tree.tokens.len()];
    for (node, &parent) in tree.parents.iter().enumerate() {
        if let Ok(parent) = usize::try_from(parent) {
            children[parent].push(node);
        }
    }
    for siblings in &mut children {
        siblings.sort_by(|&a, &b| tree.path_prob[b].total_cmp(&tree.path_prob[a]));
    }
    let mut out = format!(
        "round at position {}: {} drafted, {} verified, {} accepted, bonus {}\n",
        round.position,
        tree.tokens.len() - 1,
        tree.verified.iter().skip(1).filter(|&&verified| verified).count(),
        round.accepted.len(),
        text(round.bonus_token),
    );
    let _ = writeln!(out, "{}", tree.tokens.first().map_or_else(String::new, |&root| text(root)));
    // Nodes still to be drawn, the next one last, each behind its parents' lines.
    let below = |node: usize, indent: &str| -> Vec<(usize, String, bool)> {
        let last = children[node].len().saturating_sub(1);
        let lines = children[node]
            .iter()
            .enumerate()
            .map(|(place, &child)| (child, indent.to_owned(), place == last));
        lines.rev().collect()
    };
    let mut waiting = if children.is_empty() { Vec::new() } else { below(0, "") };
    while let Some((node, indent, is_last)) = waiting.pop() {
        let branch = format!("{indent}{} {}", if is_last { "`-" } else { "|-" }, text(tree.tokens[node]));
        let fate = if round.accepted.contains(&(node as u32)) {
            "accepted"
        } else if tree.verified[node] {
            "verified"
        } else {
            "drafted"
        };
        let _ = writeln!(out, "{branch:<32}  q {:.2}  P {:.2}  {fate}", tree.q[node], tree.path_prob[node]);
        waiting.extend(below(node, &format!("{indent}{}", if is_last { "   " } else { "|  " })));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use smart_run::control::trace::TreeTrace;

    #[test]
    fn every_node_is_below_its_parent_with_its_fate() {
        let tree = TreeTrace {
            tokens: vec![7, 1, 2, 3, 4],
            parents: vec![-1, 0, 0, 2, 2],
            logprob: vec![None; 5],
            q: vec![1.0, 0.25, 0.75, 0.5, 0.125],
            path_prob: vec![1.0, 0.25, 0.75, 0.375, 0.09375],
            ratio: vec![None; 5],
            expanded: vec![true, false, true, false, false],
            verified: vec![true, false, true, true, true],
        };
        let round = SequenceTrace {
            round: 0,
            batch: 1,
            sequence: 0,
            position: 9,
            tree,
            accepted: vec![2, 3],
            bonus_token: 5,
            speedup: 1.0,
        };
        let texts =
            [(7, "("), (1, "a"), (2, "b\n"), (3, " c"), (5, ")")].map(|(id, text)| (id, text.to_owned()));
        let expected = "\
round at position 9: 4 drafted, 3 verified, 2 accepted, bonus \")\"
\"(\"
|- \"b\\n\"                          q 0.75  P 0.75  accepted
|  |- \" c\"                        q 0.50  P 0.38  accepted
|  `- #4                          q 0.12  P 0.09  verified
`- \"a\"                            q 0.25  P 0.25  drafted
";
        assert_eq!(drawn(&round, &texts.into()), expected);
        let plain = SequenceTrace {
            tree: TreeTrace {
                tokens: vec![7],
                parents: vec![-1],
                verified: vec![true],
                ..TreeTrace::default()
            },
            accepted: vec![],
            ..round
        };
        assert_eq!(
            drawn(&plain, &BTreeMap::new()),
            "round at position 9: 0 drafted, 0 verified, 0 accepted, bonus #5\n#7\n"
        );
    }
}
