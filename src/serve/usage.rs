//! What an HTTP request took, over all its choices.

use serde_json::{Value, json};

use crate::service::Usage;

/// Adds a choice of `completion_tokens` to the `total`; its prompt only with `first`, as it counts once however many answers it has.
pub(super) fn add(total: &mut Usage, usage: &Usage, completion_tokens: usize, first: bool) {
    if first {
        total.prompt_tokens += usage.prompt_tokens;
        total.cached_tokens += usage.cached_tokens;
    }
    total.completion_tokens += completion_tokens;
    total.rounds += usage.rounds;
    total.drafted_tokens += usage.drafted_tokens;
    total.accepted_tokens += usage.accepted_tokens;
}

/// As OpenAI's answers have it, with the rounds under a name of its own.
pub(super) fn to_json(total: &Usage) -> Value {
    json!({
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": total.cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": total.accepted_tokens,
            "rejected_prediction_tokens": total.drafted_tokens.saturating_sub(total.accepted_tokens),
        },
        "smart_run": {
            "rounds": total.rounds,
            "drafted_tokens": total.drafted_tokens,
            "accepted_tokens": total.accepted_tokens,
            "accepted_per_round": total.accepted_tokens as f64 / (total.rounds as f64).max(1.0),
        },
    })
}
