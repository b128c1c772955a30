//! `GET /`: a page to talk with the model and watch its rounds.

use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};

use super::errors::ApiError;

const PAGE: &str = include_str!("page.html");
/// Where the page has its nonce.
const NONCE: &str = "{nonce}";

/// The page runs its own script and style and no other, and speaks with this server alone.
pub(super) async fn page() -> Result<Response, ApiError> {
    let nonce = getrandom::u64().map_err(|error| ApiError::internal(format!("no random nonce: {error}")))?;
    let nonce = format!("{nonce:016x}");
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = Html(PAGE.replace(NONCE, &nonce)).into_response();
    let policy = HeaderValue::try_from(policy).map_err(|error| ApiError::internal(error.to_string()))?;
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(response)
}
