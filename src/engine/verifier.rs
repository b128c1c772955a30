//! The target's side of a round: one pass over packed rows, the draw at every node, the walk, and the compaction of the
//! accepted keys and values. One path for greedy and sampled decoding, for trees and for plain rounds.

use std::ops::Range;

use crate::config::{Geometry, RopeConfig};
use crate::device::{DType, Device, Tensor};
use crate::engine::NO_TOKEN;
use crate::engine::commit::TokenLogprobs;
use crate::engine::graphs::PassGraphs;
use crate::engine::penalties::PenaltyState;
use crate::engine::pictures::Pictures;
use crate::engine::sequence::Sequence;
use crate::error::{Error, Result};
use crate::kernels::kv_compact::{KvCompactArgs, kv_compact};
use crate::kernels::mailbox::Mailbox;
use crate::kernels::sampler::{SampleArgs, SamplerParams, sample, sample_workspace};
use crate::kernels::slices::SliceWorkspace;
use crate::kernels::verify::{VerifyWalkArgs, verify_walk};
use crate::kv_cache::KvCache;
use crate::model::{Decoder, MAX_ROWS_PER_SEQUENCE, Pass, Row, Taps, causal_words};
use crate::pages::PagePool;
use crate::tree::DraftTree;

/// What the target said about one sequence's tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verified {
    /// Accepted nodes of the tree, root excluded, ascending.
    pub accepted: Vec<usize>,
    /// The target's draw after the last accepted node.
    pub bonus: i32,
    /// The target's draw after every node of the tree.
    pub drawn: Vec<i32>,
    /// One entry an emitted token, bonus included, where the request wants them.
    pub logprobs: Vec<TokenLogprobs>,
}

impl Verified {
    /// Ends the walk through `tree` before the first accepted node that is `barred`: the draw that led there is the bonus token.
    pub fn end_before(&mut self, tree: &DraftTree, barred: impl Fn(usize) -> bool) {
        if let Some(end) = self.accepted.iter().position(|&node| barred(node)) {
            self.bonus = tree.token(self.accepted[end]);
            self.accepted.truncate(end);
        }
    }
}

/// Target, its cache and the buffers of verification.
pub(super) struct Verifier {
    pub target: Decoder,
    pub kv: KvCache,
    pub pass: Pass,
    pub penalties: PenaltyState,
    pub graphs: PassGraphs<bool, Tensor>,
    /// One `SamplerParams` a sequence slot.
    params: Tensor,
    workspace: SliceWorkspace,
    /// What passes come to, in turns: one may be under way while the one before it is read.
    results: [Results; 2],
    /// Which of them the latest pass has.
    turn: usize,
}

/// What a pass comes to, i32, one array behind the other, so that they are read as one: see [`Places`].
struct Results {
    device: Tensor,
    host: Mailbox,
    /// Bound on the accepted length of its sequences.
    max_accepted: usize,
}

/// Where the results of a pass are: draws `[logit rows]`, then of its sequences accepted lengths, bonus tokens and accepted nodes
/// `[sequences, max_accepted]`.
struct Places {
    drawn: Range<usize>,
    accepted_len: Range<usize>,
    bonus: Range<usize>,
    accepted: Range<usize>,
}

impl Places {
    fn of(pass: &Pass, max_accepted: usize) -> Self {
        let batch = pass.num_sequences();
        let drawn = 0..pass.num_logit_rows();
        let accepted_len = drawn.end..drawn.end + batch;
        let bonus = accepted_len.end..accepted_len.end + batch;
        let accepted = bonus.end..bonus.end + batch * max_accepted;
        Self { drawn, accepted_len, bonus, accepted }
    }
}

impl Verifier {
    pub fn new(
        device: &Device,
        target: Decoder,
        kv: KvCache,
        (max_rows, tread): (usize, usize),
        max_sequences: usize,
    ) -> Result<Self> {
        let Geometry { vocab_size, rope: RopeConfig { sections, .. }, .. } = target.config().geometry;
        let len = max_rows + max_sequences * (2 + MAX_ROWS_PER_SEQUENCE);
        let results = || {
            Ok::<_, Error>(Results {
                device: Tensor::zeros(device, DType::I32, &[len])?,
                host: Mailbox::new(device, len)?,
                max_accepted: 0,
            })
        };
        Ok(Self {
            penalties: PenaltyState::new(device, vocab_size, max_sequences)?,
            target,
            kv,
            pass: Pass::new(device, max_rows, max_sequences)?.with_sections(sections).with_tread(tread),
            graphs: PassGraphs::new(device),
            workspace: sample_workspace(device, max_rows, vocab_size)?,
            params: Tensor::zeros(device, DType::U8, &[max_sequences, size_of::<SamplerParams>()])?,
            results: [results()?, results()?],
            turn: 0,
        })
    }

    /// Sets how tokens of a sequence in `slot` are drawn.
    pub fn set_sampling(&mut self, slot: usize, sequence: &Sequence) -> Result<()> {
        let params = SamplerParams::from(&sequence.request.sampling);
        self.params.rows(slot..slot + 1).write(bytemuck::bytes_of(&params))?;
        self.penalties.set(slot, sequence)
    }

    /// How tokens of every slot's sequence are drawn, U8 `[slots, 24]`.
    pub fn sampling(&self) -> &Tensor {
        &self.params
    }

    /// Appends a chunk of a text to the pass, its tokens and what they show: positions `chunk`, causal, in a sequence slot.
    pub fn fill_chunk(
        &mut self,
        (slot, pool): (usize, &PagePool),
        chunk: Range<usize>,
        (tokens, pictures): (&[i32], &Pictures),
        wants_logits: impl Fn(usize) -> bool,
    ) {
        self.pass.begin_sequence(chunk.start);
        let first_row = self.pass.num_rows();
        pictures.show(&mut self.pass, first_row, chunk.clone());
        for (index, position) in chunk.enumerate() {
            let row = Row {
                token: tokens[position],
                position,
                rotary: pictures.rotary(position),
                slot: pool.kv_slot(slot, position),
                ancestors: causal_words(index),
                // Whatever is drawn here, no row is its child.
                link: -1,
            };
            self.pass.push(row, wants_logits(position));
        }
    }

    /// Runs the rows of `self.pass`, which the caller has filled, and returns the logits of those that want them, and whether the device
    /// waited for a graph. Taps are always to the same memory.
    pub fn forward(&mut self, taps: Option<Taps>) -> Result<(Tensor, bool)> {
        self.pass.stage();
        // Not a part of the graph, which also runs passes that the device has made itself.
        self.pass.fetch()?;
        self.launch(taps)
    }

    /// As [`Verifier::forward`] for the pass behind the latest one, of roots alone, whose results go to the other turn: its tokens are what was
    /// drawn.
    pub fn forward_again(&mut self, taps: Option<Taps>) -> Result<(Tensor, bool)> {
        let drawn = self.results[self.turn].device.rows(self.drawn());
        self.pass.advance(&drawn, &self.kv.page_table(self.pass.num_sequences()))?;
        self.turn = 1 - self.turn;
        self.launch(taps)
    }

    fn launch(&mut self, taps: Option<Taps>) -> Result<(Tensor, bool)> {
        let Self { target, kv, pass, graphs, .. } = self;
        let forward = || target.forward(pass, kv, taps);
        let shape = pass.shape().map(|shape| (shape, taps.is_some()));
        let (logits, waited) = graphs.run(shape, forward)?;
        Ok((logits.rows(0..self.pass.num_logit_rows()), waited))
    }

    /// Draws at the rows that want logits, from those logits, which penalties and biases change.
    pub fn draw(&mut self, logits: &Tensor) -> Result<()> {
        let wanted = self.pass.num_logit_rows();
        if wanted == 0 {
            return Ok(());
        }
        self.penalties.apply(&self.pass, logits)?;
        sample(
            self.pass.device(),
            SampleArgs {
                logits,
                row_sequence: &self.pass.draw_sequences(),
                params: &self.params,
                positions: &self.pass.draw_positions(),
                out: &self.results[self.turn].device.rows(self.drawn()),
                workspace: &self.workspace,
            },
        )
    }

    /// Where the draws of the pass are among its results.
    fn drawn(&self) -> Range<usize> {
        Places::of(&self.pass, 0).drawn
    }

    /// Walks every sequence's tree along the draws of [`Verifier::draw`]. `max_accepted` bounds the accepted length: the depth of the deepest
    /// tree.
    pub fn walk(&mut self, max_accepted: usize) -> Result<()> {
        self.results[self.turn].max_accepted = max_accepted;
        if self.pass.num_logit_rows() == 0 {
            return Ok(());
        }
        let trees = self.pass.trees();
        let [drawn, accepted_len, bonus, accepted] = self.latest_results();
        verify_walk(
            self.pass.device(),
            VerifyWalkArgs {
                seq_start: &trees.seq_start,
                tokens: &trees.tokens,
                parents: &trees.parents,
                drawn: &drawn,
                accepted: &accepted,
                accepted_len: &accepted_len,
                bonus: &bonus,
            },
        )
    }

    /// Draws, accepted lengths, bonus tokens and accepted nodes of the latest pass, on the device.
    fn latest_results(&self) -> [Tensor; 4] {
        let Results { device, max_accepted, .. } = &self.results[self.turn];
        let places = Places::of(&self.pass, *max_accepted);
        let accepted = device.rows(places.accepted).reshape(&[self.pass.num_sequences(), *max_accepted]);
        let [drawn, accepted_len, bonus] =
            [places.drawn, places.accepted_len, places.bonus].map(|place| device.rows(place));
        [drawn, accepted_len, bonus, accepted]
    }

    /// Compacts the keys and values of what the walk has accepted.
    pub fn compact(&self) -> Result<()> {
        let max_accepted = self.results[self.turn].max_accepted;
        if max_accepted == 0 || self.pass.num_logit_rows() == 0 {
            return Ok(());
        }
        let [_, accepted_len, _, accepted] = self.latest_results();
        kv_compact(
            self.pass.device(),
            KvCompactArgs {
                kv: self.kv.pages(),
                page_table: &self.kv.page_table(self.pass.num_sequences()),
                prefix_len: &self.pass.prefix_len(),
                accepted: &accepted,
                accepted_len: &accepted_len,
                max_accepted,
            },
        )
    }

    /// Starts to read what the walk found; which turn [`Verifier::read_turn`] is to wait for.
    pub fn start_reading(&mut self) -> Result<usize> {
        let Results { device, host, max_accepted } = &mut self.results[self.turn];
        let places = Places::of(&self.pass, *max_accepted);
        let count = if self.pass.num_logit_rows() == 0 { 0 } else { places.accepted.end };
        host.post(device, count)?;
        Ok(self.turn)
    }

    /// Waits for the results of a turn, whose pass had the rows that the latest has: what the walk found, one entry per sequence of the pass;
    /// one without logits gets an empty entry.
    pub fn read_turn(&mut self, turn: usize) -> Result<Vec<Verified>> {
        let Results { host, max_accepted, .. } = &self.results[turn];
        let places = Places::of(&self.pass, *max_accepted);
        let results = host.wait()?;
        let read_one = |sequence: usize| {
            let rows = self.pass.logit_rows_of(sequence);
            if rows.is_empty() {
                return Verified::default();
            }
            let len = results[places.accepted_len.clone()][sequence] as usize;
            let nodes = &results[places.accepted.clone()][sequence * max_accepted..][..len];
            Verified {
                accepted: nodes.iter().map(|&node| node as usize).collect(),
                bonus: results[places.bonus.clone()][sequence],
                drawn: results[places.drawn.clone()][rows].to_vec(),
                logprobs: Vec::new(),
            }
        };
        Ok((0..self.pass.num_sequences()).map(read_one).collect())
    }

    /// Waits for the pass and reads the draw at every row that wanted logits.
    pub fn read_draws(&mut self) -> Result<Vec<i32>> {
        let wanted = self.pass.num_logit_rows();
        let Results { device, host, .. } = &mut self.results[self.turn];
        host.post(device, wanted)?;
        let drawn = host.wait()?.to_vec();
        if drawn.contains(&-1) {
            return Err(Error::Device(NO_TOKEN.into()));
        }
        Ok(drawn)
    }
}
