//! The target's logits over a given text: for perplexity, and for comparison with other implementations.

use crate::engine::Engine;
use crate::engine::pictures::{Pictures, expand_prompt};
use crate::engine::request::Request;
use crate::error::{Error, Result};
use crate::image::Patches;
use crate::model::MAX_ROWS_PER_SEQUENCE;

impl Engine {
    /// The f32 logits `[tokens, vocab]` after every position of `prompt`, its placeholders expanded for `pictures`, row-major.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn score(&mut self, prompt: &[i32], pictures: &[Patches]) -> Result<Vec<f32>> {
        let tokens = expand_prompt(self.model_config(), prompt, pictures)?;
        let request = Request::new(tokens, 1);
        // Nothing is drawn, so the text may fill the context.
        request.validate(self.model_config().geometry.vocab_size, self.limits.max_context + 1)?;
        let Some(slot) = self.sequences.iter().position(Option::is_none) else {
            return Err(Error::Input("all places are taken; wait for a sequence to end".into()));
        };
        // What is under way would not be found again in the pass.
        self.ahead.forget();
        let tokens = request.prompt;
        let pictures = Pictures::encode(self.model_config(), self.vision.as_ref(), &tokens, pictures, 0)?;
        self.pool.reserve(slot, tokens.len())?;
        self.pool.upload()?;
        let scored = self.score_in(slot, &tokens, &pictures);
        self.pool.release(slot);
        scored
    }

    fn score_in(&mut self, slot: usize, tokens: &[i32], pictures: &Pictures) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        for start in (0..tokens.len()).step_by(MAX_ROWS_PER_SEQUENCE) {
            let end = (start + MAX_ROWS_PER_SEQUENCE).min(tokens.len());
            self.verifier.pass.clear();
            (0..slot).for_each(|_| self.verifier.pass.begin_sequence(0));
            self.verifier.fill_chunk((slot, &self.pool), start..end, (tokens, pictures), |_| true);
            logits.extend(self.verifier.forward(None)?.0.to_vec::<f32>()?);
        }
        Ok(logits)
    }
}
