//! Which path is answered by what.

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{get, post};

use super::app::App;
use super::errors::ApiError;
use super::{access, answers, chat, completions, exchange, metrics, openapi, page, probes, tokens};

/// All paths, as counters and the OpenAPI document name them.
pub(super) const PATHS: [&str; 12] = [
    "/",
    "/health",
    "/ready",
    "/metrics",
    "/stats",
    "/openapi.json",
    "/v1/models",
    "/v1/models/{*model}",
    "/v1/completions",
    "/v1/chat/completions",
    "/tokenize",
    "/detokenize",
];

/// The server without its connections.
pub(super) fn router(app: Arc<App>) -> Router {
    let with_key = Router::new()
        .route("/v1/models", get(probes::models))
        .route("/v1/models/{*model}", get(probes::model))
        .route("/v1/completions", post(answers::answer::<completions::Asked>))
        .route("/v1/chat/completions", post(answers::answer::<chat::Asked>))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route_layer(from_fn_with_state(app.clone(), access::check_key));
    Router::new()
        .route("/", get(page::page))
        .route("/health", get(probes::health))
        .route("/ready", get(probes::ready))
        .route("/metrics", get(metrics::metrics))
        .route("/stats", get(probes::stats))
        .route("/openapi.json", get(openapi::document))
        .merge(with_key)
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), access::share))
        .layer(from_fn_with_state(app.clone(), access::check_host))
        .layer(from_fn_with_state(app.clone(), exchange::record))
        .layer(map_response(harden))
        .with_state(app)
}

async fn no_such_path(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::with_status(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {path:?}; /openapi.json lists what there is"),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let method: String = method.as_str().chars().take(20).collect();
    ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not what {path:?} answers"))
}

/// No answer is anything but what its type says.
async fn harden(mut response: Response) -> Response {
    let nosniff = axum::http::HeaderValue::from_static("nosniff");
    response.headers_mut().insert("x-content-type-options", nosniff);
    response
}
