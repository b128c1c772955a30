//! [`Request`]: what a caller asks of an engine.

use std::sync::Arc;

use crate::config::ModelConfig;
use crate::engine::pictures::expand_prompt;
use crate::error::{Error, Result};
use crate::image::Patches;
use crate::sampling::{Penalties, SamplingParams};
use crate::text::Grammar;

/// Most alternatives reported beside an emitted token.
pub const MAX_TOP_LOGPROBS: usize = 20;
/// Most tokens with a bias of their own.
pub const MAX_LOGIT_BIASES: usize = 1024;

/// What a caller asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Prompt token ids; at least one. A picture stands as one placeholder token, or as a run of its length.
    pub prompt: Vec<i32>,
    /// The prompt's pictures, in order. Requests that are cloned share them. They are held until the text has ended, as its keys and values may
    /// have to be made anew in any round.
    pub pictures: Vec<Patches>,
    /// Tokens to emit at most.
    pub max_new_tokens: usize,
    /// Tokens to emit at least: until then no end-of-sequence or stop token is drawn, unless the grammar leaves nothing else. At most
    /// `max_new_tokens`.
    pub min_new_tokens: usize,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// What repeating a token costs.
    pub penalties: Penalties,
    /// Added to the logits of tokens, each token at most once; at most [`MAX_LOGIT_BIASES`]. Minus infinity bans a token.
    pub logit_bias: Vec<(i32, f32)>,
    /// What the text must keep to; it ends where the grammar lets it end and the model draws an end-of-sequence token, or where nothing more
    /// may follow.
    pub grammar: Option<Grammar>,
    /// With `Some(n)` every emitted token comes with its log-probability and the `n` likeliest tokens in its place, at most
    /// [`MAX_TOP_LOGPROBS`].
    pub logprobs: Option<usize>,
    /// Tokens that end the text, beside the model's own end-of-sequence tokens; as those they are not emitted.
    pub stop_tokens: Vec<i32>,
    /// Keep going past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// What a token of this request is worth to the `smart` policy relative to those of the requests beside it; finite and above 0. An urgent
    /// one gets more of the shared pass. 1 for all is throughput.
    pub weight: f32,
    /// Whether the engine's policy may draft for it. The tokens are the same.
    pub speculation: bool,
}

impl Request {
    /// `prompt`, continued greedily by at most `max_new_tokens`.
    pub fn new(prompt: Vec<i32>, max_new_tokens: usize) -> Self {
        Self {
            prompt,
            pictures: Vec::new(),
            max_new_tokens,
            min_new_tokens: 0,
            sampling: SamplingParams::default(),
            penalties: Penalties::default(),
            logit_bias: Vec::new(),
            grammar: None,
            logprobs: None,
            stop_tokens: Vec::new(),
            ignore_eos: false,
            weight: 1.0,
            speculation: true,
        }
    }

    /// Whether a model of `vocab_size` tokens can serve this, its placeholders expanded, in a context of `max_context` tokens.
    ///
    /// # Errors
    /// [`Error::Input`]: an empty prompt, one that leaves no room, an id outside the vocabulary, nothing asked for, or
    /// a parameter out of range.
    pub fn validate(&self, vocab_size: usize, max_context: usize) -> Result<()> {
        let outside = |id: i32| usize::try_from(id).is_ok_and(|id| id < vocab_size).then_some(()).is_none();
        if self.prompt.is_empty() {
            return Err(Error::Input("the prompt is empty: at least one token is needed".into()));
        }
        if let Some(id) = self.prompt.iter().find(|&&id| outside(id)) {
            return Err(Error::Input(format!("prompt token {id} is outside the vocabulary of {vocab_size}")));
        }
        if self.prompt.len() >= max_context {
            return Err(Error::Input(format!(
                "the prompt has {} tokens, which leaves no room in the context of {max_context}",
                self.prompt.len()
            )));
        }
        if self.max_new_tokens == 0 {
            return Err(Error::Input("max_new_tokens is 0: ask for at least one token".into()));
        }
        if self.min_new_tokens > self.max_new_tokens {
            return Err(Error::Input(format!(
                "min_new_tokens is {}, more than max_new_tokens, which is {}",
                self.min_new_tokens, self.max_new_tokens
            )));
        }
        if !(self.weight.is_finite() && self.weight > 0.0) {
            return Err(Error::Input(format!("weight is {}: it should be finite and above 0", self.weight)));
        }
        if let Some(id) = self.stop_tokens.iter().find(|&&id| outside(id)) {
            return Err(Error::Input(format!("stop token {id} is outside the vocabulary of {vocab_size}")));
        }
        if self.logprobs.is_some_and(|count| count > MAX_TOP_LOGPROBS) {
            return Err(Error::Input(format!("logprobs must be at most {MAX_TOP_LOGPROBS} alternatives")));
        }
        self.validate_bias(outside)?;
        self.penalties.validate()?;
        self.sampling.validate()
    }

    fn validate_bias(&self, outside: impl Fn(i32) -> bool) -> Result<()> {
        if self.logit_bias.len() > MAX_LOGIT_BIASES {
            return Err(Error::Input(format!(
                "logit_bias names {} tokens: at most {MAX_LOGIT_BIASES} are possible",
                self.logit_bias.len()
            )));
        }
        let mut seen = std::collections::HashSet::new();
        for &(id, bias) in &self.logit_bias {
            if outside(id) {
                return Err(Error::Input(format!("logit_bias token {id} is outside the vocabulary")));
            }
            if bias.is_nan() || bias == f32::INFINITY {
                return Err(Error::Input(format!(
                    "logit_bias of token {id} is {bias}: it should be a number"
                )));
            }
            if !seen.insert(id) {
                return Err(Error::Input(format!("logit_bias names token {id} twice")));
            }
        }
        Ok(())
    }
}

/// What an engine can serve, for who checks requests elsewhere than on its thread.
#[derive(Clone, Debug)]
pub struct RequestLimits {
    pub(super) config: Arc<ModelConfig>,
    /// Longest context (prompt and emitted tokens) of a request.
    pub max_context: usize,
}

impl RequestLimits {
    /// The target's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The request as it will be served: its placeholders expanded, no more asked for than the context holds.
    ///
    /// # Errors
    /// [`Error::Input`] for one that cannot be served; see [`Request::validate`].
    pub fn check(&self, request: Request) -> Result<Request> {
        let prompt = expand_prompt(&self.config, &request.prompt, &request.pictures)?;
        let request = Request { prompt, ..request };
        request.validate(self.config.geometry.vocab_size, self.max_context)?;
        // Were a round to find the end of the context, the text would depend on the tree that reached beyond it.
        let room = self.max_context - request.prompt.len();
        let max_new_tokens = request.max_new_tokens.min(room);
        Ok(Request { max_new_tokens, min_new_tokens: request.min_new_tokens.min(max_new_tokens), ..request })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_served_is_named() {
        let refused = |change: fn(&mut Request), what: &str| {
            let mut request = Request::new(vec![1, 2], 4);
            change(&mut request);
            let error = request.validate(10, 8).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(what), "{error}");
        };
        assert!(Request::new(vec![1, 2], 4).validate(10, 8).is_ok());
        refused(|r| r.prompt.clear(), "empty");
        refused(|r| r.prompt[0] = -1, "prompt token -1");
        refused(|r| r.prompt[0] = 10, "prompt token 10");
        refused(|r| r.prompt.resize(8, 1), "no room");
        refused(|r| r.max_new_tokens = 0, "max_new_tokens");
        refused(|r| r.min_new_tokens = 5, "min_new_tokens");
        refused(|r| r.weight = f32::NAN, "weight");
        refused(|r| r.stop_tokens.push(10), "stop token 10");
        refused(|r| r.logprobs = Some(21), "logprobs");
        refused(|r| r.logit_bias = vec![(10, 0.0)], "logit_bias token 10");
        refused(|r| r.logit_bias = vec![(1, f32::NAN)], "logit_bias");
        refused(|r| r.logit_bias = vec![(1, f32::INFINITY)], "logit_bias");
        refused(|r| r.logit_bias = vec![(1, 1.0), (1, 2.0)], "twice");
        refused(|r| r.logit_bias = (0..1025).map(|i| (i, 0.0)).collect(), "1025 tokens");
        refused(|r| r.penalties.repetition = 0.0, "repetition");
        refused(|r| r.sampling.top_p = 2.0, "--top-p");
    }
}
