//! [`GuidedText`]: a text under a grammar, and what the grammar allows at the nodes of a round's tree. Drafter and target ask for the
//! same nodes, so a mask is made once.
//!
//! Two parsers follow it, as what a parser is asked leaves traces: budgets are spent, the lexer learns, and one that gives up is lost. The text's
//! own is asked what plain decoding asks, in that order: a mask behind every committed token, whatever was drafted there. So it gives up where
//! plain decoding does. The *scout*, a copy, goes where drafts lead. When it gives up, nothing has happened to the text, of which nothing is
//! drafted any more.

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

/// What is asked about drafts.
enum Scout {
    /// Nothing was drafted yet.
    Absent,
    Present(Grammar),
    /// It gave up.
    Lost,
}

/// A text under a grammar. After an error it is of no use any more, and says so on every call.
pub(super) struct GuidedText {
    /// At the root.
    own: Grammar,
    scout: Scout,
    /// Words of a mask.
    words: usize,
    nodes: Vec<Node>,
    /// The node that the scout stands at.
    at: usize,
    masks: Vec<u32>,
    /// The node of each run of the drafter; none where the grammar does not allow it.
    runs: Vec<Option<usize>>,
}

impl GuidedText {
    /// A text that stands where `grammar` does.
    pub fn new(grammar: Grammar) -> Self {
        let (words, root) = (grammar.mask_len(), Node { parent: 0, token: 0, depth: 0, mask: None });
        let (scout, nodes) = (Scout::Absent, vec![root]);
        Self { own: grammar, scout, words, nodes, at: 0, masks: Vec::new(), runs: Vec::new() }
    }

    /// Whether masks can be made for drafts.
    pub fn can_draft(&self) -> bool {
        !matches!(self.scout, Scout::Lost)
    }

    /// The child of `node` with `token`; `None` where the grammar does not allow it, or nobody can say.
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

    /// Whether `token` may follow `node`; false if nobody can say.
    pub fn allows(&mut self, node: usize, token: i32) -> Result<bool> {
        // The text's own parser is not asked about single tokens: plain decoding makes the whole mask.
        if node > 0 && self.nodes[node].mask.is_none() {
            return Ok(self.ask_scout(node, |scout| Ok(scout.accepts(token))).unwrap_or(false));
        }
        let word = usize::try_from(token).ok().map(|token| token / 32);
        let bits = self.mask(node)?.and_then(|mask| mask.get(word?).copied());
        Ok(bits.is_some_and(|bits| bits >> (token % 32) & 1 == 1))
    }

    /// What may follow `node`: bit `t % 32` of word `t / 32` for token `t`. `None` if nobody can say, which is never so of the root.
    ///
    /// # Errors
    /// The text itself cannot go on.
    pub fn mask(&mut self, node: usize) -> Result<Option<&[u32]>> {
        let start = match self.nodes[node].mask {
            Some(start) => start,
            None => {
                let mut mask = vec![0; self.words];
                match node {
                    0 => self.own.allowed(&mut mask)?,
                    _ => match self.ask_scout(node, |scout| scout.allowed(&mut mask)) {
                        Some(()) => (),
                        None => return Ok(None),
                    },
                }
                let start = self.masks.len();
                self.masks.append(&mut mask);
                self.nodes[node].mask = Some(start);
                start
            }
        };
        Ok(Some(&self.masks[start..start + self.words]))
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

    /// The text goes on with `token`, and the nodes of the round are no more. Whether nothing but its end may follow.
    ///
    /// # Errors
    /// The text itself cannot go on.
    pub fn push(&mut self, token: i32) -> Result<bool> {
        if let Scout::Present(_) = self.scout {
            self.ask_scout(0, |scout| scout.push(token));
        }
        self.nodes.truncate(1);
        self.nodes[0].mask = None;
        self.masks.clear();
        self.runs.clear();
        self.own.push(token)?;
        Ok(self.own.is_complete())
    }

    /// Asks the scout at `node`. It is lost where it gives up.
    fn ask_scout<T>(&mut self, node: usize, ask: impl FnOnce(&mut Grammar) -> Result<T>) -> Option<T> {
        let mut scout = match std::mem::replace(&mut self.scout, Scout::Lost) {
            Scout::Absent => self.own.clone(),
            Scout::Present(scout) => scout,
            Scout::Lost => return None,
        };
        let answer = self.lead(&mut scout, node).and_then(|()| ask(&mut scout)).ok()?;
        self.scout = Scout::Present(scout);
        Some(answer)
    }

    /// Brings the scout to `node`: back to where the paths part, and down again.
    fn lead(&mut self, scout: &mut Grammar, node: usize) -> Result<()> {
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
        scout.pop(self.nodes[self.at].depth - self.nodes[here].depth)?;
        for next in below.into_iter().rev() {
            scout.push(self.nodes[next].token)?;
        }
        self.at = node;
        Ok(())
    }
}
