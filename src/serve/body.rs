//! Reading a request's body: only JSON, only so much, only so long, and all bodies together within a budget.

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::app::App;
use super::errors::ApiError;

/// Permits of the budget are of this many bytes.
pub(super) const BUDGET_UNIT: usize = 1024;

/// A body that has been read, and its share of the memory for bodies.
pub(super) struct Content {
    pub bytes: Vec<u8>,
    share: Option<OwnedSemaphorePermit>,
}

/// Reads the body of `request`.
///
/// # Errors
/// 415 for a body that does not say that it is JSON, 413 for a long one, 408 for a slow one, 429 where other bodies fill the memory.
pub(super) async fn read(app: &App, request: Request<Body>) -> Result<Content, ApiError> {
    let content_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    // Pages of other sites can send text to a server on this machine, but JSON only with its leave.
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::with_status(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send JSON: the header Content-Type should be application/json",
        ));
    }
    let limit = app.config.max_body_bytes;
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if declared.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    let mut content = Content { bytes: Vec::new(), share: None };
    let mut chunks = request.into_body().into_data_stream();
    let all = async {
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| ApiError::invalid("the body ended early"))?;
            if content.bytes.len() + chunk.len() > limit {
                return Err(too_large(limit));
            }
            content.grow(app, content.bytes.len() + chunk.len())?;
            content.bytes.extend_from_slice(&chunk);
        }
        Ok(())
    };
    match timeout(app.config.body_timeout, all).await {
        Ok(read) => read.map(|()| content),
        Err(_) => Err(ApiError::with_status(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not arrive within {} s", app.config.body_timeout.as_secs()),
        )),
    }
}

impl Content {
    /// Sees to a share of the budget for `len` bytes.
    fn grow(&mut self, app: &App, len: usize) -> Result<(), ApiError> {
        let held = self.share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = len.div_ceil(BUDGET_UNIT).saturating_sub(held);
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let permit = app.body_budget.clone().try_acquire_many_owned(more).map_err(|_| {
            ApiError::busy("the requests being read fill the memory for bodies; try again", 1)
        })?;
        match &mut self.share {
            Some(share) => share.merge(permit),
            None => self.share = Some(permit),
        }
        Ok(())
    }
}

fn too_large(limit: usize) -> ApiError {
    ApiError::with_status(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is larger than {limit} bytes, which is what this server reads"),
    )
}
