//! What watchers and clients ask of the server itself: `/health`, `/ready`, `/v1/models`, `/stats`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::app::{App, Serving};
use super::errors::{ApiError, json_response};

/// Whether the process is worth keeping: 503 once it can never answer again.
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    match app.failure() {
        None => Ok(json_response(&json!({"status": "ok"}))),
        Some(reason) => Err(ApiError::unavailable("failed", format!("the engine has stopped: {reason}"))),
    }
}

/// Whether requests are taken: 503 while the model loads, while the server shuts down, and after a failure.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.serving().map(|_| json_response(&json!({"status": "ready"})))
}

/// The models served: one.
pub(super) async fn models(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    Ok(json_response(&json!({"object": "list", "data": [model_json(&serving)]})))
}

/// One of them.
pub(super) async fn model(
    State(app): State<Arc<App>>,
    Path(asked): Path<String>,
) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    if asked == serving.model.name {
        Ok(json_response(&model_json(&serving)))
    } else {
        Err(ApiError::no_such_model(&asked, &serving.model.name))
    }
}

fn model_json(serving: &Serving) -> Value {
    let facts = &serving.facts;
    json!({
        "id": serving.model.name,
        "object": "model",
        "created": facts.since,
        "owned_by": "smart-run",
        "max_model_len": serving.client.limits().max_context,
        "smart_run": {
            "chat": serving.model.chats(),
            "pictures": serving.model.images.is_some(),
            "tools": serving.model.tools.is_some(),
            "vocab_size": serving.client.limits().config().geometry.vocab_size,
            "drafter": facts.drafter,
            "policy": facts.policy,
            "dtype": facts.dtype,
            "device": facts.device,
            "max_sequences": facts.max_sequences,
        },
    })
}

/// The counters as they stand, for the page.
pub(super) async fn stats(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let Some(serving) = app.model() else {
        return app.serving().map(|_| json_response(&json!({})));
    };
    let snapshot = serving.client.snapshot();
    let sums = &snapshot.stats;
    Ok(json_response(&json!({
        "requests": snapshot.requests,
        "waiting": snapshot.waiting,
        "running": snapshot.running,
        "max_sequences": serving.facts.max_sequences,
        "emitted_tokens": snapshot.emitted_tokens,
        "pages": {"total": snapshot.pages.total, "used": snapshot.pages.used, "cached": snapshot.pages.cached},
        "rounds": sums.rounds,
        "sequence_rounds": sums.sequence_rounds,
        "decoded_tokens": sums.emitted_tokens,
        "accepted_tokens": sums.accepted_tokens,
        "nodes": sums.nodes,
        "decode_seconds": sums.decode_ms / 1e3,
        "tokens_per_second": sums.tokens_per_second(),
        "accepted_per_round": sums.mean_accepted_len(),
        "nodes_per_round": sums.mean_nodes(),
        "latest_round": {
            "predicted_seconds": snapshot.predicted_seconds,
            "measured_seconds": snapshot.measured_seconds,
            "speedup": snapshot.speedup,
        },
    })))
}
