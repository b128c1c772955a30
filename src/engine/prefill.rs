//! From prompt to first token: the prompt's rows in chunks at absolute positions, so that the bits of the cache do not
//! depend on who else is being served.

use std::time::Instant;

use crate::engine::Engine;
use crate::engine::pictures::Pictures;
use crate::engine::request::Request;
use crate::engine::round::Emission;
use crate::engine::sequence::{Sequence, SequenceId, SequenceStats};
use crate::error::Result;
use crate::image::Patches;
use crate::model::MAX_ROWS_PER_SEQUENCE;

impl Engine {
    /// Accepts a request; it runs once there is a place for it.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for a request that cannot be served (empty prompt, token outside the vocabulary, longer than the
    /// context).
    pub fn submit(&mut self, request: Request) -> Result<SequenceId> {
        let request = self.limits.check(request)?;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.queue.push_back((id, request));
        Ok(id)
    }

    pub(super) fn admit(&mut self) -> Result<()> {
        while let Some(slot) = self.sequences.iter().position(Option::is_none) {
            let Some((id, request)) = self.queue.pop_front() else { break };
            self.start(slot, id, request)?;
        }
        Ok(())
    }

    fn start(&mut self, slot: usize, id: SequenceId, request: Request) -> Result<()> {
        let eos = if request.ignore_eos { vec![] } else { self.model_config().eos_token_ids.clone() };
        let longest =
            (request.prompt.len() + request.max_new_tokens).min(self.max_context) + MAX_ROWS_PER_SEQUENCE;
        self.verifier.kv.reserve(slot, longest)?;
        if let Some(proposer) = &mut self.proposer {
            proposer.reserve(slot, longest).inspect_err(|_| self.verifier.kv.release(slot))?;
        }
        let prompt_len = request.prompt.len();
        let start = Instant::now();
        let pictures =
            self.encode_pictures(&request.prompt, &request.pictures).inspect_err(|_| self.release(slot))?;
        self.sequences[slot] = Some(Sequence {
            id,
            committed: request.prompt,
            pictures,
            prompt_len,
            max_new_tokens: request.max_new_tokens,
            sampling: request.sampling,
            weight: request.weight,
            eos,
            draft_len: 0,
            finished: None,
            stats: SequenceStats::default(),
        });
        let first = self.prefill(slot).inspect_err(|_| self.release(slot))?;
        self.times.stats.prefill_ms += start.elapsed().as_secs_f64() * 1e3;
        self.emit_first(slot, first);
        Ok(())
    }

    /// Runs the prompt of `slot` and returns the token drawn after it.
    fn prefill(&mut self, slot: usize) -> Result<i32> {
        // What the latest round has left to copy comes from buffers that are filled anew here.
        self.device.synchronize()?;
        let sampling = self.sequence(slot).sampling;
        self.verifier.set_sampling(slot, &sampling)?;
        let prompt_len = self.sequence(slot).committed.len();
        for start in (0..prompt_len).step_by(MAX_ROWS_PER_SEQUENCE) {
            let end = (start + MAX_ROWS_PER_SEQUENCE).min(prompt_len);
            let sequence = self.sequences[slot].as_ref().expect("the slot was just taken");
            let text = (&sequence.committed[..], &sequence.pictures);
            self.verifier.fill_chunk(slot, start..end, text, |position| position + 1 == prompt_len);
            self.run_target(end - start)?;
            self.feed_drafter(slot, start..end)?;
        }
        let first = self.verifier.read(&[], false)?[0].bonus;
        if let Some(sequence) = &mut self.sequences[slot] {
            sequence.pictures.forget_embeddings();
        }
        Ok(first)
    }

    /// What a text of the expanded `prompt` sees.
    pub(super) fn encode_pictures(&self, prompt: &[i32], pictures: &[Patches]) -> Result<Pictures> {
        Pictures::encode(self.model_config(), self.vision.as_ref(), prompt, pictures)
    }

    /// Gives the drafter the features of a prompt chunk and runs the pairs whose second token is known.
    fn feed_drafter(&mut self, slot: usize, chunk: std::ops::Range<usize>) -> Result<()> {
        let feeds = self.feeds_drafter();
        let Some(proposer) = self.proposer.as_mut().filter(|_| feeds) else {
            return self.device.synchronize();
        };
        let rows: Vec<_> = chunk.clone().enumerate().map(|(row, position)| (slot, position, row)).collect();
        proposer.remember(&rows)?;
        self.device.synchronize()?;
        let Some(drafting) = proposer.network_mut() else { return Ok(()) };
        while let Some(sequence) = &mut self.sequences[slot] {
            let known = chunk.end.min(sequence.committed.len() - 1);
            let count = (known - sequence.draft_len).min(MAX_ROWS_PER_SEQUENCE);
            if count == 0 {
                break;
            }
            drafting.catch_up(&[(slot, &*sequence)], |_| count, None)?;
            sequence.draft_len += count;
            self.device.synchronize()?;
        }
        Ok(())
    }

    fn emit_first(&mut self, slot: usize, token: i32) {
        let Some(sequence) = &mut self.sequences[slot] else { return };
        let count = sequence.commit(&[token]);
        let emission = Emission {
            sequence: sequence.id,
            tokens: vec![token; count],
            accepted: 0,
            logprobs: Vec::new(),
            stats: sequence.stats,
            finished: sequence.finished,
        };
        if emission.finished.is_some() {
            self.release(slot);
        }
        self.pending.push(emission);
    }
}
