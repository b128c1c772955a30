//! [`TotalUsage`]: what an HTTP request took, over all its choices.

use serde_json::{Value, json};

use crate::service::Usage;

/// Sums over the choices of a request; a prompt counts once, however many answers it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TotalUsage {
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub completion_tokens: usize,
    pub rounds: u64,
    pub drafted_tokens: u64,
    pub accepted_tokens: u64,
}

impl TotalUsage {
    /// Adds a choice of `completion_tokens`; its prompt only with `first`.
    pub fn add(&mut self, usage: &Usage, completion_tokens: usize, first: bool) {
        if first {
            self.prompt_tokens += usage.prompt_tokens;
            self.cached_tokens += usage.cached_tokens;
        }
        self.completion_tokens += completion_tokens;
        self.rounds += usage.rounds;
        self.drafted_tokens += usage.drafted_tokens;
        self.accepted_tokens += usage.accepted_tokens;
    }

    /// As OpenAI's answers have it, with the rounds under a name of its own.
    pub fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {
                "accepted_prediction_tokens": self.accepted_tokens,
                "rejected_prediction_tokens": self.drafted_tokens.saturating_sub(self.accepted_tokens),
            },
            "smart_run": {
                "rounds": self.rounds,
                "drafted_tokens": self.drafted_tokens,
                "accepted_tokens": self.accepted_tokens,
                "accepted_per_round": self.accepted_tokens as f64 / (self.rounds as f64).max(1.0),
            },
        })
    }
}
