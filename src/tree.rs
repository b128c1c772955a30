//! [`DraftTree`]: the tokens that one target pass verifies for one sequence, as a tree.
//!
//! Node 0 is the root, the last committed token. Parents come before children, so ascending node order along a path
//! is depth order. Beside parent and depth every node carries its *ancestor words*: bit `j` is set iff node `j` lies on
//! the path from the root to the node, the node itself included; the attention kernels read them as they are.
//! Plain data: no CUDA, no probabilities, no policy.
#![forbid(unsafe_code)]

/// Most nodes of a tree, root included: the bits of four 64-bit ancestor words.
pub const MAX_NODES: usize = 256;

/// Ancestors of a node, itself included: bit `j % 64` of word `j / 64` stands for node `j`.
pub type AncestorWords = [u64; MAX_NODES / 64];

/// A draft tree in parents-before-children order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftTree {
    tokens: Vec<i32>,
    /// Parent index, -1 for the root.
    parents: Vec<i32>,
    /// Edges from the root.
    depths: Vec<u16>,
    ancestors: Vec<AncestorWords>,
}

impl DraftTree {
    /// The tree of a plain round: the root alone.
    pub fn new(root_token: i32) -> Self {
        let mut tree = Self { tokens: vec![], parents: vec![], depths: vec![], ancestors: vec![] };
        tree.reset(root_token);
        tree
    }

    /// Back to the root alone, keeping the allocations.
    pub fn reset(&mut self, root_token: i32) {
        self.tokens.clear();
        self.parents.clear();
        self.depths.clear();
        self.ancestors.clear();
        self.tokens.push(root_token);
        self.parents.push(-1);
        self.depths.push(0);
        self.ancestors.push(with_bit([0; 4], 0));
    }

    /// Appends a child of `parent` and returns its index.
    ///
    /// # Panics
    /// If `parent` does not exist or the tree already has [`MAX_NODES`] nodes.
    pub fn push(&mut self, parent: usize, token: i32) -> usize {
        let node = self.num_nodes();
        assert!(parent < node, "parents come before children: no node {parent} in a tree of {node}");
        assert!(node < MAX_NODES, "a tree has at most {MAX_NODES} nodes");
        self.tokens.push(token);
        self.parents.push(parent as i32);
        self.depths.push(self.depths[parent] + 1);
        self.ancestors.push(with_bit(self.ancestors[parent], node));
        node
    }

    /// Nodes, root included.
    pub fn num_nodes(&self) -> usize {
        self.tokens.len()
    }

    /// Drafted nodes: the root excluded.
    pub fn num_draft_tokens(&self) -> usize {
        self.num_nodes() - 1
    }

    /// Token of node `i`.
    pub fn token(&self, i: usize) -> i32 {
        self.tokens[i]
    }

    /// Parent of node `i`; `None` for the root.
    pub fn parent(&self, i: usize) -> Option<usize> {
        usize::try_from(self.parents[i]).ok()
    }

    /// Edges between the root and node `i`.
    pub fn depth(&self, i: usize) -> usize {
        usize::from(self.depths[i])
    }

    /// Ancestors of node `i`, itself included.
    pub fn ancestor_words(&self, i: usize) -> AncestorWords {
        self.ancestors[i]
    }

    /// Whether `ancestor` lies on the path from the root to `node` (a node is its own ancestor).
    pub fn is_ancestor(&self, ancestor: usize, node: usize) -> bool {
        self.ancestors[node][ancestor / 64] >> (ancestor % 64) & 1 == 1
    }

    /// Children of node `i`, ascending.
    pub fn children(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        (i + 1..self.num_nodes()).filter(move |&child| self.parents[child] == i as i32)
    }

    /// The child of node `i` that carries `token`, if there is one; the first if there are several.
    pub fn child_with_token(&self, i: usize, token: i32) -> Option<usize> {
        self.children(i).find(|&child| self.tokens[child] == token)
    }

    /// Nodes from the root (excluded) to node `i` (included); empty for the root.
    pub fn path(&self, i: usize) -> Vec<usize> {
        (1..=i).filter(|&ancestor| self.is_ancestor(ancestor, i)).collect()
    }

    /// All tokens, root first.
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// All parents, -1 for the root.
    pub fn parents(&self) -> &[i32] {
        &self.parents
    }

    /// All depths.
    pub fn depths(&self) -> &[u16] {
        &self.depths
    }

    /// All ancestor words.
    pub fn ancestors(&self) -> &[AncestorWords] {
        &self.ancestors
    }

    /// Walks from the root along the tokens that the target drew: `drawn[i]` is its token after node `i`.
    /// Returns the accepted nodes, root excluded, and the bonus token. The oracle of the verification kernel.
    pub fn walk(&self, drawn: &[i32]) -> (Vec<usize>, i32) {
        let mut accepted = Vec::new();
        let mut node = 0;
        while let Some(child) = self.child_with_token(node, drawn[node]) {
            accepted.push(child);
            node = child;
        }
        (accepted, drawn[node])
    }
}

/// `words` with the bit of `node` set.
pub(crate) fn with_bit(mut words: AncestorWords, node: usize) -> AncestorWords {
    words[node / 64] |= 1 << (node % 64);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// root 10 -> {1: 11 -> {3: 13}, 2: 12}
    fn fork() -> DraftTree {
        let mut tree = DraftTree::new(10);
        let left = tree.push(0, 11);
        tree.push(0, 12);
        tree.push(left, 13);
        tree
    }

    #[test]
    fn links_depths_and_paths() {
        let tree = fork();
        assert_eq!((tree.num_nodes(), tree.num_draft_tokens()), (4, 3));
        assert_eq!(tree.parents(), [-1, 0, 0, 1]);
        assert_eq!(tree.depths(), [0, 1, 1, 2]);
        assert_eq!(tree.children(0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(tree.parent(3), Some(1));
        assert_eq!(tree.parent(0), None);
        assert_eq!(tree.path(3), [1, 3]);
        assert_eq!(tree.ancestor_words(3), [0b1011, 0, 0, 0]);
        assert!(!tree.is_ancestor(2, 3));
    }

    #[test]
    fn ancestor_bits_reach_the_last_word() {
        let mut tree = DraftTree::new(0);
        for node in 1..MAX_NODES {
            assert_eq!(tree.push(node - 1, node as i32), node);
        }
        assert_eq!(tree.ancestor_words(255), [u64::MAX; 4]);
        assert_eq!(tree.ancestor_words(64), [u64::MAX, 1, 0, 0]);
        assert_eq!(tree.path(255).len(), 255);
    }

    #[test]
    #[should_panic(expected = "at most 256 nodes")]
    fn a_257th_node_is_refused() {
        let mut tree = DraftTree::new(0);
        for _ in 0..MAX_NODES {
            tree.push(0, 1);
        }
    }

    #[test]
    fn walk_descends_while_the_drawn_token_is_a_child() {
        let tree = fork();
        assert_eq!(tree.walk(&[11, 13, 0, 99]), (vec![1, 3], 99));
        assert_eq!(tree.walk(&[12, 13, 7, 99]), (vec![2], 7));
        assert_eq!(tree.walk(&[42, 13, 7, 99]), (vec![], 42));
    }

    #[test]
    fn reset_keeps_nothing_but_the_root() {
        let mut tree = fork();
        tree.reset(5);
        assert_eq!(tree, DraftTree::new(5));
    }
}
