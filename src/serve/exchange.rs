//! Around every request: a name for it, a line in the log, a count. Nothing that a client wrote is logged but that name and the path.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, State};
use axum::http::{HeaderName, HeaderValue, Request};
use axum::middleware::Next;
use axum::response::Response;

use super::app::App;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name that is taken from a client.
const MAX_ID_BYTES: usize = 64;

/// Names a request: what the client sent as `x-request-id`, or a random one.
#[derive(Clone)]
pub(super) struct RequestId(pub String);

/// Names, counts and logs.
pub(super) async fn record(State(app): State<Arc<App>>, mut request: Request<Body>, next: Next) -> Response {
    let began = Instant::now();
    let id = client_id(&request).unwrap_or_else(random_id);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| route(path.as_str()));
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER, value);
    }
    let status = response.status().as_u16();
    let route = route.unwrap_or("other");
    app.counters.count_answer(route, status);
    let ms = began.elapsed().as_millis() as u64;
    match route {
        "/health" | "/ready" | "/metrics" | "/stats" => {
            tracing::debug!(request_id = id, %method, path = route, status, ms, "answered");
        }
        _ => tracing::info!(request_id = id, %method, path = route, status, ms, "answered"),
    }
    response
}

/// The route as counters know it.
fn route(path: &str) -> &'static str {
    super::routes::PATHS.iter().find(|known| **known == path).copied().unwrap_or("other")
}

fn client_id(request: &Request<Body>) -> Option<String> {
    let id = request.headers().get(HEADER)?.to_str().ok()?;
    let fits = !id.is_empty()
        && id.len() <= MAX_ID_BYTES
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    fits.then(|| id.to_owned())
}

/// 16 bytes of randomness; without a source of it, of time and count.
fn random_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        bytes[..8].copy_from_slice(&super::unix_seconds().to_be_bytes());
        bytes[8..].copy_from_slice(&count.to_be_bytes());
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
