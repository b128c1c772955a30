//! The target's logits over a given text: for perplexity, and for comparison with other implementations.

use crate::engine::Engine;
use crate::engine::sequence::Request;
use crate::error::{Error, Result};
use crate::model::MAX_ROWS_PER_SEQUENCE;
use crate::sampling::SamplingParams;

impl Engine {
    /// The f32 logits `[tokens.len(), vocab]` after every position of `tokens`, row-major.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn score(&mut self, tokens: &[i32]) -> Result<Vec<f32>> {
        let request = Request {
            prompt: tokens.to_vec(),
            max_new_tokens: 1,
            sampling: SamplingParams::default(),
            ignore_eos: true,
            weight: 1.0,
        };
        // Nothing is drawn, so the text may fill the context.
        request.validate(self.model_config().geometry.vocab_size, self.max_context + 1)?;
        let Some(slot) = self.sequences.iter().position(Option::is_none) else {
            return Err(Error::Input("all places are taken; wait for a sequence to end".into()));
        };
        self.verifier.kv.reserve(slot, tokens.len())?;
        let scored = self.score_in(slot, tokens);
        self.verifier.kv.release(slot);
        scored
    }

    fn score_in(&mut self, slot: usize, tokens: &[i32]) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        for start in (0..tokens.len()).step_by(MAX_ROWS_PER_SEQUENCE) {
            let end = (start + MAX_ROWS_PER_SEQUENCE).min(tokens.len());
            self.verifier.fill_chunk(slot, start..end, tokens, |_| true);
            logits.extend(self.verifier.forward(None)?.to_vec::<f32>()?);
        }
        Ok(logits)
    }
}
