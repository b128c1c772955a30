//! Who may ask: API keys, names of this server, and pages of other origins.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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

/// Lets a request pass that calls this server by a name that is its own. A page of another site can make its own name lead to this machine
/// and then reads answers as if they were its site's; but it cannot choose another `Host` than that name.
pub(super) async fn check_host(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Result<Response, ApiError> {
    let config = &app.config;
    if !config.address.ip().to_canonical().is_loopback() && config.allowed_hosts.is_empty() {
        return Ok(next.run(request).await);
    }
    let named = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
    // A whole URL in the place of the path names a host, too.
    let named: Vec<&str> =
        named.chain(request.uri().authority().map(|authority| authority.as_str())).collect();
    match named.iter().find(|host| !is_own_name(host, &config.allowed_hosts)) {
        None if !named.is_empty() => Ok(next.run(request).await),
        foreign => Err(ApiError::foreign_host(foreign.copied().unwrap_or_default())),
    }
}

/// Whether `host`, with or without a port, is the loopback's or one of `allowed`.
fn is_own_name(host: &str, allowed: &[String]) -> bool {
    let bare = match host.rsplit_once(':') {
        Some((bare, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => bare,
        _ => host,
    };
    let is_loopback = match bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse().is_ok_and(|address: Ipv6Addr| IpAddr::V6(address).is_loopback()),
        None => bare.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback()),
    };
    is_loopback
        || bare.eq_ignore_ascii_case("localhost")
        || allowed.iter().any(|known| known.eq_ignore_ascii_case(bare))
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
    fn names_of_the_loopback_and_those_allowed_are_its_own() {
        let allowed = ["box.example".to_owned(), "[fd00::7]".to_owned()];
        for own in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.8.0.9",
            "[::1]",
            "[::1]:8080",
            "box.example",
            "BOX.example:443",
            "[fd00::7]:80",
        ] {
            assert!(is_own_name(own, &allowed), "{own}");
        }
        for foreign in [
            "",
            ":80",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example@localhost",
            "localhost:80:80",
            "localhost:x",
            "::1",
            "[::1",
            "[::2]",
            "192.168.0.1",
            "0.0.0.0",
            "box.example.evil",
        ] {
            assert!(!is_own_name(foreign, &allowed), "{foreign}");
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
