//! [`Proposer`]: what brings the children of a round's nodes: a drafter network, heads on the target, or the text itself.

use crate::control::{FrontierRow, NONE};
use crate::device::Tensor;
use crate::drafter::ngram::{Context, NO_CONTEXT, NgramModel, shifted};
use crate::engine::drafting::{Drafting, Ranking};
use crate::engine::heads::HeadsProposer;
use crate::engine::sequence::{Sequence, SequenceId};
use crate::error::Result;
use crate::pages::PagePool;

/// Brings children, level by level.
pub(super) enum Proposer {
    /// A drafter on the device.
    Network(Box<Drafting>),
    /// Medusa heads, on the device, one pass a round.
    Heads(Box<HeadsProposer>),
    /// N-grams of each request's own text, on the host.
    Ngram(NgramProposer),
}

impl Proposer {
    /// The network, if it is one: nothing else needs a cache and catching up.
    pub fn network(&self) -> Option<&Drafting> {
        match self {
            Self::Network(drafting) => Some(drafting),
            Self::Heads(_) | Self::Ngram(_) => None,
        }
    }

    /// As [`Proposer::network`].
    pub fn network_mut(&mut self) -> Option<&mut Drafting> {
        match self {
            Self::Network(drafting) => Some(drafting),
            Self::Heads(_) | Self::Ngram(_) => None,
        }
    }

    /// Forgets a sequence.
    pub fn release(&mut self, slot: usize) {
        match self {
            // Pages are the pool's; a state is written before it is read again.
            Self::Network(_) | Self::Heads(_) => {}
            Self::Ngram(proposer) => proposer.texts[slot] = None,
        }
    }

    /// Where the target's streams go that the drafter reads, and which they are.
    pub fn taps(&self, num_rows: usize) -> Option<(Tensor, &[usize])> {
        match self {
            Self::Network(drafting) => Some((drafting.taps.rows(0..num_rows), drafting.network.tap_layers())),
            Self::Heads(proposer) => Some((proposer.taps.rows(0..num_rows), proposer.heads.tap_layers())),
            Self::Ngram(_) => None,
        }
    }

    /// Whether the target's features are to be kept for it.
    pub fn reads_features(&self) -> bool {
        !matches!(self, Self::Ngram(_))
    }

    /// Number of heads, if it is heads: as [`ControllerConfig::heads`](crate::control::ControllerConfig::heads).
    pub fn num_heads(&self) -> Option<usize> {
        match self {
            Self::Heads(proposer) => Some(proposer.heads.num_heads()),
            Self::Network(_) | Self::Ngram(_) => None,
        }
    }

    /// Stores the features of freshly committed positions; `rows` as [`Drafting::remember`] has them.
    pub fn remember(&mut self, rows: &[(usize, usize, usize)]) -> Result<()> {
        match self {
            Self::Network(drafting) => drafting.remember(rows),
            Self::Heads(proposer) => proposer.remember(rows),
            Self::Ngram(_) => Ok(()),
        }
    }

    /// Runs one level: the roots of drafting sequences, which catch up first, or drafted nodes, `ranking.top_k` children a row. The round has
    /// at most `levels`. A network whose logits are to be masked first has its children made by [`Drafting::rank`]. Returns whether the
    /// device waited for a graph.
    pub fn run(
        &mut self,
        rows: &[FrontierRow],
        (sequences, pool): (&[Option<Sequence>], &PagePool),
        slots: &[usize],
        ranking: Ranking,
        levels: usize,
    ) -> Result<bool> {
        let of = |sequence: u32| {
            let slot = slots[sequence as usize];
            (slot, sequences[slot].as_ref())
        };
        match self {
            Self::Ngram(proposer) => proposer.run(rows, of, ranking.top_k),
            Self::Heads(proposer) => {
                let place_of = |sequence| (of(sequence).0, of(sequence).1.map_or(0, Sequence::root));
                proposer.run(rows, place_of, ranking, levels)?;
            }
            Self::Network(drafting) if rows[0].node == 0 => {
                let batch: Vec<_> = rows
                    .iter()
                    .map(|row| of(row.sequence))
                    .filter_map(|(slot, sequence)| Some((slot, sequence?)))
                    .collect();
                return drafting.catch_up(pool, &batch, |sequence| sequence.backlog(), Some(ranking));
            }
            Self::Network(drafting) => {
                let root_of = |sequence: usize| of(sequence as u32).1.map_or(0, Sequence::root);
                return drafting.level(rows, |sequence| slots[sequence], root_of, ranking);
            }
        }
        Ok(false)
    }

    /// Whether drafts are coupled with draws: made under their noise. N-grams are what the text has said before, whatever is drawn.
    pub fn couples(&self) -> bool {
        match self {
            Self::Network(drafting) => drafting.sampling.is_some(),
            Self::Heads(proposer) => proposer.sampling.is_some(),
            Self::Ngram(_) => false,
        }
    }

    /// The weight that drafting reads first: the next round's at its beginning, or else another level; none where nothing is read.
    pub fn first_weight(&self, of_round: bool) -> Option<&Tensor> {
        match self {
            Self::Network(drafting) => Some(drafting.network.first_weight(of_round)),
            Self::Heads(proposer) => of_round.then(|| proposer.heads.first_weight()),
            Self::Ngram(_) => None,
        }
    }

    /// Waits for the level and gives its children: tokens and log-probabilities, row by row.
    pub fn read_children(&self) -> Result<(&[i32], &[f32])> {
        match self {
            Self::Network(drafting) => drafting.read_children(),
            Self::Heads(proposer) => proposer.read_children(),
            Self::Ngram(proposer) => Ok((&proposer.tokens, &proposer.logps)),
        }
    }
}

/// N-gram models of the running sequences.
pub(super) struct NgramProposer {
    vocab_size: usize,
    /// By slot.
    texts: Vec<Option<(SequenceId, NgramModel)>>,
    /// By slot and run of the round: the context that the run's children follow.
    runs: Vec<Vec<Context>>,
    /// Children of the latest level.
    tokens: Vec<i32>,
    logps: Vec<f32>,
}

impl NgramProposer {
    pub fn new(vocab_size: usize, max_sequences: usize) -> Self {
        Self {
            vocab_size,
            texts: (0..max_sequences).map(|_| None).collect(),
            runs: vec![Vec::new(); max_sequences],
            tokens: Vec::new(),
            logps: Vec::new(),
        }
    }

    fn run<'a>(
        &mut self,
        rows: &[FrontierRow],
        of: impl Fn(u32) -> (usize, Option<&'a Sequence>),
        top_k: usize,
    ) {
        self.tokens.clear();
        self.logps.clear();
        for row in rows {
            let (slot, Some(sequence)) = of(row.sequence) else { continue };
            let (id, model) =
                self.texts[slot].get_or_insert_with(|| (sequence.id, NgramModel::new(self.vocab_size)));
            debug_assert_eq!(*id, sequence.id, "a slot is released before it is taken again");
            let context = if row.node == 0 {
                model.read(&sequence.committed[model.len()..]);
                self.runs[slot].clear();
                model.context()
            } else {
                let runs = &mut self.runs[slot];
                let parent = match row.parent_slot {
                    NONE => model.context(),
                    run => runs[run as usize],
                };
                let context = shifted(parent, row.token);
                let run = row.slot as usize;
                if runs.len() <= run {
                    runs.resize(run + 1, NO_CONTEXT);
                }
                runs[run] = context;
                context
            };
            model.children(context, top_k, &mut self.tokens, &mut self.logps);
        }
    }

    /// For the start-up sweep: children of so many contexts of a text of `context` tokens.
    pub fn for_sweep(&mut self, context: usize) -> impl FnMut(usize, usize) {
        // Any text will do whose contexts come again.
        let vocab_size = self.vocab_size;
        let token = move |position: usize| (position * position / 3 % 97 % vocab_size) as i32;
        let mut model = NgramModel::new(vocab_size);
        model.read(&(0..context).map(token).collect::<Vec<_>>());
        move |rows, top_k| {
            self.tokens.clear();
            self.logps.clear();
            for row in 0..rows {
                let next = shifted(model.context(), token(row));
                model.children(next, top_k, &mut self.tokens, &mut self.logps);
            }
        }
    }
}
