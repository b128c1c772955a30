//! [`Record`]: for every position of some texts, the tree a drafter could have offered there and the token the target drew.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// "This child was not run": in [`RecordedTree::row_of`].
const NOT_RUN: u32 = u32::MAX;
/// Bounds on a record's shape; a tree is verified in one pass, so its rows are at most the nodes of a tree.
const MAX_ROWS: usize = crate::tree::MAX_NODES;

/// How widely every position was drafted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordShape {
    /// Children of every row.
    pub top_k: usize,
    /// Drafter passes: depth of the deepest nodes.
    pub levels: usize,
    /// Rows of each pass after the first, by cumulative log-probability.
    pub beam: usize,
}

impl RecordShape {
    /// Wide enough for trees of 10 children a node, with room for policies that run more than EAGLE's beam of 10.
    pub const DEFAULT: RecordShape = RecordShape { top_k: 10, levels: 8, beam: 16 };

    /// # Errors
    /// [`Error::Input`] if a recorded tree of this shape could not be verified in one pass.
    pub fn validate(&self) -> Result<()> {
        let rows = self.levels.saturating_sub(1).saturating_mul(self.beam).saturating_add(1);
        let sound = (1..=crate::control::MAX_TOP_K).contains(&self.top_k)
            && self.levels >= 1
            && self.beam >= 1
            && rows <= MAX_ROWS;
        if sound {
            return Ok(());
        }
        Err(Error::Input(format!(
            "a record of {} children, {} levels and a beam of {} cannot be: children from 1 to {}, and at most {MAX_ROWS} rows a tree",
            self.top_k,
            self.levels,
            self.beam,
            crate::control::MAX_TOP_K
        )))
    }
}

/// The draft tree of one position: rows that were run through the drafter, each with its children.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedTree {
    /// The token at the position: the root.
    pub root_token: i32,
    /// The token that the target drew after the root, given the text.
    pub drawn: i32,
    top_k: usize,
    /// Row 0 is the root. For every other row the child it is, as `parent row * top_k + rank`.
    child_of: Vec<u32>,
    /// Children, `top_k` a row, likeliest first.
    tokens: Vec<i32>,
    logps: Vec<f32>,
    /// The target's own probability of each child given its path; empty if it was not recorded.
    probs: Vec<f32>,
    /// For each child the row that ran it, or [`NOT_RUN`].
    row_of: Vec<u32>,
}

impl RecordedTree {
    /// Checks and links the columns. `child_of` lists the rows after the root, parents first; `tokens`, `logps` and `probs` have
    /// `top_k` entries a row, root first; `probs` may be empty.
    ///
    /// # Errors
    /// [`Error::Input`] that says which column is wrong.
    pub fn new(
        root_token: i32,
        drawn: i32,
        top_k: usize,
        child_of: Vec<u32>,
        tokens: Vec<i32>,
        logps: Vec<f32>,
        probs: Vec<f32>,
    ) -> Result<Self> {
        let wrong = |what: String| Err(Error::Input(what));
        let children = (child_of.len() + 1) * top_k;
        if child_of.len() >= MAX_ROWS {
            return wrong(format!("a tree has {} rows, at most {MAX_ROWS} are possible", child_of.len() + 1));
        }
        if tokens.len() != children
            || logps.len() != children
            || !matches!(probs.len(), n if n == 0 || n == children)
        {
            return wrong(format!(
                "{} rows of {top_k} children need {children} tokens and log-probabilities, got {} and {} (and {} probabilities)",
                child_of.len() + 1,
                tokens.len(),
                logps.len(),
                probs.len()
            ));
        }
        if logps.iter().any(|logp| logp.is_nan() || *logp > 1e-3) {
            return wrong("a log-probability is not a number of at most 0".into());
        }
        if probs.iter().any(|prob| !(0.0..=1.001).contains(prob)) {
            return wrong("a probability is not between 0 and 1".into());
        }
        let mut row_of = vec![NOT_RUN; children];
        for (i, &child) in child_of.iter().enumerate() {
            // Row i + 1 runs a child of an earlier row, each at most once.
            if child as usize >= (i + 1) * top_k || row_of[child as usize] != NOT_RUN {
                return wrong(format!(
                    "row {} does not run a child of an earlier row, or runs it again",
                    i + 1
                ));
            }
            row_of[child as usize] = i as u32 + 1;
        }
        Ok(Self { root_token, drawn, top_k, child_of, tokens, logps, probs, row_of })
    }

    /// Rows that were run, the root's included.
    pub fn num_rows(&self) -> usize {
        self.child_of.len() + 1
    }

    /// Children of a row.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// The child that row `row` is, as `parent row * top_k + rank`; `None` for the root.
    pub fn child_of(&self, row: usize) -> Option<usize> {
        row.checked_sub(1).map(|i| self.child_of[i] as usize)
    }

    /// The row that ran child `child`, if one did.
    pub fn row_of(&self, child: usize) -> Option<usize> {
        let row = self.row_of[child];
        (row != NOT_RUN).then_some(row as usize)
    }

    /// Tokens of all children, `top_k` a row.
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// The drafter's log-probabilities of all children given their parents.
    pub fn logps(&self) -> &[f32] {
        &self.logps
    }

    /// The target's probabilities of all children given their paths, if they were recorded: the chance that its draw is the child's
    /// token. Greedy draws leave nothing to chance and have none, nor have draws whose noise the drafts knew.
    pub fn probs(&self) -> Option<&[f32]> {
        (!self.probs.is_empty()).then_some(&self.probs)
    }
}

/// One text: consecutive positions, from the first token after the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedSequence {
    /// Tokens in the target's cache at the first position.
    pub prompt_len: usize,
    /// Drawn at a temperature above 0.
    pub sampled: bool,
    /// A tree per position. The root of each is what the one before it drew.
    pub trees: Vec<RecordedTree>,
}

/// Texts to replay.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    shape: RecordShape,
    sequences: Vec<RecordedSequence>,
}

impl Record {
    /// A record of these texts. Texts without positions are left out.
    ///
    /// # Errors
    /// [`Error::Input`] if nothing is left, if trees are not of `shape`, or if a root is not what the position before it drew.
    pub fn new(shape: RecordShape, mut sequences: Vec<RecordedSequence>) -> Result<Self> {
        shape.validate()?;
        sequences.retain(|sequence| !sequence.trees.is_empty());
        if sequences.is_empty() {
            return Err(Error::Input("the record holds no position: record some tokens first".into()));
        }
        for (index, sequence) in sequences.iter().enumerate() {
            let linked = sequence.trees.windows(2).position(|pair| pair[0].drawn != pair[1].root_token);
            if let Some(position) = linked {
                return Err(Error::Input(format!(
                    "sequence {index}: position {} does not begin with the token drawn before it",
                    position + 1
                )));
            }
            if sequence.trees.iter().any(|tree| tree.top_k() != shape.top_k) {
                return Err(Error::Input(format!(
                    "sequence {index}: a row has not {} children",
                    shape.top_k
                )));
            }
        }
        Ok(Self { shape, sequences })
    }

    /// Both records' texts.
    ///
    /// # Errors
    /// [`Error::Input`] if they were drafted differently.
    pub fn join(mut self, other: Record) -> Result<Self> {
        if self.shape != other.shape {
            return Err(Error::Input(format!(
                "records of different shapes cannot be replayed together: {:?} and {:?}",
                self.shape, other.shape
            )));
        }
        self.sequences.extend(other.sequences);
        Ok(self)
    }

    /// How widely each position was drafted.
    pub fn shape(&self) -> RecordShape {
        self.shape
    }

    /// The texts.
    pub fn sequences(&self) -> &[RecordedSequence] {
        &self.sequences
    }

    /// Positions of all texts: tokens that one pass over the record emits.
    pub fn num_positions(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.trees.len()).sum()
    }

    /// Whether every tree carries the target's probabilities.
    pub fn has_probs(&self) -> bool {
        self.sequences.iter().flat_map(|sequence| &sequence.trees).all(|tree| tree.probs().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(root: i32, drawn: i32) -> RecordedTree {
        // The root's second child is run.
        RecordedTree::new(root, drawn, 2, vec![1], vec![5, 6, 7, 8], vec![-0.1, -2.0, -0.2, -3.0], vec![])
            .unwrap()
    }

    #[test]
    fn rows_and_children_are_linked() {
        let tree = tree(1, 6);
        assert_eq!(
            (tree.num_rows(), tree.row_of(1), tree.row_of(0), tree.row_of(3)),
            (2, Some(1), None, None)
        );
        assert_eq!((tree.child_of(0), tree.child_of(1)), (None, Some(1)));
    }

    #[test]
    fn broken_columns_are_refused() {
        let build = |child_of: Vec<u32>, tokens: usize, logp: f32, probs: Vec<f32>| {
            RecordedTree::new(0, 0, 2, child_of, vec![0; tokens], vec![logp; tokens], probs).map(|_| ())
        };
        assert!(build(vec![1], 4, -1.0, vec![]).is_ok());
        for (child_of, tokens, logp, probs, says) in [
            (vec![2], 4, -1.0, vec![], "earlier row"),
            (vec![1, 1], 6, -1.0, vec![], "runs it again"),
            (vec![1], 3, -1.0, vec![], "need 4 tokens"),
            (vec![1], 4, f32::NAN, vec![], "log-probability"),
            (vec![1], 4, 0.5, vec![], "log-probability"),
            (vec![1], 4, -1.0, vec![0.1; 3], "need 4 tokens"),
            (vec![1], 4, -1.0, vec![1.5; 4], "between 0 and 1"),
            (vec![1], 4, -1.0, vec![f32::NAN; 4], "between 0 and 1"),
        ] {
            let error = build(child_of, tokens, logp, probs).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_text_hangs_together() {
        let shape = RecordShape { top_k: 2, levels: 2, beam: 1 };
        let sequence = |trees| RecordedSequence { prompt_len: 3, sampled: false, trees };
        assert!(Record::new(shape, vec![sequence(vec![tree(1, 6), tree(6, 5)])]).is_ok());
        let torn = Record::new(shape, vec![sequence(vec![tree(1, 6), tree(5, 5)])]).unwrap_err();
        assert!(torn.to_string().contains("position 1"), "{torn}");
        assert!(Record::new(shape, vec![sequence(vec![])]).is_err());
        assert!(Record::new(RecordShape { top_k: 3, ..shape }, vec![sequence(vec![tree(1, 6)])]).is_err());
    }
}
