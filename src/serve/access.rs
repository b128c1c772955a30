//! Who may ask: API keys, and pages of other origins.

use std::fmt;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};

use super::app::App;
use super::errors::ApiError;

/// A key that clients send. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key itself.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// Lets a request pass that has one of the keys, or any if there are none.
pub(super) async fn check_key(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Result<Response, ApiError> {
    let keys = &app.config.api_keys;
    if keys.is_empty() || bearer(request.headers()).is_some_and(|key| is_one_of(key, keys)) {
        Ok(next.run(request).await)
    } else {
        Err(ApiError::unauthorized())
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// Whether `key` is among `keys`, in a time that does not tell how much of one it matches.
fn is_one_of(key: &[u8], keys: &[ApiKey]) -> bool {
    let found = keys.iter().fold(Choice::from(0), |found, known| found | known.0.as_bytes().ct_eq(key));
    found.into()
}

/// Lets pages of the origins that are allowed read answers; without any, no header says so and no preflight is answered.
pub(super) async fn share(State(app): State<Arc<App>>, request: Request<Body>, next: Next) -> Response {
    let origin =
        request.headers().get(header::ORIGIN).and_then(|origin| allowed(origin, &app.config.cors_origins));
    let is_preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match &origin {
        Some(_) if is_preflight => preflight(),
        _ => next.run(request).await,
    };
    if !app.config.cors_origins.is_empty() {
        response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    }
    if let Some(origin) = origin {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    response
}

fn allowed(origin: &HeaderValue, origins: &[String]) -> Option<HeaderValue> {
    if origins.iter().any(|allowed| allowed == "*") {
        return Some(HeaderValue::from_static("*"));
    }
    origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, x-request-id"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_whole_of_one() {
        let keys = ["alpha", "beta"].map(ApiKey::new);
        assert!(!format!("{keys:?}").contains("alpha"));
        for (key, fits) in [
            ("alpha", true),
            ("beta", true),
            ("alph", false),
            ("alphabeta", false),
            ("", false),
            ("Beta", false),
        ] {
            assert_eq!(is_one_of(key.as_bytes(), &keys), fits, "{key}");
        }
    }

    #[test]
    fn a_bearer_is_told_from_other_schemes() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            bearer(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(of("Bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(of("bearer  abc "), Some(b"abc".to_vec()));
        assert_eq!(of("Basic abc"), None);
        assert_eq!(of("abc"), None);
    }
}
