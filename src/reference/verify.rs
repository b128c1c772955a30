//! Oracle of `kernels/verify.cu`.
#![forbid(unsafe_code)]

/// What the target's draws make of one draft tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Indices of the accepted nodes, root excluded, in path order (which is ascending).
    pub accepted: Vec<i32>,
    /// The draw at the last accepted node: the token that no child holds; -1 of a tree without nodes.
    pub bonus: i32,
}

/// Walks one tree from its root (node 0) along the children that hold the drawn tokens.
pub fn walk(tokens: &[i32], parents: &[i32], drawn: &[i32]) -> Walk {
    let mut accepted = Vec::new();
    if drawn.is_empty() {
        return Walk { accepted, bonus: -1 };
    }
    let mut node = 0;
    let child_with = |node: usize, token| {
        (node + 1..tokens.len()).find(|&child| parents[child] == node as i32 && tokens[child] == token)
    };
    while let Some(child) = child_with(node, drawn[node]) {
        accepted.push(child as i32);
        node = child;
    }
    Walk { accepted, bonus: drawn[node] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descends_to_the_first_of_two_equal_children() {
        // root -> {1: 7, 2: 7}, 1 -> {3: 8}, 2 -> {4: 9}
        let walk = walk(&[5, 7, 7, 8, 9], &[-1, 0, 0, 1, 2], &[7, 9, 9, 6, 6]);
        assert_eq!(walk, Walk { accepted: vec![1], bonus: 9 });
    }
}
