//! [`GuidedText`]: a text under a grammar, and what the grammar allows at the nodes of a round's tree. Drafter and target ask for the
//! same nodes, so a mask is made once.

use crate::error::Result;
use crate::text::Grammar;

/// A node that the round has met. Node 0 is the root: the text as committed.
struct Node {
    parent: usize,
    token: i32,
    depth: usize,
    /// Where its mask begins, once it is made.
    mask: Option<usize>,
}

/// A text under a grammar. After an error it is of no use any more, and says so on every call.
pub(super) struct GuidedText {
    grammar: Grammar,
    /// Words of a mask.
    words: usize,
    nodes: Vec<Node>,
    /// The node that the grammar stands at.
    at: usize,
    masks: Vec<u32>,
    /// The node of each run of the drafter; none where the grammar does not allow it.
    runs: Vec<Option<usize>>,
}

impl GuidedText {
    /// A text that stands where `grammar` does.
    pub fn new(grammar: Grammar) -> Self {
        let (words, root) = (grammar.mask_len(), Node { parent: 0, token: 0, depth: 0, mask: None });
        Self { grammar, words, nodes: vec![root], at: 0, masks: Vec::new(), runs: Vec::new() }
    }

    /// The child of `node` with `token`; `None` where the grammar does not allow it.
    pub fn child(&mut self, node: usize, token: i32) -> Result<Option<usize>> {
        let known = self.nodes.iter().skip(1).position(|it| it.parent == node && it.token == token);
        if let Some(index) = known {
            return Ok(Some(index + 1));
        }
        if !self.allows(node, token)? {
            return Ok(None);
        }
        let depth = self.nodes[node].depth + 1;
        self.nodes.push(Node { parent: node, token, depth, mask: None });
        Ok(Some(self.nodes.len() - 1))
    }

    /// Whether `token` may follow `node`.
    pub fn allows(&mut self, node: usize, token: i32) -> Result<bool> {
        if let Some(start) = self.nodes[node].mask {
            let word = usize::try_from(token).ok().map(|token| token / 32).filter(|&word| word < self.words);
            return Ok(word.is_some_and(|word| self.masks[start + word] >> (token % 32) & 1 == 1));
        }
        self.go(node)?;
        Ok(self.grammar.accepts(token))
    }

    /// What may follow `node`: bit `t % 32` of word `t / 32` for token `t`.
    pub fn mask(&mut self, node: usize) -> Result<&[u32]> {
        let start = match self.nodes[node].mask {
            Some(start) => start,
            None => {
                self.go(node)?;
                let start = self.masks.len();
                self.masks.resize(start + self.words, 0);
                self.grammar.allowed(&mut self.masks[start..])?;
                self.nodes[node].mask = Some(start);
                start
            }
        };
        Ok(&self.masks[start..start + self.words])
    }

    /// Masks that the round has made.
    pub fn masks_made(&self) -> usize {
        self.masks.len() / self.words.max(1)
    }

    /// Notes that the drafter's run `run` is `token` behind the run `parent` (without one, the root), and returns its node.
    pub fn begin_run(&mut self, parent: Option<usize>, run: usize, token: i32) -> Result<Option<usize>> {
        let above = match parent {
            Some(parent) => self.runs.get(parent).copied().flatten(),
            None => Some(0),
        };
        let node = match above {
            Some(above) => self.child(above, token)?,
            None => None,
        };
        if self.runs.len() <= run {
            self.runs.resize(run + 1, None);
        }
        self.runs[run] = node;
        Ok(node)
    }

    /// Ends the round: the text goes on with `tokens`. Whether nothing but its end may follow.
    pub fn commit(&mut self, tokens: &[i32]) -> Result<bool> {
        self.go(0)?;
        self.nodes.truncate(1);
        self.nodes[0].mask = None;
        self.masks.clear();
        self.runs.clear();
        tokens.iter().try_for_each(|&token| self.grammar.push(token))?;
        Ok(self.grammar.is_complete())
    }

    /// Brings the grammar to `node`: back to where the paths part, and down again.
    fn go(&mut self, node: usize) -> Result<()> {
        let mut below = Vec::new();
        let (mut here, mut there) = (self.at, node);
        while here != there {
            if self.nodes[here].depth > self.nodes[there].depth {
                here = self.nodes[here].parent;
            } else {
                below.push(there);
                there = self.nodes[there].parent;
            }
        }
        self.grammar.pop(self.nodes[self.at].depth - self.nodes[here].depth)?;
        self.at = here;
        for next in below.into_iter().rev() {
            self.grammar.push(self.nodes[next].token)?;
            self.at = next;
        }
        Ok(())
    }
}
