//! `GET /openapi.json`: what the server answers, as an OpenAPI 3.2 document.

use axum::response::Response;
use serde_json::Value;

use super::errors::{ApiError, json_response};

const DOCUMENT: &str = include_str!("openapi.json");

pub(super) async fn document() -> Result<Response, ApiError> {
    let mut document: Value = serde_json::from_str(DOCUMENT)
        .map_err(|error| ApiError::internal(format!("the document is broken: {error}")))?;
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    Ok(json_response(&document))
}
