//! [`ApiError`]: what a client is told when it is refused, in the shape that OpenAI's clients read.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::Error;

/// A refusal: `{"error": {"message", "type", "param", "code"}}` under a status.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiError {
    pub status: StatusCode,
    kind: &'static str,
    message: String,
    /// The field at fault, as in `messages[0].content`.
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which to try again.
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// 400: a request that cannot be read or served as it is.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::with_status(StatusCode::BAD_REQUEST, message)
    }

    /// 400 for the field `param`: a value out of range, of a wrong type, or missing.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), code: Some("invalid_value"), ..Self::invalid(message) }
    }

    /// 400 for a field that OpenAI's servers know and this one does not do.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::field(param, message) }
    }

    /// 400: prompt and answer do not fit.
    pub fn context_length(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::field(param, message) }
    }

    /// Another status for a request that is at fault.
    pub fn with_status(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        let message = "this server needs an API key: send it as a header, Authorization: Bearer KEY; the one sent, if any, is not valid";
        Self {
            code: Some("invalid_api_key"),
            ..Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
        }
    }

    /// 403 for a request to a host that this server is not.
    pub fn foreign_host(host: &str) -> Self {
        let host: String = host.chars().take(200).collect();
        let message = format!(
            "the request is for the host {host:?}, which this server does not go by: ask localhost, or allow the name with --allowed-host"
        );
        Self {
            code: Some("host_not_allowed"),
            ..Self::new(StatusCode::FORBIDDEN, "permission_error", message)
        }
    }

    /// 404 for a model that is not served.
    pub fn no_such_model(asked: &str, served: &str) -> Self {
        let asked: String = asked.chars().take(200).collect();
        Self {
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..Self::with_status(
                StatusCode::NOT_FOUND,
                format!("the model {asked:?} is not served here; {served:?} is"),
            )
        }
    }

    /// 429.
    pub fn busy(message: impl Into<String>, retry_after: u64) -> Self {
        Self {
            code: Some("rate_limit_exceeded"),
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
        }
    }

    /// 503 for as long as `code` says why.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable_error", message)
        }
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// What is wrong with the field `param`, of which the library says `error`. Paths of the server's files are left out.
    pub fn of(param: &str, error: Error) -> Self {
        match error {
            Error::Format { reason, .. } => Self::field(param, reason),
            error if error.is_input() => Self::field(param, error.to_string()),
            error => Self::internal(error.to_string()),
        }
    }

    /// `{"error": ...}`.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, json_headers(), self.body().to_string()).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// An answer of one JSON value.
pub(super) fn json_response(value: &Value) -> Response {
    (json_headers(), value.to_string()).into_response()
}

fn json_headers() -> [(header::HeaderName, &'static str); 1] {
    [(header::CONTENT_TYPE, "application/json")]
}
