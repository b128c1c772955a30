//! Dynamo's error types. Which one it is decides what the frontend does: it starts a request anew elsewhere when a worker is gone or full,
//! and tells the client of everything else.

use dynamo_backend_common::{BackendError, DynamoError, ErrorType};
use smart_run::Error;
use smart_run::service::{Client, Refusal};

/// What the client asked for cannot be had. This message alone gets to the client.
pub fn invalid(message: impl Into<String>) -> DynamoError {
    let message = message.into();
    let error_type = ErrorType::Backend(BackendError::InvalidArgument);
    DynamoError::builder().error_type(error_type).message(message.clone()).public_message(message).build()
}

/// This worker serves no more; another may.
pub fn shut_down(message: impl Into<String>) -> DynamoError {
    of(ErrorType::Backend(BackendError::EngineShutdown), message)
}

/// Anything else.
pub fn unknown(message: impl Into<String>) -> DynamoError {
    of(ErrorType::Backend(BackendError::Unknown), message)
}

/// Why a request was not accepted.
pub fn refused(refusal: Refusal) -> DynamoError {
    match refusal {
        Refusal::Invalid(error) => failed_with(error),
        Refusal::Full { .. } => of(ErrorType::WorkerOverloaded, refusal.to_string()),
        Refusal::ShuttingDown | Refusal::Stopped(_) => shut_down(refusal.to_string()),
    }
}

/// Why a request ended early. One that ended because the worker did can go on elsewhere.
pub fn ended_early(error: Error, client: &Client) -> DynamoError {
    match client.is_open() {
        true => failed_with(error),
        false => shut_down(error.to_string()),
    }
}

fn failed_with(error: Error) -> DynamoError {
    match error.is_input() {
        true => invalid(error.to_string()),
        false => unknown(error.to_string()),
    }
}

fn of(error_type: ErrorType, message: impl Into<String>) -> DynamoError {
    DynamoError::builder().error_type(error_type).message(message).build()
}
