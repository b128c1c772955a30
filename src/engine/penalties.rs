//! [`PenaltyState`]: what repetition costs the running sequences, and what they have repeated, on the device.

use crate::device::{DType, Device, Tensor};
use crate::engine::request::MAX_LOGIT_BIASES;
use crate::engine::sequence::Sequence;
use crate::error::Result;
use crate::kernels::penalties::{PenaliseArgs, PenaltyParams, count_tokens, penalise};
use crate::model::Pass;
use crate::sampling::Penalties;

/// Tokens counted in one launch.
const MAX_ENTRIES: usize = 4096;

pub(super) struct PenaltyState {
    device: Device,
    /// U8 `[slots, 16]`.
    params: Tensor,
    /// I32 `[slots, V]`; of slots without penalties what the last one with them left.
    counts: Tensor,
    /// I32 and f32 `[slots, MAX_LOGIT_BIASES]`.
    bias_tokens: Tensor,
    bias_values: Tensor,
    /// I32 `[MAX_ENTRIES, 3]`.
    entries: Tensor,
    /// By slot: whether its logits are changed, and whether its tokens are counted.
    changes: Vec<bool>,
    counted: Vec<bool>,
}

impl PenaltyState {
    pub fn new(device: &Device, vocab_size: usize, max_sequences: usize) -> Result<Self> {
        let none = vec![PenaltyParams::new(&Penalties::default(), 0); max_sequences];
        let uninit = |dtype, shape: &[usize]| Tensor::uninit(device, dtype, shape);
        Ok(Self {
            device: device.clone(),
            params: PenaltyParams::upload(device, &none)?,
            counts: uninit(DType::I32, &[max_sequences, vocab_size])?,
            bias_tokens: uninit(DType::I32, &[max_sequences, MAX_LOGIT_BIASES])?,
            bias_values: uninit(DType::F32, &[max_sequences, MAX_LOGIT_BIASES])?,
            entries: uninit(DType::I32, &[MAX_ENTRIES, 3])?,
            changes: vec![false; max_sequences],
            counted: vec![false; max_sequences],
        })
    }

    /// Prepares `slot` for a sequence; the device must have nothing left to do with the one before.
    pub fn set(&mut self, slot: usize, sequence: &Sequence) -> Result<()> {
        let request = &sequence.request;
        let params = PenaltyParams::new(&request.penalties, request.logit_bias.len());
        if !params.change_nothing() || self.changes[slot] {
            self.params.rows(slot..slot + 1).write(bytemuck::bytes_of(&params))?;
        }
        self.changes[slot] = !params.change_nothing();
        self.counted[slot] = !request.penalties.are_none();
        if params.change_nothing() {
            return Ok(());
        }
        for (i, &(token, bias)) in request.logit_bias.iter().enumerate() {
            self.bias_tokens.index(slot).rows(i..i + 1).write(&[token])?;
            self.bias_values.index(slot).rows(i..i + 1).write(&[bias])?;
        }
        // The kernel reads counts of every sequence that it changes, if only by a bias.
        self.counts.rows(slot..slot + 1).fill_bytes(0)?;
        let (prompt, emitted) = sequence.committed.split_at(request.prompt.len());
        self.count(slot, prompt, false)?;
        self.count(slot, emitted, true)
    }

    /// Counts tokens that a sequence has committed, if it is asked to.
    pub fn count(&self, slot: usize, tokens: &[i32], emitted: bool) -> Result<()> {
        if !self.counted[slot] {
            return Ok(());
        }
        for tokens in tokens.chunks(MAX_ENTRIES) {
            let entry = |&token: &i32| [slot as i32, token, i32::from(emitted)];
            let flat: Vec<i32> = tokens.iter().flat_map(entry).collect();
            let entries = self.entries.rows(0..tokens.len());
            entries.write(&flat)?;
            count_tokens(&self.device, &entries, &self.counts)?;
        }
        Ok(())
    }

    /// Whether the logits of `slot` are changed.
    pub fn changes(&self, slot: usize) -> bool {
        self.changes[slot]
    }

    /// Changes the logits of a pass, whose trees are those of its sequences.
    pub fn apply(&self, pass: &Pass, logits: &Tensor) -> Result<()> {
        if !self.changes[..pass.num_sequences()].contains(&true) {
            return Ok(());
        }
        let trees = pass.trees();
        penalise(
            &self.device,
            PenaliseArgs {
                logits,
                row_sequence: &pass.draw_sequences(),
                params: &self.params,
                counts: &self.counts,
                bias_tokens: &self.bias_tokens,
                bias_values: &self.bias_values,
                seq_start: &trees.seq_start,
                tokens: &trees.tokens,
                parents: &trees.parents,
            },
        )
    }
}
