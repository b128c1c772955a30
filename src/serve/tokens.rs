//! `POST /tokenize` and `POST /detokenize`: what a prompt is made of.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use serde_json::{Value, json};

use super::app::{App, Serving};
use super::body;
use super::completions::check_length;
use super::conversation::Conversation;
use super::errors::{ApiError, json_response};
use super::fields::{Fields, as_ids};

/// `{"prompt": text}` or `{"messages": [...]}`, one of them, to `{"tokens": ids}`.
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    let content = body::read(&app, request).await?;
    app.work(move || {
        let mut fields = Fields::parse(&content.bytes)?;
        check_model(&mut fields, &serving)?;
        let add_special = fields.flag("add_special_tokens")?.unwrap_or(true);
        let ids = match fields.text("prompt")? {
            Some(text) => {
                for other in ["messages", "tools"] {
                    if fields.take(other).is_some() {
                        let reason = format!("{other} and a prompt exclude each other");
                        return Err(ApiError::field(other, reason));
                    }
                }
                check_length(&text, "prompt", &serving)?;
                let ids = serving.model.tokenizer.encode(&text, add_special);
                ids.map_err(|error| ApiError::of("prompt", error))?
            }
            None => Conversation::read(&mut fields, &serving)?.prompt(&serving)?.0,
        };
        Ok(json_response(&json!({
            "tokens": ids, "count": ids.len(), "max_model_len": serving.client.limits().max_context,
        })))
    })
    .await
}

/// `{"tokens": ids}` to `{"prompt": text}`.
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    let content = body::read(&app, request).await?;
    app.work(move || {
        let mut fields = Fields::parse(&content.bytes)?;
        check_model(&mut fields, &serving)?;
        let ids = match fields.take("tokens") {
            Some(Value::Array(list)) => as_ids(&list),
            _ => None,
        };
        let ids = ids.ok_or_else(|| fields.wrong("tokens", "a list of token ids"))?;
        let text = serving.model.tokenizer.decode(&ids).map_err(|error| ApiError::of("tokens", error))?;
        Ok(json_response(&json!({"prompt": text})))
    })
    .await
}

fn check_model(fields: &mut Fields, serving: &Serving) -> Result<(), ApiError> {
    match fields.text("model")? {
        Some(asked) if asked != serving.model.name => {
            Err(ApiError::no_such_model(&asked, &serving.model.name))
        }
        _ => Ok(()),
    }
}
