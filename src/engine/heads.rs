//! [`HeadsProposer`]: Medusa heads in a round. One pass over the states of all drafting sequences brings every level's children; the
//! levels after the first are answered from what the host has read.

use crate::control::{FrontierRow, MAX_TOP_K};
use crate::device::{DType, Device, PinnedBuffer, Tensor};
use crate::drafter::Medusa;
use crate::engine::drafting::Ranking;
use crate::error::Result;
use crate::kernels::copy_rows::{CopyRowsArgs, copy_rows};
use crate::kernels::draft::{DraftTopkArgs, draft_topk};
use crate::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use crate::kernels::mailbox::Mailbox;

/// Heads, the states that they read, and the children of the present round.
pub(super) struct HeadsProposer {
    device: Device,
    pub heads: Medusa,
    /// Tapped streams of the last target pass, `[rows, hidden]`.
    pub taps: Tensor,
    /// By slot, the state of the position before the root: `[sequence slots, hidden]`.
    states: Tensor,
    /// The states of a round's sequences, `[sequences, hidden]`.
    gathered: Tensor,
    /// Rows of `taps` to remember and their slots, `[sequences, 2]`, and slots of a pass, which kernels read where they are; a commit and the
    /// next round's pass are issued without a wait between them, so each has a buffer of its own.
    taken: PinnedBuffer<i32>,
    slots: PinnedBuffer<i32>,
    /// Of every row of scores its sequence's slot and the position that its children are drawn at: i32 `[heads * sequences, 2]`, which the kernel reads
    /// where they are.
    foreseen: PinnedBuffer<i32>,
    /// How sequences sample, by slot, U8 `[sequences, 24]`, where drafts are coupled with draws.
    pub sampling: Option<Tensor>,
    /// A root has probability 1: zeros, f32 `[heads * sequences]`.
    root_logp: Tensor,
    /// Children of the round: head by head, sequence by sequence, `top_k` each; i32 tokens, f32 log-probabilities of themselves and their paths.
    tokens: Tensor,
    logp: Tensor,
    path_logp: Tensor,
    /// Index of the first of them, which is 0, and the ticket of their post; the kernel reads both where they are.
    call: PinnedBuffer<i32>,
    /// The host's copy of children.
    host_children: Mailbox,
    /// Sequences of the round that draft, in the order of the pass.
    drafting: Vec<u32>,
    /// Children of the latest level; none where they are the first head's and still on their way.
    level_tokens: Vec<i32>,
    level_logps: Vec<f32>,
}

impl HeadsProposer {
    pub fn new(
        device: &Device,
        heads: Medusa,
        max_rows: usize,
        max_sequences: usize,
        sampling: Option<Tensor>,
    ) -> Result<Self> {
        let (dtype, width) = (heads.dtype(), heads.tap_width());
        let most = heads.num_heads() * max_sequences;
        let uninit = |dtype, shape: &[usize]| Tensor::uninit(device, dtype, shape);
        Ok(Self {
            taps: uninit(dtype, &[max_rows, width])?,
            // Zeroed: the start-up sweep reads states that no pass has brought.
            states: Tensor::zeros(device, dtype, &[max_sequences, width])?,
            gathered: uninit(dtype, &[max_sequences, width])?,
            taken: PinnedBuffer::new(device, 2 * max_sequences)?,
            slots: PinnedBuffer::new(device, max_sequences)?,
            foreseen: PinnedBuffer::new(device, 2 * most)?,
            sampling,
            root_logp: Tensor::zeros(device, DType::F32, &[most])?,
            tokens: uninit(DType::I32, &[most * MAX_TOP_K])?,
            logp: uninit(DType::F32, &[most * MAX_TOP_K])?,
            path_logp: uninit(DType::F32, &[most * MAX_TOP_K])?,
            call: PinnedBuffer::new(device, 2)?,
            host_children: Mailbox::new(device, 2 * most * MAX_TOP_K)?,
            drafting: Vec::new(),
            level_tokens: Vec::new(),
            level_logps: Vec::new(),
            heads,
            device: device.clone(),
        })
    }

    /// Stores the states of the newest committed positions. `rows` lists (sequence slot, position, row of the last target pass); rows
    /// of a slot come in position order.
    pub fn remember(&mut self, rows: &[(usize, usize, usize)]) -> Result<()> {
        let is_newest = |&i: &usize| rows.get(i + 1).is_none_or(|next| next.0 != rows[i].0);
        let newest = (0..rows.len()).filter(is_newest).map(|i| rows[i]);
        let mut count = 0;
        for (staged, (slot, _, row)) in self.taken.as_mut_slice().chunks_exact_mut(2).zip(newest) {
            staged.copy_from_slice(&[row as i32, slot as i32]);
            count += 1;
        }
        let moves = self.taken.mapped().rows(0..2 * count).reshape(&[count, 2]);
        copy_rows(&self.device, CopyRowsArgs { src: &self.taps, moves: &moves, out: &self.states })
    }

    /// Runs a level. That of the roots runs the first `levels` heads, `place_of` giving each sequence's slot and the position of its root; later ones
    /// run nothing.
    pub fn run(
        &mut self,
        rows: &[FrontierRow],
        place_of: impl Fn(u32) -> (usize, usize),
        ranking: Ranking,
        levels: usize,
    ) -> Result<()> {
        self.level_tokens.clear();
        self.level_logps.clear();
        if rows[0].node == 0 {
            self.drafting.clear();
            self.drafting.extend(rows.iter().map(|row| row.sequence));
            return self.pass(rows.iter().map(|row| place_of(row.sequence)), ranking, levels);
        }
        let top_k = ranking.top_k;
        for row in rows {
            // Depth 0 is the root, whose children are the first head's.
            let place = self.drafting.iter().position(|&sequence| sequence == row.sequence);
            let place = place.expect("a node's root was run in the same round");
            let first = (usize::from(row.depth) * self.drafting.len() + place) * top_k;
            let children = first..first + top_k;
            let (tokens, logps) = self.host_children.wait_children()?;
            self.level_tokens.extend_from_slice(&tokens[children.clone()]);
            self.level_logps.extend_from_slice(&logps[children]);
        }
        Ok(())
    }

    /// The first `levels` heads over the states of sequences, of which `places` gives the slots and the positions of their roots; starts reading back
    /// the children.
    pub fn pass(
        &mut self,
        places: impl Iterator<Item = (usize, usize)>,
        Ranking { top_k, sampled, .. }: Ranking,
        levels: usize,
    ) -> Result<()> {
        let mut count = 0;
        let staged = self.slots.as_mut_slice().iter_mut().zip(self.foreseen.as_mut_slice().as_chunks_mut().0);
        for ((staged, foreseen), (slot, root)) in staged.zip(places) {
            *staged = slot as i32;
            *foreseen = [slot as i32, root as i32 + 1];
            count += 1;
        }
        let (index, features) = (self.slots.mapped().rows(0..count), self.gathered.rows(0..count));
        gather_rows(&self.device, GatherRowsArgs { src: &self.states, index: &index, out: &features })?;
        let heads = levels.min(self.heads.num_heads());
        let rows = heads * count;
        let scores = self.heads.forward(&features, heads)?;
        let scores = match self.sampling.clone().filter(|_| sampled) {
            Some(params) => {
                let foreseen = self.foreseen.as_mut_slice().as_chunks_mut().0;
                for row in count..rows {
                    // The head before it, a position further on.
                    let [slot, position] = foreseen[row - count];
                    foreseen[row] = [slot, position + 1];
                }
                let draws = self.foreseen.mapped().rows(0..2 * rows).reshape(&[rows, 2]);
                scores.couple(&self.device, self.heads.d2t(), (&draws, &params))?
            }
            None => scores,
        };
        let ticket = self.host_children.expect(2 * rows * top_k);
        self.call.as_mut_slice().copy_from_slice(&[0, ticket]);
        let call = self.call.mapped();
        let children = |all: &Tensor| all.rows(0..rows * top_k).reshape(&[rows, top_k]);
        draft_topk(
            &self.device,
            DraftTopkArgs {
                logits: &scores.logits,
                digests: &scores.digests,
                d2t: self.heads.d2t(),
                parent_logp: &self.root_logp.rows(0..rows),
                k: top_k,
                tokens: &children(&self.tokens),
                logp: &children(&self.logp),
                path_logp: &children(&self.path_logp),
                post: Some(self.host_children.children_post((rows, top_k), &call)),
            },
        )
    }

    /// The latest level's children, waiting for them if they are the first.
    pub fn read_children(&self) -> Result<(&[i32], &[f32])> {
        if !self.level_tokens.is_empty() {
            return Ok((&self.level_tokens, &self.level_logps));
        }
        self.host_children.wait_children()
    }
}
