//! The target's side of a round: one pass over packed rows, the draw at every node, the walk, and the compaction of the
//! accepted keys and values. One path for greedy and sampled decoding, for trees and for plain rounds.

use std::ops::Range;

use crate::config::{Geometry, RopeConfig};
use crate::device::{DType, Device, PinnedBuffer, Tensor};
use crate::engine::NO_TOKEN;
use crate::engine::commit::TokenLogprobs;
use crate::engine::graphs::PassGraphs;
use crate::engine::penalties::PenaltyState;
use crate::engine::pictures::Pictures;
use crate::engine::sequence::Sequence;
use crate::error::{Error, Result};
use crate::kernels::kv_compact::{KvCompactArgs, kv_compact};
use crate::kernels::sampler::{SampleArgs, SamplerParams, sample};
use crate::kernels::verify::{VerifyWalkArgs, verify_walk};
use crate::kv_cache::KvCache;
use crate::model::{Decoder, MAX_ROWS_PER_SEQUENCE, Pass, Row, Taps, causal_words};
use crate::pages::PagePool;

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

/// Target, its cache and the buffers of verification.
pub(super) struct Verifier {
    pub target: Decoder,
    pub kv: KvCache,
    pub pass: Pass,
    pub penalties: PenaltyState,
    pub graphs: PassGraphs,
    /// One `SamplerParams` a sequence slot.
    params: Tensor,
    drawn: Tensor,
    accepted: Tensor,
    accepted_len: Tensor,
    bonus: Tensor,
    /// Read-back: draws, then accepted lengths, bonus tokens and accepted nodes.
    host_drawn: PinnedBuffer<i32>,
    host_accepted: PinnedBuffer<i32>,
    host_accepted_len: PinnedBuffer<i32>,
    host_bonus: PinnedBuffer<i32>,
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
        let ints = |shape: &[usize]| Tensor::zeros(device, DType::I32, shape);
        Ok(Self {
            penalties: PenaltyState::new(device, vocab_size, max_sequences)?,
            target,
            kv,
            pass: Pass::new(device, max_rows, max_sequences)?.with_sections(sections).with_tread(tread),
            graphs: PassGraphs::new(device),
            params: Tensor::zeros(device, DType::U8, &[max_sequences, size_of::<SamplerParams>()])?,
            drawn: ints(&[max_rows])?,
            accepted: ints(&[max_sequences, MAX_ROWS_PER_SEQUENCE])?,
            accepted_len: ints(&[max_sequences])?,
            bonus: ints(&[max_sequences])?,
            host_drawn: PinnedBuffer::new(device, max_rows)?,
            host_accepted: PinnedBuffer::new(device, max_sequences * MAX_ROWS_PER_SEQUENCE)?,
            host_accepted_len: PinnedBuffer::new(device, max_sequences)?,
            host_bonus: PinnedBuffer::new(device, max_sequences)?,
        })
    }

    /// Sets how tokens of a sequence in `slot` are drawn.
    pub fn set_sampling(&mut self, slot: usize, sequence: &Sequence) -> Result<()> {
        let params = SamplerParams::from(&sequence.request.sampling);
        self.params.rows(slot..slot + 1).write(bytemuck::bytes_of(&params))?;
        self.penalties.set(slot, sequence)
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
        self.pass.upload()?;
        let Self { target, kv, pass, graphs, .. } = self;
        let forward = || target.forward(pass, kv, taps);
        let (logits, waited) = match pass.shape() {
            Some(shape) => graphs.run((shape, taps.is_some()), forward)?,
            None => (forward()?, false),
        };
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
                out: &self.drawn.rows(0..wanted),
            },
        )
    }

    /// Walks every sequence's tree along the draws of [`Verifier::draw`] and compacts the accepted keys and values.
    /// `max_accepted` bounds the accepted length: the depth of the deepest tree.
    pub fn walk(&mut self, max_accepted: usize) -> Result<()> {
        let (device, batch) = (self.pass.device(), self.pass.num_sequences());
        let wanted = self.pass.num_logit_rows();
        if wanted == 0 {
            return Ok(());
        }
        let trees = self.pass.trees();
        let [accepted_len, bonus] = [&self.accepted_len, &self.bonus].map(|t| t.rows(0..batch));
        let accepted = self.accepted.rows(0..batch);
        verify_walk(
            device,
            VerifyWalkArgs {
                seq_start: &trees.seq_start,
                tokens: &trees.tokens,
                parents: &trees.parents,
                drawn: &self.drawn.rows(0..wanted),
                accepted: &accepted,
                accepted_len: &accepted_len,
                bonus: &bonus,
            },
        )?;
        if max_accepted > 0 {
            kv_compact(
                device,
                KvCompactArgs {
                    kv: self.kv.pages(),
                    page_table: &self.kv.page_table(batch),
                    prefix_len: &self.pass.prefix_len(),
                    accepted: &accepted,
                    accepted_len: &accepted_len,
                    max_accepted,
                },
            )?;
        }
        Ok(())
    }

    /// Waits for the pass and reads what the walk found, one entry per sequence of the pass; one without logits gets an empty entry.
    pub fn read_walks(&mut self) -> Result<Vec<Verified>> {
        let (wanted, batch) = (self.pass.num_logit_rows(), self.pass.num_sequences());
        if wanted > 0 {
            self.host_drawn.read_from(&self.drawn, wanted)?;
            self.host_accepted.read_from(&self.accepted, batch * MAX_ROWS_PER_SEQUENCE)?;
            self.host_accepted_len.read_from(&self.accepted_len, batch)?;
            self.host_bonus.read_from(&self.bonus, batch)?;
        }
        self.pass.device().synchronize()?;
        let read_one = |sequence: usize| {
            let rows = self.pass.logit_rows_of(sequence);
            if rows.is_empty() {
                return Verified::default();
            }
            let len = self.host_accepted_len.as_slice()[sequence] as usize;
            let nodes = &self.host_accepted.as_slice()[sequence * MAX_ROWS_PER_SEQUENCE..][..len];
            Verified {
                accepted: nodes.iter().map(|&node| node as usize).collect(),
                bonus: self.host_bonus.as_slice()[sequence],
                drawn: self.host_drawn.as_slice()[rows].to_vec(),
                logprobs: Vec::new(),
            }
        };
        Ok((0..batch).map(read_one).collect())
    }

    /// Waits for the pass and reads the draw at every row that wanted logits.
    pub fn read_draws(&mut self) -> Result<Vec<i32>> {
        let wanted = self.pass.num_logit_rows();
        self.host_drawn.read_from(&self.drawn, wanted)?;
        self.pass.device().synchronize()?;
        let drawn = self.host_drawn.as_slice()[..wanted].to_vec();
        if drawn.contains(&-1) {
            return Err(Error::Device(NO_TOKEN.into()));
        }
        Ok(drawn)
    }
}
